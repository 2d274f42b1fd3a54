"""`holdfast host` as a person meets it: in a terminal, before any machine has come."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from holdfast.admission.invite import Invite
from holdfast.config import resolve
from holdfast.toml import to_toml

from .hosted import SMALL, free_port


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_waiting_host_tells_its_invite_in_one_line_and_leaves_at_the_first_interrupt(tmp_path: Path) -> None:
    config, run, other = tmp_path / "run.toml", tmp_path / "run", tmp_path / "other"
    config.write_text(to_toml(resolve({**SMALL, "output": {}})))
    door = f"127.0.0.1:{free_port()}"
    ports = ["--door", door, "--wire", "127.0.0.1:0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GRPC_")}
    environment |= {"HOLDFAST_HOME": str(tmp_path / "home"), "COLUMNS": "60", "TERM": "xterm"}
    command = [sys.executable, "-m", "holdfast", "host", str(config), *ports, "--out"]
    ours, theirs = pty.openpty()
    with subprocess.Popen([*command, str(run)], env=environment, stderr=theirs, stdout=subprocess.DEVNULL) as host:
        os.close(theirs)
        os.set_blocking(ours, False)
        try:
            told = until(ours, host, r"holdfast1:\S+\s")
            invite = Invite.parse(re.sub("\x1b[^m]*m", "", re.search(r"holdfast1:\S+", told)[0]))  # type: ignore[index]
            assert [str(at) for at in invite.doors] == [door]

            second = subprocess.run([*command, str(other)], env=environment, capture_output=True, text=True, check=False)
            assert second.returncode == 3
            assert second.stderr.count("\n") == 1, "gRPC's own word on it is not for the terminal"
            assert door in second.stderr
            assert not other.exists()

            host.send_signal(signal.SIGINT)
            told = until(ours, host, "go on with the same command")
            assert "stopped while the run waited for w1, w2" in " ".join(told.split())
            assert host.wait(30) == 130
        finally:
            host.kill()
            os.close(ours)


def until(terminal: int, host: subprocess.Popen[bytes], pattern: str) -> str:
    """What is read from the terminal, up to where `pattern` is in it."""
    told, deadline = "", time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            told += os.read(terminal, 65536).decode(errors="replace")
        except BlockingIOError:
            time.sleep(0.05)
        except OSError:  # nobody holds the other end any more
            break
        if re.search(pattern, told):
            return told
    raise AssertionError(f"{pattern!r} is not in {told!r}; exit code {host.poll()}")
