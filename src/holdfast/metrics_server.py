"""Prometheus text at `/metrics` and JSON at `/healthz`, on loopback unless told otherwise."""

from __future__ import annotations

import json
import socket
import socketserver
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from holdfast.admission.address import Address, check_listen
from holdfast.errors import CannotListen, MissingExtra
from holdfast.served import Served

MOST_AT_ONCE = 8
PATIENCE_S = 5.0


class Source(Protocol):
    """What is asked at each scrape, from the server's threads (see `holdfast.metrics.Metrics`)."""

    def collect(self) -> Iterator[Any]: ...

    def health(self) -> dict[str, Any]: ...


class MetricsServer(Served):
    """Answers scrapes of `metrics` at `address` (port 0: any free one) in threads of its own; close it, or use it as a context.

    Raises ConfigError for an address that other machines reach unless `exposed`, MissingExtra without the client library,
    and CannotListen where the port cannot be had.
    """

    def __init__(self, metrics: Source, address: str, *, exposed: bool = False) -> None:
        wanted = check_metrics(address, exposed=exposed)
        from prometheus_client import CollectorRegistry

        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(metrics)
        self._metrics = metrics
        try:
            server = _Server(wanted, self)
        except OSError as error:
            raise CannotListen(str(wanted), (error.strerror or str(error)).lower(), "--metrics") from None
        self.address = Address(wanted.host, int(server.server_address[1]))
        super().__init__(server, "holdfast metrics", poll_s=0.2)

    def answer(self, path: str, accept: str) -> tuple[bytes, str] | None:
        """Body and content type of a page; None where there is none."""
        from prometheus_client.exposition import choose_encoder

        match path.partition("?")[0]:
            case "/metrics":
                encoder, kind = choose_encoder(accept)
                return encoder(self._registry), kind
            case "/healthz":
                return json.dumps(self._metrics.health()).encode() + b"\n", "application/json"
        return None


def check_metrics(address: str, *, exposed: bool) -> Address:
    """Where metrics would be served. Raises ConfigError for a wrong address, or one that others reach unless `exposed`, and
    MissingExtra without the client library.
    """
    wanted = check_listen(address, exposed=exposed, option="--expose-metrics")
    try:
        import prometheus_client  # noqa: F401
    except ImportError:
        raise MissingExtra("prometheus-client", extra="metrics", purpose="--metrics") from None
    return wanted


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 16
    allow_reuse_address = True

    def __init__(self, address: Address, owner: MetricsServer) -> None:
        self.owner = owner
        self._places = threading.BoundedSemaphore(MOST_AT_ONCE)
        self.address_family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # HTTPServer's own asks the resolver for this machine's name

    def process_request(self, request: Any, client_address: Any) -> None:
        """Who comes while all places are taken is sent away: a scrape is repeated anyway."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: a caller that hangs up is no news, and a traceback would go to the terminal of the run."""


class _Handler(BaseHTTPRequestHandler):
    server_version = "Holdfast"
    sys_version = ""
    timeout = PATIENCE_S
    server: _Server

    def do_GET(self) -> None:
        found = self.server.owner.answer(self.path, self.headers.get("Accept", ""))
        body, kind = found or (b"here are /metrics and /healthz\n", "text/plain; charset=utf-8")
        self.send_response(200 if found else 404)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *values: Any) -> None:
        """Nothing: scrapes are no news."""
