"""Which arithmetics change bits here, and by how much: one middle stage of three families against the native arithmetic."""

from __future__ import annotations

import argparse
from collections import defaultdict

import torch
from measure import show
from torch import Tensor

from holdfast.claim import Direction
from holdfast.config import resolve
from holdfast.digest import same_bytes
from holdfast.job import prepare
from holdfast.numerics import ARITHMETICS, NATIVE, pinned
from holdfast.rehearsal import Accounts, Rehearsal
from holdfast.verify.resync import Candidate

MODELS = {name: f"{name}:layers=3,width=64,heads=4" for name in ("gpt2", "opt", "llama")}


def main() -> None:
    """Print a table for each dtype: largest relative L2 of output, input gradient and weight gradients; = means equal bytes."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--steps", type=int, default=4, help="optimizer steps (default: 4)")
    steps = parser.parse_args().steps
    for dtype in ("float32", "bfloat16"):
        columns = {family: measured(model, dtype, steps) for family, model in MODELS.items()}
        header = ["arithmetic", *(f"{family} {what}" for family in MODELS for what in ("a", "g", "w"))]
        rows = [
            [name, *(cell for column in columns.values() for cell in column[name])] for name in ARITHMETICS if name != "native"
        ]
        show(f"Against native, {dtype}: output a, input gradient g, weight gradients w", header, rows)


def measured(model: str, dtype: str, steps: int) -> dict[str, list[str]]:
    job = prepare(resolve({"model": {"name": model, "dtype": dtype}, "pipeline": {"stages": 3, "micro_batches": 2}}))
    found: dict[tuple[str, Direction], list[float]] = defaultdict(list)
    with pinned("cpu"):
        rehearsal = Rehearsal(job, [NATIVE, *(each for name, each in ARITHMETICS.items() if name != "native")])
        for step in range(steps):
            for accounts in rehearsal.step(step, job.config.optimizer.learning_rate):
                for name in list(accounts.results)[1:] if accounts.direction is not Direction.GRADIENT else ():
                    found[name, accounts.direction].append(apart(accounts, name))
    kinds = (Direction.FORWARD, Direction.BACKWARD, Direction.UPDATE)
    return {name: [told(max(found[name, kind])) for kind in kinds] for name in ARITHMETICS if name != "native"}


def apart(accounts: Accounts, name: str) -> float:
    native, other = (flat(accounts.results[each]) for each in ("native", name))
    if same_bytes(native, other):
        return 0.0
    return ((other.double() - native.double()).norm() / native.double().norm()).item()


def flat(result: object) -> Tensor:
    """A tensor, or all weight gradients of a candidate."""
    if isinstance(result, Candidate):
        return torch.cat([gradient.flatten() for gradient in result.gradient.values()])
    assert isinstance(result, Tensor)
    return result


def told(value: float) -> str:
    return f"{value:.0e}" if value else "="


if __name__ == "__main__":
    main()
