"""The ways there are now: a direct connection for each stream of a peer, and circuits through the relay over some of them.

direct     me ==== peer
circuit    me ==== relay ==== peer          ends with the connection to the relay, or when the direct way opens
"""

from __future__ import annotations

from collections.abc import Callable

from holdfast.transport.connection import Connection
from holdfast.transport.link import STREAMS, Key
from holdfast.transport.packet import Relayed
from holdfast.transport.path import Path
from holdfast.transport.relay import Relay


class Ways:
    """By stream and peer. `ended(path, reason)` is called for each circuit that is dropped; `relay` is this process's own, in
    case it is the one that passes packets on.
    """

    def __init__(self, relay: Relay, ended: Callable[[Path, str], None]) -> None:
        self.connections: dict[Key, Connection] = {}
        self.circuits: dict[Key, Path] = {}
        self._relay = relay
        self._ended = ended

    def add(self, path: Path) -> None:
        """The other end has said hello on it."""
        key = (path.peer, path.kind)
        if path.way == "direct":
            self.connections[key] = path.carrier
            self.drop_circuit(key, "the direct way is open")
        else:
            self.circuits[key] = path

    def release(self, key: Key) -> None:
        """A direct connection is over: with it go the circuits through it."""
        connection = self.connections.pop(key, None)
        if connection is not None:
            self._relay.ended(connection)
            for other, circuit in list(self.circuits.items()):
                if circuit.carrier is connection:
                    self.drop_circuit(other, "the way to the relay ended")

    def is_over(self, connection: Connection) -> None:
        """As `release`, unless another connection has taken its place."""
        key = (connection.peer, connection.kind)
        if self.connections.get(key) is connection:
            self.release(key)

    def drop_circuit(self, key: Key, reason: str) -> None:
        circuit = self.circuits.pop(key, None)
        if circuit is not None:
            self._ended(circuit, reason)

    def forget(self, process: str) -> None:
        """Its ways have been ended; circuits through it go too."""
        for kind in STREAMS:
            self.circuits.pop((process, kind), None)
            self.release((process, kind))

    def pass_on(self, origin: Path, relayed: Relayed) -> None:
        """Carry a packet to another process, or tell `origin` that this cannot be."""
        self._relay.carry(origin.carrier, self.connections.get((relayed.target, origin.kind)), relayed)
