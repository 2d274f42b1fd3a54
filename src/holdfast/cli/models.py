"""`holdfast models`: which model families can be cut, and how one model would be: stages, sizes, memory, self-test."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.cli.options import require_known

if TYPE_CHECKING:
    from holdfast.partition.overview import ModelOverview

MIB = 2**20
USUAL = 64


def register(app: typer.Typer) -> None:
    app.command("models")(models)


def models(
    model: Annotated[
        str | None, typer.Argument(metavar="M", help="A model: gpt2:layers=6,..., a directory, a hub name.")
    ] = None,
    stages: Annotated[int, typer.Option("--stages", metavar="K", min=1, help="Stages to cut it into.")] = 6,
    micro_batches: Annotated[int, typer.Option("--micro-batches", metavar="M", min=1, help="Micro-batches in a step.")] = 4,
    micro_batch_size: Annotated[int, typer.Option("--micro-batch-size", metavar="B", min=1, help="Sequences in one.")] = 4,
    seq_length: Annotated[
        int | None,
        typer.Option(
            "--seq-length", metavar="S", min=2, help=f"Tokens in a sequence (default: {USUAL}, or as many as the model takes)."
        ),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="TYPE", help="float32 or bfloat16.")] = "float32",
    measure: Annotated[bool, typer.Option("--measure", help="Time each layer here instead of estimating its cost.")] = False,
) -> None:
    """Print the families that can be cut, or the cut of one model. Of one model also its memory and its self-test."""
    if model is None:
        _show_families()
        return
    import torch

    from holdfast.partition import describe
    from holdfast.partition.memory import Batch
    from holdfast.partition.overview import model_overview

    kinds = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    require_known("--dtype", dtype, kinds)
    torch.set_num_threads(1)
    source = describe(model, positions=seq_length)
    tokens = seq_length or min(USUAL, source.positions or USUAL)
    if source.from_scratch:  # it gets the positions that are needed
        source = describe(model, positions=tokens)
    batch = Batch(micro_batches, micro_batch_size, tokens, kinds[dtype])
    _show_overview(model_overview(source, stages, batch, measure=measure))


def _show_families() -> None:
    from holdfast.partition.overview import supported_families

    print(f"{'family':<16} {'before the layers':<46} {'layers':<10} after the layers")
    for row in supported_families():
        print(f"{row.model_type:<16} {', '.join(row.before):<46} {row.layers:<10} {', '.join(row.after)}")
    print("\nProven bit-equal by the project's tests. Other families with a base_model_pp_plan are self-tested when loaded:")
    print("holdfast models NAME")


def _show_overview(overview: ModelOverview) -> None:
    tied = "embedding and head tied" if overview.tied else "embedding and head apart"
    print(f"{overview.name}: {overview.model_type}, {overview.parameters:,} parameters, {tied}\n")
    print(f"{'stage':>5}  {'layers':<8} {'parameters':>12} {'share of cost':>14}  {'memory of its worker':>21}  shadow held")
    for row in overview.rows:
        low, high = row.layers
        layers = str(low) if high == low + 1 else f"{low}-{high - 1}"
        shadow = "-" if row.memory.shadow is None else f"stage {row.memory.shadow}"
        size = f"{row.memory.total_bytes / MIB:,.1f} MiB"
        print(f"{row.stage:>5}  {layers:<8} {row.parameters:>12,} {row.cost_share:>13.1%}  {size:>21}  {shadow}")
    print(f"\nSelf-test: {overview.self_test}")
