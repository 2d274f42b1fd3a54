"""All that stages, the coordinator and the referee ever say to one another: the schema is final, the transport varies.

    coordinator --> worker     BeginStep  Accepted  Supply  Update  Seal  SendState  NewRoute
    worker --> coordinator     Header  Complaint  StateAdopted  Loss  Flag
    worker --> worker          Claim  StateTransfer  Offer  TiedGradient  TiedWeight
    coordinator <--> referee   Examine  Finding  Lacking           (and the checker, who examines sealed steps)
    coordinator <--> station   Peers  Deploy  TallyUp  Dismiss;  Present  Deployed  Tally   (the process that a worker lives in)

Nothing else is shared. A message is a frozen dataclass of plain values, digests and tensors; the wire knows these types
and no others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from holdfast.claim import Claim, ClaimKey, Header, Role, StageState, Tensor
from holdfast.route import Route


@dataclass(frozen=True, slots=True)
class BeginStep:
    """Start (or, with a higher attempt, start again) a step from the sealed weights `version`.

    `digests` are the sealed state digests of all stages, so that a new holder knows which delivered state is the right one.
    """

    step: int
    attempt: int
    version: int
    route: Route
    digests: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class NewRoute:
    """The route changed inside a step: who has taken over sends what the lost worker may have left unsent."""

    route: Route


@dataclass(frozen=True, slots=True)
class Accepted:
    """The board's ruling: a tensor for `key` may be used if its digest is `output`."""

    key: ClaimKey
    output: bytes


@dataclass(frozen=True, slots=True)
class Supply:
    """An order to send one's tensor for `key` (own output or verified input) to `to`, for what was rejected or lost."""

    key: ClaimKey
    to: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Update:
    """All gradients stand agreed: multiply them by `clip_scale` (from agreed norms only) and take one optimizer step."""

    step: int
    attempt: int
    clip_scale: float
    learning_rate: float


@dataclass(frozen=True, slots=True)
class Seal:
    """Version `version` is agreed by both holders of every stage; older versions may be freed."""

    version: int


@dataclass(frozen=True, slots=True)
class SendState:
    """An order to send the state of `stage` at `version` to `to`, who will hold it in `role` (None: only look at it).

    `digest` is the sealed one, by which a new holder finds it among what it was sent and has not begun to use; empty: not told.
    """

    stage: int
    version: int
    to: str
    role: Role | None
    digest: bytes = b""


@dataclass(frozen=True, slots=True)
class StateTransfer:
    """A whole stage on its way to a new holder, or to the initiator for a checkpoint (`role` is None)."""

    state: StageState
    role: Role | None


@dataclass(frozen=True, slots=True)
class Offer:
    """A primary's new state before it is sealed, for a shadow of another numerics class to weigh and take over."""

    attempt: int
    state: StageState


@dataclass(frozen=True, slots=True)
class StateAdopted:
    """The receiver of a state says which digest arrived; the coordinator compares it with the sealed one."""

    stage: int
    version: int
    role: Role
    digest: bytes


@dataclass(frozen=True, slots=True)
class StateRefused:
    """A trusted party was sent a state of `stage` by `sender` whose digest `got` is not the one `sealed` as `version`."""

    stage: int
    version: int
    sender: str
    got: bytes
    sealed: bytes


@dataclass(frozen=True, slots=True)
class Complaint:
    """`sender` delivered a tensor for `key` whose digest `got` is not the accepted one (empty: nothing usable came).

    `evidence` is the header that came with it, if it was signed: beside another one on the board it convicts its signer.
    """

    key: ClaimKey
    sender: str
    got: bytes
    evidence: Header | None = None


@dataclass(frozen=True, slots=True)
class Loss:
    """The training loss of one micro-batch, nats a token, as the last stage computed it."""

    step: int
    attempt: int
    micro_batch: int
    value: float


@dataclass(frozen=True, slots=True)
class TiedGradient:
    """The head's share of the gradient of tied embeddings, from the last stage to the first (one machine), shape [V, D]."""

    step: int
    attempt: int
    micro_batch: int
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class TiedWeight:
    """The sealed tied embedding at `version`, from the first stage to the last, shape [V, D]."""

    version: int
    tensor: Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """How far the account of `worker` is from a re-execution in another numerics class, and how far it may be.

    In an `Examine` the distances are infinite, since nobody has measured yet; the referee fills them in. `norms` are those of a
    GRADIENT. What is not shown to the referee stays at infinity.
    """

    worker: str
    output: bytes
    norms: tuple[float, ...]
    most_overall: float
    most_of_a_row: float
    overall: float = float("inf")
    worst_row: float = float("inf")

    @property
    def fits(self) -> bool:
        """Whether it is within what it may be; NaN is not."""
        return self.overall <= self.most_overall and self.worst_row <= self.most_of_a_row


@dataclass(frozen=True, slots=True)
class Examine:
    """Ask the referee for the honest output of `key`, from sealed weights `version` and inputs with these digests.

    `inputs` maps every claim key whose tensor is needed to its accepted digest; `holders` are asked for state and tensors
    in this order. `state_digest` is the sealed digest of the stage at `version`. `clip_scale` and `learning_rate` count only
    for an UPDATE. `route` is that of the step where it is not the running one. `measure` are the accounts of members whose
    numerics class is not the referee's.
    """

    key: ClaimKey
    version: int
    state_digest: bytes
    inputs: tuple[tuple[ClaimKey, bytes], ...]
    holders: tuple[str, ...]
    clip_scale: float = 1.0
    learning_rate: float = 0.0
    route: Route | None = None
    measure: tuple[Measured, ...] = ()


@dataclass(frozen=True, slots=True)
class Lacking:
    """What nobody has sent for the case of `key` since it was first asked for: the stage's state, the tensors of `inputs`."""

    key: ClaimKey
    state: bool
    inputs: tuple[ClaimKey, ...]


@dataclass(frozen=True, slots=True)
class Flag:
    """The tensor of `key` looks unlike its history to who received it; it accuses nobody and makes a check likelier."""

    key: ClaimKey
    statistic: str
    value: float


@dataclass(frozen=True, slots=True)
class Finding:
    """What the referee computed for `key`; `norms` only for a GRADIENT, `measured` only across numerics classes.

    `apart` are the distances (overall, worst row) between the first two accounts that were to be measured, if both were shown.
    """

    key: ClaimKey
    output: bytes
    norms: tuple[float, ...] = ()
    measured: tuple[Measured, ...] = ()
    apart: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Present:
    """The machine of a worker is there: where it can be dialled (None: nowhere), and what it can do.

    `speed` is in forward passes of the calibration model a second, 0 where it was not measured. `kept` are the states that it
    still has from before it was cut off: stage and digest.
    """

    address: str | None
    device: str
    numerics: str
    memory_bytes: int = 0
    speed: float = 0.0
    kept: tuple[tuple[int, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class Peers:
    """The machines of the run: process, the members that it speaks for, and where it can be dialled."""

    processes: tuple[tuple[str, tuple[str, ...], str | None], ...]


@dataclass(frozen=True, slots=True)
class Deploy:
    """Forget what was before and build the worker of `blueprint`; from now on only messages of `generation` count."""

    generation: int
    blueprint: bytes


@dataclass(frozen=True, slots=True)
class Deployed:
    """The worker of `generation` stands; or why it does not (`refusal`)."""

    generation: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class TallyUp:
    """Say what you have used so far."""

    number: int


@dataclass(frozen=True, slots=True)
class Tally:
    """What a worker says that it has used since it was deployed: seconds of computing by kind, bytes sent by its machine."""

    number: int
    seconds: tuple[tuple[str, float], ...]
    bytes_sent: int


@dataclass(frozen=True, slots=True)
class Dismiss:
    """The run needs this machine no more."""

    reason: str


Message = (
    BeginStep
    | NewRoute
    | Accepted
    | Supply
    | Update
    | Seal
    | SendState
    | StateTransfer
    | Offer
    | StateAdopted
    | StateRefused
    | Complaint
    | Loss
    | TiedGradient
    | TiedWeight
    | Examine
    | Finding
    | Lacking
    | Flag
    | Present
    | Peers
    | Deploy
    | Deployed
    | TallyUp
    | Tally
    | Dismiss
    | Header
    | Claim
)


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message from one member of the run to another. The transport vouches for `sender`."""

    sender: str
    recipient: str
    message: Message


@dataclass(frozen=True, slots=True)
class Work:
    """One unit of computation that a member is ready to do now; `device` names the serial resource it occupies.

    `cost` is in forward passes of one micro-batch through a stage of average cost (a backward pass counts two); a launcher
    with a virtual clock turns it into seconds.
    """

    kind: str
    device: int
    stage: int
    key: ClaimKey
    role: Role | None
    cost: float


class Actor(Protocol):
    """A member of the run as a pure state machine: called by a launcher, from one thread, never concurrently.

    `receive` takes one message and may answer with others at once; it must not compute. `next_work` says what the device
    would do next (None: it waits for messages) and changes nothing; `execute` does it. Both may raise `ProtocolError` for
    a message that breaks the schema. What it does not promise: any order between messages of different senders.
    """

    name: str

    def receive(self, envelope: Envelope) -> Sequence[Envelope]: ...

    def next_work(self, device: int) -> Work | None: ...

    def execute(self, work: Work) -> Sequence[Envelope]: ...
