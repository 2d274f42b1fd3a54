"""Who is at the other end of a wire: credentials, the address book, what a link may cost, and what is told about links."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from holdfast.errors import ConfigError
from holdfast.transport.wire import Limits

NoticeKind: TypeAlias = Literal["up", "lost", "refused", "relayed"]

MAX_NAME_BYTES = 128
MAX_PART_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who this process is, all PEM.

    `authority` is the certificate of the run's own authority; `certificate` is this process's: common name = process name,
    SAN dns = f"{name}.holdfast". Keys are ECDSA P-256, since gRPC refuses Ed25519 certificates.
    """

    authority: bytes
    certificate: bytes
    private_key: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One entry of the address book: `process` speaks for the members `names` and listens at `address` ("ip:port").

    Without an address it cannot be dialled: it dials, or is reached through the relay.
    """

    process: str
    names: tuple[str, ...]
    address: str | None = None

    def __post_init__(self) -> None:
        if not 0 < len(self.process.encode()) <= MAX_NAME_BYTES:
            raise ConfigError(f"a process is named by 1 to {MAX_NAME_BYTES} bytes, got {self.process[:80]!r}")


@dataclass(frozen=True, slots=True)
class WireOptions:
    """What links may cost and how patient they are.

    `part_bytes`: a frame travels in parts of this, the last up to an eighth longer. `window_bytes`: tensors sent on a link and
    not acknowledged; an eighth of it for control messages. `queue_bytes`: what may wait for one peer before it counts as lost.
    `heartbeat_s`: each end is heard at least this often. `silence_s`: a peer that is not heard for so long is lost.
    `reconnect_s`: so is one whose broken connection is not back. `linger_s`: how long `close` waits for what is queued.
    `compression` is free of loss, and used where it helps.
    """

    part_bytes: int = 1 << 20
    window_bytes: int = 64 << 20
    queue_bytes: int = 8 << 30
    heartbeat_s: float = 2.0
    silence_s: float = 6.0
    reconnect_s: float = 3.0
    linger_s: float = 1.0
    limits: Limits = field(default_factory=Limits)
    compression: Literal["zlib"] | None = None

    def __post_init__(self) -> None:
        if not 1024 <= self.part_bytes <= MAX_PART_BYTES:
            raise ConfigError(f"parts have 1024 to {MAX_PART_BYTES} bytes, got {self.part_bytes}")
        if self.window_bytes < 8 * self.part_bytes:
            raise ConfigError(f"a window holds at least eight parts of {self.part_bytes} bytes, got {self.window_bytes} bytes")
        if not 0 < self.heartbeat_s < self.silence_s or self.reconnect_s <= 0:
            raise ConfigError("heartbeats come more often than silence is noticed, and a reconnect takes some time")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something happened to the link with `process`; `at` is in seconds of the monotonic clock.

    up: a new incarnation of the peer is connected. lost: it is gone, and what was on its way with it. refused: it, or who
    called itself so, was not let in. relayed: its messages now go through the relay.
    """

    process: str
    kind: NoticeKind
    reason: str
    at: float


@dataclass(frozen=True, slots=True)
class LinkStats:
    """One link as it is now: times in seconds, counts in bytes; `rtt_s` and `heard_s` (an age) are None until it was heard."""

    state: Literal["waiting", "up", "broken", "lost"]
    way: Literal["direct", "relayed"] | None
    rtt_s: float | None
    bytes_sent: int
    bytes_received: int
    queued_bytes: int
    unread_bytes: int
    reconnects: int
    heard_s: float | None


class AddressBook:
    """Who speaks for whom, who can be dialled, and which end dials; never changed, only replaced.

    Raises ConfigError if two processes speak for one member.
    """

    def __init__(self, me: Endpoint, relay: str | None, endpoints: Iterable[Endpoint] = ()) -> None:
        self.me = me
        self.relay = relay
        self.processes: Mapping[str, Endpoint] = {e.process: e for e in endpoints if e.process != me.process}
        self._speaker: dict[str, str] = {}
        for endpoint in (me, *self.processes.values()):
            for name in endpoint.names:
                if self._speaker.setdefault(name, endpoint.process) != endpoint.process:
                    raise ConfigError(f"{self._speaker[name]} and {endpoint.process} both speak for {name}; one of them may")

    def process_of(self, name: str) -> str | None:
        """The process that speaks for a member."""
        return self._speaker.get(name)

    @property
    def is_relay(self) -> bool:
        """Whether this process forwards between others."""
        return self.relay in (None, self.me.process)

    def dials(self, process: str) -> bool:
        """Whether this end opens the connections: all dial the relay; of two that have addresses the smaller name does."""
        if self.processes[process].address is None or self.relay == self.me.process:
            return False
        return process == self.relay or self.me.address is None or self.me.process < process

    def direct(self, process: str) -> bool:
        """Whether one of the two ends can dial the other."""
        return self.me.address is not None or self.processes[process].address is not None

    def opens_circuits(self, process: str) -> bool:
        """Whether this end opens the way through the relay to `process`, when there is none without."""
        return not self.is_relay and process != self.relay and self.me.process < process
