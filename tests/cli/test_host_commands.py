"""`holdfast invite`, `nodes` and `status` against a host that answers from real books, and where none runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.admission.control import ControlServer, control_path
from holdfast.admission.desk import invite_handler, nodes_handler
from holdfast.admission.invitations import Invitations
from holdfast.admission.invite import Invite
from holdfast.admission.roster import Offer, Roster
from holdfast.cli.host import CHECKPOINT_EVERY, _resolve
from holdfast.cli.invite import seconds
from holdfast.errors import ConfigError
from holdfast.evidence.identity import derived

HOST = derived(0, "host")
STATUS: dict[str, Any] = {
    "run": "run-1",
    "step": 7,
    "steps": 150,
    "state": "training",
    "stages": [{"stage": 0, "worker": "initiator", "shadow": None}, {"stage": 1, "worker": "w1", "shadow": "w2"}],
    "members": [
        {"name": "w1", "state": "accepted", "last_heard": 0.4, "speed": 12.5, "queue": 2},
        {"name": "w2", "state": "waiting", "last_heard": None, "speed": None, "queue": 0},
    ],
    "events": [{"time": 1_800_000_000.0, "text": "w1 came \x1b[31min [bold]"}],
}


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    roster = Roster(tmp_path / "roster.json")
    roster.enrol(b"1" * 32, Offer("cpu [red]", 2 << 30, 12.5, "x86-64", "127.0.0.1:9", "0.1.0", "2.13"), waiting=True)
    handlers = {
        "invite": invite_handler(Invitations(tmp_path / "invites.json"), ("127.0.0.1:7700",), HOST.fingerprint, "run-1"),
        "nodes": nodes_handler(roster),
        "status": lambda: STATUS,
    }
    with ControlServer(control_path(tmp_path), handlers):
        yield tmp_path


def test_an_invite_is_the_only_line_on_stdout(holdfast: Any, run: Path) -> None:
    made = holdfast("invite", str(run), "--uses", "3", "--ttl", "2h")
    assert made.code == 0
    assert Invite.parse(made.out).run == "run-1"
    assert made.out.count("\n") == 1
    assert "good 3 times until" in made.err
    assert made.out.strip() not in made.err


def test_invites_are_listed_and_revoked(holdfast: Any, run: Path) -> None:
    made = json.loads(holdfast("invite", str(run), "--json").out.splitlines()[-1])
    secret = Invite.parse(made["invite"]).secret
    assert holdfast("invite", str(run), "--revoke", made["id"]).out.startswith(f"invite {made['id']} is revoked")
    listed = holdfast("invite", str(run), "--list")
    assert made["id"] in listed.out
    assert "revoked" in listed.out
    assert secret.hex() not in listed.out + holdfast("invite", str(run), "--list", "--json").out
    wrong = holdfast("invite", str(run), "--revoke", "nothing")
    assert (wrong.code, "no such one" in wrong.err) == (2, True)


@pytest.mark.parametrize(
    "words", [("--list", "--revoke", "x"), ("--list", "--uses", "2"), ("--ttl", "soon"), ("--ttl", "0s"), ("--uses", "0")]
)
def test_wrong_invites_are_usage(holdfast: Any, run: Path, words: tuple[str, ...]) -> None:
    assert holdfast("invite", str(run), *words).code == 2


def test_nodes_are_listed_and_moved(holdfast: Any, run: Path) -> None:
    listed = holdfast("nodes", str(run))
    assert listed.code == 0
    for word in ("w1", "waiting", "2.0 GiB", "cpu [red]", "127.0.0.1:9"):
        assert word in listed.out
    assert holdfast("nodes", str(run), "accept", "w1").out == "w1 is accepted\n"
    found = json.loads(holdfast("nodes", str(run), "--json").out.splitlines()[-1])
    assert found["members"][0]["status"] == "accepted"
    moved = json.loads(holdfast("nodes", str(run), "quarantine", "w1", "--json").out.splitlines()[-1])
    assert moved["member"]["status"] == "quarantined"
    for words in (("accept", "w9"), ("accept",), ("hug", "w1")):
        assert holdfast("nodes", str(run), *words).code == 2


def test_status_is_a_page_or_an_object(holdfast: Any, run: Path) -> None:
    page = holdfast("status", str(run))
    assert page.code == 0
    for word in (
        "run run-1: training, step 7 of 150",
        "initiator",
        "w2",
        "0.4 s",
        "12.5 GFLOP/s",
        "2 B",
        "to be sent",
        "?[31min [bold]",
    ):
        assert word in page.out
    assert "\x1b" not in page.out
    assert json.loads(holdfast("status", str(run), "--json").out.splitlines()[-1]) == STATUS


@pytest.mark.parametrize("words", [("status",), ("nodes",), ("invite",), ("invite", "--list"), ("nodes", "accept", "w1")])
def test_where_no_host_runs_is_four(holdfast: Any, tmp_path: Path, words: tuple[str, ...]) -> None:
    outcome = holdfast(words[0], str(tmp_path), *words[1:])
    assert outcome.code == 4
    assert f"no host runs in {tmp_path}" in outcome.err


@pytest.mark.parametrize(
    ("text", "value"), [("90s", 90.0), ("30m", 1800.0), ("24h", 86400.0), ("1.5d", 129600.0), (" 7D ", 604800.0)]
)
def test_spans(text: str, value: float) -> None:
    assert seconds(text) == value


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1w", "1h30m", "1e3s"])
def test_what_is_no_span(text: str) -> None:
    with pytest.raises(ConfigError, match="--ttl"):
        seconds(text)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--set", "pipeline.engine=processes"), "the workers of a host are machines that join"),
        (("--set", "machines.expose_wire=true"), "has --expose"),
        (("--set", "training.step=3"), "training.step"),
        (("--stages", "2"), "nothing is left for other machines"),
        (("--engine", "processes"), "No such option: --engine"),
        (("--ray-address", "auto"), "No such option: --ray-address"),
        (("--expose-wire",), "No such option"),
    ],
)
def test_a_host_refuses_what_it_would_not_obey(holdfast: Any, tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[training]\nsteps = 3\n")
    outcome = holdfast("host", str(config), "--out", str(tmp_path / "run"), *words)
    assert outcome.code == 2
    assert told in " ".join(outcome.err.replace("│", " ").split())
    assert not (tmp_path / "run").exists()


def test_an_assignment_counts_for_a_host_after_file_and_options(tmp_path: Path) -> None:
    config = tmp_path / "run.toml"
    config.write_text("[optimizer]\nbeta2 = 0.9\n[training]\nsteps = 3\n")
    assignments = ["optimizer.beta2=0.95", "machines.return_s=5"]
    resolved, directory, resume = _resolve(config, {"steps": 4, "out": str(tmp_path / "run")}, assignments)
    assert (resolved.optimizer.beta2, resolved.training.steps, resolved.machines.return_s) == (0.95, 4, 5.0)
    assert (directory, resume) == (tmp_path / "run", None)


@pytest.mark.parametrize("every", [None, 0, 3])
def test_a_host_writes_checkpoints_as_its_help_says(tmp_path: Path, every: int | None) -> None:
    """Its help said that 0 is one at the end: that is what 0 means to `train`."""
    config = tmp_path / "run.toml"
    config.write_text("")
    resolved, _, _ = _resolve(config, {"checkpoint_every": every, "out": str(tmp_path / "run")}, [])
    assert resolved.output.checkpoint_every == (every or CHECKPOINT_EVERY)
