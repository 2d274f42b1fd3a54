"""Recovery in real seconds of this machine: worker processes are killed (`kill -9`) one after another while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast.config import RunConfig, resolve
from holdfast.testing.chaos import Chaos, Kills, Loss, losses
from holdfast.toml import assign
from holdfast.trainer import Trainer


@dataclass(frozen=True)
class Kill(Loss):
    """One kill. `equal` says of the whole run that its weights are those of the same run in memory, where nobody is killed."""

    equal: bool
    rollbacks: int


def kill_config(kills: int, *, stages: int = 5, width: int = 64, micro_batches: int = 4) -> RunConfig:
    """A run long enough for so many kills and recoveries."""
    settings = [
        f"model.name=gpt2:layers={stages},width={width},heads=4",
        "data.name=synthetic:order=1,symbols=32,tokens=200000",
        f"pipeline.stages={stages}",
        f"pipeline.micro_batches={micro_batches}",
        f"training.steps={12 + 8 * kills}",
        "pipeline.engine=processes",
    ]
    return resolve(assign({}, settings))


def kill_some(config: RunConfig, kills: int, seed: int) -> list[Kill]:
    """Random workers at random moments, all drawn from `seed`. What was not whole again before the end is left out."""
    memory = config.model_copy(update={"pipeline": config.pipeline.model_copy(update={"engine": "memory"})})
    want = Trainer(memory).run().weights_digest
    strikes = Kills(seed, kills)
    chaos = Chaos(config, strikes)
    result = chaos.run()
    whole: dict[str, Any] = {"equal": result.weights_digest == want, "rollbacks": result.rollbacks}
    return [Kill(**loss.row(), **whole) for loss in losses(chaos, strikes.strikes)]
