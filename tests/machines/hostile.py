"""A machine with a member's credentials that speaks the wire by itself, byte by byte, and means harm.

RawWire     gRPC, and packets made and read here: nothing of the library's links, so nothing holds it to their rules
Hostile     on it a worker that computes, whose words a `Mischief` changes after they were signed, or before
Infiltrated a crew: honest stations in threads on the real wire, and one hostile machine
"""

from __future__ import annotations

import contextlib
import os
import queue
import struct
import threading
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import grpc
import msgspec
import torch

from holdfast.blueprint import Blueprint, Builder
from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.config import RunConfig
from holdfast.digest import tensor_digest
from holdfast.errors import HoldfastError, ProtocolError
from holdfast.evidence.authority import Authority
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import Identity, derived
from holdfast.machines import HOST, TRUSTED
from holdfast.message import (
    BeginStep,
    Complaint,
    Deploy,
    Deployed,
    Dismiss,
    Envelope,
    Peers,
    Present,
    Seal,
    Tally,
    TallyUp,
)
from holdfast.stage import COORDINATOR, INITIATOR
from holdfast.station import ANYTIME, Part, Station
from holdfast.transport import Credentials, Endpoint, WireOptions
from holdfast.transport.grpc import GrpcTransport
from holdfast.transport.wire import decode_envelope, encode

Speech = Callable[["Hostile", BeginStep], list[Envelope]]
Deed = Callable[["Hostile"], None]

HELLO, REFUSED, PART, ACK, PING, PONG, GOODBYE, RELAYED = range(1, 9)


class RawStream:
    """One call to one process. `told` gets (process, generation, frame) of what is complete."""

    def __init__(self, wire: RawWire, process: str, address: str, kind: str) -> None:
        self.greeted = threading.Event()
        self.refused = ""
        self.over = False
        self.deaf = False
        self._wire, self._process = wire, process
        self._out: queue.Queue[bytes | None] = queue.Queue()
        self._sequence = 0
        self._frame = bytearray()
        self._preamble: list[Any] = []
        given = wire.credentials
        credentials = grpc.ssl_channel_credentials(given.authority, given.private_key, given.certificate)
        unlimited = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
        options = [*unlimited, ("grpc.ssl_target_name_override", f"{process}.holdfast")]
        self._channel = grpc.secure_channel(address, credentials, options=options)
        method = f"/holdfast.Wire/{kind.capitalize()}"
        self._call = self._channel.stream_stream(method)(iter(self._out.get, None))
        hello = [wire.run, wire.name, kind, wire.token, b"", 0, 64 << 20]
        self.raw(struct.pack("<B4sH", HELLO, b"HFWR", 1) + msgspec.msgpack.encode(hello))
        threading.Thread(target=self._read, daemon=True).start()

    def raw(self, data: bytes) -> None:
        self._out.put(data)

    def part(self, octets: bytes, preamble: Sequence[Any] = (), sequence: int | None = None) -> None:
        """One part; `preamble` is size, plain size, codec, generation, sender, recipient."""
        if sequence is None:
            self._sequence += 1
            sequence = self._sequence
        first = msgspec.msgpack.encode(list(preamble)) if preamble else b""
        self.raw(struct.pack("<BBHIQ", PART, 0, len(first), 0, sequence) + first + octets)

    def frame(self, octets: bytes, generation: int, sender: str, recipient: str) -> None:
        self.part(octets, (len(octets), len(octets), "", generation, sender, recipient))

    def close(self) -> None:
        self._out.put(None)
        self._call.cancel()
        self._channel.close()

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError, ValueError):
            for data in self._call:
                self._heard(data)
        self.over = True

    def _heard(self, data: bytes) -> None:
        match data[0]:
            case 1:
                self.greeted.set()
            case 2:
                self.refused = str(msgspec.msgpack.decode(data[1:]))
            case 5 if not self.deaf:
                self.raw(bytes([PONG]) + data[1:])
            case 3:
                _, _, length, _, sequence = struct.unpack_from("<BBHIQ", data)
                begin = 16 + length
                if length:
                    self._preamble, self._frame = msgspec.msgpack.decode(data[16:begin]), bytearray()
                self._frame += data[begin:]
                if len(self._frame) == self._preamble[0]:
                    self._wire.inbox.put((self._process, self._preamble, bytes(self._frame)))
                if not self.deaf:
                    self.raw(struct.pack("<BQ", ACK, sequence))


class RawWire:
    def __init__(self, name: str, run: str, credentials: Credentials) -> None:
        self.name, self.run, self.credentials = name, run, credentials
        self.token = os.urandom(16) + (1).to_bytes(8, "big")
        self.inbox: queue.Queue[tuple[str, list[Any], bytes]] = queue.Queue()
        self.streams: dict[tuple[str, str], RawStream] = {}
        self.addresses: dict[str, str] = {}
        self.generation = 0

    def dial(self, process: str, address: str) -> None:
        """Both streams to a process, unless they are open; again where it did not know this one yet."""
        old = self.streams.get((process, "control"))
        if self.addresses.get(process) == address and old is not None and "stranger" not in old.refused:
            return
        self.addresses[process] = address
        for kind in ("control", "bulk"):
            self.streams[process, kind] = RawStream(self, process, address, kind)

    def stream(self, process: str, kind: str) -> RawStream | None:
        found = self.streams.get((process, kind))
        if found is not None and "stranger" in found.refused:
            self.dial(process, self.addresses[process])
            found = self.streams[process, kind]
        return found

    def tend(self) -> None:
        """Dial again who did not know this one yet."""
        for (process, kind), stream in list(self.streams.items()):
            if kind == "control" and "stranger" in stream.refused:
                time.sleep(0.05)
                self.dial(process, self.addresses[process])

    def post(self, envelope: Envelope) -> None:
        process = HOST if envelope.recipient in TRUSTED else envelope.recipient
        kind = "bulk" if hasattr(envelope.message, "tensor") or hasattr(envelope.message, "state") else "control"
        stream = self.stream(process, kind)
        if stream is not None:
            stream.frame(bytes(encode(envelope)), self.generation, envelope.sender, envelope.recipient)

    def close(self) -> None:
        for stream in self.streams.values():
            stream.close()


class Mischief:
    """What a hostile machine does beside its work: nothing, here."""

    def says(self, hostile: Hostile, envelopes: list[Envelope]) -> list[Envelope]:
        """What leaves in the place of these."""
        return envelopes

    def hears(self, hostile: Hostile, envelope: Envelope) -> None:
        """Something has come."""


@dataclass
class Hostile:
    """See the module; `play` runs until it is dismissed, shut out everywhere, or `over`."""

    name: str
    wire: RawWire
    identity: Identity
    mischief: Mischief
    over: bool = False
    fenced: bool = False
    worker: Any = None
    sent: list[Envelope] = field(default_factory=list)

    def sign(self, header: Header) -> Header:
        return sign_header(header, self.identity)

    def play(self, host: str) -> None:
        torch.set_num_threads(1)
        self.wire.dial(HOST, host)
        self.wire.post(Envelope(self.name, COORDINATOR, Present(None, "cpu", "native")))
        while not self.over:
            try:
                _, preamble, frame = self.wire.inbox.get(timeout=0.01)
            except queue.Empty:
                self._work()
                self.wire.tend()
                continue
            with contextlib.suppress(ProtocolError):
                self._hear(decode_envelope(memoryview(bytearray(frame))), preamble[3])
        self.wire.close()

    @property
    def is_shut_out(self) -> bool:
        streams = [stream for (process, _), stream in self.wire.streams.items() if process == HOST]
        return bool(streams) and all(stream.over or stream.refused for stream in streams)

    def say(self, envelopes: Sequence[Envelope]) -> None:
        for envelope in self.mischief.says(self, list(envelopes)):
            if envelope.recipient == self.name:
                self.say(self.worker.receive(envelope))
            else:
                self.sent.append(envelope)
                self.wire.post(envelope)

    def _work(self) -> None:
        work = None if self.worker is None else self.worker.next_work(0)
        if work is not None:
            self.say(self.worker.execute(work))

    def _hear(self, envelope: Envelope, generation: int) -> None:
        match envelope.message:
            case Peers(processes):
                for process, _, address in processes:
                    if address and process not in (HOST, self.name):
                        self.wire.dial(process, address)
            case Deploy():
                builder = Builder.unfold(Blueprint.decode(envelope.message.blueprint), "cpu")
                self.worker = builder.worker(self.name, self.sign)
                self.wire.generation = envelope.message.generation
                self.wire.post(Envelope(self.name, COORDINATOR, Deployed(envelope.message.generation)))
            case TallyUp(number):
                self.wire.post(Envelope(self.name, COORDINATOR, Tally(number, (), 0)))
            case Dismiss():
                self.over = True
            case _ if self.worker is not None and generation == self.wire.generation:
                self.say(self.worker.receive(envelope))
        self.mischief.hears(self, envelope)


class Infiltrated:
    """A `Crew`: `liar` is a hostile machine, the others are honest. `hostile` is it, `fenced` who was told to be out."""

    def __init__(
        self,
        config: RunConfig,
        liar: str,
        mischief: Mischief,
        run: str,
        host: Endpoint,
        authority: Authority,
        options: WireOptions,
    ) -> None:
        self.fenced: list[str] = []
        self.banned: list[str] = []
        self.hostile: Hostile
        self._config, self._liar, self._mischief = config, liar, mischief
        self._run, self._host, self._authority, self._options = run, host, authority, options
        self._known: dict[str, Endpoint] = {}
        self._told: set[str] = set()
        self._started: set[str] = set()
        self._stations: dict[str, Station] = {}
        self._threads: list[threading.Thread] = []

    def gather(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self._known:
                self._known[name] = Endpoint(name, (name,), None)

    def _start(self, name: str) -> None:
        identity = derived(self._config.training.seed, name)
        certificate, private_key = self._authority.credentials(name, identity)
        credentials = Credentials(self._authority.certificate, certificate, private_key)
        play: Callable[[], Any]
        assert self._host.address is not None
        if name == self._liar:
            wire = RawWire(name, self._run, credentials)
            self.hostile = Hostile(name, wire, identity, self._mischief)
            play = partial(self.hostile.play, self._host.address)
        else:
            play = partial(self._serve, name, credentials, identity)
        thread = threading.Thread(target=play, name=f"machine {name}", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _serve(self, name: str, credentials: Credentials, identity: Identity) -> None:
        transport = GrpcTransport(
            Endpoint(name, (name,)), credentials, run=self._run, relay=HOST, options=self._options, anytime=ANYTIME
        )
        transport.know([self._host])
        sign = partial(sign_header, identity=identity)
        self._stations[name] = Station(Part(name, Present(transport.address, "cpu", "native"), sign=sign), transport)
        with contextlib.suppress(HoldfastError):
            self._stations[name].run()
        transport.close()

    def key(self, name: str) -> bytes | None:
        return None

    def awaits(self, name: str) -> bool:
        return True

    def expect(self) -> list[Endpoint]:
        """Who was told at the last call is known to the host's wire by now, and not refused: it may start."""
        for name in self._told - self._started:
            self._started.add(name)
            self._start(name)
        expected = [end for name, end in self._known.items() if name not in self.banned]
        self._told = {end.process for end in expected}
        return expected

    def left(self, name: str, *, banned: bool) -> None:
        self.fenced.append(name)
        if banned:
            self.banned.append(name)

    def close(self) -> None:
        self.hostile.over = True
        for station in self._stations.values():
            station.stop("closed")
        deadline = time.monotonic() + 20
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


# -- mischief -------------------------------------------------------------------------------------------------------------


def signed(hostile: Hostile, header: Header, **changes: Any) -> Header:
    return hostile.sign(replace(header, **changes))


class SignFlip(Mischief):
    """Every hidden state and gradient with the other sign, its digest put under its own signature, the same to everybody."""

    def says(self, hostile: Hostile, envelopes: list[Envelope]) -> list[Envelope]:
        forged = {
            (e.message.header.key, e.message.header.role): -e.message.tensor for e in envelopes if isinstance(e.message, Claim)
        }
        digests = {moment: tensor_digest(tensor) for moment, tensor in forged.items()}
        told = []
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, Claim):
                moment = (message.header.key, message.header.role)
                header = signed(hostile, message.header, output=digests[moment])
                message = replace(message, header=header, tensor=forged[moment])
            elif isinstance(message, Header) and (message.key, message.role) in digests:
                message = signed(hostile, message, output=digests[message.key, message.role])
            told.append(replace(envelope, message=message))
        return told


class Headers(Mischief):
    """Changes the headers of one role that go to the board, after or beside the true ones, each under its own signature."""

    def __init__(self, role: Role, *, beside: bool = False) -> None:
        self.role, self.beside = role, beside

    def says(self, hostile: Hostile, envelopes: list[Envelope]) -> list[Envelope]:
        told = []
        for envelope in envelopes:
            message = envelope.message
            if isinstance(message, Header) and message.role is self.role and message.output:
                lie = replace(envelope, message=signed(hostile, message, output=os.urandom(32)))
                told += [envelope, lie] if self.beside else [lie]
            else:
                told.append(envelope)
        return told


class AtEveryStep(Mischief):
    """Says `speech(hostile, begin)` when a step begins, and does `deed` once."""

    def __init__(self, speech: Speech | None = None, deed: Deed | None = None) -> None:
        self.speech, self.deed = speech, deed

    def hears(self, hostile: Hostile, envelope: Envelope) -> None:
        if not isinstance(envelope.message, BeginStep):
            return
        if self.speech is not None:
            for told in self.speech(hostile, envelope.message):
                hostile.wire.post(told)
        if self.deed is not None and envelope.message.step == 2:
            deed, self.deed = self.deed, None
            deed(hostile)


def complaints(hostile: Hostile, begin: BeginStep) -> list[Envelope]:
    """Thousands, about everybody and everything, most of it made up."""
    told = []
    for number in range(3000):
        key = ClaimKey(begin.step, begin.attempt, (Direction.FORWARD, Direction.BACKWARD)[number % 2], number % 5, number % 2)
        sender = ("w1", "w3", INITIATOR, COORDINATOR, "w9", hostile.name)[number % 6]
        told.append(Envelope(hostile.name, COORDINATOR, Complaint(key, sender, os.urandom(32))))
    return told


def everything_again(hostile: Hostile, begin: BeginStep) -> list[Envelope]:
    """All that it ever sent, three times, to whom it was sent and to everybody else."""
    others = ("w1", "w3", INITIATOR, COORDINATOR)
    old = hostile.sent[-200:]
    return [*(3 * old), *(replace(envelope, recipient=other) for envelope in old[-40:] for other in others)]


def orders(hostile: Hostile, begin: BeginStep) -> list[Envelope]:
    """What only the coordinator may say, in its own name, to everybody."""
    said = (Seal(begin.version + 1), Dismiss("go home"), Deploy(hostile.wire.generation + 1, b"{}"), TallyUp(9), begin)
    return [Envelope(hostile.name, other, message) for other in ("w1", "w3", INITIATOR, COORDINATOR) for message in said]


def states_of_itself(hostile: Hostile, begin: BeginStep) -> list[Envelope]:
    """That it is deployed, here, has used for ever; again and again."""
    generation = hostile.wire.generation
    said = (
        Deployed(generation),
        Deployed(generation - 1, "no"),
        Tally(1 << 40, (("x", float("inf")),), -1),
        Deployed(generation),
    )
    return [Envelope(hostile.name, COORDINATOR, message) for message in 50 * said]


def present_again(hostile: Hostile, begin: BeginStep) -> list[Envelope]:
    return [Envelope(hostile.name, COORDINATOR, Present("127.0.0.1:1", "cpu", "native")) for _ in range(50)]


def as_another(name: str, to: str) -> Deed:
    """A message in the name of `name`, on its own link with the process of `to`."""

    def deed(hostile: Hostile) -> None:
        frame = bytes(encode(Envelope(name, to, Seal(9))))
        process = HOST if to in TRUSTED else to
        stream = hostile.wire.stream(process, "control")
        assert stream is not None
        stream.frame(frame, hostile.wire.generation, name, to)

    return deed


def in_disguise(name: str) -> Deed:
    """A preamble in its own name around an envelope in the name of `name`."""

    def deed(hostile: Hostile) -> None:
        frame = bytes(encode(Envelope(name, COORDINATOR, Seal(9))))
        stream = hostile.wire.stream(HOST, "control")
        assert stream is not None
        stream.frame(frame, hostile.wire.generation, hostile.name, COORDINATOR)

    return deed


def host_stream(hostile: Hostile, kind: str = "bulk") -> RawStream:
    stream = hostile.wire.stream(HOST, kind)
    assert stream is not None
    return stream


def announces(size: int) -> Deed:
    """A frame of `size` bytes, and the first thousand of them."""

    def deed(hostile: Hostile) -> None:
        preamble = (size, size, "", hostile.wire.generation, hostile.name, COORDINATOR)
        host_stream(hostile).part(b"x" * 1000, preamble)

    return deed


def bomb(hostile: Hostile) -> None:
    """A small frame that says it is a gigabyte when it is unpacked, and is."""
    packed = zlib.compress(bytes(1 << 28), 9)
    preamble = (len(packed), 1 << 28, "zlib", hostile.wire.generation, hostile.name, COORDINATOR)
    host_stream(hostile).part(packed, preamble)


def huge_packet(hostile: Hostile) -> None:
    host_stream(hostile).raw(struct.pack("<BBHIQ", PART, 0, 0, 0, 1) + bytes(64 << 20))


def gap(hostile: Hostile) -> None:
    host_stream(hostile).part(b"x" * 10, (10, 10, "", hostile.wire.generation, hostile.name, COORDINATOR), sequence=1 << 60)


def noise(hostile: Hostile) -> None:
    for kind in ("control", "bulk"):
        host_stream(hostile, kind).raw(os.urandom(200))


def relays_as_another(hostile: Hostile) -> None:
    host_stream(hostile, "control").raw(bytes([RELAYED, 2, 2]) + b"w1w3" + struct.pack("<BQ", PING, 1))


def silent_in_mid_frame(hostile: Hostile) -> None:
    """Half a frame to everybody, and then nothing, but answers to pings: it lives, and says nothing."""
    for (_, kind), stream in hostile.wire.streams.items():
        if kind == "bulk":
            stream.part(b"x" * 1000, (2000, 2000, "", hostile.wire.generation, hostile.name, COORDINATOR))
    hostile.worker = None


def dead_in_mid_frame(hostile: Hostile) -> None:
    silent_in_mid_frame(hostile)
    for stream in hostile.wire.streams.values():
        stream.deaf = True
