"""A line of TCP that can be cut, shut, frozen, or cut after some bytes: what happens to links, done to real ones."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time


class Proxy:
    """TCP between who dials `address` and `target`. While `shut` nobody is let through; while `frozen` nothing moves.

    `cuts` are numbers of bytes after which it cuts, the next one last; `carried` counts bytes.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        host, port = target.rsplit(":", 1)
        self._far = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.shut = False
        self.frozen = threading.Event()
        self.cuts: list[int] = []
        self.carried = 0
        self._lines: list[tuple[socket.socket, socket.socket]] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break every connection, as a pulled cable does in the end."""
        for line in [line for pair in self._lines for line in pair]:
            with contextlib.suppress(OSError):
                line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                line.shutdown(socket.SHUT_RDWR)

    def sever(self) -> None:
        """Break every connection, and let nobody through again."""
        self.shut = True
        self.cut()

    def close(self) -> None:
        self.frozen.clear()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()
        for thread in self._threads:
            thread.join(5)
        for line in [line for pair in self._lines for line in pair]:
            line.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._server.accept()
            except OSError:
                return
            if self.shut:
                near.close()
                continue
            try:
                far = socket.create_connection(self._far)
            except OSError:
                near.close()
                continue
            self._lines.append((near, far))
            for a, b in ((near, far), (far, near)):
                thread = threading.Thread(target=self._pump, args=(a, b), daemon=True)
                thread.start()
                self._threads.append(thread)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 14):
                while self.frozen.is_set():
                    time.sleep(0.01)
                self.carried += len(data)
                if self.cuts and self.carried > self.cuts[-1]:
                    self.cuts.pop()
                    sink.sendall(data[: len(data) // 2])
                    self.cut()
                    return
                sink.sendall(data)
        for line in (source, sink):
            with contextlib.suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
