"""What an audit accepts as proof: rulings that follow from accounts and findings, and no others, even well signed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from holdfast.claim import Direction, Role
from holdfast.errors import ProtocolError
from holdfast.evidence.draws import blind, commitment
from holdfast.evidence.identity import derived
from holdfast.evidence.log import read_line
from holdfast.evidence.record import Accusation, Committed, Equivocated, Found, Revealed, Ruled
from holdfast.evidence.story import explain, page
from holdfast.message import Finding

INPUT, TRUE, FALSE = b"i" * 32, b"t" * 32, b"f" * 32


def guilty(found: Any) -> dict[str, dict[str, int]]:
    return {worker: dict(kinds) for worker, kinds in found.guilty.items()}


def test_an_honest_run_is_clean(desk: Any) -> None:
    found = desk.seal().seal().close().audit()
    assert found.clean
    assert (found.records, found.book.version, found.disputes) == (4, 2, [])
    assert "No worker is proven guilty." in list(page(found))


LIES = [
    ({"output": FALSE}, "false activation"),
    ({"inputs": (FALSE,)}, "another input than the accepted one"),
]


@pytest.mark.parametrize(("change", "kind"), LIES)
def test_a_lying_primary(desk: Any, change: dict[str, Any], kind: str) -> None:
    first, second = desk.account("w1", **change), desk.account("w2")
    found = desk.dispute(first, second, ("w1",)).seal().close().audit()
    assert (found.status, guilty(found)) == ("intact", {"w1": {kind: 1}})


@pytest.mark.parametrize(
    ("direction", "kind"),
    [("backward", "false input gradient"), ("gradient", "false weight gradient"), ("update", "false update")],
)
def test_lies_are_called_by_their_names(desk: Any, direction: str, kind: str) -> None:
    key = desk.key(Direction(direction), 0)
    first, second = desk.account("w1", key=key, output=FALSE), desk.account("w2", key=key)
    assert guilty(desk.dispute(first, second, ("w1",)).close().audit()) == {"w1": {kind: 1}}


def test_false_norms(desk: Any) -> None:
    key = desk.key(Direction.GRADIENT, -1)
    first, second = desk.account("w1", key=key, norms=(0.5,)), desk.account("w2", key=key, norms=(1.0,))
    desk.notary.accuse(key, "norms", ("w1", "w2"), "w2", [first, second], (INPUT,))
    desk.notary.judged(Finding(key, TRUE, (1.0,)), (INPUT,), [first, second], "norms", ("w1",))
    assert guilty(desk.close().audit()) == {"w1": {"false norms": 1}}


def test_a_framed_worker_is_not_named(desk: Any) -> None:
    found = desk.dispute(desk.account("w1"), desk.account("w2", output=FALSE), ("w2",)).close().audit()
    assert guilty(found) == {"w2": {"false account as a verifier (framing)": 1}}
    (dispute,) = found.disputes
    assert dispute.verdict == "w2: false account as a verifier (framing)"


def test_an_accusation_proves_nothing(desk: Any) -> None:
    key = desk.key()
    desk.notary.accuse(key, "withheld", ("w1", "w2"), "deadline")
    desk.notary.accuse(replace(key, micro_batch=1), "output", ("w1", "w2"), "w2", [], None)
    found = desk.seal().close().audit()
    assert found.clean
    assert [dispute.verdict for dispute in found.disputes] == ["not examined"] * 2


def test_two_accounts_of_one_worker_convict_it(desk: Any) -> None:
    desk.notary.equivocated(desk.account("w1"), desk.account("w1", output=FALSE), "w3")
    assert guilty(desk.close().audit()) == {"w1": {"equivocation": 1}}


def test_what_came_to_the_coordinator_itself(desk: Any) -> None:
    desk.notary.misdelivered(desk.key(), "w1", FALSE, TRUE)
    assert guilty(desk.close().audit()) == {"w1": {"false delivery": 1}}


def test_in_quarantine_a_word_is_presumed_false_not_proven(desk: Any) -> None:
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",))
    key = desk.key(micro_batch=1)
    desk.notary.quarantined(desk.account("w1", key=key, output=FALSE), TRUE)
    found = desk.close().audit()
    assert (found.status, guilty(found)) == ("intact", {"w1": {"false activation": 1}})
    assert found.disputes[1].verdict == "w1: unlike the accepted account (presumed)"


# -- what the coordinator's own key cannot make true ---------------------------------------------------------------------


def unsound(desk: Any) -> str:
    found = desk.close().audit()
    assert (found.status, found.clean) == ("unsound", False)
    return str(found.fault)


def test_a_ruling_against_the_wrong_one(desk: Any) -> None:
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w2",))
    assert "does not follow from what it cites" in unsound(desk)
    assert guilty(desk.audit()) == {}


def test_a_ruling_without_a_finding(desk: Any) -> None:
    desk.notary.accuse(
        desk.key(), "output", ("w1", "w2"), "w2", [desk.account("w1", output=FALSE), desk.account("w2")], (INPUT,)
    )
    desk.notary._write(Ruled(1, desk.key(), "output", ("w1",), "finding", (1, 2)))
    assert "cites records that are not there" in unsound(desk)


@pytest.mark.parametrize("cites", [(), (99,), (-1,)])
def test_a_ruling_on_nothing(desk: Any, cites: tuple[int, ...]) -> None:
    desk.notary._write(Ruled(1, desk.key(), "output", ("w1",), "finding", cites))
    assert "cites records that are not there" in unsound(desk)


def test_a_ruling_on_an_unknown_basis(desk: Any) -> None:
    desk.notary._write(Ruled(1, desk.key(), "output", ("w1",), "rumour", (0,)))
    assert "'rumour'" in unsound(desk)


def test_an_account_that_its_worker_did_not_sign(desk: Any) -> None:
    """The coordinator cannot put words into a worker's mouth."""
    forged = replace(desk.account("w1"), output=FALSE)
    desk.dispute(forged, desk.account("w2"), ("w1",))
    assert "does not bear that worker's signature" in unsound(desk)


def test_an_account_of_another_deployment(desk: Any) -> None:
    """Nobody can hold what was said before a rollback against what is said after it."""
    old = desk.account("w1", output=FALSE)
    desk.deploy()
    desk.notary.equivocated(desk.account("w1"), replace(old), "w3")
    assert "another run or deployment" in unsound(desk)


def test_an_account_of_another_version(desk: Any) -> None:
    first, second = desk.account("w1", output=FALSE, version=5), desk.account("w2", version=5)
    desk.dispute(first, second, ("w1",))
    assert "another version" in unsound(desk)


def test_a_pair_that_does_not_conflict(desk: Any) -> None:
    desk.notary.equivocated(desk.account("w1"), desk.account("w1", role=Role.SHADOW, epoch=4), "w3")
    assert "do not contradict one another" in unsound(desk)


def test_a_delivery_that_was_right(desk: Any) -> None:
    desk.notary.misdelivered(desk.key(), "w1", TRUE, TRUE)
    assert "is called false" in unsound(desk)


def test_an_accusation_that_the_accounts_do_not_bear_out(desk: Any) -> None:
    desk.notary.accuse(desk.key(), "output", ("w1", "w2"), "w2", [desk.account("w1"), desk.account("w2")], (INPUT,))
    assert "the accusation does not follow" in unsound(desk)


def test_quarantine_of_somebody_who_never_lied(desk: Any) -> None:
    desk.notary.quarantined(desk.account("w1", output=FALSE), TRUE)
    assert "does not follow from what it cites" in unsound(desk)


def test_evidence_about_another_claim(desk: Any) -> None:
    desk.notary._write(Accusation(1, desk.key(), "withheld", (), "deadline", None, ()))
    desk.notary._write(Found(1, Finding(desk.key(micro_batch=1), TRUE), None))
    assert "dispute 1 is about" in unsound(desk)
    assert desk.audit().records == 2


def test_disputes_out_of_order(desk: Any) -> None:
    desk.notary._write(Equivocated(2, desk.account("w1"), desk.account("w1", output=FALSE), "board"))
    desk.notary._write(Accusation(1, desk.key(micro_batch=1), "withheld", (), "deadline", None, ()))
    assert "begins out of order" in unsound(desk)


def test_a_gap_between_seals(desk: Any) -> None:
    desk.seal()
    desk.version += 1
    assert "version 3 is sealed after version 1" in unsound(desk.seal())


def sealed(desk: Any, *nameless: int) -> Any:
    """The next version stands; `nameless` stages are sealed without a digest."""
    desk.version += 1
    digests = {stage: b"" if stage in nameless else bytes([stage]) * 32 for stage in range(5)}
    desk.notary.sealed(desk.version, desk.version - 1, 0, digests)
    return desk


def collected(desk: Any, *digests: bytes, version: int | None = None) -> Any:
    desk.notary.collected(desk.version if version is None else version, dict(enumerate(digests)))
    return desk


OWN = tuple(bytes([stage]) * 32 for stage in range(5))


def test_the_initiator_s_own_stages_are_sealed_without_a_digest_and_collected_with_one(desk: Any) -> None:
    found = collected(sealed(desk, 0, 4), *OWN).close().audit()
    assert (found.status, found.clean) == ("intact", True)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_no_untrusted_stage_is_sealed_without_a_digest(desk: Any, stage: int) -> None:
    assert f"a seal without a digest for stages [{stage}]" in unsound(sealed(desk, 0, stage))


def test_not_even_one_that_the_initiator_has_taken_over(desk: Any) -> None:
    """A worker that joins may relieve it of that stage, and must know which state is the right one."""
    desk.notary.took_over(3, "w3", "initiator", 0)
    assert "a seal without a digest for stages [3]" in unsound(sealed(desk, 0, 3, 4))


@pytest.mark.parametrize(
    ("digests", "version", "fault"),
    [
        ((*OWN[:2], TRUE, *OWN[3:]), 1, "that are not the sealed ones"),
        ((b"", *OWN[1:]), 1, "that do not all have a digest"),
        (OWN[:4], 1, "that do not all have a digest"),
        (OWN, 0, "of version 0 come together at version 1"),
        (OWN, 2, "of version 2 come together at version 1"),
    ],
)
def test_what_comes_together_is_what_was_sealed(desk: Any, digests: tuple[bytes, ...], version: int, fault: str) -> None:
    assert fault in unsound(collected(sealed(desk, 0, 4), *digests, version=version))


def test_a_log_of_the_first_schema_is_read_and_gone_on_with(desk: Any, reopened: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("holdfast.evidence.notary.SCHEMA", 1)
    desk.path.unlink()
    old = type(desk)(desk.path).deploy().seal().close()
    assert (old.audit().opening.schema, old.audit().status) == (1, "intact")
    monkeypatch.undo()
    assert reopened(old).deploy(version=1).seal().close().audit().status == "intact"


def test_a_log_of_a_later_schema_is_not_read(desk: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("holdfast.evidence.notary.SCHEMA", 3)
    desk.path.unlink()
    assert "schema 3; this version reads 1 and 2" in unsound(type(desk)(desk.path).deploy())


def test_a_second_opening(desk: Any, reopened: Any) -> None:
    desk.notary._write(desk.audit().opening)
    assert "a second opening" in unsound(desk)


def test_records_behind_the_end(desk: Any, reopened: Any) -> None:
    desk.seal().close()
    again = reopened(desk)
    again.notary._deployed = True
    again.notary.sealed(2, 1, 0, dict.fromkeys(range(5), TRUE))
    assert "follows the closing record" in unsound(again)


# -- a run in parts ------------------------------------------------------------------------------------------------------


def test_a_resumed_run_goes_on_in_the_same_log(desk: Any, reopened: Any) -> None:
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",)).seal().seal().close()
    again = reopened(desk).deploy(version=1)
    again.dispute(again.account("w1", output=FALSE), again.account("w2"), ("w1",)).seal().close()
    found = again.audit()
    assert (found.status, found.book.version, found.book.interruptions) == ("intact", 2, [])
    assert guilty(found) == {"w1": {"false activation": 2}}
    assert len({dispute.number for dispute in found.disputes}) == 2


def test_a_killed_run_is_incomplete_until_it_goes_on(desk: Any, reopened: Any) -> None:
    desk.seal()
    found = desk.audit()
    assert (found.status, found.fault) == ("incomplete", "truncated after record 1: there is no closing record")
    desk.log.close()
    found = reopened(desk).deploy(version=1).seal().close().audit()
    assert (found.status, found.book.interruptions) == ("intact", [2])
    assert any("was killed before record 2" in line for line in page(found))


def test_a_rollback_goes_back(desk: Any) -> None:
    desk.seal().seal().deploy(version=1).seal()
    found = desk.close().audit()
    assert (found.status, found.book.version) == ("intact", 2)


def test_nobody_rolls_back_into_the_future(desk: Any) -> None:
    assert "version 3, which was never sealed" in unsound(desk.seal().deploy(version=3))


def test_who_comes_later_is_enrolled_with_one_key(desk: Any, reopened: Any) -> None:
    """A member that was not in the opening signs from its enrolment on; another key for it makes the log unsound."""
    key = derived(1, "late").public
    desk.seal().notary.enroll("late", key)
    desk.notary.enroll("late", key)
    with pytest.raises(ProtocolError, match="another key"):
        desk.notary.enroll("late", derived(2, "late").public)
    desk.close()
    found = desk.audit()
    assert found.status == "intact"
    assert found.book.opening.keys["late"] == key
    again = reopened(desk).deploy(version=1)
    again.notary._keys.pop("late", None)
    again.notary.enroll("late", derived(2, "late").public)
    assert "enrolled with another key" in unsound(again)


def test_a_run_goes_on_with_its_own_keys(desk: Any, reopened: Any) -> None:
    desk.seal().close()
    again = reopened(desk)
    again.notary._keys["w1"] = derived(1, "x").public
    assert "another name or other keys" in unsound(again.deploy(version=1))


def test_a_run_may_go_on_with_other_members(desk: Any, reopened: Any) -> None:
    """Another cut of the model has other workers; those who stay keep their keys."""
    desk.seal().close()
    again = reopened(desk)
    keys = {name: key for name, key in again.notary._register.keys.items() if name != "w1"}
    again.notary._register = replace(again.notary._register, keys={**keys, "w9": derived(0, "w9").public})
    assert again.deploy(version=1).seal().close().audit().status == "intact"


def test_headers_refused_for_their_signature_are_counted(desk: Any) -> None:
    assert desk.notary.vouches(desk.account("w1"))
    assert not desk.notary.vouches(replace(desk.account("w1"), output=FALSE))
    assert not desk.notary.vouches(replace(desk.account("w1"), signature=None))
    found = desk.close().audit()
    assert found.book.refused == {"w1": 2}
    assert "           2 headers in the name of w1 were refused: not signed by it" in list(page(found))


# -- the secret of the draws ---------------------------------------------------------------------------------------------


@pytest.fixture
def drawn(desk: Any) -> Any:
    """A run that draws."""
    desk.path.unlink()
    made = type(desk)(desk.path, secret=7).deploy()
    yield made
    made.log.close()


def draws(found: Any) -> tuple[int | None, bool, bool]:
    return found.book.draws.secret, found.book.draws.changed, found.book.draws.reused


def test_what_is_drawn_was_fixed_before_the_first_step(drawn: Any) -> None:
    found = drawn.seal().close().audit()
    assert (found.status, draws(found)) == ("intact", (7, False, False))
    assert "draws      follow from the secret 7, as committed to in record 1" in list(page(found))
    assert found.to_json()["draws"] == {
        "commitment": found.book.draws.commitment.hex(),
        "secret": 7,
        "record": 1,
        "changed": False,
        "reused": False,
    }


def test_who_draws_nothing_commits_to_nothing(desk: Any) -> None:
    found = desk.seal().close().audit()
    assert (found.book.draws, found.to_json()["draws"]) == (None, None)
    assert not any(line.startswith("draws") for line in page(found))


@pytest.mark.parametrize("ended", ["stopped", "failed"])
def test_a_run_that_may_go_on_does_not_reveal_its_secret(drawn: Any, reopened: Any, ended: str) -> None:
    found = drawn.seal().close(ended).audit()
    assert (found.status, found.clean, draws(found)) == ("intact", True, (None, False, False))
    said = "draws      committed to in record 1; the secret is not revealed, since the run has not finished"
    assert said in list(page(found))
    found = reopened(drawn).deploy(version=1).seal().close().audit()
    assert (found.status, draws(found), found.book.draws.record) == ("intact", (7, False, False), 1)


def test_a_killed_run_does_not_reveal_its_secret_either(drawn: Any) -> None:
    found = drawn.seal().audit()
    assert (found.status, draws(found)) == ("incomplete", (None, False, False))


def test_a_rollback_commits_to_nothing_new(drawn: Any) -> None:
    found = drawn.seal().deploy(version=0).seal().close().audit()
    assert (found.status, draws(found)) == ("intact", (7, False, False))


def test_another_secret_than_the_one_that_was_committed_to(drawn: Any) -> None:
    drawn.seal().notary._register = replace(drawn.notary._register, secret=8)
    assert "the secret of the draws is not the one that was committed to" in unsound(drawn)


def test_the_commitment_of_another_run(drawn: Any) -> None:
    """Or a run could choose among the secrets of all runs before it."""
    drawn.path.unlink()
    other = type(drawn)(drawn.path, secret=7)
    other.notary._register = replace(other.notary._register, run="other")
    other.deploy().seal()
    other.notary._register = replace(other.notary._register, run="run")
    assert "not the one that was committed to" in unsound(other)


def test_a_finished_run_that_does_not_reveal_its_secret(drawn: Any) -> None:
    drawn.seal().notary._register = replace(drawn.notary._register, secret=None)
    assert "the run has finished, and the secret of its draws is not revealed" in unsound(drawn)


def test_a_commitment_after_the_first_step(drawn: Any) -> None:
    drawn.seal().notary._write(Committed(b"c" * 32))
    assert "a commitment that does not stand at the beginning" in unsound(drawn)


def test_a_secret_that_nobody_committed_to(desk: Any) -> None:
    desk.notary._write(Revealed(7, b"b"))
    assert "was never committed to" in unsound(desk)


def test_a_secret_that_is_revealed_while_the_run_goes_on(drawn: Any) -> None:
    drawn.notary._write(Revealed(7, blind(drawn.log.signer, "run")))
    assert "revealed before the end" in unsound(drawn.seal())


def test_a_run_that_goes_on_with_another_secret_says_so(drawn: Any, reopened: Any) -> None:
    drawn.seal().close("stopped")
    again = reopened(drawn)
    again.notary._register = replace(again.notary._register, secret=8)
    found = again.deploy(version=1).seal().close().audit()
    assert (found.status, draws(found)) == ("intact", (8, True, False))
    assert "           an earlier part of the run had committed to another secret, which is not revealed" in list(page(found))


def test_a_run_that_goes_on_after_its_secret_was_revealed_says_so(drawn: Any, reopened: Any) -> None:
    found = reopened(drawn.seal().close()).deploy(version=1).seal().close().audit()
    assert (found.status, draws(found)) == ("intact", (7, False, True))
    assert any("the later draws could be foreseen" in line for line in page(found))


def test_a_commitment_does_not_show_a_small_secret(drawn: Any) -> None:
    """Without the blind, whoever reads the log of a running run could try all small secrets."""
    (line,) = [record for record in map(read_line, drawn.path.read_bytes().splitlines()) if type(record.record) is Committed]
    assert line.record.commitment != commitment("run", 7, b"")
    assert line.record.commitment == commitment("run", 7, blind(drawn.log.signer, "run"))
    assert blind(drawn.log.signer, "run") != blind(derived(7, "w1"), "run")


# -- the story -----------------------------------------------------------------------------------------------------------


def test_a_dispute_in_plain_words(desk: Any) -> None:
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",)).close()
    found = desk.audit()
    told = list(explain(found, found.disputes[0]))
    assert told[:2] == [
        "run        run, sealed up to version 0",
        "log        intact: every record is there, in order, as it was signed",
    ]
    assert told[told.index("") + 1 :] == [
        "Dispute 1: forward of stage 1, step 0 micro-batch 0.",
        f"  [1] w1, primary of stage 1, signed: output {FALSE.hex()[:12]}, made from {INPUT.hex()[:12]}.",
        f"  [2] w2, shadow of stage 1, signed: output {TRUE.hex()[:12]}, made from {INPUT.hex()[:12]}.",
        "  [3] Alarm by the account of w2, who verifies the stage: the two accounts name different outputs. Suspected: w1, w2.",
        f"  [4] The referee computed it again, from sealed weights and accepted inputs: output {TRUE.hex()[:12]}.",
        "  [4] w1's output is another.",
        "  [4] w2's output is the same.",
        "  [5] Ruling: w1 lied (held against the referee's own computation).",
        "Verdict: w1: false activation.",
    ]


def test_a_dispute_is_told_with_what_the_log_is_worth(desk: Any, examine: Any) -> None:
    """It was told as if the log were whole, and as if a simulation were not one."""
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",)).seal().close()
    data = desk.path.read_bytes()
    for spoilt, status in (
        (data[:-40], "INCOMPLETE"),
        (data.replace(b'"step":0,"version":1}', b'"step":0,"version":2}'), "ALTERED"),
    ):
        found = examine(spoilt)
        told = list(explain(found, found.disputes[0]))
        assert told[1].startswith(f"log        {status}"), told
        assert found.signer in "".join(told[:5])
        assert "a simulation" in told[told.index("") - 1]
        assert told[-1].startswith(f"{status}: what is said above rests on")


def test_a_dispute_before_whose_ruling_the_log_ends_is_not_one_that_nobody_was_asked_about(desk: Any, examine: Any) -> None:
    desk.seal().dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",)).seal().close()
    lines = desk.path.read_bytes().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if b'"kind":"header"' in line)
    for records in range(first + 1, first + 5):
        found = examine(b"".join(lines[:records]))
        (dispute,) = found.disputes
        assert dispute.verdict == "cut off before the ruling"
        row = next(line for line in page(found) if line.startswith("1  "))
        assert ("cut off before the alarm" in row) == (records < first + 3), row
    (dispute,) = examine(b"".join(lines[: first + 5])).disputes
    assert dispute.verdict == "w1: false activation"


def test_a_run_that_was_killed_in_a_dispute_and_goes_on_says_so(desk: Any, reopened: Any) -> None:
    desk.seal()
    desk.notary.accuse(desk.key(), "delivery", ("w1",), "w2")
    desk.log.close()
    found = reopened(desk).deploy(version=1).seal().close().audit()
    assert [dispute.verdict for dispute in found.disputes] == ["cut off before the ruling"]
    assert found.status == "intact"


def test_an_accusation_that_nobody_ruled_on_in_a_whole_step_was_not_examined(desk: Any) -> None:
    desk.notary.accuse(desk.key(), "delivery", ("w1",), "w2")
    for found in (desk.seal().audit(), desk.close().audit()):
        assert [dispute.verdict for dispute in found.disputes] == ["not examined"]


def test_every_kind_of_record_can_be_told(desk: Any) -> None:
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",))
    desk.notary.equivocated(desk.account("w1", output=FALSE), desk.account("w1"), "w3")
    desk.notary.misdelivered(desk.key(), "w1", FALSE, TRUE)
    desk.notary.quarantined(desk.account("w1", output=FALSE), TRUE)
    found = desk.close().audit()
    (dispute,) = found.disputes
    told = "\n".join(explain(found, dispute))
    assert found.status == "intact"
    for words in ("to w3, who showed it", "sent the coordinator", "on the other holder's word", "so this is no proof"):
        assert words in told


def test_names_in_a_log_do_not_write_on_the_terminal_of_who_audits_it(desk: Any) -> None:
    """A log may come from anybody. One that named an accuser like this cleared the screen and reported itself intact."""
    forged = "\x1b[2J\x1b[Hlog        intact: every record is there\r\n\u202e\ud800"
    desk.notary.accuse(desk.key(), "output", (forged,), forged)
    found = desk.close().audit()
    told = [*page(found), *explain(found, found.disputes[0])]
    assert all(line.isprintable() for line in told)
    assert any(r"\x1b[2J\x1b[Hlog" in line for line in told)
