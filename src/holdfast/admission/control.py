"""How commands on the host's machine reach the running host: a Unix socket in the run's directory, for its owner alone.

    ask(RUN/control.sock, "nodes", action="accept", id="w3")   -->   length, msgpack {"request": ..., "arguments": {...}}
                                                               <--   length, msgpack {"ok": {...}} | {"error", "code"}

One request a connection; a length has 4 bytes, big-endian. What the host mounts, and what each answers, as objects that JSON
can hold (times are Unix seconds):

    "status"  {}
        -> {"run", "step", "steps", "state",
            "stages":  [{"stage", "worker", "shadow": name | None}],
            "members": [{"name", "state", "last_heard": seconds ago | None, "speed": GFLOP/s, "queue": bytes to be sent}],
            "events":  [{"time", "text"}]}
    "nodes"   {"action": "list"}
        -> {"members": [{"name", "fingerprint", "public", "status", "note", "first_seen", "last_seen", "device",
                         "memory_bytes", "speed", "numerics", "listen": address | None, "holdfast", "torch"}]}
              {"action": "accept" | "quarantine" | "release", "id": name or beginning of a fingerprint}
        -> {"member": {as above}}
    "invite"  {"action": "new", "uses", "ttl_s"}
        -> {"invite": the line to give away, "id", "uses", "expires"}
              {"action": "list"}
        -> {"invites": [{"id", "uses", "created", "expires", "state", "used_by": [fingerprints]}]}
              {"action": "revoke", "id"}
        -> {"revoked": {as one of "invites"}}

`holdfast.admission.desk` has handlers for the last two.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import socketserver
import struct
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from holdfast.errors import ConfigError, HoldfastError, NetworkError, SetupError
from holdfast.served import Served

FILE = "control.sock"
MOST_REQUEST_BYTES = 64 << 10
MOST_ANSWER_BYTES = 32 << 20
MOST_AT_ONCE = 8
PATIENCE_S = 5.0
ANSWER_S = 30.0
_LONGEST_PATH = 100
"""The system allows a little over this for the path of a socket; longer ones get a link to a short one."""
_LENGTH = struct.Struct(">I")
_KINDS: dict[int, type[HoldfastError]] = {2: ConfigError, 3: SetupError, 4: NetworkError}

Handler = Callable[..., Mapping[str, Any]]


class _Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request: str
    arguments: dict[str, Any]


class _Said(msgspec.Struct, frozen=True):
    ok: dict[str, Any] | None = None
    error: str = ""
    code: int = 1


def control_path(run: Path) -> Path:
    """Where the host of the run in this directory listens."""
    return run / FILE


class ControlServer(Served):
    """Answers requests with `handlers`, each called with the request's arguments in a thread of its own.

    A handler's HoldfastError reaches who asked, with its exit code; of any other error only the kind does. Use as a context.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        """Raises SetupError where a host listens there already, or the system has no such sockets."""
        if not hasattr(socket, "AF_UNIX"):
            raise SetupError("this system has no Unix sockets; a host needs Linux or macOS")
        self._path = path
        self._handlers = dict(handlers)
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._short: Path | None = None
        check_alone(path)
        try:
            server = _Server(str(self._bindable()), self)
        except OSError as error:
            self._unlink()
            raise SetupError(f"cannot listen at {path}: {error.strerror or error}") from None
        super().__init__(server, "holdfast control", poll_s=0.1)

    def close(self) -> None:
        """Answer who is being answered, and leave no socket behind."""
        super().close()
        self._unlink()

    def _bindable(self) -> Path:
        if len(os.fsencode(os.path.abspath(self._path))) <= _LONGEST_PATH:
            return self._path
        self._short = Path(tempfile.mkdtemp(prefix="holdfast-"))  # made for its owner alone
        real = self._short / FILE
        os.symlink(real, self._path)
        return real

    def _unlink(self) -> None:
        self._path.unlink(missing_ok=True)
        if self._short is not None:
            shutil.rmtree(self._short, ignore_errors=True)

    def answer(self, connection: socket.socket) -> None:
        """Read one request, answer it; a caller that breaks the rules gets nothing."""
        with contextlib.suppress(OSError, EOFError, ValueError, RecursionError, msgspec.MsgspecError):
            connection.settimeout(PATIENCE_S)
            asked = msgspec.msgpack.decode(_receive(connection, MOST_REQUEST_BYTES), type=_Asked)
            _write(connection, msgspec.msgpack.encode(self._placed(asked)))

    def _placed(self, asked: _Asked) -> _Said:
        if not self._places.acquire(blocking=False):
            return _Said(error="the host has too many requests at once; ask again", code=4)
        try:
            return self._handle(asked)
        finally:
            self._places.release()

    def _handle(self, asked: _Asked) -> _Said:
        handler = self._handlers.get(asked.request)
        if handler is None:
            known = ", ".join(sorted(self._handlers)) or "nothing"
            return _Said(error=f"the host knows no request {asked.request[:40]!r}; it knows {known}", code=2)
        try:
            return _Said(ok=msgspec.to_builtins(dict(handler(**asked.arguments))))
        except HoldfastError as error:
            return _Said(error=str(error), code=error.exit_code)
        except Exception as error:  # noqa: BLE001  (a request must not take the host down, whatever is wrong with it)
            return _Said(error=f"the host failed at {asked.request!r} with {type(error).__name__}")


def ask(path: Path, request: str, **arguments: Any) -> dict[str, Any]:
    """What the host that listens at `path` answers.

    Raises NetworkError where none does, and otherwise what the host raised.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(os.path.realpath(path))
            _write(connection, msgspec.msgpack.encode(_Asked(request, arguments)))
            said = msgspec.msgpack.decode(_receive(connection, MOST_ANSWER_BYTES), type=_Said)
    except (FileNotFoundError, ConnectionRefusedError):
        raise NetworkError(
            f"no host runs in {path.parent}; start one there with `holdfast host`, or name its directory"
        ) from None
    except PermissionError:
        raise NetworkError(f"the host in {path.parent} belongs to another user; ask as that one") from None
    except (OSError, EOFError, ValueError, AttributeError, msgspec.MsgspecError) as error:
        told = getattr(error, "strerror", None) or type(error).__name__
        raise NetworkError(f"the host in {path.parent} did not answer ({told}); ask again, or start it again") from None
    if said.ok is None:
        raise _KINDS.get(said.code, HoldfastError)(said.error)
    return said.ok


class _Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    address_family = getattr(socket, "AF_UNIX", socket.AF_INET)  # the library's own class is missing where the family is
    daemon_threads = False
    block_on_close = True
    request_queue_size = 32

    def __init__(self, path: str, control: ControlServer) -> None:
        self._control = control
        super().__init__(path, socketserver.BaseRequestHandler)  # type: ignore[arg-type]  # a path in this family

    def server_bind(self) -> None:
        """Nobody else may connect, not even before the chmod: on Linux the mode of the socket is that of the file."""
        with contextlib.suppress(OSError):
            os.fchmod(self.socket.fileno(), 0o600)
        super().server_bind()
        os.chmod(self.server_address, 0o600)  # type: ignore[arg-type]

    def finish_request(self, request: Any, client_address: Any) -> None:
        self._control.answer(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: `answer` has caught what a request can do, and a traceback here would go to the host's terminal."""


def check_alone(path: Path) -> None:
    """Remove the socket of a host that was killed. Raises SetupError where one lives."""
    if not (path.exists() or path.is_symlink()):
        return
    if not (path.is_socket() or path.is_symlink()):
        raise SetupError(f"{path} is there and is no socket; move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(PATIENCE_S)
        try:
            probe.connect(os.path.realpath(path))
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise SetupError(f"a host runs in {path.parent} already; stop it first, or give another directory")


def _receive(connection: socket.socket, most: int) -> bytes:
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > most:
        raise ValueError(f"{length} bytes, the most is {most}")
    return _exactly(connection, length)


def _exactly(connection: socket.socket, count: int) -> bytes:
    content = bytearray()
    while len(content) < count:
        part = connection.recv(min(65536, count - len(content)))
        if not part:
            raise EOFError
        content += part
    return bytes(content)


def _write(connection: socket.socket, content: bytes) -> None:
    connection.sendall(_LENGTH.pack(len(content)) + content)
