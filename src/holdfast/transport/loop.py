"""One event loop in a thread of its own, shared by all transports of a process: gRPC has one poller for all loops."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


class LoopThread:
    """Starts with its first user and ends with its last; `acquire` and `release` come in pairs."""

    _lock = threading.Lock()
    _running: LoopThread | None = None
    _users = 0

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="holdfast-wire", daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls) -> LoopThread:
        with cls._lock:
            if cls._running is None or not cls._running._thread.is_alive():  # a forked child has no threads
                cls._running, cls._users = cls(), 0
            cls._users += 1
            return cls._running

    @classmethod
    def release(cls) -> None:
        with cls._lock:
            cls._users -= 1
            if cls._users == 0 and cls._running is not None:
                cls._running._stop()
                cls._running = None

    def call(self, work: Coroutine[Any, Any, T], timeout_s: float | None = None) -> T:
        """The result of `work` on the loop, waited for."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def _stop(self) -> None:
        async def settle() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_asyncgens()

        self.call(settle())
        gc.collect()  # gRPC takes its hooks off the loop when its last channel or server goes, so that must come first
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
