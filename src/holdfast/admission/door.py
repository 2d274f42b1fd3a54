"""The door: where strangers knock. One small gRPC server on a port of its own; the gatekeeper says who comes in.

TLS shows the door's certificate and asks for none, since who knocks has none yet. Members' traffic never comes here, so that a
crowd at the door does not slow a step down.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from holdfast.admission.address import Address, check_listen
from holdfast.admission.gatekeeper import Gatekeeper
from holdfast.admission.wording import MOST_ANSWER_BYTES, MOST_REQUEST_BYTES, SERVICE
from holdfast.transport.listening import cannot_listen

MOST_AT_ONCE = 32
MOST_CONNECTIONS = 512
_OPTIONS: list[tuple[str, Any]] = [
    ("grpc.max_receive_message_length", MOST_REQUEST_BYTES),
    ("grpc.max_send_message_length", MOST_ANSWER_BYTES),
    ("grpc.max_metadata_size", 8 << 10),
    ("grpc.max_concurrent_streams", 4),
    ("grpc.max_allowed_incoming_connections", MOST_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 15_000),
    ("grpc.max_connection_age_ms", 60_000),
    ("grpc.max_connection_age_grace_ms", 5_000),
    ("grpc.so_reuseport", 0),  # a second host on this port must fail, not share it
]


class Door:
    """Serves one gatekeeper on `address` with the door's `certificate` and `private_key` (PEM)."""

    def __init__(
        self, gatekeeper: Gatekeeper, address: str, certificate: bytes, private_key: bytes, *, exposed: bool = False
    ) -> None:
        """Raises ConfigError for an address that other machines reach, unless `exposed`."""
        self._gatekeeper = gatekeeper
        self._wanted = check_listen(address, exposed=exposed)
        self._credentials = grpc.ssl_server_credentials([(private_key, certificate)])
        self._server: grpc.aio.Server | None = None
        self._thread: ThreadPoolExecutor | None = None

    async def start(self) -> Address:
        """Open it; the address that it really has. Raises CannotListen where the port cannot be had."""
        server = grpc.aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MOST_AT_ONCE)
        handlers = {
            "Greet": grpc.unary_unary_rpc_method_handler(self._greet),
            "Admit": grpc.unary_unary_rpc_method_handler(self._admit),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        try:
            port = server.add_secure_port(str(self._wanted), self._credentials)
        except RuntimeError:
            port = 0
        if port == 0:
            await server.stop(None)
            raise cannot_listen(str(self._wanted)).given_by("--door")
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="holdfast-door")
        await server.start()
        self._server = server
        return Address(self._wanted.host, port)

    async def stop(self, grace_s: float = 1.0) -> None:
        """Close it; who is being answered has `grace_s` seconds."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(grace_s)
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(cancel_futures=True)

    async def _greet(self, content: bytes, context: Any) -> bytes:
        return await self._aside(self._gatekeeper.greet, context.peer(), content)

    async def _admit(self, content: bytes, context: Any) -> bytes:
        return await self._aside(self._gatekeeper.admit, context.peer(), content)

    async def _aside(self, answer: Callable[[str, bytes], bytes], peer: str, content: bytes) -> bytes:
        """In a thread of the door's own: the gatekeeper writes files, and the loop and its other threads serve the members."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, answer, peer, content)
