"""The engine `processes` as a thing that takes steps on demand, with the CPU time and the memory of all its processes."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

from holdfast.cluster import Cluster, Deployment
from holdfast.crew import Processes, Staging, processes
from holdfast.errors import FaultWindowExceeded, SetupError
from holdfast.event import Event, StepSealed
from holdfast.job import Job


class ProcessPipeline:
    """Every seat filled and no step taken; this process is the initiator's. Raises SetupError where there is no /proc."""

    def __init__(self, job: Job) -> None:
        if not Path("/proc/self/stat").is_file():
            raise SetupError(
                "the time and memory of other processes are read from /proc, which this machine lacks; measure the other parts"
            )
        self._machines = processes(Staging(job.config))
        self._loss = 0.0
        try:
            self._cluster = Cluster(Deployment("benchmark"), job, self._observe, self._machines)
            self._cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
        except BaseException:
            self._machines.close()
            raise
        crew = self._machines.crew
        assert isinstance(crew, Processes)
        self._pids = [crew.children.pid(name) for name in crew.children.alive()]

    def run(self, numbers: Sequence[int]) -> tuple[float, float]:
        """Take the steps of these numbers: the loss of the last one, and the CPU seconds of all processes. Checks included."""
        began = self._cpu_s()
        take(self._cluster, numbers)
        return self._loss, self._cpu_s() - began

    @property
    def computed_s(self) -> float:
        """Seconds that all members have computed, by the clock on the wall."""
        return sum(self._cluster.launcher.seconds_by_kind.values())

    @property
    def bytes_sent(self) -> int:
        """Of all members, as they last told."""
        return self._cluster.launcher.bytes_sent

    @property
    def worker_bytes(self) -> int:
        """The most memory that the process of any worker has had, libraries included."""
        return max(_peak_bytes(pid) for pid in self._pids)

    def close(self) -> None:
        self._machines.close()

    def _observe(self, event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed):
            self._loss = event.loss

    def _cpu_s(self) -> float:
        return time.process_time() + sum(cpu_s(pid) for pid in self._pids)


def take(cluster: Cluster, numbers: Sequence[int]) -> None:
    """The steps of these numbers, and every check that was drawn. Raises FaultWindowExceeded."""
    for number in numbers:
        broken = cluster.run_step(number)
        if broken is not None:
            raise FaultWindowExceeded(broken)
    broken = cluster.settle()
    if broken is not None:
        raise FaultWindowExceeded(broken)


def cpu_s(pid: int) -> float:
    """Seconds that a process has computed, all its threads together."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _peak_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
