"""The wire leaves no thread, file or secret behind."""

import gc
import logging
import threading
import time
from pathlib import Path

from holdfast.message import Envelope, Seal
from holdfast.testing.certificates import Authority
from holdfast.transport import Endpoint
from holdfast.transport.grpc import GrpcTransport

AUTHORITY = Authority()
CREDENTIALS = {name: AUTHORITY.issue(name) for name in ("w1", "w2")}


def talk():
    """Two ends that exchange a message and close."""
    ends = [GrpcTransport(Endpoint(name, (name,)), CREDENTIALS[name], run="r") for name in CREDENTIALS]
    for end in ends:
        end.know([other.me for other in ends])
    ends[0].send(Envelope("w1", "w2", Seal(1)))
    wait(lambda: ends[1].receive(0.1))
    for end in ends:
        end.close()


def wait(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def open_files():
    return len(list(Path("/proc/self/fd").iterdir()))


def test_threads_and_files_are_gone_after_the_last_close():
    talk()
    threads, files = threading.active_count(), open_files()
    for _ in range(3):
        talk()
        gc.collect()
        assert "holdfast-wire" not in {thread.name for thread in threading.enumerate()}
    wait(lambda: threading.active_count() <= threads)
    wait(lambda: open_files() <= files + 1)  # gRPC closes the last ones behind our back


def test_no_key_is_shown(caplog):
    caplog.set_level(logging.DEBUG)
    talk()
    secret = CREDENTIALS["w1"].private_key.decode().splitlines()[1]
    assert secret not in repr(CREDENTIALS["w1"])
    assert secret not in caplog.text
    assert "w2" in caplog.text
