"""A server of the standard library that answers in a thread of its own, from its making until it is closed."""

from __future__ import annotations

import socketserver
import threading
from typing import Self


class Served:
    """What such a server has in common, whatever it answers; use as a context, or close it."""

    def __init__(self, server: socketserver.BaseServer, name: str, poll_s: float) -> None:
        """Begins to answer; `poll_s` is how long a closing may wait for the loop to look up."""
        self._server = server
        self._thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": poll_s}, name=name, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Listen no more. A second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
