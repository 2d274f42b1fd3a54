"""What packing tensors between stages saves and costs: bytes a step, and perplexity after the demo's 150 steps.

    python benchmarks/wire_dtype.py                 K = 6, width 64, 4 x 4 x 64 tokens a step, three seeds

Bytes are those of whole frames, headers included, of the second step; the states that are handed out at the start are not in
it. Perplexity is that of the finished model, evaluated in one piece, with nothing packed. Defences change no bit of it, so
these runs go without. A training run amplifies any rounding, so a row with nothing packed and linear layers summed in another
order (`split-sums`, 1e-7 apart at first) shows how much of a difference means nothing.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter

from measure import show

from holdfast import Experiment
from holdfast.claim import Claim
from holdfast.cluster import Cluster, Deployment
from holdfast.config import resolve
from holdfast.job import prepare
from holdfast.message import Envelope
from holdfast.presets import DEMO
from holdfast.settings import merge
from holdfast.transport.wire import wire_bytes

WIRES = ("float32", "bfloat16", "int8")


def bytes_of_a_step(wire: str, defence: str) -> Counter[str]:
    """What one step sends: claims, and all there is."""
    job = prepare(resolve(merge(DEMO, {"wire_dtype": wire, "defence": defence, "steps": 2})))
    cluster = Cluster(Deployment("benchmark"), job, lambda _event, _seconds: None)
    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    cluster.run_step(0)
    sizes: Counter[str] = Counter()
    send = cluster.transport.send

    def weighed(envelope: Envelope) -> None:
        size = wire_bytes(envelope)
        sizes["all"] += size
        sizes["claims"] += size if isinstance(envelope.message, Claim) else 0
        send(envelope)

    cluster.transport.send = weighed
    cluster.run_step(1)
    return sizes


def perplexity(wire: str, seed: int, steps: int, arithmetic: str = "native") -> float:
    cluster = {"numerics": [arithmetic] * DEMO["pipeline"]["stages"]}
    settings = {"wire_dtype": wire, "defence": "none", "seed": seed, "steps": steps, "cluster": cluster}
    return Experiment(DEMO, **settings).run().validation_perplexity


def summary(wire: str, options: argparse.Namespace, arithmetic: str = "native") -> list[str]:
    found = [perplexity(wire, seed, options.steps, arithmetic) for seed in range(options.seeds)]
    print(wire, arithmetic, found, file=sys.stderr, flush=True)
    return [", ".join(f"{value:.2f}" for value in found), f"{statistics.mean(found):.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    sizes = {(wire, defence): bytes_of_a_step(wire, defence) for wire in WIRES for defence in ("none", "duplicate")}
    rows = []
    for wire in WIRES:
        cells = [wire]
        for defence in ("none", "duplicate"):
            for what in ("claims", "all"):
                size, plain = sizes[wire, defence][what], sizes[WIRES[0], defence][what]
                cells.append(f"{size:,} ({plain / size:.2f}x)")
        rows.append([*cells, *summary(wire, options)])
    rows.append(["float32, split sums", "", "", "", "", *summary(WIRES[0], options, "split-sums")])
    header = [
        "wire",
        "claims, no defence",
        "all, no defence",
        "claims, duplicate",
        "all, duplicate",
        "perplexity by seed",
        "mean",
    ]
    show("Bytes a step and perplexity by wire dtype", header, rows)


if __name__ == "__main__":
    main()
