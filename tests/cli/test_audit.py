"""`holdfast audit` on real runs: who is named, with which exit code, in which words, and without torch."""

from __future__ import annotations

import fcntl
import hashlib
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from holdfast.evidence.identity import load
from holdfast.experiment import Experiment
from holdfast.seeds import derive
from holdfast.verify.spotcheck import Sampling

SMALL: dict[str, Any] = {
    "model": "gpt2:layers=5,width=16,heads=2",
    "stages": 5,
    "steps": 3,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "seq_length": 8,
    "vocabulary": 300,
    "data": "synthetic",
}
ATTACKS = {
    "forward": ["sign-flip,stages=2"],
    "backward": ["gaussian,stages=1"],
    "framing": ["framing,stages=2,direction=both"],
    "equivocation": ["equivocation,stages=3"],
    "delivery": ["lie-on-direct,stages=2"],
    "whole-step": ["wrong-norm,stages=1", "wrong-update,stages=3"],
    "parent": ["wrong-parent,stages=2"],
    "two": ["sign-flip,stages=1", "framing,stages=3"],
}


def quick(names: Iterable[str], *few: str) -> list[Any]:
    """All names, those that are not among the `few` for the slow suite only."""
    return [name if name in few else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Directories of finished runs, made once each, with what the trainer blamed."""
    root, done = tmp_path_factory.mktemp("runs"), {}

    def make(name: str, **settings: Any) -> tuple[Path, Any]:
        if name not in done:
            result = Experiment(out=str(root / name), **{**SMALL, **settings}).run()
            done[name] = (root / name, result)
        return done[name]

    return make


def test_a_run_without_lies_is_clean(holdfast: Any, runs: Any) -> None:
    out, _ = runs("clean")
    outcome = holdfast("audit", str(out))
    assert outcome.code == 0
    assert "intact: every record is there" in outcome.out
    assert "No worker is proven guilty." in outcome.out
    lines = (out / "evidence.jsonl").read_bytes().count(b"\n")
    assert lines == 1 + SMALL["steps"] + 1 + 1, "an honest step costs one line, and so does what comes together at the end"


def test_the_draws_of_a_run_can_be_drawn_again(holdfast: Any, runs: Any) -> None:
    """From the secret that the log committed to at its beginning, each deployment by its number."""
    out, result = runs("drawn", defence="spot-check", check_steps=0.5, steps=4)
    events = [json.loads(line) for line in (out / "report.jsonl").read_text().splitlines()]
    checked = {(event["step"], event["stage"]) for event in events if event["event"] == "SpotChecked"}
    outcome = holdfast("audit", str(out), "--json")
    assert (outcome.code, result.rollbacks) == (0, 0)
    sampling = Sampling(derive(json.loads(outcome.out)["draws"]["secret"], "deployment", 0), steps=0.5)
    assert (
        checked == {(step, stage) for step in range(4) for stage in (1, 2, 3) if sampling.draws_step(step, 0, stage)} != set()
    )


@pytest.mark.parametrize("name", quick(ATTACKS, "forward", "delivery", "two"))
def test_exactly_the_liars_are_proven_guilty(holdfast: Any, runs: Any, name: str) -> None:
    out, result = runs(name, attack=ATTACKS[name])
    outcome = holdfast("audit", str(out), "--json")
    found = json.loads(outcome.out.splitlines()[-1])
    assert outcome.code == 1
    assert (found["status"], found["fault"]) == ("intact", "")
    counts = {worker: sum(kinds.values()) for worker, kinds in found["guilty"].items()}
    assert counts == dict(result.blamed_workers)
    assert set(counts) == LIARS[name]
    assert result.weights_digest == runs("clean")[1].weights_digest


LIARS = {
    "forward": {"w2"},
    "backward": {"w1"},
    "framing": {"w3"},
    "equivocation": {"w3"},
    "delivery": {"w2"},
    "whole-step": {"w1", "w3"},
    "parent": {"w2"},
    "two": {"w1"},
}


TROUBLE: dict[str, dict[str, Any]] = {
    "crash": {"attack": "sign-flip,stages=1", "faults": ["crash stage=2 step=1 at=backward"]},
    "late-crash": {"attack": "framing,stages=1,direction=both", "faults": ["crash stage=3 step=1 at=update"]},
    "restart": {"attack": "sign-flip,stages=2,direction=both", "on_alert": "restart"},
    "relay": {"attack": ["sign-flip,stages=1", "lie-on-direct,stages=3,header=false"], "on_alert": "relay"},
    "skip": {"attack": "sign-flip,stages=2", "on_alert": "skip"},
    "quarantine": {"attack": "sign-flip,stages=2", "defence": {"ban_policy": "quarantine"}},
    "ban": {"attack": "wrong-gradient,stages=2", "defence": {"ban_policy": "ban", "ban_after": 1}},
    "no-jump": {"attack": "other-input,stages=2", "defence": {"name": "duplicate-only"}},
    "withheld": {"attack": "withhold,stages=2,what=jump"},
}


@pytest.mark.parametrize("name", quick(TROUBLE, "crash", "quarantine", "no-jump"))
def test_whatever_happens_the_log_is_sound(holdfast: Any, runs: Any, name: str) -> None:
    """Takeovers, restarts, bypasses and bans: what is written always follows, and nobody is guilty who was not blamed."""
    out, result = runs(name, **TROUBLE[name])
    outcome = holdfast("audit", str(out), "--json")
    found = json.loads(outcome.out.splitlines()[-1])
    assert (found["status"], found["fault"]) == ("intact", "")
    assert found["guilty"].keys() == result.blamed_workers.keys()
    assert outcome.code == (1 if found["guilty"] else 0)
    assert len(found["disputes"]) > 0


def test_the_words_for_guilt_and_for_tampering_differ(holdfast: Any, runs: Any, tmp_path: Path) -> None:
    out, _ = runs("forward", attack=ATTACKS["forward"])
    told = holdfast("audit", str(out)).out
    assert "PROVEN GUILTY: w2, of 6 lies: false activation (6)" in told
    assert "tampered" not in told
    altered = tmp_path / "log"
    clean, _ = runs("clean")
    altered.write_bytes((clean / "evidence.jsonl").read_bytes().replace(b'"step":1', b'"step":7'))
    outcome = holdfast("audit", str(altered))
    assert outcome.code == 1
    assert "ALTERED: the log was tampered with" in outcome.out
    assert "No worker is proven guilty." in outcome.out
    altered.write_bytes((clean / "evidence.jsonl").read_bytes()[:-1])
    outcome = holdfast("audit", str(altered))
    assert outcome.code == 1
    assert "INCOMPLETE" in outcome.out


def test_one_dispute_in_plain_words(holdfast: Any, runs: Any) -> None:
    out, _ = runs("forward", attack=ATTACKS["forward"])
    told = holdfast("audit", str(out), "--explain", "2").out
    assert "log        intact" in told
    assert "\n\nDispute 2: forward of stage 2, step 0 micro-batch 1.\n" in told
    assert told.rstrip().endswith("Verdict: w2: false activation.")
    record = json.loads(holdfast("audit", str(out), "--json").out.splitlines()[-1])["disputes"][1]["records"][-1]
    assert holdfast("audit", str(out), "--explain", f"r{record}").out == told


@pytest.mark.parametrize("wanted", ["99", "0", "x", "r0", "-1", "r", "²"])
def test_a_dispute_that_is_not_there(holdfast: Any, runs: Any, wanted: str) -> None:
    out, _ = runs("forward", attack=ATTACKS["forward"])
    outcome = holdfast("audit", str(out), f"--explain={wanted}")
    assert outcome.code == 2
    assert "no such dispute" in outcome.err


def test_the_signer_can_be_pinned(holdfast: Any, runs: Any) -> None:
    out, _ = runs("clean")
    told = holdfast("audit", str(out)).out
    assert "an unpinned key" in told
    signer = json.loads(holdfast("audit", str(out), "--json").out)["signer"]
    outcome = holdfast("audit", str(out), "--key", signer)
    assert outcome.code == 0
    assert "(the pinned key)" in outcome.out
    for more in ([], ["--explain", "1"]):
        outcome = holdfast("audit", str(out), "--key", "0" * 64, *more)
        assert outcome.code == 1
        told = outcome.out.splitlines()
        assert told[0] == "NOT SIGNED BY THIS KEY: nothing in this log counts for a run of the key that was given"
        assert told[1:3] == [f"signed by  {signer}", f"given      {'0' * 64}"]
        assert "No worker is proven guilty" not in outcome.out
    assert holdfast("audit", str(out), "--key", signer[:16]).code == 2
    assert holdfast("audit", str(out), "--key", "z" * 64).code == 2


def test_the_log_of_a_simulation_can_have_a_real_key(holdfast: Any, runs: Any, tmp_path: Path) -> None:
    out, result = runs("keyed", output={"key": str(tmp_path / "key")})
    assert result.weights_digest == runs("clean")[1].weights_digest
    outcome = holdfast("audit", str(out), "--key", load(tmp_path / "key").fingerprint)
    assert outcome.code == 0
    assert "the workers' keys follow from the run's seed: a simulation\n" in outcome.out
    assert "all keys follow from the run's seed" in holdfast("audit", str(runs("clean")[0])).out


def test_no_log_is_a_wrong_argument(holdfast: Any, tmp_path: Path) -> None:
    outcome = holdfast("audit", str(tmp_path))
    assert outcome.code == 2
    assert "no evidence log at" in outcome.err


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is empty"),
        (b"hello\n", "is no evidence log"),
        (bytes(range(256)), "is no evidence log"),
        (b"[[[", "is no evidence log"),
    ],
    ids=["empty", "text", "binary", "nested"],
)
def test_nobody_tampered_with_what_is_no_log(holdfast: Any, tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "evidence.jsonl").write_bytes(content)
    outcome = holdfast("audit", str(tmp_path))
    assert (outcome.code, outcome.out) == (2, "")
    assert told in outcome.err


def test_one_line_that_is_a_record_makes_it_a_log(holdfast: Any, runs: Any, tmp_path: Path) -> None:
    lines = (runs("clean")[0] / "evidence.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"hello\n" + lines[1])
    assert "ALTERED" in holdfast("audit", str(tmp_path / "log")).out
    (tmp_path / "log").write_bytes(lines[0][:50])
    outcome = holdfast("audit", str(tmp_path / "log"))
    assert outcome.code == 1
    assert "truncated in its first record" in outcome.out
    assert "unpinned" not in outcome.out


def test_the_log_of_a_run_that_is_going_on_is_not_called_cut(holdfast: Any, tmp_path: Path) -> None:
    told = []

    def look(event: Any, _seconds: float) -> None:
        if type(event).__name__ == "StepSealed" and event.step == 1:
            told.append((holdfast("audit", str(tmp_path / "run")), holdfast("audit", str(tmp_path / "run"), "--json")))

    Experiment(out=str(tmp_path / "run"), observers=[look], **SMALL).run()
    ((page, record),) = told
    assert page.code == record.code == 5
    assert "a run is going on here" in page.out
    assert "So far: what is said above rests on" in page.out
    assert "killed" not in page.out
    assert json.loads(record.out)["live"] is True
    last = json.loads(record.out)["last"]
    assert f"last       {last}" in page.out
    assert holdfast("audit", str(tmp_path / "run"), "--since", last).code == 0
    assert f"last       {last}" not in holdfast("audit", str(tmp_path / "run")).out


def test_a_log_that_is_cut_short_is_no_live_one(holdfast: Any, runs: Any, tmp_path: Path) -> None:
    """Whoever holds it open makes it look like the log of a run that goes on: who has seen more of it sees that."""
    whole = (runs("clean")[0] / "evidence.jsonl").read_bytes()
    lines, cut = whole.splitlines(keepends=True), tmp_path / "evidence.jsonl"
    cut.write_bytes(b"".join(lines[:-3]))
    assert holdfast("audit", str(cut)).code == 1
    seen = json.loads(holdfast("audit", str(runs("clean")[0]), "--json").out)["last"]
    inside = hashlib.sha256(lines[-5].rstrip(b"\n")).hexdigest()
    with cut.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert holdfast("audit", str(cut)).code == 5
        assert "this machine's word" in holdfast("audit", str(cut)).out
        assert holdfast("audit", str(cut), "--since", inside).code == 5
        outcome = holdfast("audit", str(cut), "--since", seen)
        assert outcome.code == 1
        assert "the last record of the earlier audit is not in it" in outcome.out


def test_a_live_log_that_proves_a_lie_is_a_finding(holdfast: Any, runs: Any, tmp_path: Path) -> None:
    lines = (runs("forward", attack=ATTACKS["forward"])[0] / "evidence.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "log").write_bytes(b"".join(lines[:-1]))
    with (tmp_path / "log").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert holdfast("audit", str(tmp_path / "log")).code == 1


@pytest.mark.parametrize("given", ["", "12", "x" * 64])
def test_what_was_seen_before_is_a_hash(holdfast: Any, runs: Any, given: str) -> None:
    outcome = holdfast("audit", str(runs("clean")[0]), "--since", given)
    assert outcome.code == 2
    assert "64 hex digits" in outcome.err


def test_without_a_defence_there_is_no_evidence(runs: Any) -> None:
    out, result = runs("bare", defence="none")
    assert not (out / "evidence.jsonl").exists()
    assert result.weights_digest == runs("clean")[1].weights_digest, "signing changes no bit"


def test_the_audit_of_a_dispute_loads_no_torch(runs: Any) -> None:
    out, _ = runs("forward", attack=ATTACKS["forward"])
    program = (
        "import sys\n"
        "from holdfast.cli.main import main\n"
        "try:\n    main(['audit', sys.argv[1], *sys.argv[2:]])\n"
        "except SystemExit as left:\n    print(left.code)\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'rich'} & set(sys.modules)))\n"
    )
    for more in ([], ["--json"], ["--explain", "1"]):
        done = subprocess.run([sys.executable, "-c", program, str(out), *more], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-2:] == ["1", "[]"], done.stdout


def test_a_rolled_back_and_a_resumed_run_are_one_story(holdfast: Any, tmp_path: Path) -> None:
    """Two neighbours die (a rollback), and the finished run is trained on."""
    settings = {**SMALL, "stages": 6, "model": "gpt2:layers=6,width=16,heads=2", "attack": "sign-flip,stages=4"}
    faults = ["crash stage=1 step=1", "crash stage=2 step=1"]
    first = Experiment(out=str(tmp_path), faults=faults, **settings).run()
    assert first.rollbacks == 1
    kinds = Counter(json.loads(line)["kind"] for line in (tmp_path / "evidence.jsonl").read_text().splitlines())
    assert (kinds["opening"], kinds["rollback"], kinds["closing"]) == (1, 1, 1)
    assert holdfast("audit", str(tmp_path), "--json").code == 1
    second = Experiment(resume=tmp_path, steps=4).run()
    found = json.loads(holdfast("audit", str(tmp_path), "--json").out.splitlines()[-1])
    assert (found["status"], found["version"], found["interruptions"]) == ("intact", 4, [])
    assert {worker: sum(kinds.values()) for worker, kinds in found["guilty"].items()} == dict(second.blamed_workers)
