"""What spot checks of whole steps cost against defences off: floating-point operations, time, bytes; state transfer apart.

    python benchmarks/spot_check_cost.py                 K = 6, q = 0.1, width 256

Operations are counted by torch's own counter over everything that is computed, the checker's share included. Time is that of
one core that computes all members in turn (processor time, since machines are shared), so it shows the work itself: passes,
hashes, signatures. Virtual time is that of the described cluster, where the checker has a machine of its own. Clean and checked
runs take turns.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from measure import job_of, show, spread, start
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from holdfast.cluster import Cluster
from holdfast.message import Envelope, StateTransfer
from holdfast.transport.wire import wire_bytes

STAGES = 6


class Operations(TorchDispatchMode):
    """Counts the floating-point operations of matrix products and attention, forward and backward, by torch's own formulas."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result


@dataclass
class Cost:
    """Of some steps: operations, seconds of the processor and of the virtual clock, bytes of states and of all the rest."""

    operations: float
    cpu_s: float
    virtual_s: float
    state_bytes: int
    other_bytes: int


def weigh(cluster: Cluster) -> Counter[str]:
    """From now on, count what is sent by kind."""
    sizes: Counter[str] = Counter()
    send = cluster.transport.send

    def weighed(envelope: Envelope) -> None:
        if envelope.sender != envelope.recipient:
            sizes["states" if isinstance(envelope.message, StateTransfer) else "rest"] += wire_bytes(envelope)
        send(envelope)

    cluster.transport.send = weighed  # type: ignore[method-assign]
    return sizes


def measure(options: argparse.Namespace, defence: str, *, count: bool) -> Cost:
    """`options.steps` steps after one of warm-up, with every check that they drew; counting operations costs time itself."""
    settings = [f"defence.name={defence}"]
    if defence != "none":
        settings += [f"defence.check_steps={options.q}"]
    job = job_of(
        f"model.name=gpt2:layers={STAGES},width={options.width},heads=4",
        f"data.sequence_length={options.sequence}",
        f"pipeline.stages={STAGES}",
        f"pipeline.micro_batches={options.micro_batches}",
        f"pipeline.micro_batch_size={options.batch}",
        f"training.steps={options.steps + 1}",
        *settings,
    )
    cluster = start(job)
    cluster.run_step(0)
    cluster.settle()
    sizes, counter = weigh(cluster), Operations()
    virtual, began = cluster.launcher.now, time.process_time()
    with counter if count else nullcontext():
        for step in range(1, options.steps + 1):
            assert cluster.run_step(step) is None
        ended = cluster.launcher.now
        assert cluster.settle() is None
    elapsed = time.process_time() - began
    return Cost(counter.total, elapsed, ended - virtual, sizes["states"], sizes["rest"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--q", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    clean, checked = (measure(options, defence, count=True) for defence in ("none", "spot-check"))
    times = []
    for _ in range(options.repeats):
        pair = [measure(options, defence, count=False).cpu_s for defence in ("none", "spot-check")]
        times.append(pair[1] / pair[0])
    row = [
        f"{options.width}",
        f"{options.micro_batches} x {options.batch} x {options.sequence}",
        f"{checked.operations / clean.operations:.3f}x",
        f"{spread(times)}x",
        f"{checked.virtual_s / clean.virtual_s:.3f}x",
        f"{checked.other_bytes / clean.other_bytes:.3f}x",
        f"{checked.state_bytes / options.steps / 1e6:.2f} MB a step",
    ]
    header = ["width", "tokens a step", "operations", "time of one core", "virtual", "bytes but states", "state transfer"]
    show(f"Cost of spot checks, K = {STAGES}, q = {options.q}, {options.steps} steps", header, [row])


if __name__ == "__main__":
    main()
