"""gRPC and nothing of the protocol: an authenticated call in both directions, seen alike from both of its ends."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from holdfast.transport.endpoint import Credentials
from holdfast.transport.link import STREAMS, StreamKind
from holdfast.transport.listening import cannot_listen
from holdfast.transport.packet import MAX_PACKET_BYTES

SERVICE = "holdfast.Wire"
METHODS: dict[StreamKind, str] = {"control": "Control", "bulk": "Bulk"}

_COMMON = [
    ("grpc.max_receive_message_length", MAX_PACKET_BYTES),
    ("grpc.max_send_message_length", MAX_PACKET_BYTES),
    ("grpc.http2.lookahead_bytes", 4 << 20),
    ("grpc.http2.write_buffer_size", 2 << 20),
    ("grpc.http2.max_frame_size", 1 << 20),
    ("grpc.max_metadata_size", 4096),
]
_SERVER = [
    *_COMMON,
    ("grpc.so_reuseport", 0),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_connection_idle_ms", 10_000),
    ("grpc.server_handshake_timeout_ms", 5_000),
]
_CHANNEL = [*_COMMON, ("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0), ("grpc.enable_retries", 0)]

FAREWELL_S = 0.5
"""How long an end that has said its last waits for the other to close."""

Source = Callable[[], "bytes | None"]


class Connection:
    """A call between this process and `peer`, whose name its certificate proves.

    Messages are pulled from `sources` in turn, so that none starves another; `kick` says that one may have some.
    """

    def __init__(self, call: Any, peer: str, kind: StreamKind, *, dialled: bool) -> None:
        self.peer, self.kind, self.dialled = peer, kind, dialled
        self.sources: deque[Source] = deque()
        self.reason = ""
        self._call = call
        self._more = asyncio.Event()
        self._finishing = False
        self._writing = False
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def kick(self) -> None:
        self._more.set()

    def finish(self, reason: str) -> None:
        """Send what there is, then close."""
        self.reason = self.reason or reason
        if not self._finishing:
            self._finishing = True
            self._more.set()
            asyncio.get_running_loop().call_later(2 * FAREWELL_S, self.abort, reason)  # a dead line takes nothing any more

    def abort(self, reason: str) -> None:
        """Close at once."""
        self.reason = self.reason or reason
        if not self._over.done():
            self._over.set_result(None)

    async def run(self, heard: Callable[[bytes], None]) -> None:
        """Exchange messages until either end closes or the connection breaks; `reason` says which."""
        reader = asyncio.create_task(self._read(heard))
        writer = asyncio.create_task(self._write())
        try:
            await asyncio.wait({reader, writer, self._over}, return_when=asyncio.FIRST_COMPLETED)
            if self.dialled and writer.done() and self._finishing and not self._over.done():
                await asyncio.wait({reader, self._over}, timeout=FAREWELL_S, return_when=asyncio.FIRST_COMPLETED)
            if not self.dialled and reader.done() and not self._over.done():  # who has no more to say may still listen
                self.finish(self.reason)
                await asyncio.wait({writer, self._over}, timeout=FAREWELL_S, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (reader, writer):
                task.cancel()
            await asyncio.gather(reader, writer, return_exceptions=True)
            if self.dialled:
                self._call.cancel()
            self._call = None
            self.sources.clear()
            if self._writing and not self.dialled:
                raise asyncio.CancelledError  # gRPC then resets the stream; a status could not be sent behind a pending write

    def _next(self) -> bytes | None:
        for source in tuple(self.sources):
            self.sources.rotate(-1)
            message = source()
            if message is not None:
                return message
        return None

    async def _write(self) -> None:
        try:
            while True:
                message = self._next()
                if message is not None:
                    self._writing = True
                    await self._call.write(message)
                    self._writing = False
                elif self._finishing:
                    break
                else:
                    self._more.clear()
                    await self._more.wait()
            if self.dialled:
                await self._call.done_writing()
        except (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            self.reason = self.reason or _told(error)

    async def _read(self, heard: Callable[[bytes], None]) -> None:
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                heard(message)
            self.reason = self.reason or "the other end closed it"
            if self.dialled and await self._call.code() is not grpc.StatusCode.OK:
                self.reason = f"{await self._call.details()}"[:200]
        except (grpc.RpcError, grpc.aio.UsageError, grpc.aio.InternalError, asyncio.InvalidStateError) as error:
            self.reason = self.reason or _told(error)


def _told(error: BaseException) -> str:
    details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
    return f"{details or type(error).__name__}"[:200]


class Door:
    """The listening end: a server that lets in who has a certificate of the run's authority, and says by which name."""

    def __init__(self, credentials: Credentials, accept: Callable[[Connection], Awaitable[None]]) -> None:
        self._accept = accept
        self._server = grpc.aio.server(options=_SERVER)
        handlers = {METHODS[kind]: grpc.stream_stream_rpc_method_handler(self._handler(kind)) for kind in STREAMS}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._credentials = grpc.ssl_server_credentials(
            [(credentials.private_key, credentials.certificate)], credentials.authority, require_client_auth=True
        )

    async def open(self, listen: str) -> str:
        """Listen at "ip:port" (port 0: any free one); the address. Raises CannotListen where that is not possible."""
        host, _, _ = listen.rpartition(":")
        try:
            port = self._server.add_secure_port(listen, self._credentials)
        except RuntimeError:
            port = 0
        if not host or not port:
            raise cannot_listen(listen)
        await self._server.start()
        return f"{host}:{port}"

    async def close(self) -> None:
        await self._server.stop(FAREWELL_S)

    def _handler(self, kind: StreamKind) -> Callable[[Any, Any], Awaitable[None]]:
        async def serve(_requests: Any, context: Any) -> None:
            names = context.auth_context().get("x509_common_name", [])
            peer = names[0].decode("utf-8", "replace") if len(names) == 1 else ""
            await self._accept(Connection(context, peer, kind, dialled=False))

        return serve


class Dialler:
    """The calling end."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = grpc.ssl_channel_credentials(
            credentials.authority, credentials.private_key, credentials.certificate
        )

    @contextlib.asynccontextmanager
    async def dial(self, process: str, address: str, kind: StreamKind) -> Any:
        """A connection to `process` and nobody else; its first read or write finds out whether there is one."""
        options = [*_CHANNEL, ("grpc.ssl_target_name_override", f"{process}.holdfast")]
        channel = grpc.aio.secure_channel(address, self._credentials, options=options)
        try:
            call = channel.stream_stream(f"/{SERVICE}/{METHODS[kind]}")()
            yield Connection(call, process, kind, dialled=True)
        finally:
            await channel.close()
