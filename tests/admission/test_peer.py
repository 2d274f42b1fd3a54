"""What can be said of an address without being a member: a door, a wire, something else, or why nothing answers."""

from __future__ import annotations

import errno
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from holdfast.admission import peer, wording
from holdfast.admission.address import parse_address
from holdfast.admission.peer import Sight, look
from holdfast.cli.main import main
from holdfast.evidence.authority import Authority
from holdfast.evidence.identity import derived
from holdfast.testing.certificates import Authority as Stranger
from holdfast.transport import Credentials, Endpoint
from holdfast.transport.grpc import GrpcTransport

HOST = derived(0, "host")


def at(port: int, **options: Any) -> Sight:
    return look(parse_address(f"127.0.0.1:{port}"), **{"timeout_s": 60.0, **options})


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """A socket whose one caller is served in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def run() -> None:
            line, _ = server.accept()
            with line:
                serve(line)

        thread = threading.Thread(target=run)
        thread.start()
        yield int(server.getsockname()[1])
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def authority() -> Authority:
    return Authority.generate(HOST, "run-1")


@contextmanager
def door_that_answers(authority: Authority, content: bytes) -> Iterator[int]:
    """A server that shows a door's certificate and answers a greeting with `content`."""
    certificate, private_key = authority.credentials("door", HOST)
    handlers = {"Greet": grpc.unary_unary_rpc_method_handler(lambda _request, _context: content)}
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        server = grpc.server(pool)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(wording.SERVICE, handlers),))
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(private_key, certificate)]))
        server.start()
        yield port
        server.stop(None).wait()


def test_a_real_door(host: Any) -> None:
    sight = look(parse_address(host.address))
    assert (sight.what, sight.fit, sight.process) == ("door", True, "door")
    assert sight.round_trip_s is not None


def test_a_real_wire(authority: Authority) -> None:
    certificate, private_key = authority.credentials("host", HOST)
    credentials = Credentials(authority.certificate, certificate, private_key)
    end = GrpcTransport(Endpoint("host", ("host",)), credentials, run="run-1")
    try:
        sight = look(parse_address(end.address or ""))
    finally:
        end.close()
    assert (sight.what, sight.fit, sight.process) == ("wire", True, "host")


def test_a_door_of_another_version(authority: Authority) -> None:
    theirs = wording.encode(wording.Challenge(b"", protocol=wording.PROTOCOL + 1))
    with door_that_answers(authority, theirs) as port:
        sight = at(port)
    assert (sight.what, sight.fit) == ("door", False)
    assert f"version {wording.PROTOCOL + 1}" in sight.detail


def test_a_door_that_talks_nonsense(authority: Authority) -> None:
    with door_that_answers(authority, b"nonsense") as port:
        sight = at(port)
    assert (sight.what, sight.fit) == ("door", False)


def test_tls_of_somebody_else(tmp_path: Path) -> None:
    credentials = Stranger().issue("www", host="www.example.org")
    (tmp_path / "pem").write_bytes(credentials.certificate + credentials.private_key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "pem")

    def serve(line: socket.socket) -> None:
        with context.wrap_socket(line, server_side=True) as secured:
            secured.recv(1)

    with listening(serve) as port:
        sight = at(port)
    assert (sight.what, sight.fit) == ("tls", False)
    assert "not Holdfast" in sight.detail


def test_something_without_tls() -> None:
    with listening(lambda line: line.sendall(b"SSH-2.0-OpenSSH_9.6\r\n")) as port:
        sight = at(port)
    assert (sight.what, sight.fit) == ("tcp", False)
    assert "TLS" in sight.detail
    assert sight.round_trip_s is not None


def test_somebody_who_hangs_up() -> None:
    with listening(lambda line: None) as port:
        sight = at(port)
    assert (sight.what, sight.fit) == ("tcp", False)


def test_somebody_who_says_nothing() -> None:
    with listening(lambda line: line.recv(1 << 16) and line.recv(1)) as port:
        sight = at(port, timeout_s=0.3)
    assert (sight.what, sight.fit) == ("tcp", False)


def test_nobody_listens() -> None:
    with socket.socket() as taken:  # the port is held, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        sight = at(taken.getsockname()[1])
    assert (sight.what, sight.fit, sight.round_trip_s) == ("nothing", False, None)
    assert sight.detail.startswith("refused")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (TimeoutError("timed out"), "no answer within 5 s"),
        (OSError(errno.ENETUNREACH, os.strerror(errno.ENETUNREACH)), "no route"),
        (OSError(errno.EHOSTUNREACH, os.strerror(errno.EHOSTUNREACH)), "no route"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "no such host"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
    ],
)
def test_each_reason_has_its_words(monkeypatch: pytest.MonkeyPatch, error: OSError, told: str) -> None:
    def refuse(*_arguments: Any, **_options: Any) -> socket.socket:
        raise error

    monkeypatch.setattr(peer.socket, "create_connection", refuse)
    assert told in at(1, timeout_s=5.0).detail


def command(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(["doctor", *words])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_the_command(host: Any, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = command(capsys, "--peer", str(host.address))
    assert code == 0
    assert "a door of Holdfast" in out
    code, out, _ = command(capsys, "--peer", str(host.address), "--json")
    found = json.loads(out.splitlines()[-1])
    assert (code, found["passed"], found["what"]) == (0, True, "door")
    assert found["round_trip_ms"] >= 0


def test_the_command_where_nothing_is(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:  # the port is held, and nobody listens there
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, err = command(capsys, "--peer", address)
        assert code == 4
        assert err.startswith(f"error: {address}: refused")
        code, out, _ = command(capsys, "--peer", address, "--json")
    assert (code, json.loads(out)["passed"], json.loads(out)["round_trip_ms"]) == (4, False, None)


@pytest.mark.parametrize("words", [("--peer", "nowhere"), ("--peer", "127.0.0.1:1", "--numerics")])
def test_wrong_wishes(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert command(capsys, *words)[0] == 2
