"""The engine `processes`: real processes, the real wire, the result of the engine in memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from holdfast import Experiment
from holdfast.errors import ConfigError
from holdfast.launch.subprocesses import Subprocesses

from .alike import SMALL, assert_counts_equal
from .hosted import PATIENCE_S, wait_for


@pytest.mark.timeout(280)
def test_attacked_and_crashed_processes_give_the_result_of_memory(tmp_path: Path) -> None:
    """Who has crashed stays away, as in memory: else what it still lies about is up to the clock."""
    against = {
        "machines": {"restart_workers": False},
        "attack": ["sign-flip,rate=0.7"],
        "faults": ["crash stage=2 step=3 at=backward"],
    }
    want = Experiment(SMALL, **against).run()
    got = Experiment(SMALL, **against, engine="processes", out=str(tmp_path / "run")).run()
    clean = Experiment(SMALL).run()
    assert got.weights_digest == want.weights_digest == clean.weights_digest
    assert_counts_equal(got, want)
    assert not _children(), "a worker's process was left behind"


@pytest.mark.timeout(280)
def test_packed_tensors_between_processes(tmp_path: Path) -> None:
    packed = {"wire_dtype": "int8", "steps": 3}
    got = Experiment(SMALL, **packed, attack=["sign-flip,rate=1.0"], engine="processes", out=str(tmp_path / "run")).run()
    assert got.weights_digest == Experiment(SMALL, **packed).run().weights_digest
    assert got.attacked_claims == got.detected > 0
    assert got.false_alarms == 0


def test_an_attack_that_is_an_object_is_refused(tmp_path: Path) -> None:
    from holdfast.attacks.tensors import SignFlip

    with pytest.raises(ConfigError, match="lives in this process"):
        Experiment(SMALL, attack=SignFlip(), engine="processes", out=str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# -- processes ------------------------------------------------------------------------------------------------------------


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.ends: list[tuple[str, str]] = []
        self.stirred = threading.Event()

    def ended(self, name: str, why: str) -> None:
        self.ends.append((name, why))
        self.stirred.set()

    def heard(self, name: str, line: bytes) -> None:
        self.lines.append((name, line))


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


ECHO = "import sys\nfor line in sys.stdin: print(line.strip(), flush=True)"


def test_what_a_process_is_told_and_says() -> None:
    heard = Heard()
    children = Subprocesses(heard.ended, heard.heard)
    children.start("a", python(ECHO), b"a secret part")
    children.close(PATIENCE_S)
    assert heard.lines == [("a", b"a secret part\n")]
    assert heard.ends == [], "who is closed has not been lost"


def test_a_process_that_ends_is_told_of_with_its_last_words(tmp_path: Path) -> None:
    heard = Heard()
    children = Subprocesses(heard.ended, heard.heard, tmp_path)
    children.start("a", python("import sys; sys.exit('no room')"), b"")
    assert heard.stirred.wait(PATIENCE_S)
    assert heard.ends == [("a", f"its process ended with exit code 1 (no room; see {tmp_path / 'a.log'})")]
    children.close()


def test_a_killed_process_is_told_of_once() -> None:
    heard = Heard()
    children = Subprocesses(heard.ended, heard.heard)
    children.start("a", python(ECHO), b"")
    children.signal("a", signal.SIGKILL)
    assert heard.stirred.wait(PATIENCE_S)
    assert heard.ends == [("a", "its process ended by SIGKILL")]
    assert children.alive() == ()
    children.close()


def test_a_stopped_process_does_not_hold_up_the_end() -> None:
    heard = Heard()
    children = Subprocesses(heard.ended, heard.heard)
    children.start("a", python("import time; time.sleep(60)"), b"")
    pid = children.pid("a")
    children.signal("a", signal.SIGSTOP)
    children.close(patience_s=0.2)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_process_whose_parent_is_killed_leaves(tmp_path: Path) -> None:
    """Standard input is the leash: it ends when the parent does, however that was."""
    code = (
        "import sys, time\n"
        "from holdfast.launch.subprocesses import Subprocesses\n"
        f"child = [sys.executable, '-c', {ECHO!r}]\n"
        "children = Subprocesses(lambda *_: None)\n"
        "children.start('a', child, b'')\n"
        "print(children.pid('a'), flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = subprocess.Popen(python(code), stdout=subprocess.PIPE)
    assert parent.stdout is not None
    with parent.stdout as stdout:
        pid = int(stdout.readline())
        parent.kill()
        parent.wait()
    wait_for(lambda: not _runs(pid))


def _runs(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_leaves_by_itself_ends_well_while_its_parent_lives() -> None:
    """The thread that waits for the parent's end held a lock that the interpreter wanted at its own: it was aborted."""
    code = (
        "import threading, time; from holdfast.cli.play import _leave_with_parent; "
        "threading.Thread(target=_leave_with_parent, args=(print,), daemon=True).start(); time.sleep(0.3)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stderr is not None
        told = child.stderr.read()
        assert (child.wait(60), told) == (0, b"")


def _children() -> list[str]:
    """Command lines of processes of workers that this process has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if parent == os.getpid() and b"holdfast.cli.play" in command:
                found.append(command.decode())
    return found
