"""The control socket: asked and answered, for the owner alone, and not to be broken by who asks badly."""

from __future__ import annotations

import os
import socket
import stat
import struct
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from holdfast.admission import control
from holdfast.admission.control import ControlServer, ask, control_path
from holdfast.errors import ConfigError, HoldfastError, NetworkError, SetupError


def echo(**arguments: Any) -> Mapping[str, Any]:
    return {"got": arguments}


def refuse() -> Mapping[str, Any]:
    raise ConfigError("no such member")


def find() -> Mapping[str, Any]:
    raise HoldfastError("a finding")


def break_down() -> Mapping[str, Any]:
    raise ZeroDivisionError("with a secret in it")


HANDLERS = {"echo": echo, "refuse": refuse, "find": find, "break": break_down}


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    where = control_path(tmp_path)
    with ControlServer(where, HANDLERS):
        yield where
    assert not where.exists()


def test_a_request_is_answered(path: Path) -> None:
    assert ask(path, "echo", a=1, b="two", c=[3.5, None]) == {"got": {"a": 1, "b": "two", "c": [3.5, None]}}
    assert ask(path, "echo") == {"got": {}}


def test_what_the_host_raises_comes_back_with_its_kind(path: Path) -> None:
    with pytest.raises(ConfigError, match="no such member"):
        ask(path, "refuse")
    with pytest.raises(HoldfastError, match="a finding") as found:
        ask(path, "find")
    assert found.value.exit_code == 1
    with pytest.raises(ConfigError, match="knows no request 'other'; it knows break, echo, find, refuse"):
        ask(path, "other")
    with pytest.raises(HoldfastError, match="failed at 'break' with ZeroDivisionError") as found:
        ask(path, "break")
    assert "secret" not in str(found.value)
    with pytest.raises(HoldfastError, match="TypeError"):
        ask(path, "refuse", unexpected=1)
    assert ask(path, "echo") == {"got": {}}


def test_the_socket_is_the_owners_alone(path: Path) -> None:
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_where_no_host_runs_is_told(tmp_path: Path) -> None:
    for where in (tmp_path / "control.sock", tmp_path / "absent" / "control.sock"):
        with pytest.raises(NetworkError, match="no host runs in") as refused:
            ask(where, "status")
        assert refused.value.exit_code == 4


def test_a_killed_host_leaves_a_socket_that_the_next_one_replaces(tmp_path: Path) -> None:
    path = control_path(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left:
        left.bind(str(path))
    with pytest.raises(NetworkError, match="no host runs"):
        ask(path, "echo")
    with ControlServer(path, HANDLERS):
        assert ask(path, "echo") == {"got": {}}


def test_two_hosts_in_one_directory_are_one_too_many(path: Path) -> None:
    with pytest.raises(SetupError, match=r"a host runs in .* already"):
        ControlServer(path, HANDLERS)
    assert ask(path, "echo") == {"got": {}}


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("precious")
    with pytest.raises(SetupError, match="is no socket"):
        ControlServer(tmp_path / "control.sock", HANDLERS)
    assert (tmp_path / "control.sock").read_text() == "precious"


def test_a_directory_with_a_long_name_works_too(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    path = control_path(deep)
    with ControlServer(path, HANDLERS):
        real = Path(os.path.realpath(path))
        assert len(str(real)) < 100
        assert stat.S_IMODE(real.parent.stat().st_mode) == 0o700
        assert ask(path, "echo") == {"got": {}}
    assert not path.is_symlink()
    assert not real.parent.exists()
    os.symlink(real, path)  # as a killed host leaves it
    with ControlServer(path, HANDLERS):
        assert ask(path, "echo") == {"got": {}}


def speak(path: Path, content: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(60)
        connection.connect(str(path))
        try:
            connection.sendall(content)
            connection.shutdown(socket.SHUT_WR)
            return connection.recv(4096)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def test_who_asks_badly_gets_nothing_and_breaks_nothing(path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    large = msgspec.msgpack.encode({"request": "echo", "arguments": {"a": bytes(control.MOST_REQUEST_BYTES)}})
    packed = msgspec.msgpack.encode({"request": "echo", "arguments": {}, "more": 1})
    for content in (
        b"",
        b"\0\0",
        struct.pack(">I", 1 << 31),
        struct.pack(">I", 5) + b"ab",
        struct.pack(">I", 4) + b"\xc1\xc1\xc1\xc1",
        struct.pack(">I", len(packed)) + packed,
        struct.pack(">I", len(large)) + large,
    ):
        assert speak(path, content) == b""
    assert ask(path, "echo") == {"got": {}}
    assert capfd.readouterr() == ("", "")


def test_a_silent_caller_holds_up_nobody(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE_S", 600.0)
    silent = [socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(2)]
    with silent[0], silent[1]:
        for connection in silent:
            connection.settimeout(60)
        silent[0].connect(str(path))
        assert ask(path, "echo") == {"got": {}}
        monkeypatch.setattr(control, "PATIENCE_S", 0.1)
        silent[1].connect(str(path))
        assert silent[1].recv(1) == b""


def test_a_crowd_is_told_to_come_back(tmp_path: Path) -> None:
    release, inside = threading.Event(), threading.Semaphore(0)

    def wait() -> Mapping[str, Any]:
        inside.release()
        release.wait(120)
        return {}

    path = control_path(tmp_path)
    with ControlServer(path, {"wait": wait}):
        threads = [threading.Thread(target=ask, args=(path, "wait")) for _ in range(control.MOST_AT_ONCE)]
        for thread in threads:
            thread.start()
        for _ in threads:
            assert inside.acquire(timeout=60)
        with pytest.raises(NetworkError, match="too many requests at once"):
            ask(path, "wait")
        release.set()
        for thread in threads:
            thread.join()


def test_a_host_that_answers_nonsense_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = control_path(tmp_path)
    monkeypatch.setattr(ControlServer, "answer", lambda self, connection: connection.sendall(struct.pack(">I", 1 << 31)))
    with ControlServer(path, {}), pytest.raises(NetworkError, match="did not answer"):
        ask(path, "echo")
