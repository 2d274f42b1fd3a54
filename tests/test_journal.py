"""The journal of commits: whole after a kill at any point, and refused where it is not this run's last word."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from holdfast.claim import StageState
from holdfast.comeback import STRAGGLERS_S, Comeback, Keeping, Seats, last_commit, seat
from holdfast.commits import cut_as
from holdfast.config import resolve
from holdfast.digest import same_bytes, state_digest
from holdfast.errors import CheckpointError, JournalRefused, StoppedWaiting
from holdfast.evidence.identity import derived
from holdfast.evidence.log import FILE, EvidenceLog
from holdfast.evidence.record import Rollback, Sealed
from holdfast.job import Job, prepare
from holdfast.journal import Commit, Journal
from holdfast.kept import Kept
from holdfast.route import plain_route
from holdfast.stage import INITIATOR

HOST = derived(0, "host")
NAMES = (INITIATOR, "w1", "w2", "w3", INITIATOR)


def state_of(stage: int, version: int) -> StageState:
    torch.manual_seed(100 * stage + version)
    weights = {"a.weight": torch.randn(3, 4), "b.bias": torch.randn(5).bfloat16()}
    return StageState(stage, version, version, weights, {"a.weight.exp_avg": torch.randn(3, 4)})


def commit_of(version: int, mark: tuple[int, bytes] = (0, b""), run: str = "run") -> Commit:
    digests = tuple(state_digest(state_of(stage, version)) for stage in range(5))
    cut = tuple((i, i + 1) for i in range(5))
    shadows = ("", "w2", "w3", INITIATOR, "")
    return Commit(run, version, 64 * version, cut, digests, NAMES, shadows, ("w1", "w2", "w3"), True, True, mark)


def own(version: int) -> dict[int, StageState]:
    return {stage: state_of(stage, version) for stage in (0, 4)}


def write(journal: Journal, version: int, **more: object) -> None:
    journal.write(commit_of(version, **more), own(version))  # type: ignore[arg-type]


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal", HOST)


class Sealing:
    """An evidence log with a journal beside it, as the coordinator writes them."""

    def __init__(self, tmp_path: Path) -> None:
        self.path = tmp_path / FILE
        self.log = EvidenceLog(self.path, HOST)
        self.journal = Journal(tmp_path / "journal", HOST)

    def seal(self, version: int, *, journaled: bool = True) -> None:
        self.log.append(Sealed(version, version - 1, 0, commit_of(version).digests))
        if journaled:
            write(self.journal, version, mark=self.log.sync())

    def close(self) -> None:
        self.log.close()

    def found(self, version: int = 0) -> Commit | None:
        return last_commit(self.journal, "run", self.path, version)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Sealing]:
    with closing(Sealing(tmp_path)) as sealing:
        yield sealing


def test_what_was_written_is_read(journal: Journal) -> None:
    assert journal.newest() is None
    for version in (1, 2, 3):
        write(journal, version)
    found = journal.newest()
    assert found is not None
    assert replace(found, number=0, updates={}) == commit_of(3)
    assert found.own == (0, 4)
    states = journal.states(found)
    for stage, state in own(3).items():
        assert states[stage].updates == 3
        for name, tensor in {**state.weights, **state.moments}.items():
            assert same_bytes({**states[stage].weights, **states[stage].moments}[name], tensor)
    assert (journal.count, journal.written_bytes > 0) == (3, True)


def test_only_the_last_two_stay(journal: Journal) -> None:
    for version in range(1, 6):
        write(journal, version)
    names = sorted(path.name for path in journal.directory.iterdir())
    assert names == ["commit-000004.json", "commit-000005.json", "states-000004.safetensors", "states-000005.safetensors"]
    write(Journal(journal.directory, HOST), 6)  # another life of the host
    assert len(list(journal.directory.iterdir())) == 4
    journal.clear()
    assert list(journal.directory.iterdir()) == []
    assert journal.newest() is None


def test_a_kill_at_any_point_leaves_a_whole_commit(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before each thing that the host does to the disk in turn it is killed; half of the states may be there."""
    points, last = 0, False
    while not last:
        points, left = points + 1, points + 1
        shutil.rmtree(journal.directory, ignore_errors=True)
        mortal = Journal(journal.directory, HOST)
        for version in (1, 2):
            write(mortal, version)

        def mortally(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*given: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    if original is save_file:
                        Path(given[1]).write_bytes(b"half of it")
                    raise KeyboardInterrupt
                return original(*given, **named)

            return call

        with monkeypatch.context() as patch:
            for place, original in (
                ("holdfast.journal.save_file", save_file),
                ("os.fsync", os.fsync),
                ("os.replace", os.replace),
                ("pathlib.Path.unlink", Path.unlink),
            ):
                patch.setattr(place, mortally(original))
            try:
                write(mortal, 3)
                last = True
            except KeyboardInterrupt:
                pass
        found = Journal(journal.directory, HOST).newest()
        assert found is not None
        assert found.version in (2, 3)
        assert journal.states(found).keys() == {0, 4}
        write(Journal(journal.directory, HOST), 4)
        assert len([path for path in journal.directory.iterdir() if path.name.startswith("states")]) == 2
    assert points > 7, "nothing was interrupted"


def test_a_full_disk_is_told_and_the_commit_before_stays(journal: Journal, monkeypatch: pytest.MonkeyPatch) -> None:
    write(journal, 1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", lambda _file: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(CheckpointError, match=r"No space left.*machines.journal = false"):
            write(journal, 2)
    found = journal.newest()
    assert found is not None
    assert found.version == 1
    assert journal.states(found).keys() == {0, 4}


def test_whatever_was_altered_is_refused(journal: Journal) -> None:
    write(journal, 1)
    path = journal.directory / "commit-000001.json"
    text = path.read_text()
    for cut in (0, 1, len(text) // 2, len(text) - 3):
        path.write_text(text[:cut])
        with pytest.raises(JournalRefused, match="torn or altered"):
            journal.newest()
    record = json.loads(text)
    for name, value in {"version": 2, "digests": [], "run": "other", "settled": False, "last_line": "zz"}.items():
        path.write_text(json.dumps({**record, "body": {**record["body"], name: value}}))
        with pytest.raises(JournalRefused, match="not signed by the key of this host"):
            journal.newest()
    path.write_text(text)
    path.rename(journal.directory / "commit-000009.json")
    with pytest.raises(JournalRefused, match="in the place of another"):
        journal.newest()


def test_the_journal_of_another_machine_is_refused(journal: Journal, tmp_path: Path) -> None:
    write(Journal(tmp_path / "journal", derived(1, "host")), 1)
    with pytest.raises(JournalRefused, match="comes from another machine"):
        journal.newest()


@pytest.mark.parametrize("damage", ["torn", "other", "gone"])
def test_states_that_are_not_the_sealed_ones_are_refused(journal: Journal, damage: str) -> None:
    for version in (1, 2):
        write(journal, version)
    newest = journal.directory / "states-000002.safetensors"
    match damage:
        case "torn":
            newest.write_bytes(newest.read_bytes()[:-10])
        case "other":
            shutil.copy(journal.directory / "states-000001.safetensors", newest)
        case "gone":
            newest.unlink()
    found = journal.newest()
    assert found is not None
    with pytest.raises(JournalRefused, match=r"does not hold the state of stage 0|missing, torn"):
        journal.states(found)


# -- held against the evidence log -------------------------------------------------------------------------------------


def test_the_last_word_of_the_run_is_believed(run: Sealing) -> None:
    run.seal(1)
    run.seal(2)
    assert run.found() is not None
    assert run.found(version=2) is None, "the checkpoint is of the same version"
    run.seal(3, journaled=False)  # killed between the two
    found = run.found()
    assert found is not None
    assert found.version == 2


def test_an_old_journal_is_refused(run: Sealing) -> None:
    run.seal(1)
    for version in (2, 3):
        run.seal(version, journaled=False)
    with pytest.raises(JournalRefused, match="the journal is old: it ends at version 1, and the run has sealed 2 steps since"):
        run.found()


def test_a_journal_that_a_rollback_has_left_behind_is_refused(run: Sealing) -> None:
    run.seal(1)
    run.log.append(Rollback("run/2", 0, plain_route(NAMES, [INITIATOR], shadowed=True)))
    with pytest.raises(JournalRefused, match="the run has gone on from version 0 since"):
        run.found()


def test_the_journal_of_another_run_is_refused(run: Sealing, tmp_path: Path) -> None:
    run.seal(1)
    with pytest.raises(JournalRefused, match="of another run"):
        last_commit(run.journal, "mine", run.path, 0)
    (tmp_path / "elsewhere").mkdir()
    with closing(Sealing(tmp_path / "elsewhere")) as other:
        for version in (1, 2):
            other.seal(version)
    with pytest.raises(JournalRefused, match="does not have the line"):
        last_commit(other.journal, "run", run.path, 0)
    with pytest.raises(JournalRefused, match="no evidence log"):
        last_commit(run.journal, "run", tmp_path / "none", 0)


def test_open_spot_checks_are_not_forgotten(run: Sealing) -> None:
    run.log.append(Sealed(1, 0, 0, commit_of(1).digests))
    run.journal.write(replace(commit_of(1, run.log.sync()), settled=False), own(1))
    with pytest.raises(JournalRefused, match="spot checks"):
        run.found()


# -- seats --------------------------------------------------------------------------------------------------------------

COMMIT = replace(commit_of(7), updates={0: 7, 4: 7})


def kept(*stages: int, commit: Commit = COMMIT) -> frozenset[tuple[int, bytes]]:
    return frozenset((stage, commit.digests[stage]) for stage in stages)


@pytest.mark.parametrize(
    ("keeping", "primaries"),
    [
        ({"w1": kept(1), "w2": kept(2, 1), "w3": kept(3, 2)}, NAMES),
        ({"w2": kept(2, 1), "w3": kept(3, 2)}, (INITIATOR, "w2", "w2", "w3", INITIATOR)),
        ({"w1": kept(1), "w3": kept(3, 2)}, (INITIATOR, "w1", "w3", "w3", INITIATOR)),
        ({"w1": kept(1), "w2": frozenset(), "w3": kept(3, 2)}, (INITIATOR, "w1", "w3", "w3", INITIATOR)),
        ({"w9": kept(1, 2, 3)}, (INITIATOR, "w9", "w9", "w9", INITIATOR)),
        ({"liar": kept(0, 1, 2, 3, 4), "w2": kept(2, 1), "w3": kept(3)}, (INITIATOR, "w2", "w2", "w3", INITIATOR)),
    ],
)
def test_who_keeps_a_stage_goes_on_with_it(keeping: Keeping, primaries: tuple[str, ...]) -> None:
    found = seat(COMMIT, keeping)
    assert isinstance(found, Seats)
    assert found.primaries == primaries
    assert found.holders[0] == found.holders[4] == (INITIATOR,), "nobody else is asked for the initiator's stages"


@pytest.mark.parametrize(
    ("keeping", "barred", "lacking"),
    [
        ({}, (), (1, 2, 3)),
        ({"w3": kept(3, 2)}, (), (1,)),
        ({"w1": kept(1), "w2": kept(2, 1), "w3": kept(3, 2)}, ("w2", "w3"), (2, 3)),
        ({"w1": kept(1, commit=commit_of(6)), "w2": kept(2), "w3": kept(3)}, (), (1,)),  # of another version
        ({"w1": frozenset({(1, b"anything")}), "w2": kept(2), "w3": kept(3)}, (), (1,)),
    ],
)
def test_a_stage_that_nobody_keeps_is_named(keeping: Keeping, barred: tuple[str, ...], lacking: tuple[int, ...]) -> None:
    assert seat(COMMIT, keeping, frozenset(barred)) == lacking


class Arrivals:
    """An engine to which machines come at their times, on a clock of its own."""

    def __init__(self, arrivals: dict[float, Keeping]) -> None:
        self.now = 0.0
        self._arrivals = arrivals

    def reunite(self, names: object, settled: object) -> None:
        keeping: dict[str, frozenset[tuple[int, bytes]]] = {}
        while True:
            for at, who in self._arrivals.items():
                keeping.update(who if at <= self.now else {})
            if settled(keeping):  # type: ignore[operator]
                return
            self.now += 1.0


@pytest.mark.parametrize(
    ("arrivals", "at"),
    [
        ({2.0: {"w1": kept(1)}, 5.0: {"w2": kept(2, 1), "w3": kept(3, 2)}}, 5.0),  # all are there: at once
        ({2.0: {"w2": kept(2, 1)}, 5.0: {"w3": kept(3, 2)}}, 5.0 + STRAGGLERS_S),  # every stage is held: a little more for w1
    ],
)
def test_it_waits_no_longer_than_it_must(arrivals: dict[float, Keeping], at: float) -> None:
    engine = Arrivals(arrivals)
    found = Comeback(engine, 60.0, clock=lambda: engine.now).find(COMMIT, {}, frozenset())
    assert engine.now == at
    assert found.workers[-2:] == ("w2", "w3")


@pytest.mark.parametrize(
    ("arrivals", "at"),
    [
        ({2.0: {"w1": kept(1), "w2": kept(2)}}, 60.0),
        ({2.0: {"w1": kept(1), "w2": kept(2, 1), "w3": frozenset()}}, 2.0),  # nobody is left who might have stage 3
    ],
)
def test_it_gives_up_in_the_time_that_was_set(arrivals: dict[float, Keeping], at: float) -> None:
    engine = Arrivals(arrivals)
    with pytest.raises(JournalRefused, match="keeps stage 3 as sealed in version 7"):
        Comeback(engine, 60.0, clock=lambda: engine.now).find(COMMIT, {}, frozenset())
    assert engine.now == at


def test_who_is_stopped_meanwhile_has_not_given_the_commit_up() -> None:
    engine = Arrivals({2.0: {"w1": kept(1)}})
    with pytest.raises(StoppedWaiting, match="waited for stages 2, 3 as sealed in version 7"):
        Comeback(engine, 60.0, lambda: engine.now >= 5.0, clock=lambda: engine.now).find(COMMIT, {}, frozenset())
    assert engine.now == 5.0


# -- what a machine keeps -----------------------------------------------------------------------------------------------


def test_what_is_kept_has_a_limit_and_an_end() -> None:
    first, second = state_of(1, 3), state_of(1, 4)
    holdings = [(state_digest(first), first), (state_digest(second), second)]
    everything = Kept(60.0)
    everything.take(holdings)
    assert everything.announced == ((1, holdings[0][0]), (1, holdings[1][0]))
    everything.take([])
    assert len(everything.holdings) == 2, "who was cut off again before it had anything still has it"
    everything.drop()
    assert everything.holdings == ()
    some = Kept(60.0, limit_bytes=150)
    some.take(holdings)
    assert len(some.holdings) == 1
    some.drop()
    nothing = Kept(0.0)
    nothing.take(holdings)
    assert nothing.holdings == ()


def test_what_is_kept_is_dropped_in_time() -> None:
    kept = Kept(0.05)
    kept.take([(b"d", state_of(1, 3))])
    timer = kept._timer
    assert timer is not None
    timer.join(10)
    assert kept.holdings == ()


# -- the cut of a run that chooses it --------------------------------------------------------------------------------------


def _chooses(placement: str) -> Job:
    return prepare(
        resolve(
            {
                "model": {"name": "gpt2:layers=6,width=16,heads=2"},
                "data": {"name": "synthetic", "sequence_length": 16, "vocabulary": 300, "validation_tokens": 128},
                "pipeline": {"stages": 3, "micro_batches": 2, "micro_batch_size": 2},
                "training": {"steps": 4},
                "cluster": {"placement": placement},
            }
        )
    )


def test_a_run_that_chooses_its_cut_goes_on_with_that_of_the_commit_and_any_other_with_its_own() -> None:
    uneven = replace(commit_of(1), cut=((0, 1), (1, 5), (5, 6)))
    job = _chooses("measured")
    assert cut_as(uneven, job).plan.layers == uneven.cut != job.plan.layers
    listed = _chooses("listed")
    assert cut_as(uneven, listed) is listed


@pytest.mark.parametrize("cut", [((0, 1), (1, 5), (5, 7)), ((0, 2), (3, 5), (5, 6)), ((0, 6),), ((0, 3), (3, 3), (3, 6)), ()])
def test_a_cut_that_the_model_cannot_have_is_refused(cut: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(JournalRefused, match="cut as no 3 stages of this model can be"):
        cut_as(replace(commit_of(1), cut=cut), _chooses("measured"))
