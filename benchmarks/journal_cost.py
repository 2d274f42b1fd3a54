"""What the journal of commits costs a hosted run: bytes and milliseconds a step, and the share of the step that it takes.

    python benchmarks/journal_cost.py --steps 30

The host is this process, its machines are processes of this one that join over the wire on loopback. Runs with and without
a journal take turns. The journal is written to the run's directory, so --out decides which disk is measured; what a checkpoint
at every step would cost instead (`checkpoint_every=1`, every stage's state brought to the host) is measured beside it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import show

from holdfast import Experiment
from holdfast.config import resolve
from holdfast.event import Event, StepSealed
from holdfast.host import Host, Premises

WARM_UP = 3
MODELS = {
    "0.5 M": {"name": "gpt2:layers=4,width=96,heads=4"},
    "7 M": {"name": "gpt2:layers=8,width=256,heads=4"},
    "26 M": {"name": "gpt2:layers=8,width=512,heads=8"},
}


def run(model: str, out: Path, steps: int, *, journal: bool, every: int = 0) -> tuple[float, float, float]:
    """Median seconds a step, and bytes and seconds a commit."""
    config = resolve(
        {
            "model": MODELS[model],
            "data": {"sequence_length": 64, "validation_tokens": 512},
            "pipeline": {"stages": 4, "micro_batches": 4, "micro_batch_size": 4},
            "training": {"steps": steps},
            "output": {"dir": str(out), "checkpoint_every": every, "keep": 1},
            "machines": {"journal": journal},
        }
    )
    machines: list[subprocess.Popen[bytes]] = []
    sealed: list[float] = []

    def tell(line: str) -> None:
        if "holdfast join " in line:
            for name in ("a", "b"):
                environment = {**os.environ, "HOLDFAST_HOME": str(out.parent / name), "OMP_NUM_THREADS": "1"}
                command = [sys.executable, "-m", "holdfast", "join", line.split()[-1]]
                machines.append(subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL))

    def observe(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed):
            sealed.append(time.perf_counter())

    host = Host(config, out, Premises(uses=4), tell)
    try:
        Experiment(config, observers=(observe,), host=host).run()
    finally:
        host.close()
        for machine in machines:
            machine.wait(30)
    each = [after - before for before, after in zip(sealed[WARM_UP:], sealed[WARM_UP + 1 :], strict=False)]
    kept = host.journal
    if kept is None or not kept.count:
        return statistics.median(each), 0.0, 0.0
    return statistics.median(each), kept.written_bytes / kept.count, kept.seconds / kept.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--out", type=Path, help="a directory on the disk to measure (default: a temporary one)")
    given = parser.parse_args()
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(dir=given.out) as folder:
        os.environ["HOLDFAST_HOME"] = str(Path(folder) / "home")
        for number, model in enumerate(given.models):
            root = Path(folder) / str(number)
            root.mkdir()
            off, _, _ = run(model, root / "off", given.steps, journal=False)
            on, size, seconds = run(model, root / "on", given.steps, journal=True)
            every, _, _ = run(model, root / "every", given.steps, journal=False, every=1)
            milliseconds = [f"{1e3 * value:.0f}" for value in (off, on, seconds, every)]
            rows.append([model, *milliseconds[:3], f"{seconds / on:.1%}", f"{size / 1e6:.2f}", milliseconds[3]])
    header = [
        "parameters",
        "ms a step",
        "with a journal",
        "ms a commit",
        "share",
        "MB a commit",
        "checkpoint every step: ms a step",
    ]
    show("The journal of commits: a hosted run of 4 stages on this machine", header, rows)


if __name__ == "__main__":
    main()
