"""Processes over real sockets: cut, silent, slow, killed, forged; the contract is in tests/contracts."""

import contextlib
import gc
import itertools
import os
import resource
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch

from holdfast.errors import CannotListen, ConfigError, NetworkError, ProtocolError
from holdfast.message import Envelope, Loss, Seal, TiedWeight
from holdfast.testing.certificates import Authority
from holdfast.testing.proxy import Proxy
from holdfast.transport import Endpoint, WireOptions, encode, packet
from holdfast.transport.grpc import GrpcTransport
from holdfast.transport.loop import LoopThread
from holdfast.transport.packet import Hello, Preamble, Refusal
from holdfast.transport.reception import MOST_STRANGERS

AUTHORITY = Authority()
NAMES = ("host", "w1", "w2", "w3")
CREDENTIALS = {name: AUTHORITY.issue(name) for name in NAMES}
FAST = WireOptions(part_bytes=32 << 10, window_bytes=1 << 20, heartbeat_s=0.1, silence_s=60.0, reconnect_s=30.0, linger_s=0.5)
"""Nobody is lost by it: a busy machine may be silent, and take its time to dial."""

BRITTLE = replace(FAST, reconnect_s=0.6)
"""Where a line is cut for good."""

SECONDS = 60.0
"""How long something may take that comes for sure."""

PORTS = itertools.count(10_000 + os.getpid() % 200 * 100)
"""Below those that the system gives to whoever asks for any: nobody who dials gets one by chance while nobody listens there."""


@pytest.fixture(scope="module", autouse=True)
def loop():
    """One loop for all tests here, which is quicker; tests/transport/test_loop.py sees it come and go."""
    LoopThread.acquire()
    yield
    LoopThread.release()


@pytest.fixture
def world():
    """Ends and proxies that are closed afterwards."""
    made = []

    class World:
        def end(self, name, *, credentials=None, **given):
            given = {"run": "r", "options": FAST, **given}
            end = GrpcTransport(Endpoint(name, (name,)), credentials or CREDENTIALS[name], **given)
            made.append(end)
            return end

        def proxy(self, end):
            proxy = Proxy(end.address)
            made.append(proxy)
            return proxy

        def pair(self, **given):
            """w1, w2 and a proxy between them, through which w1 dials."""
            ends = self.end("w1", **given), self.end("w2", **given)
            proxy = self.proxy(ends[1])
            ends[0].know([Endpoint("w2", ("w2",), proxy.address)])
            ends[1].know([ends[0].me])
            wait_up(*ends)
            return *ends, proxy

    yield World()
    for each in made:
        if isinstance(each, Proxy):
            each.frozen.clear()
    for each in made:
        each.close()


def wait(condition, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def wait_up(*ends):
    wait(lambda: all(link.state == "up" for end in ends for link in end.links().values()))


def bulk(sender, recipient, version, count=30_000):
    return Envelope(sender, recipient, TiedWeight(version, torch.full((count,), float(version))))


def seal(sender, recipient, version):
    return Envelope(sender, recipient, Seal(version))


def collect(end, count, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    found = []
    while len(found) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} messages arrived"
        envelope = end.receive(0.2)
        if envelope is not None:
            found.append(envelope)
    return found


def of(kind, envelopes):
    return [e.message.version for e in envelopes if type(e.message) is kind]


def notices(end, kind):
    return [(n.process, n.reason) for n in end.notices() if n.kind == kind]


def wait_notice(end, kind, seconds=SECONDS):
    """The first notice of a kind."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for notice in end.notices():
            if notice.kind == kind:
                return notice
        assert end.receive(0.05) is None
    raise AssertionError(f"no notice that something was {kind}")


# -- lines that break ----------------------------------------------------------------------------------------------------


def test_a_line_cut_again_and_again_in_the_middle_of_frames_loses_and_doubles_nothing(world):
    w1, w2, proxy = world.pair()
    count = 60
    proxy.cuts = [proxy.carried + megabytes * 1_000_000 for megabytes in (9, 7, 5, 3, 1)]
    for version in range(count):
        w1.send(bulk("w1", "w2", version))
        w1.send(seal("w1", "w2", version))
        w2.send(bulk("w2", "w1", version))
    got, back = collect(w2, 2 * count), collect(w1, count)
    assert of(Seal, got) == list(range(count))
    assert sorted(of(TiedWeight, got)) == sorted(of(TiedWeight, back)) == list(range(count))
    assert all((e.message.tensor == e.message.version).all() for e in [*got, *back] if type(e.message) is TiedWeight)
    assert w1.receive(0.05) is w2.receive(0.05) is None
    assert proxy.cuts == []
    assert w1.links()["w2"].reconnects >= 1
    assert notices(w1, "lost") == notices(w2, "lost") == []


def test_a_broken_line_that_does_not_come_back_is_a_lost_peer(world):
    w1, w2, proxy = world.pair(options=BRITTLE)
    proxy.shut = True
    proxy.cut()
    for end in (w1, w2):
        notice = wait_notice(end, "lost")
        assert "not back within 0.6 s" in notice.reason


def test_silence_is_noticed(world):
    w1, w2, proxy = world.pair(options=replace(FAST, silence_s=2.0))
    w1.notices()
    proxy.frozen.set()
    notice = wait_notice(w1, "lost")
    assert notice.process == "w2"
    assert "nothing was heard from it for 2 s" in notice.reason
    assert wait_notice(w2, "lost").process == "w1"


def test_a_quiet_peer_is_not_a_silent_one(world):
    w1, w2, _ = world.pair(options=replace(FAST, silence_s=3.0))
    time.sleep(3.5)
    assert notices(w1, "lost") == notices(w2, "lost") == []
    wait(lambda: 0 < w1.links()["w2"].rtt_s < 0.5)


def test_who_stood_still_does_not_accuse_the_others(world):
    w1, w2, _ = world.pair(options=replace(FAST, silence_s=1.5))
    w1._loop.loop.call_soon_threadsafe(time.sleep, 2.5)
    w1.links()  # is told when the loop goes on
    time.sleep(0.3)
    assert notices(w1, "lost") == notices(w2, "lost") == []
    assert w1.links()["w2"].state == "up"


def test_a_lost_incarnation_stays_out_until_it_is_known_again(world):
    w1, w2, proxy = world.pair(options=BRITTLE)
    proxy.shut = True
    proxy.cut()
    wait_notice(w1, "lost")
    wait_notice(w2, "lost")
    w1.send(seal("w1", "w2", 1))
    proxy.shut = False
    time.sleep(0.4)
    assert notices(w1, "up") == notices(w2, "up") == []
    w1.know([Endpoint("w2", ("w2",), proxy.address)])
    w2.know([w1.me])
    wait_up(w1, w2)
    w1.send(seal("w1", "w2", 2))
    assert of(Seal, collect(w2, 1)) == [2], "what was sent to a lost peer came back to life"


def test_a_lost_incarnation_that_is_forgotten_stays_out_for_good(world):
    w1, w2, proxy = world.pair(options=BRITTLE)
    proxy.shut = True
    proxy.cut()
    wait_notice(w1, "lost")
    wait_notice(w2, "lost")
    w1.forget("w2", current=False)
    w1.notices()
    proxy.shut = False
    w1.know([Endpoint("w2", ("w2",), proxy.address)])
    w2.know([w1.me])
    assert "given up" in wait_notice(w2, "refused").reason
    assert notices(w1, "up") == []


def test_who_came_in_the_place_of_the_lost_is_not_forgotten_with_it(world):
    w1, _, _ = world.pair()
    new = world.end("w2")
    w1.notices()
    w1.know([new.me])
    new.know([w1.me])
    wait_notice(w1, "lost")
    w1.forget("w2", current=False)
    wait_up(w1, new)
    new.send(seal("w2", "w1", 7))
    assert of(Seal, collect(w1, 1)) == [7]


def test_a_forgotten_incarnation_stays_out_and_a_new_one_is_let_in(world):
    w1, w2, proxy = world.pair()
    w1.forget("w2")
    assert "given up" in wait_notice(w2, "lost").reason
    w1.know([Endpoint("w2", ("w2",), proxy.address)])
    time.sleep(0.3)
    assert notices(w1, "up") == [("w2", "direct")]
    assert w1.links()["w2"].state == "waiting"
    new = world.end("w2")
    new.know([w1.me])
    w1.know([new.me])
    wait_up(w1, new)
    new.send(seal("w2", "w1", 5))
    assert of(Seal, collect(w1, 1)) == [5]


def test_a_peer_that_starts_anew_is_lost_and_up_and_the_old_one_is_out(world):
    w1, w2, _ = world.pair()
    w1.notices()
    new = world.end("w2")
    new.know([w1.me])
    w1.know([new.me])
    assert "started anew" in wait_notice(w1, "lost").reason
    wait_up(w1, new)
    new.send(seal("w2", "w1", 1))
    assert of(Seal, collect(w1, 1)) == [1]
    w2.send(seal("w2", "w1", 2))
    assert w1.receive(0.5) is None


def test_messages_wait_for_a_peer_that_was_not_there_yet(world):
    w1 = world.end("w1")
    port = free_port()
    w1.know([Endpoint("w2", ("w2",), f"127.0.0.1:{port}")])
    w1.send(seal("w1", "w2", 1))
    w1.send(bulk("w1", "w2", 1))
    time.sleep(0.2)
    w2 = world.end("w2", listen=f"127.0.0.1:{port}")
    w2.know([w1.me])
    assert {type(e.message) for e in collect(w2, 2)} == {Seal, TiedWeight}


def free_port():
    for port in PORTS:
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("unreachable")


def test_both_ends_dialling_at_once_settle_on_one_connection(world):
    host, w1 = world.end("host"), world.end("w1", relay="host")
    for version in range(20):
        host.know([w1.me])
        w1.know([host.me])
        host.send(seal("host", "w1", version))
        w1.send(seal("w1", "host", version))
    assert of(Seal, collect(w1, 20)) == of(Seal, collect(host, 20)) == list(range(20))
    assert notices(host, "lost") == notices(w1, "lost") == []
    wait(lambda: len(connections(host)) == len(connections(w1)) == 2)


def connections(end):
    """The direct connections that it has."""
    return end._switchboard.sessions.ways.connections


# -- the relay -----------------------------------------------------------------------------------------------------------


def star(world, *names, **given):
    """The host as relay, and workers that only dial."""
    host = world.end("host", **given)
    workers = [world.end(name, listen=None, relay="host", **given) for name in names]
    for end in (host, *workers):
        end.know([other.me for other in (host, *workers)])
    wait_up(host, *workers)
    return host, *workers


def test_workers_that_nobody_can_dial_are_reached_through_the_relay(world):
    host, w1, w2 = star(world, "w1", "w2")
    assert w1.links()["w2"].way == w2.links()["w1"].way == "relayed"
    assert ("w2", "through host") in notices(w1, "relayed")
    for version in range(40):
        w1.send(bulk("w1", "w2", version))
        w1.send(seal("w1", "w2", version))
    got = collect(w2, 80)
    assert of(Seal, got) == of(TiedWeight, sorted(got, key=lambda e: e.message.version)) == list(range(40))
    assert host.receive(0.0) is None
    w1.close()
    assert wait_notice(w2, "lost").reason == "it said goodbye"


def test_a_link_goes_through_the_relay_when_cut_and_back_in_order(world):
    host = world.end("host")
    w1, w2 = (world.end(name, relay="host", options=replace(FAST, reconnect_s=6.0)) for name in ("w1", "w2"))
    proxy = world.proxy(w2)
    host.know([w1.me, w2.me])
    w1.know([host.me, Endpoint("w2", ("w2",), proxy.address)])
    w2.know([host.me, w1.me])
    wait_up(host, w1, w2)
    assert w1.links()["w2"].way == "direct"
    sent = 0

    def speak(count):
        nonlocal sent
        for version in range(sent, sent + count):
            w1.send(bulk("w1", "w2", version))
            w1.send(seal("w1", "w2", version))
            w2.send(seal("w2", "w1", version))
        sent += count

    speak(20)
    proxy.shut = True
    proxy.cut()
    speak(20)
    wait(lambda: w1.links()["w2"].way == w2.links()["w1"].way == "relayed")
    speak(20)
    proxy.shut = False
    wait(lambda: w1.links()["w2"].way == w2.links()["w1"].way == "direct")
    speak(20)
    got, back = collect(w2, 160), collect(w1, 80)
    assert of(Seal, got) == of(Seal, back) == list(range(80))
    assert sorted(of(TiedWeight, got)) == list(range(80))
    assert w2.receive(0.05) is None
    assert [n.kind for n in w1.notices() if n.process == "w2"] == ["up", "relayed"]
    assert notices(w2, "lost") == []


def test_a_frozen_direct_way_is_replaced_before_the_peer_counts_as_lost(world):
    patient = replace(FAST, silence_s=10.0, reconnect_s=3.0)
    host = world.end("host", options=patient)
    w1, w2 = (world.end(name, relay="host", options=patient) for name in ("w1", "w2"))
    proxy = world.proxy(w2)
    host.know([w1.me, w2.me])
    w1.know([host.me, Endpoint("w2", ("w2",), proxy.address)])
    w2.know([host.me, w1.me])
    wait_up(host, w1, w2)
    proxy.frozen.set()
    w1.send(seal("w1", "w2", 1))
    wait(lambda: w1.links()["w2"].way == w2.links()["w1"].way == "relayed")
    assert of(Seal, collect(w2, 1)) == [1]
    assert notices(w1, "lost") == notices(w2, "lost") == []


def test_a_peer_that_dies_behind_the_relay_is_lost(world):
    rare = replace(BRITTLE, heartbeat_s=10.0)  # so that it is the relay who tells, not a heartbeat's answer
    _, w1, w2 = star(world, "w1", "w2", options=rare)
    w2._loop.loop.call_soon_threadsafe(lambda: kill(w2))
    notice = wait_notice(w1, "lost")
    assert notice.process == "w2"
    assert "not back within" in notice.reason, "the relay did not tell; it was found out by silence"


def kill(end):
    """As kill -9: connections vanish and none is made again."""
    end._switchboard.dialling._calls.clear()
    for connection in list(connections(end).values()):
        connection.abort("killed")


# -- who is let in -------------------------------------------------------------------------------------------------------


class Rogue:
    """Speaks packets of its own choice with a certificate, over one stream."""

    def __init__(self, address, credentials, stream="Control", pin="host"):
        options = [("grpc.ssl_target_name_override", f"{pin}.holdfast"), ("grpc.use_local_subchannel_pool", 1)]
        self._channel = grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(credentials.authority, credentials.private_key, credentials.certificate),
            options=options,
        )
        self._stream = stream
        self._method = self._channel.stream_stream(f"/holdfast.Wire/{stream}")

    def says(self, *packets, hold_s=0.0, over=None):
        """What comes back until the other end closes; this one says nothing for `hold_s`, or until `over`, and closes too."""
        closed = threading.Event()

        def chatter():
            yield from packets
            (over or closed).wait(hold_s)

        answers = []
        with contextlib.suppress(grpc.RpcError):
            answers += [packet.parse(answer) for answer in self._method(chatter(), timeout=2 * SECONDS)]
        closed.set()
        self._channel.close()
        return answers


def hello(process="w1", stream="control", run="r", token=b"R" * 24, **given):
    return packet.hello(Hello(run, process, stream, token, **{"knows": b"", "received": 0, "window": 1 << 20, **given}))


def part(envelope, sequence=1, sender=None, recipient=None, size=None, octets=None, plain=None, codec=""):
    content = bytes(encode(envelope)) if octets is None else octets
    size = len(content) if size is None else size
    first = Preamble(size, plain or size, codec, 0, sender or envelope.sender, recipient or envelope.recipient)
    return packet.part_head(sequence, packet.preamble(first)) + content


SEAL = Envelope("w1", "host", Seal(7))

BEFORE_HELLO = {
    "garbage": ([os.urandom(100)], "conduct"),
    "nothing": ([b""], "conduct"),
    "half a hello": ([hello()[:20]], "conduct"),
    "a part": ([part(SEAL)], "conduct"),
    "goodbye": ([packet.goodbye()], "conduct"),
    "another version": ([struct.pack("<B4sH", 1, b"HFWR", 2) + b"x"], "version"),
    "another run": ([hello(run="s")], "run"),
    "another name": ([hello(process="w2")], "conduct"),
    "the host's name": ([hello(process="host")], "conduct"),
    "another stream": ([hello(stream="bulk")], "conduct"),
    "a session that is over": ([hello(knows=b"K" * 24)], "stale"),
}


@pytest.mark.parametrize(("packets", "code"), BEFORE_HELLO.values(), ids=BEFORE_HELLO)
def test_who_does_not_say_hello_properly_is_refused_and_told_why(world, packets, code):
    host = world.end("host")
    host.know([Endpoint("w1", ("w1",))])
    answers = Rogue(host.address, CREDENTIALS["w1"]).says(*packets, part(SEAL), hold_s=SECONDS)
    assert [answer.code for answer in answers] == [code]
    told = notices(host, "refused")
    assert told == ([("w1", answers[0].reason)] if code != "stale" else [])
    assert host.receive(0.0) is None


def test_versions_and_what_to_do_are_named(world):
    host = world.end("host")
    host.know([Endpoint("w1", ("w1",))])
    (answer,) = Rogue(host.address, CREDENTIALS["w1"]).says(struct.pack("<B4sH", 1, b"HFWR", 9))
    assert "version 1" in answer.reason
    assert "version 9" in answer.reason
    assert "install the same Holdfast" in answer.reason


AFTER_HELLO = {
    "garbage": [os.urandom(100)],
    "a second hello": [hello()],
    "a message as another": [part(Envelope("w2", "host", Seal(7)))],
    "a message as the host": [part(Envelope("host", "host", Seal(7)))],
    "a message as nobody": [part(Envelope("w9", "host", Seal(7)))],
    "a message for another": [part(Envelope("w1", "w2", Seal(7)))],
    "a message for nobody": [part(Envelope("w1", "w9", Seal(7)))],
    "another name outside": [part(SEAL, sender="host")],
    "a name inside": [part(Envelope("w2", "host", Seal(7)), sender="w1")],
    "a bare message": [part(SEAL, octets=bytes(encode(Seal(1))))],
    "no frame": [part(SEAL, octets=b"x" * 40)],
    "a huge frame": [part(SEAL, size=1 << 40)],
    "a frame that is longer when expanded": [part(SEAL, plain=1 << 20)],
    "an endless expansion": [part(SEAL, octets=b"x" * 40, codec="zlib", plain=1 << 20)],
    "a gap": [part(SEAL, 2)],
    "an acknowledgement of nothing": [packet.number(packet.ACK, 5)],
    "relayed as another": [packet.relay_head("w2", "w3") + part(SEAL)],
    "relayed to the host": [packet.relay_head("w1", "host") + hello()],
    "more than was announced": [part(SEAL, size=10, octets=b"x"), *(packet.part_head(n) + b"x" * 8 for n in (2, 3))],
}


@pytest.mark.parametrize("packets", AFTER_HELLO.values(), ids=AFTER_HELLO)
def test_who_breaks_the_rules_is_put_out_and_others_go_on(world, packets):
    host, w2 = star(world, "w2")
    host.know([w2.me, Endpoint("w1", ("w1",))])
    with reading(host) as received:
        answers = Rogue(host.address, CREDENTIALS["w1"]).says(hello(), *packets, hold_s=SECONDS)
    assert received == []
    assert [a.code for a in answers if isinstance(a, Refusal)] == ["conduct"]
    assert [process for process, _ in notices(host, "refused")] == ["w1"]
    again = Rogue(host.address, CREDENTIALS["w1"]).says(hello())
    assert [answer.code for answer in again] == ["fenced"]
    w2.send(seal("w2", "host", 1))
    assert of(Seal, collect(host, 1)) == [1]
    assert host.links()["w2"].reconnects == 0


@contextlib.contextmanager
def reading(end):
    """What `end` receives meanwhile, in another thread."""
    received, over = [], threading.Event()

    def read():
        while not over.is_set():
            envelope = end.receive(0.02)
            received.extend([envelope] if envelope is not None else [])

    thread = threading.Thread(target=read)
    thread.start()
    yield received
    over.set()
    thread.join()


def test_replayed_parts_and_replayed_connections_are_received_once(world):
    host = world.end("host")
    host.know([Endpoint("w1", ("w1",))])
    Rogue(host.address, CREDENTIALS["w1"]).says(hello(), part(SEAL), part(SEAL), part(SEAL), hold_s=0.2)
    Rogue(host.address, CREDENTIALS["w1"]).says(hello(), part(SEAL), hold_s=0.2)
    assert of(Seal, collect(host, 1)) == [7]
    assert host.receive(0.1) is None


def strangers():
    """Credentials, the name said in the hello, and the code of the refusal (None: TLS itself lets nobody in)."""
    other = Authority().issue("w1")
    right = CREDENTIALS["w1"]
    long = "w" * 60
    return {
        "another authority": (other, "w1", None),
        "another authority, trusting ours": (replace(other, authority=right.authority), "w1", None),
        "our authority, not in the book": (AUTHORITY.issue("w9"), "w9", "stranger"),
        "our authority, as somebody in the book": (AUTHORITY.issue("w9"), "w1", "conduct"),
        "our authority, a long name": (AUTHORITY.issue(long), long, "stranger"),
    }


def test_strangers_are_not_let_in(world):
    host = world.end("host")
    host.know([Endpoint("w1", ("w1",))])
    for case, (credentials, name, code) in strangers().items():
        answers = Rogue(host.address, credentials).says(hello(name), part(SEAL), hold_s=SECONDS)
        assert [answer.code for answer in answers] == ([code] if code else []), case
    channel = grpc.secure_channel(
        host.address,
        grpc.ssl_channel_credentials(CREDENTIALS["w1"].authority),
        options=[("grpc.ssl_target_name_override", "host.holdfast")],
    )
    with channel, pytest.raises(grpc.RpcError):
        list(channel.stream_stream("/holdfast.Wire/Control")(iter([hello(), part(SEAL)]), timeout=SECONDS))
    plain = grpc.insecure_channel(host.address)
    with plain, pytest.raises(grpc.RpcError):
        list(plain.stream_stream("/holdfast.Wire/Control")(iter([hello(), part(SEAL)]), timeout=SECONDS))
    assert host.receive(0.0) is None
    assert all(link.state == "waiting" for link in host.links().values())
    assert {process for process, _ in notices(host, "refused")} <= {"w9", "w" * 60}


def test_a_dialler_speaks_only_to_whom_it_wanted(world):
    impostor = world.end("w3")
    impostor.know([Endpoint("w1", ("w1",))])
    w1 = world.end("w1")
    w1.know([Endpoint("w2", ("w2",), impostor.address)])
    w1.send(seal("w1", "w2", 1))
    time.sleep(0.4)
    assert w1.links()["w2"].state == "waiting"
    assert impostor.receive(0.0) is None
    assert impostor.notices() == []


def test_an_insider_who_connects_and_says_nothing_shuts_nobody_out(world, monkeypatch):
    """They stay until w2 is in: the host does not lose patience with them before."""
    monkeypatch.setattr("holdfast.transport.switchboard.HELLO_S", 10 * SECONDS)
    host = world.end("host")
    host.know([Endpoint("w1", ("w1",)), Endpoint("w2", ("w2",))])
    over = threading.Event()
    waits = {"hold_s": 10 * SECONDS, "over": over}
    silent = [threading.Thread(target=Rogue(host.address, CREDENTIALS["w1"]).says, kwargs=waits) for _ in range(80)]
    for thread in silent:
        thread.start()
    wait(lambda: len(host._switchboard.reception.strangers) == MOST_STRANGERS)
    w2 = world.end("w2", listen=None)
    w2.know([host.me])
    wait_up(w2)
    assert len(host._switchboard.reception.strangers) == MOST_STRANGERS, "w2 came in only after the others had left"
    over.set()
    for thread in silent:
        thread.join()


def test_a_packet_that_is_too_long_is_refused_unread(world):
    host, w2 = star(world, "w2")
    host.know([w2.me, Endpoint("w1", ("w1",))])
    for count in (packet.MAX_PACKET_BYTES + 1, 40 << 20):
        Rogue(host.address, CREDENTIALS["w1"]).says(hello(), part(SEAL, octets=bytes(count)), hold_s=0.1)
    assert host.receive(0.0) is None
    assert host.links()["w1"].unread_bytes == 0
    w2.send(seal("w2", "host", 1))
    assert of(Seal, collect(host, 1)) == [1]


def knock(host, number):
    """One connection of one hostile kind after the other."""
    match number % 5:
        case 0 | 1:
            with socket.create_connection(host.address.split(":")) as line:
                line.sendall(os.urandom(200) if number % 2 else b"\x16\x03\x01\x02\x00\x01" + os.urandom(100))
        case 2:
            Rogue(host.address, CREDENTIALS["w1"]).says(os.urandom(64))
        case 3:
            Rogue(host.address, CREDENTIALS["w1"]).says(hello(run=f"{number}"), part(SEAL))
        case 4:
            Rogue(host.address, CREDENTIALS["w2"]).says(hello("w2"), hold_s=0.0)


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_hostile_connections_leave_memory_and_open_files_as_they_were(world, count):
    host, w3 = star(world, "w3")
    host.know([w3.me, Endpoint("w1", ("w1",)), Endpoint("w2", ("w2",))])
    for number in range(25):
        knock(host, number)
    gc.collect()
    time.sleep(0.3)
    files, memory = open_files(), resident_bytes()
    for number in range(count):
        knock(host, number)
    gc.collect()
    wait(lambda: open_files() <= files + 4)
    assert resident_bytes() - memory < 16 << 20
    assert host.receive(0.0) is None
    w3.send(seal("w3", "host", 1))
    assert of(Seal, collect(host, 1)) == [1]
    assert host.links()["w3"].reconnects == 0
    assert len(host.notices()) <= 1000


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


# -- slow readers --------------------------------------------------------------------------------------------------------


def test_a_slow_reader_holds_the_sender_back_and_control_goes_on(world):
    w1, w2, _ = world.pair()
    count = 120
    for version in range(count):
        w1.send(bulk("w1", "w2", version))
    wait(lambda: w2.links()["w1"].unread_bytes > 1 << 20)
    time.sleep(0.3)
    w1.send(seal("w1", "w2", 1))
    wait(lambda: w2._mailbox._letters["control"])
    frame = 120_000 + 600
    assert w2.links()["w1"].unread_bytes <= 2 * FAST.window_bytes + frame
    assert w1.links()["w2"].queued_bytes > (count * frame) - 2 * FAST.window_bytes - 2 * frame
    got = collect(w2, count + 1)
    assert type(got[0].message) is Seal
    assert sorted(of(TiedWeight, got)) == list(range(count))
    wait(lambda: w1.links()["w2"].queued_bytes == 0)


def test_who_never_reads_is_lost_once_the_queue_is_full(world):
    w1, _, _ = world.pair(options=replace(FAST, queue_bytes=2 << 20))
    for version in range(60):
        w1.send(bulk("w1", "w2", version))
    assert "does not read" in wait_notice(w1, "lost").reason
    assert w1.links()["w2"].queued_bytes == 0


def test_frames_that_get_smaller_travel_compressed(world):
    w1, w2, _ = world.pair(options=replace(FAST, compression="zlib"))
    noise = torch.randn(30_000)
    w1.send(bulk("w1", "w2", 1))
    assert w1.traffic.bytes_sent < 10_000
    w1.send(Envelope("w1", "w2", TiedWeight(2, noise)))
    first, second = collect(w2, 2)
    assert (first.message.tensor == 1).all()
    assert torch.equal(second.message.tensor, noise)
    assert first.message.tensor.data_ptr() % 64 == second.message.tensor.data_ptr() % 64 == 0


# -- the rest of the interface -------------------------------------------------------------------------------------------


def test_messages_of_another_generation_are_dropped_those_of_a_later_one_wait(world):
    w1, w2, _ = world.pair(anytime=frozenset({Loss}))
    for generation in (2, 0, 1, 2):
        w1.generation = generation
        w1.send(seal("w1", "w2", 10 + generation))
        w1.send(Envelope("w1", "w2", Loss(generation, 0, 0, 0.0)))
    w2.generation = 1
    got = collect(w2, 5)
    assert [e.message.step for e in got if type(e.message) is Loss] == [2, 0, 1, 2]
    assert of(Seal, got) == [11]
    assert w2.receive(0.05) is None
    w2.generation = 2
    assert of(Seal, collect(w2, 2)) == [12, 12]
    w2.send(seal("w2", "w2", 1))
    w1.generation = 3
    w1.send(seal("w1", "w2", 13))
    w1.generation = 4
    w1.send(seal("w1", "w2", 14))
    assert of(Seal, collect(w2, 1)) == [1], "what one says to oneself is of the present generation"
    assert w2.receive(0.05) is None
    w2.generation = 4
    assert of(Seal, collect(w2, 1)) == [14], "what was kept for a generation that was skipped is dropped"
    assert w2.receive(0.05) is None
    w2.send(seal("w2", "w2", 2))
    w2.generation = 5
    assert w2.receive(0.05) is None


def test_a_blocked_receive_wakes(world):
    w1 = world.end("w1")
    w2 = world.end("w2")
    for wake in (w1.wake, lambda: (w1.know([w2.me]), w2.know([w1.me]))):
        timer = threading.Timer(0.1, wake)
        began = time.monotonic()
        timer.start()
        assert w1.receive(120.0) is None
        assert time.monotonic() - began < 60
        timer.join()
    w1.receive(0.2)
    w1.wake()
    assert w1.receive(120.0) is None


def test_close_delivers_what_was_sent_and_says_goodbye(world):
    w1, w2, _ = world.pair(options=replace(FAST, linger_s=SECONDS))
    for version in range(8):
        w1.send(bulk("w1", "w2", version))
    w1.send(seal("w1", "w2", 1))
    w1.close()
    assert len(collect(w2, 9)) == 9
    assert wait_notice(w2, "lost").reason == "it said goodbye"
    with pytest.raises(NetworkError, match="closed"):
        w1.know([])
    w2.send(seal("w2", "w1", 1))


def test_close_waits_only_so_long_for_who_does_not_read(world):
    w1, _, _ = world.pair()
    for version in range(100):
        w1.send(bulk("w1", "w2", version))
    closing = threading.Thread(target=w1.close, daemon=True)
    closing.start()
    closing.join(60)
    assert not closing.is_alive()


def test_who_leaves_the_address_book_is_cut_off(world):
    w1, w2, _ = world.pair()
    w1.know([])
    assert "no longer in the address book" in wait_notice(w2, "lost").reason
    w1.send(seal("w1", "w2", 1))
    assert w1.links() == {}


def test_nobody_speaks_for_others(world):
    w1, w2, _ = world.pair()
    with pytest.raises(ProtocolError, match="does not speak for 'w2'"):
        w1.send(seal("w2", "w1", 1))
    with pytest.raises(ConfigError, match="both speak for w2"):
        w1.know([w2.me, Endpoint("w3", ("w2",))])


def test_a_taken_port_is_a_clear_error(world):
    w1 = world.end("w1")
    with pytest.raises(CannotListen, match=f"cannot listen at {w1.address}: address already in use; give a free"):
        GrpcTransport(Endpoint("w2", ("w2",)), CREDENTIALS["w2"], run="r", listen=w1.address)
