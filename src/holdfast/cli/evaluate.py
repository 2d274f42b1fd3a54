"""`holdfast eval`: the perplexity of any model directory, adapter directory or run on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from holdfast.cli.options import JSON, require_known

PARTS = ("validation", "train", "all")


def register(app: typer.Typer) -> None:
    app.command("eval")(evaluate)


def evaluate(
    model: Annotated[str, typer.Argument(metavar="DIR", help="A model or adapter directory, a run's, or a hub name.")],
    data: Annotated[str | None, typer.Option("--data", metavar="NAME|PATH", help="The text (default: the run's own).")] = None,
    part: Annotated[str, typer.Option("--part", metavar="PART", help="validation, train or all.")] = "validation",
    seq_length: Annotated[int | None, typer.Option("--seq-length", metavar="S", min=2, help="Tokens in a sequence.")] = None,
    tokens: Annotated[int | None, typer.Option("--tokens", metavar="N", min=1, help="Score at most about N tokens.")] = None,
    tokenizer: Annotated[str | None, typer.Option("--tokenizer", metavar="DIR", help="Instead of the model's own.")] = None,
    device: Annotated[str, typer.Option("--device", help="cpu, cuda, ...")] = "cpu",
    as_json: JSON = False,
) -> None:
    """Measure a model on held-out text. Prints loss, perplexity and bits per byte."""
    import dataclasses
    import json

    import torch
    from transformers.utils import logging

    from holdfast.config import resolve
    from holdfast.evaluate import evaluate_directory

    require_known("--part", part, PARTS)
    given = {"name": data, "sequence_length": seq_length, "validation_tokens": tokens, "tokenizer": tokenizer}
    tables = {**_own_data(Path(model)), **{key: value for key, value in given.items() if value is not None}}
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    settings = resolve({"data": tables}).data
    found = evaluate_directory(model, settings, device=device, part=part)  # type: ignore[arg-type]
    if as_json:
        print(json.dumps({"model": model, "data": settings.name, "part": part, **dataclasses.asdict(found)}))
        return
    print(f"{model} on {settings.name} ({part}): {found.tokens:,} tokens, {found.bytes:,} bytes")
    print(f"loss           {found.loss:.4f} nats a token")
    print(f"perplexity     {found.perplexity:,.2f}")
    print(f"bits per byte  {found.bits_per_byte:.4f}")


def _own_data(directory: Path) -> dict[str, object]:
    """The data table that a run's directory was trained with (its tokenizer lies beside the model)."""
    from holdfast.errors import ConfigError
    from holdfast.toml import read_toml

    path = directory / "config.toml"
    table = read_toml(path).get("data", {}) if path.is_file() else {}
    if not isinstance(table, dict):
        raise ConfigError(f"{path}: data is {table!r}, it must be a table")
    return {key: value for key, value in table.items() if key != "tokenizer"}
