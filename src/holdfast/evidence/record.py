"""What a line of the evidence log can say: one frozen type a kind, and their one JSON form.

    opening  resumed  rollback              whose keys, which deployment, from which version
    commitment  reveal                      to which secret of the draws, and which it was
    header  equivocation  delivery  stood   what somebody signed, what came, what was accepted
    accusation  finding  ruling             who is suspected, what the referee or the checker computed, who lied
    refusal  complaint                      who did not open what it had signed, who complained without reason
    seal  collection                        what stands, what came together for a checkpoint, an evaluation, the end
    takeover  closing                       who took over, that nothing is missing

Bytes are hex, floats the hex of their 8 big-endian bytes, so that nothing is rounded and equal records are equal text.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import struct
import types
import typing
from dataclasses import dataclass
from typing import Any

from holdfast.claim import ClaimKey, Header
from holdfast.errors import ProtocolError
from holdfast.message import Finding
from holdfast.route import Route

SCHEMA = 2
READABLE = (1, 2)
"""Schema 1 knew neither collections (there every seal names every stage) nor commitments."""


FINISHED = "finished"
"""How a run has ended that has come to its last step."""


@dataclass(frozen=True, slots=True)
class Opening:
    """The members' public keys, the route at the start, the version that the run goes on from, sha256 of its config.toml.

    `deployment` is what headers call the run: another one after each rollback, so that nobody can hold what an honest worker
    says after it against what it said before. `derived` are the members whose keys follow from the seed (a simulation).
    """

    schema: int
    run: str
    deployment: str
    version: int
    keys: dict[str, bytes]
    derived: tuple[str, ...]
    route: Route
    config: bytes


@dataclass(frozen=True, slots=True)
class Resumed(Opening):
    """The run goes on, in another process; what was told of later versions is void."""


@dataclass(frozen=True, slots=True)
class Rollback:
    """The run goes on from `version`, on another route: more was broken than could be carried."""

    deployment: str
    version: int
    route: Route


@dataclass(frozen=True, slots=True)
class Committed:
    """What is computed again, and who sits where, follows from a secret with this `commitment` (`holdfast.evidence.draws`)."""

    commitment: bytes


@dataclass(frozen=True, slots=True)
class Revealed:
    """The run is over: what opens the last commitment."""

    secret: int
    blind: bytes


@dataclass(frozen=True, slots=True)
class Account:
    """A signed header about a disputed claim, as it was posted."""

    dispute: int
    header: Header


@dataclass(frozen=True, slots=True)
class Accusation:
    """A check failed. `by` is the worker whose account differs or who complained, or board, referee, deadline.

    `cites` are the records of the accounts that were compared, the primary's first; `inputs` the accepted digests of what the
    claim had to be made from (None: not compared).
    """

    dispute: int
    key: ClaimKey
    reason: str
    suspects: tuple[str, ...]
    by: str
    inputs: tuple[bytes, ...] | None
    cites: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """The referee's own result for the claim, and the accepted digests of the inputs that it worked from."""

    dispute: int
    finding: Finding
    inputs: tuple[bytes, ...] | None


@dataclass(frozen=True, slots=True)
class Equivocated:
    """Two headers of one worker for one claim that say different things; `by` is who showed the second one."""

    dispute: int
    first: Header
    second: Header
    by: str


@dataclass(frozen=True, slots=True)
class Misdelivered:
    """A tensor came from `worker` to the coordinator itself, with the digest `got` in place of `accepted`."""

    dispute: int
    key: ClaimKey
    worker: str
    got: bytes
    accepted: bytes


@dataclass(frozen=True, slots=True)
class Stood:
    """The board had accepted another account of the claim, without the referee."""

    dispute: int
    key: ClaimKey
    accepted: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """`workers` hold what stage `stage` needs for the claim to be computed again, and did not send it, asked twice."""

    dispute: int
    key: ClaimKey
    stage: int
    workers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Unfounded:
    """`worker` complained of a delivery of the coordinator's own, which had been checked before it left."""

    dispute: int
    key: ClaimKey
    worker: str


@dataclass(frozen=True, slots=True)
class Ruled:
    """Who lied (nobody: inconclusive). `basis` says how it follows from `cites`:

    finding        the accounts cited differ from the finding cited
    comparison     the comparer's account cited differs from what the finding cited measured
    equivocation   the pair cited
    delivery       the delivery cited
    quarantine     the account cited is not the one that stood, and its author had lied before: no re-execution, no proof
    refusal        the refusal cited: the coordinator's word, no proof
    complaint      the complaint cited: the coordinator's word, no proof
    """

    dispute: int
    key: ClaimKey
    reason: str
    culprits: tuple[str, ...]
    basis: str
    cites: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Sealed:
    """Version `version` stands, with these digests of the stages' states (empty for the first and the last, the
    initiator's own).
    """

    version: int
    step: int
    attempt: int
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Collected:
    """The states of the sealed `version` came together, for a checkpoint, an evaluation or the end: digests of all stages."""

    version: int
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class TookOver:
    stage: int
    lost: str
    heir: str
    step: int


@dataclass(frozen=True, slots=True)
class Enrolled:
    """From here on `key` is the public key of `member`, who came after the opening."""

    member: str
    key: bytes


@dataclass(frozen=True, slots=True)
class Closing:
    """The run's end: how many records came before, the version reached, headers refused for their signature by sender."""

    records: int
    last: bytes
    version: int
    refused: dict[str, int]
    ended: str


Record = (
    Opening
    | Resumed
    | Rollback
    | Committed
    | Revealed
    | Account
    | Accusation
    | Found
    | Equivocated
    | Misdelivered
    | Stood
    | Refused
    | Unfounded
    | Ruled
    | Sealed
    | Collected
    | TookOver
    | Enrolled
    | Closing
)

KINDS: dict[str, type[Any]] = {
    "opening": Opening,
    "resumed": Resumed,
    "rollback": Rollback,
    "commitment": Committed,
    "reveal": Revealed,
    "header": Account,
    "accusation": Accusation,
    "finding": Found,
    "equivocation": Equivocated,
    "delivery": Misdelivered,
    "stood": Stood,
    "refusal": Refused,
    "complaint": Unfounded,
    "ruling": Ruled,
    "seal": Sealed,
    "collection": Collected,
    "takeover": TookOver,
    "enrolled": Enrolled,
    "closing": Closing,
}
NAMES = {kind: name for name, kind in KINDS.items()}


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: ASCII, keys sorted, no spaces.

    >>> canonical({"b": 1, "a": [None, "é"]})
    b'{"a":[null,"\\\\u00e9"],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode("ascii")


def to_body(value: Any) -> Any:
    """A record, or a part of one, as JSON values."""
    if dataclasses.is_dataclass(value):
        return {field.name: to_body(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, float):
        return struct.pack(">d", value).hex()
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [to_body(item) for item in value]
    return {name: to_body(item) for name, item in value.items()} if isinstance(value, dict) else value


def from_body(kind: Any, value: Any) -> Any:
    """The inverse of `to_body`; raises ProtocolError for everything that it would not have made."""
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _dataclass(kind, value)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return None if value is None else from_body(arguments[0], value)
    if origin is tuple:
        return tuple(from_body(arguments[0], item) for item in _expect(list, value))
    if origin is dict:
        return {name: from_body(arguments[1], item) for name, item in _expect(dict, value).items()}
    if kind is bytes:
        return _octets(value)
    if kind is float:
        octets = _octets(value)
        if len(octets) != 8:
            raise ProtocolError(f"{len(octets)} bytes for a number; expected 8")
        return struct.unpack(">d", octets)[0]
    if issubclass(kind, enum.Enum):
        try:
            return kind(_expect(str, value))
        except ValueError as error:
            raise ProtocolError(str(error)) from None
    return _expect(kind, value)


def _dataclass(kind: Any, value: Any) -> Any:
    hints = _hints(kind)
    if _expect(dict, value).keys() != hints.keys():
        raise ProtocolError(f"a {kind.__name__} with the fields {sorted(value)[:20]}; expected {sorted(hints)}")
    return kind(**{name: from_body(hint, value[name]) for name, hint in hints.items()})


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _octets(value: Any) -> bytes:
    """Bytes from lower-case hex, as `to_body` writes it."""
    try:
        octets = bytes.fromhex(_expect(str, value))
    except ValueError:
        octets = None
    if octets is None or octets.hex() != value:
        raise ProtocolError(f"expected lower-case hex digits, got {str(value)[:80]!r}")
    return octets


def _expect(kind: type[Any], value: Any) -> Any:
    if type(value) is not kind:
        raise ProtocolError(f"expected a {kind.__name__}, got {str(value)[:80]!r}")
    return value
