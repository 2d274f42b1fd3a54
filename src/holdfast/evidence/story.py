"""What an audit found, in plain words: a page about the log, and the story of one dispute.

Names come from the log, and anybody may have written it: what would act on the reader's terminal is shown as its escape.
"""

from __future__ import annotations

from collections.abc import Iterator

from holdfast.claim import Header
from holdfast.evidence.audit_log import Audit, Status
from holdfast.evidence.casebook import Dispute
from holdfast.evidence.log import COORDINATOR
from holdfast.evidence.record import (
    Account,
    Accusation,
    Equivocated,
    Found,
    Misdelivered,
    Refused,
    Ruled,
    Stood,
    Unfounded,
)

HEADLINES = {
    Status.INTACT: "intact: every record is there, in order, as it was signed",
    Status.INCOMPLETE: "INCOMPLETE: the run was killed, or is still going on elsewhere, or the log was cut short",
    Status.ALTERED: "ALTERED: the log was tampered with",
    Status.OTHER_KEY: "OTHER KEY: the log is not signed by the key that was given",
    Status.UNSOUND: "UNSOUND: the signed records contradict their own evidence",
}
BASES = {
    "finding": "held against the referee's own computation",
    "comparison": "held against the referee's own measurement of the same two tensors",
    "equivocation": "two signed accounts of one claim; no referee needed",
    "delivery": "what it sent to the coordinator itself",
    "quarantine": "it had lied before; nobody computed this again, so this is no proof",
    "refusal": "who signs must open; that it did not is the coordinator's word",
    "complaint": "the coordinator had checked what it delivered; this is the coordinator's word",
}
REASONS = {
    "output": "the two accounts name different outputs",
    "norms": "the two accounts name different gradient norms",
    "parent": "an account names another input than the accepted one",
    "delivery": "a tensor came that is not the accepted one",
    "distance": "the two accounts are further apart than unlike hardware explains",
    "withheld": "a tensor did not come in time",
    "equivocation": "one worker said two different things",
    "spot-check": "the claim was drawn after it was sealed, and comes out otherwise",
    "unopened": "what is needed to compute it again was asked for twice and did not come",
    "state": "a trusted party was sent another state than the sealed one",
    "complaint": "a complaint about a delivery of the coordinator's own",
}


def page(audit: Audit) -> Iterator[str]:
    """The report, line by line."""
    return map(printable, _page(audit))


def explain(audit: Audit, dispute: Dispute) -> Iterator[str]:
    """What the log is worth, and one of its disputes from its first record to its last, a sentence or two each."""
    return map(printable, _explain(audit, dispute))


def printable(line: str) -> str:
    r"""A line without anything that a terminal obeys, and without line ends of its own.

    >>> print(printable("\x1b[2Jall is well\n"))
    \x1b[2Jall is well\n
    """
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in line)


def _page(audit: Audit) -> Iterator[str]:
    if audit.status is Status.OTHER_KEY:
        yield from _by_another_key(audit)
        return
    yield from _about_the_log(audit)
    if audit.disputes:
        yield ""
        yield from _table(audit.disputes)
    yield ""
    for worker, kinds in audit.guilty.items():
        count = sum(kinds.values())
        told = ", ".join(f"{kind} ({number})" for kind, number in kinds.most_common())
        yield f"PROVEN GUILTY: {worker}, of {count} {'lie' if count == 1 else 'lies'}: {told}"
    if not audit.guilty:
        yield "No worker is proven guilty."
    presumed = dict.fromkeys((worker, kind) for dispute in audit.disputes for worker, kind in dispute.presumed)
    for worker, kind in presumed:
        yield f"Presumed, on the coordinator's word: {worker}, {kind}."
    yield from _how_far(audit)


def _by_another_key(audit: Audit) -> Iterator[str]:
    """Whose log it is, and what that means; what stands in it is nobody's word that the reader knows."""
    yield "NOT SIGNED BY THIS KEY: nothing in this log counts for a run of the key that was given"
    yield f"signed by  {audit.signer}"
    yield f"given      {audit.pin}"
    yield f"run        {audit.opening.run if audit.opening else 'unknown'}, as the log says"
    yield ""
    yield "Either the key given is not that of this run's coordinator, or somebody else has written this log, or wrote it anew."
    yield "Get the fingerprint from whoever ran the coordinator, by another way than the log (`holdfast host` tells its key)."
    yield "No line behind the first was read: nobody is proven guilty, and nobody is cleared."


def _how_far(audit: Audit) -> Iterator[str]:
    if audit.unfinished:
        yield f"So far: what is said above rests on the {audit.records} records that were there, and the run goes on."
    elif audit.status is not Status.INTACT:
        name = HEADLINES[audit.status].partition(":")[0]
        yield f"{name}: what is said above rests on the first {audit.records} records only."


def _explain(audit: Audit, dispute: Dispute) -> Iterator[str]:
    yield from _whose_word(audit)
    yield ""
    yield f"Dispute {dispute.number}: {dispute.key}."
    for seq, record in dispute.records.items():
        for line in _tell(dispute, record):
            yield f"  [{seq}] {line}"
    yield f"Verdict: {dispute.verdict}."
    yield from _how_far(audit)


def _about_the_log(audit: Audit) -> Iterator[str]:
    yield from _whose_word(audit)
    if audit.records:
        yield f"last       {audit.last.hex()}{' (goes on from the earlier audit)' if audit.since else ''}"
    yield from _about_the_draws(audit)
    for seq in audit.book.interruptions:
        yield f"           the run was killed before record {seq}, where it goes on"
    for takeover in audit.book.takeovers:
        yield f"           {takeover.heir} took stage {takeover.stage} over from {takeover.lost} in step {takeover.step}"
    for worker, count in audit.book.refused.items():
        yield f"           {count} headers in the name of {worker} were refused: not signed by it"


def _whose_word(audit: Audit) -> Iterator[str]:
    """Whether the log is what was written, and by whom: nothing else that is said means anything without."""
    opening = audit.opening
    yield f"run        {opening.run if opening else 'unknown'}, sealed up to version {audit.book.version}"
    if audit.live:
        yield f"log        INCOMPLETE so far: a run is going on here and writes this log; {audit.records} records up to now"
        yield "           (that a process holds it open is this machine's word: nothing in the log shows that its end is there)"
    else:
        yield f"log        {HEADLINES[audit.status]}"
    if audit.fault and not audit.live:
        yield f"           {audit.fault}"
    yield f"checked    {audit.records} records of the coordinator, {audit.book.headers} signed accounts of workers"
    pin = {
        None: "an unpinned key: give --key to be sure whose it is",
        True: "the pinned key",
        False: "NOT the pinned key",
    }[audit.pinned]
    yield f"signed by  {audit.signer} ({pin})" if audit.signer else "signed by  nobody, as far as it goes"
    if opening is not None and opening.derived:
        whole = COORDINATOR in opening.derived
        whose = "all keys" if whole else "the workers' keys"
        more = ", which whoever knows the seed could sign anew" if whole else ""
        yield f"           {whose} follow from the run's seed: a simulation{more}"


def _about_the_draws(audit: Audit) -> Iterator[str]:
    draws = audit.book.draws
    if draws is None:
        return
    if draws.secret is None:
        yield f"draws      committed to in record {draws.record}; the secret is not revealed, since the run has not finished"
    else:
        yield f"draws      follow from the secret {draws.secret}, as committed to in record {draws.record}"
    if draws.changed:
        yield "           an earlier part of the run had committed to another secret, which is not revealed"
    if draws.reused:
        yield "           the run has gone on after the secret was open: the later draws could be foreseen"


def _table(disputes: list[Dispute]) -> Iterator[str]:
    rows = [("#", "claim", "why", "accused by", "suspects", "verdict")]
    for dispute in disputes:
        said = dispute.of(Accusation)
        if dispute.cut_off and not said:
            rows.append((str(dispute.number), str(dispute.key), "(cut off before the alarm)", "-", "-", dispute.verdict))
            continue
        rows.append(
            (
                str(dispute.number),
                str(dispute.key),
                ", ".join(dict.fromkeys(each.reason for each in said)),
                ", ".join(dict.fromkeys(each.by for each in said)),
                ", ".join(dict.fromkeys(worker for each in said for worker in each.suspects)),
                dispute.verdict,
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _tell(dispute: Dispute, record: object) -> Iterator[str]:
    match record:
        case Account(_, header):
            yield f"{header.worker}, {header.role} of stage {header.key.stage}, signed: {_content(header)}."
        case Accusation(_, _, reason, suspects, by):
            whom = ", ".join(suspects) or "nobody untrusted"
            yield f"{_accuser(by, reason)}: {REASONS.get(reason, reason)}. Suspected: {whom}."
        case Found(_, finding):
            who = "checker" if any(said.by == "checker" for said in dispute.of(Accusation)) else "referee"
            yield f"The {who} computed it again, from sealed weights and accepted inputs: output {_short(finding.output)}."
            yield from _compared(dispute, record)
        case Equivocated(_, first, second, by):
            shown = "to the board" if by == "board" else f"to {by}, who showed it"
            yield f"{first.worker} signed for the board: {_content(first)};"
            yield f"and {shown}: {_content(second)}."
        case Misdelivered(_, _, worker, got, accepted):
            yield f"{worker} sent the coordinator {_short(got)} where {_short(accepted)} was accepted."
        case Stood(_, _, accepted):
            yield f"The board had accepted {_short(accepted)}, on the other holder's word."
        case Refused(_, _, stage, workers):
            who = " and ".join(workers) or "nobody"
            yield f"The state or tensors of stage {stage} were asked for twice; {who} sent nothing."
        case Unfounded(_, _, worker):
            yield f"{worker} complained of a tensor that the coordinator itself had sent."
        case Ruled(_, _, _, culprits, basis):
            who = f"{' and '.join(culprits)} lied" if culprits else "nobody could be named"
            yield f"Ruling: {who} ({BASES[basis]})."


def _accuser(by: str, reason: str) -> str:
    if by in ("board", "referee", "deadline", "checker", "coordinator"):
        return f"Alarm by the {by}"
    return f"Alarm by {by}, who complained" if reason == "delivery" else f"Alarm by the account of {by}, who verifies the stage"


def _compared(dispute: Dispute, found: Found) -> Iterator[str]:
    for account in dispute.of(Account):
        header = account.header
        same = header.output == found.finding.output
        chained = found.inputs is None or header.inputs == found.inputs
        more = "" if chained else ", but it names another input than the accepted one"
        yield f"{header.worker}'s output is {'the same' if same else 'another'}{more}."


def _content(header: Header) -> str:
    made = f", made from {', '.join(_short(digest) for digest in header.inputs)}" if header.inputs else ""
    return f"output {_short(header.output)}{made}"


def _short(digest: bytes) -> str:
    return digest.hex()[:12] or "nothing"
