"""Knocking for real: who comes in, who does not, and what a man in the middle gets to hear."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from holdfast.admission import wording
from holdfast.admission.address import parse_address
from holdfast.admission.door import Door
from holdfast.admission.invite import Invite
from holdfast.admission.knock import Admission, knock
from holdfast.admission.known_hosts import KnownHosts
from holdfast.admission.roster import Status
from holdfast.errors import ConfigError, NetworkError, SetupError
from holdfast.evidence.authority import Authority
from holdfast.evidence.certificates import check_certificate, member_keys
from holdfast.evidence.identity import derived

from .conftest import HOST, OFFER, RUN, Clock, Host, Loop

ONE, TWO = derived(1, "one"), derived(1, "two")


def enter(invite: Invite, identity: Any = ONE, **settings: Any) -> Admission:
    """With little patience: on loopback, what does not work at once does not work."""
    return knock(invite, identity, settings.pop("offer", OFFER), **{"patience_s": 0, **settings})


def test_a_machine_comes_in(host: Host) -> None:
    admission = enter(host.invite())
    assert admission.name == "w1"
    assert str(admission.wire[0]) == f"{parse_address(host.address).host}:7701"
    assert admission.host_public == HOST.public
    keys = check_certificate(admission.certificate, host.authority.certificate, name="w1")
    assert keys.identity == ONE.public
    assert admission.heartbeat_s == 2.0
    member = host.roster.get("w1")
    assert member is not None
    assert (member.status, member.key, member.offer) == (Status.ACCEPTED, ONE.public, OFFER)


def test_its_certificate_opens_a_mutual_tls_connection(host: Host, loop: Loop) -> None:
    """What all this is for: host and member authenticate each other with what the door gave out."""
    admission = enter(host.invite())
    certificate, private = host.authority.credentials("host", HOST)

    async def serve() -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()

        async def echo(content: bytes, context: Any) -> bytes:
            return member_keys(context.auth_context()["x509_pem_cert"][0]).name.encode()

        handler = grpc.method_handlers_generic_handler("x.Y", {"Z": grpc.unary_unary_rpc_method_handler(echo)})
        server.add_generic_rpc_handlers((handler,))
        credentials = grpc.ssl_server_credentials([(private, certificate)], host.authority.certificate, True)
        port = server.add_secure_port("127.0.0.1:0", credentials)
        await server.start()
        return server, port

    server, port = loop.run(serve())
    try:
        credentials = grpc.ssl_channel_credentials(admission.authority, admission.private_key, admission.certificate)
        for name, answer in (("host", b"w1"), ("w2", None)):
            options = [("grpc.ssl_target_name_override", f"{name}.holdfast")]
            with grpc.secure_channel(f"127.0.0.1:{port}", credentials, options=options) as channel:
                call = channel.unary_unary("/x.Y/Z")
                if answer is None:
                    with pytest.raises(grpc.RpcError):
                        call(b"", timeout=60)
                else:
                    assert call(b"", timeout=60) == answer
    finally:
        loop.run(server.stop(0))


def test_names_go_on_and_wishes_count(host: Host) -> None:
    invite = host.invite(uses=3)
    assert enter(invite, wish="w2").name == "w2"
    assert enter(invite, TWO).name == "w1"
    assert enter(invite, derived(1, "three")).name == "w3"


def test_a_member_comes_back_by_its_key_alone(host: Host) -> None:
    invite = host.invite()
    first = enter(invite)
    for again in (enter(invite), enter(invite, with_secret=False)):
        assert again.name == first.name
        assert again.certificate != first.certificate
    assert host.invitations.list()[0]["used_by"] == [ONE.fingerprint]
    with pytest.raises(NetworkError, match="opens nothing here"):
        enter(invite, TWO, with_secret=False)


def test_wrong_used_expired_and_revoked_secrets_have_one_answer(host: Host) -> None:
    used = host.invite()
    enter(used)
    revoked = host.invite()
    host.invitations.revoke(host.invitations.list()[-1]["id"])
    clock = Clock(0.0)
    host.invitations._clock, before = clock, host.invitations._clock
    expired = host.invite(ttl_s=1)
    host.invitations._clock = before
    wrong = Invite((host.address,), HOST.fingerprint, RUN, bytes(16))
    answers = set()
    for invite in (used, revoked, expired, wrong):
        with pytest.raises(NetworkError) as refused:
            enter(invite, TWO)
        answers.add(str(refused.value))
    assert len(answers) == 1
    assert host.roster.by_key(TWO.public) is None


def test_a_taken_name_is_refused_to_another_key_and_spends_nothing(host: Host) -> None:
    enter(host.invite(), wish="alice")
    invite = host.invite()
    with pytest.raises(NetworkError, match="changed key is refused"):
        enter(invite, TWO, wish="alice")
    with pytest.raises(NetworkError, match="means somebody else"):
        enter(invite, TWO, wish="host")
    assert host.invitations.list()[-1]["used_by"] == []
    assert enter(invite, TWO).name == "w1"
    with pytest.raises(NetworkError, match="cannot be 'bob' too"):
        enter(invite, TWO, wish="bob")


def test_a_name_that_is_taken_is_not_told_without_a_secret(host: Host) -> None:
    enter(host.invite(), wish="alice")
    with pytest.raises(NetworkError, match="opens nothing"):
        enter(Invite((host.address,), HOST.fingerprint, RUN, bytes(16)), TWO, wish="alice")


def test_the_operator_may_have_the_last_word(make_host: Callable[..., Host]) -> None:
    host, clock, lines = make_host(accept="manual", retry_s=5.0), Clock(0.0), []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            host.roster.accept("w1")

    admission = enter(host.invite(), sleep=sleep, pace=clock, tell=lines.append)
    assert admission.name == "w1"
    assert clock.slept == [5.0, 5.0, 5.0]
    assert lines == ["enrolled as w1; waiting for the host's operator: holdfast nodes RUN_DIR accept w1"]
    with pytest.raises(NetworkError, match="did not accept it within 60 s"):
        enter(host.invite(), TWO, sleep=clock.sleep, pace=clock, wait_s=60)


def test_a_host_that_pauses_while_we_wait_has_our_patience_anew(make_host: Callable[..., Host]) -> None:
    """The patience for a dead door begins when the door is dead, not when the waiting began."""
    host, clock = make_host(accept="manual", retry_s=59.0), Clock(0.0)
    real, down = host.gatekeeper.greet, iter([False, True, True, False])
    busy = wording.encode(wording.Refused("trouble", "the disk is full", 1.0))
    host.gatekeeper.greet = lambda peer, content: busy if next(down) else real(peer, content)  # type: ignore[method-assign]

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        if len(clock.slept) == 3:
            host.roster.accept("w1")

    assert enter(host.invite(), sleep=sleep, pace=clock, patience_s=10).name == "w1"
    assert clock.slept == [59.0, 1.0, 1.0]


def test_who_was_sent_away_stays_away(host: Host) -> None:
    invite = host.invite()
    enter(invite)
    host.roster.release("w1")
    with pytest.raises(NetworkError, match="w1 is released in this run"):
        enter(invite)
    host.roster.accept("w1")
    assert enter(invite).quarantined is False
    host.roster.quarantine("w1")
    assert enter(invite).quarantined is True
    host.roster.ban("w1", "a false gradient, record r7")
    with pytest.raises(NetworkError, match="w1 is banned in this run: a false gradient"):
        enter(invite)


def test_a_machine_of_no_use_spends_no_invite(host: Host) -> None:
    host.judge = lambda offer: f"needed are 2 GiB of memory, it has {offer.memory_bytes / 2**30:.0f}"
    invite = host.invite()
    with pytest.raises(NetworkError, match="needed are 2 GiB of memory, it has 1"):
        enter(invite)
    host.judge = lambda offer: None
    assert enter(invite, TWO).name == "w1"


def test_a_restarted_host_honours_its_books(make_host: Callable[..., Host]) -> None:
    first = make_host()
    used, fresh = first.invite(), first.invite()
    enter(used)
    first.close()
    second = make_host()
    assert second.authority.certificate == first.authority.certificate
    moved = [Invite((second.address,), invite.fingerprint, invite.run, invite.secret) for invite in (used, fresh)]
    assert enter(moved[0]).name == "w1"
    with pytest.raises(NetworkError, match="opens nothing"):
        enter(moved[0], TWO)
    assert enter(moved[1], TWO).name == "w2"


class Middle:
    """A man in the middle: his own key, a TLS server, and everything that he ever gets to read."""

    def __init__(self, certificate: bytes, private: bytes, directory: Path) -> None:
        (directory / "pair.pem").write_bytes(private + certificate)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(directory / "pair.pem")
        self.context.set_alpn_protocols(["h2"])
        self.heard: list[bytes] = []
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                raw, _ = self.socket.accept()
            except OSError:
                return
            with raw, contextlib.suppress(OSError), self.context.wrap_socket(raw, server_side=True) as secured:
                secured.settimeout(60)
                while content := secured.recv(65536):
                    self.heard.append(content)

    def close(self) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        self.thread.join()


@contextlib.contextmanager
def middle(certificate: bytes, private: bytes, directory: Path) -> Iterator[Middle]:
    made = Middle(certificate, private, directory)
    try:
        yield made
    finally:
        made.close()


def test_a_man_in_the_middle_hears_nothing(tmp_path: Path) -> None:
    """He has a whole authority of his own for the same run, and shows the same kind of certificate."""
    mallory = derived(9, "mallory")
    certificate, private = Authority.generate(mallory, RUN).credentials("door", mallory)
    with middle(certificate, private, tmp_path) as man:
        invite = Invite((man.address,), HOST.fingerprint, RUN, b"sixteen secret b")
        with pytest.raises(NetworkError) as refused:
            enter(invite)
    assert man.heard == []
    assert HOST.fingerprint in str(refused.value)
    assert mallory.fingerprint in str(refused.value)
    assert "nothing was sent" in str(refused.value)


def test_the_doors_public_certificate_without_its_key_helps_nobody(tmp_path: Path) -> None:
    """He copies the real authority into a certificate of his own: we look, find the right authority, and TLS then stops."""
    real = Authority.generate(HOST, RUN)
    mallory = Authority.generate(derived(9, "mallory"), RUN)
    mallory._certificate, kept = real._certificate, mallory._certificate
    certificate, private = mallory.credentials("door", HOST)  # embeds the real one, signed by his
    mallory._certificate = kept
    with middle(certificate, private, tmp_path) as man, pytest.raises(NetworkError, match="UNAVAILABLE"):
        enter(Invite((man.address,), HOST.fingerprint, RUN, b"sixteen secret b"))
    assert man.heard == []


def test_the_same_host_in_another_run_is_refused(host: Host) -> None:
    with pytest.raises(NetworkError, match="of another run than 'run-2'"):
        enter(Invite((host.address,), HOST.fingerprint, "run-2", bytes(16)))


def test_a_changed_host_key_is_refused_before_anybody_is_asked(host: Host, tmp_path: Path) -> None:
    known = KnownHosts(tmp_path / "hosts.json")
    enter(host.invite(), known_hosts=known)
    other = Invite((host.address,), derived(9, "mallory").fingerprint, RUN, bytes(16))
    with pytest.raises(NetworkError, match="HOST'S KEY HAS CHANGED"):
        enter(other, known_hosts=KnownHosts(tmp_path / "hosts.json"))


@contextlib.contextmanager
def nobody() -> Iterator[str]:
    """An address that is taken, and where nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_nobody_there_is_told_after_bounded_retries() -> None:
    clock = Clock(0.0)
    with nobody() as address, pytest.raises(NetworkError, match=r"no entry after 60 s at .*is the host running") as refused:
        knock(Invite((address,), HOST.fingerprint, RUN, bytes(16)), ONE, OFFER, sleep=clock.sleep, pace=clock)
    assert refused.value.exit_code == 4
    assert clock.slept[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(clock.slept) == 10.0
    assert sum(clock.slept) < 75


def test_the_second_address_is_tried(host: Host) -> None:
    invite = host.invite()
    with nobody() as dead:
        admission = enter(Invite((dead, host.address), invite.fingerprint, invite.run, invite.secret))
    assert admission.name == "w1"


def test_who_speaks_no_tls_or_hangs_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("holdfast.admission.knock.fetch_door.__kwdefaults__", {"timeout_s": 0.3})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(NetworkError, match="does not answer with TLS"):
            enter(Invite((address,), HOST.fingerprint, RUN, bytes(16)))


def test_too_many_visits_are_asked_to_wait_and_do(make_host: Callable[..., Host]) -> None:
    host = make_host(burst=2, per_second=50.0)
    clock = Clock(0.0)
    invite = host.invite(uses=3)
    enter(invite)
    admission = enter(invite, TWO, patience_s=60, pace=clock, sleep=lambda s: (clock.sleep(s), threading.Event().wait(0.1)))
    assert admission.name == "w2"


def test_versions_part_politely(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The joiner of a later version is refused before it shows its secret; so is the host of a later one."""
    answer = wording.decode(
        host.gatekeeper.greet("ipv4:127.0.0.1:1", wording.encode(wording.Hello(2))), wording.Answer, 1 << 16
    )
    assert (answer.code, "version 2" in answer.reason) == ("version", True)
    monkeypatch.setattr(host.gatekeeper, "greet", lambda peer, content: wording.encode(wording.Challenge(b"x", protocol=3)))
    admitted: list[bytes] = []
    monkeypatch.setattr(host.gatekeeper, "admit", lambda peer, content: admitted.append(content) or b"")
    with pytest.raises(NetworkError, match="speaks version 3 of the admission protocol, this one 1"):
        enter(host.invite())
    assert admitted == []


def test_a_host_cannot_give_us_another_name_key_or_authority(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host is trusted, its answer is checked all the same: a mistake here would show up much later, as a TLS error."""
    real = host.gatekeeper.admit
    other = Authority.generate(HOST, RUN)
    changes: list[dict[str, Any]] = [
        {"authority": other.certificate},
        {"name": "w9"},
        {"wire": ()},
        {"wire": ("nonsense",)},
        {"heartbeat_s": 0.0},
        {"certificate": b"x"},
        {"certificate": host.authority.credentials("w1", TWO)[0]},
    ]
    invite = host.invite()
    for change in changes:

        def lie(peer: str, content: bytes, change: dict[str, Any] = change) -> bytes:
            told = wording.decode(real(peer, content), wording.Answer, 1 << 16)
            return wording.encode(type(told)(**{**{f: getattr(told, f) for f in told.__struct_fields__}, **change}))

        monkeypatch.setattr(host.gatekeeper, "admit", lie)
        with pytest.raises(NetworkError, match="answered, but"):
            enter(invite)


def test_garbage_on_the_port_and_oversized_requests_do_no_harm(host: Host) -> None:
    address = parse_address(host.address)
    for noise in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(5000), b"\x16\x03\x01\x02\x00" + os.urandom(512)):
        with socket.create_connection((address.host, address.port), timeout=60) as raw:
            raw.sendall(noise)
            raw.shutdown(socket.SHUT_WR)
            with contextlib.suppress(OSError):
                while raw.recv(4096):
                    pass
    credentials = grpc.ssl_channel_credentials(host.authority.certificate)
    options = [("grpc.ssl_target_name_override", "door.holdfast")]
    with grpc.secure_channel(host.address, credentials, options=options) as channel:
        for method in (wording.GREET, wording.ADMIT):
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(method)(bytes(wording.MOST_REQUEST_BYTES + 1), timeout=60)
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            for noise in (b"", b"\xc1", os.urandom(100), wording.encode(wording.Hello())[:-1]):
                answer = wording.decode(channel.unary_unary(method)(noise, timeout=60), wording.Answer, 1 << 16)
                assert answer.code == "malformed"
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/holdfast.Door/Other")(b"", timeout=60)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert enter(host.invite()).name == "w1"


@pytest.mark.parametrize("count", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_many_visits_leave_nothing_behind(host: Host, count: int) -> None:
    address = parse_address(host.address)
    invite = host.invite()

    def visit(number: int) -> None:
        if number % 20 == 0:
            enter(invite)
            return
        with socket.create_connection((address.host, address.port), timeout=60) as raw:
            raw.sendall(b"noise")

    for number in range(40):
        visit(number)
    before = len(os.listdir("/proc/self/fd"))
    for number in range(count):
        visit(number)
    enter(invite)
    waited = threading.Event()
    for _ in range(600):
        if len(os.listdir("/proc/self/fd")) <= before + 8:
            break
        waited.wait(0.1)
    assert len(os.listdir("/proc/self/fd")) <= before + 8
    assert len(host.roster.list()) == 1


def test_a_door_opens_on_loopback_only_unless_told(host: Host) -> None:
    with pytest.raises(ConfigError, match="can be reached by other machines"):
        Door(host.gatekeeper, "0.0.0.0:0", *host.authority.credentials("door", HOST))


def test_a_port_is_not_shared(host: Host, loop: Loop) -> None:
    second = Door(host.gatekeeper, host.address, *host.authority.credentials("door", HOST))
    with pytest.raises(SetupError, match="cannot listen"):
        loop.run(second.start())


def test_no_secret_is_ever_told(host: Host, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    invite = host.invite()
    admission = enter(invite, known_hosts=KnownHosts(tmp_path / "hosts.json"))
    seen = [repr(invite), str(invite), repr(admission), *host.told]
    for bad in (invite, Invite((host.address,), HOST.fingerprint, RUN, b"0123456789abcdef")):
        with pytest.raises(NetworkError) as refused:
            enter(bad, TWO)
        seen.append(f"{refused.value} {refused.value.args}")
    told = capfd.readouterr()
    everything = "\n".join([*seen, told.out, told.err, *(p.read_text() for p in tmp_path.glob("*.json"))])
    for secret in (invite.secret, b"0123456789abcdef"):
        for form in (secret.hex(), repr(secret)[2:-1], invite.text()):
            assert form not in everything
    assert "PRIVATE" not in everything
