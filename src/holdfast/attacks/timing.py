"""Lies in time: honest bytes too late, or of another day, or never.

    name          sends                                         after                   and is caught by
    withhold      nothing                                       DESIGN 2, trap 8        the receiver's complaint, the deadline
    delay         what is honest, after further work            Cristian 1991           nothing need be: it only costs time
    replay-claim  what it signed of an earlier step once more   Syverson 1994           the step in every signed header

Cristian 1991, "Understanding fault-tolerant distributed systems", calls lateness a performance failure; Syverson 1994 is "A
taxonomy of replay attacks". Nobody is named for what is late or lost: a network does that too. Who stays silent past the
coordinator's deadline is out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.attacks.lie import Backstage, Lie, header_of, with_header
from holdfast.claim import Header
from holdfast.message import Envelope, Work


@dataclass(kw_only=True)
class Withhold(Lie):
    """Do not deliver: the tensor to the `direct` receiver, over the `jump`, to `everyone`, or the header to the `board`."""

    what: str = "direct"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.what not in ("direct", "jump", "everyone", "board"):
            self.refuse(f"what must be direct, jump, everyone or board, got {self.what!r}")

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if not self._is_meant(envelope, backstage):
            return [envelope]
        backstage.record(f"delivery to {envelope.recipient}", header_of(envelope).output or b"a tensor", b"")
        return []

    def _is_meant(self, envelope: Envelope, backstage: Backstage) -> bool:
        if isinstance(envelope.message, Header):
            return self.what == "board"
        targets = {"direct": backstage.direct(), "jump": backstage.jump(), "everyone": envelope.recipient}
        return envelope.recipient == targets.get(self.what)


@dataclass(kw_only=True)
class Delay(Lie):
    """Send honest claims late: after `pieces` further pieces of work; where none is left to do, with the next message.

    Verify before use makes everybody else wait, and then go on as if nothing had been.
    """

    direction: str = "both"
    pieces: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.pieces < 1:
            self.refuse(f"pieces must be at least 1, got {self.pieces}")

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        backstage.scene.memory.setdefault("late", []).append((self.pieces, envelope))
        return []

    def worked(self, work: Work, backstage: Backstage) -> Sequence[Envelope]:
        late = [(left - 1, envelope) for left, envelope in backstage.scene.memory.get("late", [])]
        backstage.scene.memory["late"] = [(left, envelope) for left, envelope in late if left > 0]
        return [envelope for left, envelope in late if left <= 0]

    def hear(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        if not backstage.idle():
            return []
        return [late for _, late in backstage.scene.memory.pop("late", [])]


@dataclass(kw_only=True)
class ReplayClaim(Lie):
    """Send what it signed for the same micro-batch at an earlier strike once more.

    how=beside      the old header and claim after the new ones: every byte is honest, and of another step
    how=instead     in place of the new ones: nothing is said of this step
    how=relabelled  in place of the new ones and under the key of this step, with the old signature, which no longer fits
    """

    how: str = "beside"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.how not in ("beside", "instead", "relabelled"):
            self.refuse(f"how must be beside, instead or relabelled, got {self.how!r}")

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        key, header = backstage.key, header_of(envelope)
        slot = f"{key.direction}/{key.micro_batch}/{type(envelope.message).__name__}/{envelope.recipient}"
        kept: dict[str, list[Envelope]] = backstage.scene.memory.setdefault("sent", {})
        known = [old for old in kept.get(slot, []) if header_of(old).key.step < key.step][-1:]
        kept[slot] = [*known, envelope]
        if not known:
            return [envelope]
        (old,) = known
        if self.how == "beside":
            return [envelope, old]
        backstage.record(f"delivery to {envelope.recipient}", header.output or b"a tensor", b"")  # of this step
        if self.how == "instead":
            return [old]
        return [with_header(old, lambda signed: replace(header, output=signed.output, signature=signed.signature))]
