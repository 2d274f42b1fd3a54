"""Weights by whole-model name: drawn from a seed or read from files for one stage, and put together again as a plain model."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from holdfast.atomic import told_by_the_system
from holdfast.errors import CheckpointError
from holdfast.partition.lora import Lora, initial_adapter, is_adapter
from holdfast.partition.module import StageModule
from holdfast.partition.plan import Plan, make_plan
from holdfast.partition.shards import read_tensors, write_sums
from holdfast.partition.skeleton import causal_family, from_config, skeleton
from holdfast.partition.source import ModelSource
from holdfast.seeds import derive


def initial_weights(
    source: ModelSource, plan: Plan, stage: int, seed: int, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """The owned parameters of `stage` before the first step, each in memory of its own.

    From scratch: the library's own initialisation of the whole model in float32, so the cut changes nothing; torch's global
    generator is left as it was. From files: only this stage's tensors are read. Adapters of LoRA are drawn by name.
    """
    names = plan.stage_parameters[stage]
    shapes = {name: plan.shapes[name] for name in names if not is_adapter(name)}
    if source.files is None:
        whole = _drawn(cast(type, type(source.config)), source.config.to_json_string(use_diff=False), seed)
        found = {name: whole[name].to(dtype, copy=True) for name in shapes}
    else:
        _refuse_rearranged(source)
        prefix = str(skeleton(source.config).base_model_prefix)
        aliases = {plan.tied[1]: plan.tied[0]} if plan.tied is not None else {}
        found = read_tensors(source.files, shapes, prefix=prefix, aliases=aliases, dtype=dtype)
    adapters = {name: initial_adapter(name, plan.shapes[name], seed, dtype) for name in names if is_adapter(name)}
    return {name: found[name] if name in found else adapters[name] for name in names}


_LAYOUT = {"MergeModulelist", "Concatenate", "Chunk", "SplitModulelist"}
"""Steps of the library's loader that join or part tensors under new names: fused here, or reported missing."""


def _refuse_rearranged(source: ModelSource) -> None:
    """Some types are stored in another order of rows under the same name; read as they stand they would be silently wrong."""
    from transformers import conversion_mapping

    converters = conversion_mapping.get_checkpoint_conversion_mapping(source.model_type) or ()
    other = {type(step).__name__ for converter in converters for step in getattr(converter, "operations", ())} - _LAYOUT
    if other:
        raise CheckpointError(
            f"{source.name}: the library rearranges weights of type {source.model_type!r} while loading (by "
            f"{', '.join(sorted(other))}), which cannot be done stage by stage; "
            "models of this type can only be made from scratch"
        )


@functools.lru_cache(maxsize=1)
def _drawn(kind: type, config: str, seed: int) -> dict[str, Tensor]:
    """Every parameter of a fresh model; kept, because each stage of a run asks for a slice of the same one."""
    restored = kind.from_dict(json.loads(config))  # type: ignore[attr-defined]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "initial weights"))
        model = from_config(restored, torch.float32)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def whole_model(config: Any, weights: Mapping[str, Tensor], lora: Lora | None = None) -> Any:
    """The plain causal model of the library with these weights (all stages' together; with `lora`, adapters too).

    Raises CheckpointError for missing, unknown or misshapen tensors.
    """
    if not weights:
        raise CheckpointError("no weights were given; needed are those of every stage")
    dtype = next(iter(weights.values())).dtype
    module = StageModule(config, make_plan(config, 1, lora=lora), 0, dtype=dtype)
    module.load_weights(weights)
    return module.model


def save_model(directory: Path | str, config: Any, weights: Mapping[str, Tensor], tokenizer: Any = None) -> None:
    """Write a directory that plain `AutoModelForCausalLM.from_pretrained` opens, tokenizer beside the weights.

    Adapters are not part of it (`holdfast.partition.lora.save_adapter` writes them).
    """
    model_writer(config, weights, tokenizer)(Path(directory))


def model_writer(config: Any, weights: Mapping[str, Tensor], tokenizer: Any = None) -> Callable[[Path], None]:
    """What `save_model` does once the model is built, which holds a copy of the weights in the host's memory.

    Another thread may call it: only the library's constructors change what belongs to the whole process.
    """
    model = whole_model(config, {name: tensor for name, tensor in weights.items() if not is_adapter(name)})

    def write(target: Path) -> None:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as partial, told_by_the_system():
            with no_progress_bar():
                model.save_pretrained(partial)
            write_sums(Path(partial))
            if tokenizer is not None:
                tokenizer.save_pretrained(partial)
            target.mkdir(exist_ok=True)
            for stale in (*target.glob("model*.safetensors"), *target.glob("model*.safetensors.index.json")):
                stale.unlink()
            for path in sorted(Path(partial).iterdir()):
                path.replace(target / path.name)

    return write


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """The library's bar would be drawn into our own progress."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def base_prefix(config: Any) -> str:
    """The path of the module that runs the layers, as parameter names begin with it."""
    return causal_family(config, skeleton(config)).root
