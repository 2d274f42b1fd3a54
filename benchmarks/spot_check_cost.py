"""What spot checks of whole steps cost against defences off: floating-point operations, time, bytes; state transfer apart.

    python benchmarks/spot_check_cost.py                 K = 6, q = 0.1, width 256

Operations are counted by torch's own counter over everything that is computed, the checker's share included. Time is that of
one core that computes all members in turn (processor time, since machines are shared), so it shows the work itself: passes,
hashes, signatures. It counts once the window of sealed steps is full: filling it asks the system for fresh memory, once a run.
Virtual time is that of the described cluster, where the checker has a machine of its own. Clean and checked runs take turns,
step by step, and the secret is one whose draws are as many as q says.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from measure import job_of, show, spread, start

from holdfast.bench.operations import Operations
from holdfast.cluster import Cluster
from holdfast.message import Envelope, StateTransfer
from holdfast.seeds import derive
from holdfast.transport.wire import wire_bytes
from holdfast.verify.spotcheck import Sampling

STAGES = 6
DEFENCES = ("none", "spot-check")


@dataclass
class Weight:
    """Of some steps: operations, seconds of the virtual clock, bytes of states and of all the rest."""

    operations: float
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


def blocks(options: argparse.Namespace) -> list[range]:
    """The steps that are measured, after those that fill the window."""
    first = [options.warm_up + i * options.steps for i in range(options.repeats)]
    return [range(start, start + options.steps) for start in first]


def fair_seed(options: argparse.Namespace) -> int:
    """The first secret that draws in each block as often as q says: other draws would be those of another q."""
    expected = round(options.q * options.steps * (STAGES - 2))
    for secret in itertools.count():
        sampling = Sampling(derive(secret, "deployment", 0), steps=options.q)
        drawn = [sum(sampling.draws_step(s, 0, i) for s in block for i in range(1, STAGES - 1)) for block in blocks(options)]
        if set(drawn) == {expected}:
            return secret
    raise AssertionError("itertools.count ends")


def warmed_up(options: argparse.Namespace, defence: str) -> Cluster:
    """A cluster whose window is full and whose checks are done."""
    settings = [f"defence.name={defence}"]
    if defence != "none":
        settings += [f"defence.check_steps={options.q}", f"defence.check_seed={fair_seed(options)}"]
    job = job_of(
        f"model.name=gpt2:layers={STAGES},width={options.width},heads=4",
        f"data.sequence_length={options.sequence}",
        f"pipeline.stages={STAGES}",
        f"pipeline.micro_batches={options.micro_batches}",
        f"pipeline.micro_batch_size={options.batch}",
        f"training.steps={options.warm_up + options.repeats * options.steps}",
        *settings,
    )
    cluster = start(job)
    for step in range(options.warm_up):
        assert cluster.run_step(step) is None
    assert cluster.settle() is None
    return cluster


def processor_time(of: Callable[[], object]) -> float:
    began = time.process_time()
    assert of() is None
    return time.process_time() - began


def compare_times(options: argparse.Namespace) -> list[float]:
    """Checked over clean processor time, a block at a time; the two take turns with every step."""
    clean, checked = (warmed_up(options, defence) for defence in DEFENCES)
    ratios = []
    for block in blocks(options):
        spent = [0.0, 0.0]
        for step in block:
            spent[0] += processor_time(partial(clean.run_step, step))
            spent[1] += processor_time(partial(checked.run_step, step))
        spent[1] += processor_time(checked.settle)
        ratios.append(spent[1] / spent[0])
    return ratios


def weigh_all(options: argparse.Namespace, defence: str) -> Weight:
    """One block of steps with every check that they drew; counting operations costs time itself, so none is taken."""
    cluster = warmed_up(options, defence)
    sizes, counter = weigh(cluster), Operations()
    virtual = cluster.launcher.now
    with counter:
        for step in blocks(options)[0]:
            assert cluster.run_step(step) is None
        ended = cluster.launcher.now
        assert cluster.settle() is None
    return Weight(counter.total, ended - virtual, sizes["states"], sizes["rest"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--q", type=float, default=0.1)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warm-up", type=int, default=9, help="one more than the window")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    times = compare_times(options)
    short = argparse.Namespace(**{**vars(options), "warm_up": 1, "repeats": 1})
    clean, checked = (weigh_all(short, defence) for defence in DEFENCES)
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
    show(f"Cost of spot checks, K = {STAGES}, q = {options.q}, {options.repeats} x {options.steps} steps", header, [row])


if __name__ == "__main__":
    main()
