"""What does a `kill -9` of a worker's process cost: until it is noticed, what is computed again, until all is whole again?

    python benchmarks/recovery_processes.py --kills 10 --seed 0 --jsonl recovery.jsonl

A random worker is killed at a random moment of a step, a next one only when the last one's place is filled again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from measure import environment, show, spread

from holdfast.bench.killed import kill_config
from holdfast.testing.chaos import Chaos, Kills, Loss, losses
from holdfast.trainer import Trainer


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", type=int, default=5)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--jsonl", type=Path, help="write a line for each kill and one for the environment here")
    arguments = parser.parse_args()
    config = kill_config(arguments.kills, stages=arguments.stages, width=arguments.width, micro_batches=arguments.micro_batches)
    memory = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"engine": "memory"})})
    want = Trainer(memory).run().weights_digest
    strikes = Kills(arguments.seed, arguments.kills)
    chaos = Chaos(config, strikes)
    result = chaos.run()
    found = losses(chaos, strikes.strikes)
    equal = result.weights_digest == want
    tell(found, "equal" if equal else "NOT EQUAL")
    if arguments.jsonl is not None:
        lines = [*(loss.row() for loss in found), {"equal": equal, "rollbacks": result.rollbacks, **environment()}]
        arguments.jsonl.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return 0 if equal and result.rollbacks == 0 and len(found) == arguments.kills else 1


def tell(found: list[Loss], weights: str) -> None:
    header = ("worker", "step", "noticed", "rest of the step", "new shadows", "seated again", "at the referee", "attempts")
    rows = [
        (
            loss.worker,
            str(loss.step),
            f"{loss.detection_s:.3f} s",
            f"{loss.takeover_s:.3f} s",
            f"{loss.reshadow_s:.3f} s",
            f"{loss.reseated_s:.1f} s",
            f"{loss.examined} of {loss.pieces}",
            str(loss.attempts),
        )
        for loss in found
    ]
    if found:
        step_s = found[0].step_s
        relative = [replace(loss, takeover_s=loss.takeover_s / step_s) for loss in found]
        rows.append(
            (
                "median",
                "",
                spread([loss.detection_s for loss in found]),
                f"{spread([loss.takeover_s for loss in relative])} steps of {step_s:.3f} s",
                spread([loss.reshadow_s for loss in found]),
                spread([loss.reseated_s for loss in found]),
                "",
                "",
            )
        )
    show(f"Recovery from kill -9, {len(found)} kills; weights {weights} those in memory", header, rows)


if __name__ == "__main__":
    sys.exit(main())
