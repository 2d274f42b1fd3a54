"""LoRA in stages: `peft` wraps the layers of each stage, only the adapters train, and their union is a normal PEFT directory.

inside the module                                   outside (plan, weights, files)
model.layers.0.self_attn.q_proj.base_layer.weight   model.layers.0.self_attn.q_proj.weight
model.layers.0.self_attn.q_proj.lora_A.default.weight
                                                    base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from holdfast.errors import CheckpointError, MissingExtra, PartitionError
from holdfast.partition.families import Family
from holdfast.seeds import derive

_OUTSIDE = "base_model.model."
_ADAPTER = "default"


@dataclass(frozen=True, slots=True)
class Lora:
    """Rank, scale and the names of the matrices to adapt (empty: the family's usual ones).

    `transposed` says that the family stores them the other way round (GPT-2); `inject` finds out.
    """

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = ()
    transposed: bool = False

    def inject(self, model: Any, family: Family) -> Lora:
        """Put adapters into `model` in place and freeze the rest; returns this with the targets that were used."""
        peft = _peft()
        targets = self.targets or family.adapters
        adapted = [module for name, module in model.named_modules() if name.rpartition(".")[2] in targets]
        chosen = replace(self, targets=targets, transposed=any(type(module).__name__ == "Conv1D" for module in adapted))
        parameter = next(model.parameters())
        try:
            with torch.device(parameter.device):
                peft.inject_adapter_in_model(chosen.peft_config(), model)
        except ValueError as error:
            raise PartitionError(_cannot_adapt(targets, model, str(error))) from error
        for name, adapter in model.named_parameters():
            if is_adapter(name):
                adapter.data = adapter.data.to(parameter.dtype)
        return chosen

    def peft_config(self, base: str | None = None) -> Any:
        return _peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=list(self.targets),
            lora_dropout=0.0,
            bias="none",
            fan_in_fan_out=self.transposed,
            task_type="CAUSAL_LM",
            base_model_name_or_path=base,
        )


def _cannot_adapt(targets: tuple[str, ...], model: Any, error: str) -> str:
    inside = [(name, module) for name, module in model.named_modules() if "." in name]  # and no head
    matrices = {name.rpartition(".")[2]: None for name, module in inside if type(module).__name__ in ("Linear", "Conv1D")}
    why = f"it has {', '.join(matrices)}" if not set(targets) & matrices.keys() else error
    return f"LoRA cannot adapt {', '.join(targets)} in this model: {why}"


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", extra="lora", purpose="LoRA fine-tuning") from None
    return peft


def public_name(inner: str) -> str:
    """A parameter's name outside the module: that of the whole model, or for an adapter that in a PEFT file.

    >>> public_name("model.layers.0.mlp.up_proj.lora_A.default.weight")
    'base_model.model.model.layers.0.mlp.up_proj.lora_A.weight'
    >>> public_name("model.layers.0.mlp.up_proj.base_layer.weight")
    'model.layers.0.mlp.up_proj.weight'
    """
    if ".lora_" in inner:
        return _OUTSIDE + inner.replace(f".{_ADAPTER}.", ".")
    return inner.replace(".base_layer.", ".")


def is_adapter(name: str) -> bool:
    return ".lora_" in name


def initial_adapter(name: str, shape: tuple[int, ...], seed: int, dtype: torch.dtype) -> torch.Tensor:
    """The first value of an adapter: B zero, A drawn from a stream that its name and the seed select, whatever the cut."""
    if ".lora_A" not in name:
        return torch.zeros(shape, dtype=dtype)
    generator = torch.Generator().manual_seed(derive(seed, "adapter", name))
    bound = 1 / math.sqrt(shape[-1])
    return torch.empty(shape).uniform_(-bound, bound, generator=generator).to(dtype)


def save_adapter(directory: Path, lora: Lora, adapters: Mapping[str, torch.Tensor], base: str) -> None:
    """Write the stages' united adapters as a PEFT directory that `PeftModel.from_pretrained` opens on the model at `base`."""
    from safetensors.torch import save_file

    chosen = {name: tensor.detach().contiguous().clone() for name, tensor in adapters.items() if is_adapter(name)}
    if not chosen:
        raise CheckpointError(f"no adapter tensors to write to {directory}; got {len(adapters)} tensors, none of LoRA")
    directory.mkdir(parents=True, exist_ok=True)
    config = lora.peft_config(base)
    config.inference_mode = True
    config.save_pretrained(str(directory))
    save_file(chosen, str(directory / "adapter_model.safetensors"), metadata={"format": "pt"})
