"""Hours in minutes: a run over processes under kills, stops, returns and liars, drawn from a seed, and what it leaves behind.

    scripts/soak --minutes 30 --seed 0 --jsonl soak.jsonl

At the end the weights must be those of the same steps in memory without any of it, and memory and open files must be flat: the
median slope (Theil and Sen) over the second half, times its length, may be 5 % of the level. The first half is left out because
allocators, caches and the logs of events grow to their level in it; a leak goes on, and one of 5 % in half a run is found.
With liars, this process also writes down who spoke of which claim, to know afterwards who lied (`holdfast.attacks.ledger`):
about 9 kB a step in this run, traced, for which it is allowed `LEDGER_MB` a step; with `--honest` nobody lies and nothing is.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from measure import environment, show

from holdfast.config import RunConfig, resolve
from holdfast.event import Banned, Event, Joined, RolledBack, Ruling, StepRestarted, StepSealed, WorkerLost
from holdfast.result import RunResult
from holdfast.settings import split_attack
from holdfast.testing.chaos import Chaos
from holdfast.toml import assign
from holdfast.trainer import Trainer

LIES = ("sign-flip,rate=0.02,direction=both", "framing,rate=0.01", "wrong-update,rate=0.01")
SAMPLE_S = 2.0
PAUSE_S = (5.0, 20.0)
"""Between one strike and the next, once every machine is there again."""

SHARE = 0.05
SLACK = {"MB": 4.0, "open files": 6.0}
"""What a connection or a page more may be without being a leak."""


LEDGER_MB = 0.016


def config_of(seed: int, out: str | None, *, honest: bool = False) -> RunConfig:
    """The run over processes that writes to `out`; None: the one in memory, with nobody who lies."""
    settings = [
        "model.name=gpt2:layers=6,width=32,heads=2",
        "data.name=synthetic:order=1,symbols=32,tokens=40000",
        "data.sequence_length=16",
        "data.validation_tokens=512",
        "pipeline.stages=6",
        "pipeline.micro_batches=2",
        "pipeline.micro_batch_size=2",
        "training.steps=1000000",
        f"training.seed={seed}",
    ]
    if out is None:
        return resolve(assign({}, settings))
    settings += ["pipeline.engine=processes", "machines.silence_s=5", "output.checkpoint_every=50", f"output.dir={out}"]
    return resolve(assign({} if honest else {"attack": tuple(split_attack(lie) for lie in LIES)}, settings))


@dataclass
class Gauge:
    """Memory and open files of this process and of the workers', by whose they are and what: (seconds, value)."""

    series: dict[tuple[str, str], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    def read(self, name: str, pid: int, at_s: float) -> None:
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            files = len(os.listdir(f"/proc/{pid}/fd"))
        except (OSError, IndexError, ValueError):  # it has just ended
            return
        self.series[name, "MB"].append((at_s, pages * os.sysconf("SC_PAGE_SIZE") / 1e6))
        self.series[name, "open files"].append((at_s, float(files)))


def growth(points: list[tuple[float, float]]) -> tuple[float, float]:
    """By how much the second half has grown by its median slope, and its median level."""
    half = points[len(points) // 2 :]
    thinned = half[:: max(1, len(half) // 150)]
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(thinned, 2) if b[0] > a[0]]
    level = statistics.median(value for _, value in half)
    return (statistics.median(slopes) * (half[-1][0] - half[0][0]) if slopes else 0.0), level


class Storm:
    """Strikes while the run goes on, each when all machines are there; reads the gauge; stops the run in the end."""

    def __init__(self, seed: int, minutes: float) -> None:
        self.strikes: Counter[str] = Counter()
        self.gauge = Gauge()
        self._random = random.Random(seed)
        self._seconds = minutes * 60
        self._over = threading.Event()

    def run(self, chaos: Chaos, machines: int) -> None:
        began = read = time.monotonic()
        strike = began + PAUSE_S[0]
        while not self._over.wait(0.2):
            now = time.monotonic()
            if now - began > self._seconds:
                chaos.trainer.stop()
                return
            if now - read >= SAMPLE_S:
                read = now
                self.gauge.read("parent", os.getpid(), now - began)
                for name in chaos.workers:
                    pid = chaos.crew.children.pid(name)
                    self.gauge.read(f"{name} ({pid})", pid, now - began)
            if len(chaos.machines.deployed) < machines:
                strike = now + self._random.uniform(*PAUSE_S)
            elif now > strike:
                self._strike(chaos)
                strike = now + self._random.uniform(*PAUSE_S)

    def close(self) -> None:
        self._over.set()

    def _strike(self, chaos: Chaos) -> None:
        workers = sorted(chaos.workers)
        kind = self._random.choices(("kill", "two apart", "neighbours", "stop", "stop for good"), (6, 2, 1, 3, 2))[0]
        self.strikes[kind] += 1
        victim = self._random.choice(workers)
        at = self._random.randrange(len(workers) - 2)
        match kind:
            case "kill":
                chaos.kill(victim)
            case "two apart" | "neighbours":
                chaos.kill(workers[at])
                chaos.kill(workers[at + (2 if kind == "two apart" else 1)])
            case "stop":
                chaos.signal(victim, signal.SIGSTOP)
                threading.Timer(self._random.uniform(0.3, 3.0), chaos.signal, (victim, signal.SIGCONT)).start()
            case "stop for good":
                chaos.signal(victim, signal.SIGSTOP)


def undisturbed(seed: int, steps: int) -> str:
    """The digest of the same steps in memory."""

    def at(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step + 1 == steps:
            trainer.stop()

    trainer = Trainer(config_of(seed, None), observers=[at])
    return trainer.run().weights_digest


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--honest", action="store_true", help="nobody lies: kills and stops only")
    parser.add_argument("--jsonl", type=Path, help="write every reading and the verdict here")
    arguments = parser.parse_args()
    out = tempfile.mkdtemp(prefix="holdfast-soak-")
    storm = Storm(arguments.seed, arguments.minutes)
    config = config_of(arguments.seed, f"{out}/run", honest=arguments.honest)
    thread: threading.Thread | None = None

    def at(chaos: Chaos, event: Event) -> None:
        nonlocal thread
        if thread is None and isinstance(event, StepSealed):
            thread = threading.Thread(target=storm.run, args=(chaos, config.pipeline.stages - 2), daemon=True)
            thread.start()

    chaos = Chaos(config, at)
    try:
        result = chaos.run()
    finally:
        storm.close()
        shutil.rmtree(out, ignore_errors=True)
    equal = result.weights_digest == undisturbed(arguments.seed, result.steps)
    flat, rows = verdict(storm.gauge, 0.0 if arguments.honest else LEDGER_MB * result.steps / 2)
    report(chaos, result, storm, rows, equal=equal, flat=flat)
    if arguments.jsonl is not None:
        readings = [
            {"of": name, "what": what, "at": round(at_s, 1), "value": round(value, 2)}
            for (name, what), points in storm.gauge.series.items()
            for at_s, value in points
        ]
        readings.append({"equal": equal, "flat": flat, "strikes": dict(storm.strikes), "steps": result.steps, **environment()})
        arguments.jsonl.write_text("".join(json.dumps(line) + "\n" for line in readings), encoding="utf-8")
    return 0 if equal and flat else 1


def verdict(gauge: Gauge, ledger_mb: float) -> tuple[bool, list[tuple[str, ...]]]:
    """Whether everything that lived for a minute or more is flat, and a row for each."""
    flat, rows = True, []
    for (name, what), points in sorted(gauge.series.items()):
        lived_s = points[-1][0] - points[0][0]
        if lived_s < 60:
            continue
        grown, level = growth(points)
        allowed = ledger_mb if (name, what) == ("parent", "MB") else 0.0
        good = grown <= SHARE * level + SLACK[what] + allowed
        flat &= good
        shown = (f"{lived_s:.0f} s", f"{points[0][1]:.1f}", f"{level:.1f}", f"{grown:+.2f}", "flat" if good else "GROWS")
        rows.append((name, what, *shown))
    return flat, rows


def report(chaos: Chaos, result: RunResult, storm: Storm, rows: list[tuple[str, ...]], *, equal: bool, flat: bool) -> None:
    show(
        f"Soak: {result.steps} steps, weights {'equal' if equal else 'NOT EQUAL'}, {'flat' if flat else 'NOT FLAT'}",
        ("process", "what", "lived", "first", "level", "grown in the second half", ""),
        rows,
    )
    counts = {kind.__name__: len(chaos.of(kind)) for kind in (WorkerLost, Joined, Ruling, RolledBack, StepRestarted, Banned)}
    told = {"strikes": dict(storm.strikes), **counts, "detected": result.detected, "missed": result.missed}
    print(json.dumps({**told, "false_alarms": result.false_alarms, "seconds": round(result.seconds)}))


if __name__ == "__main__":
    sys.exit(main())
