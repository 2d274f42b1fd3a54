"""What a forward pass costs, layer by layer: counted in floating-point operations, or timed on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from holdfast.partition.families import Family
from holdfast.partition.skeleton import causal_family, from_config


@dataclass(frozen=True, slots=True)
class Costs:
    """One cost a layer, that of what stands before the layers, and that of what stands after them with the head."""

    layers: tuple[float, ...]
    before: float
    after: float


def estimate_costs(config: Any, model: Any, family: Family, sequence_length: int) -> Costs:
    """Operations a token: two for each weight of a matrix product, plus causal attention; looking embeddings up is free.

    Of a mixture of experts only the share that a token visits is counted.
    """
    root = model.get_submodule(family.root)
    attention = [2.0 * _span(config, index, sequence_length) * config.hidden_size for index in range(config.num_hidden_layers)]
    visited = float(getattr(config, "num_experts_per_tok", 1) or 1)
    experts = float(getattr(config, "num_experts", 0) or getattr(config, "num_local_experts", 0) or visited)
    layers = tuple(
        _matmuls(layer, visited / experts) + extra
        for layer, extra in zip(root.get_submodule(family.layers), attention, strict=True)
    )
    before = sum(_matmuls(getattr(root, name), 1.0) for name in (*family.identities, *family.absent))
    after = sum(_matmuls(getattr(root, name), 1.0) for name in family.after)
    head = model.get_output_embeddings()
    return Costs(layers, before, after + 2.0 * head.weight.numel())


def _span(config: Any, layer: int, sequence_length: int) -> float:
    """Twice the mean number of positions that a token looks at (scores and values), with causal masking and windows."""
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    reach = sequence_length
    if window and (kinds is None or (layer < len(kinds) and kinds[layer] == "sliding_attention")):
        reach = min(sequence_length, int(window))
    return float(reach)


def _matmuls(module: nn.Module | None, expert_share: float) -> float:
    if module is None:
        return 0.0
    total = 0.0
    for name, parameter in module.named_parameters():
        if parameter.ndim >= 2:
            total += 2.0 * parameter.numel() * (expert_share if "experts" in name else 1.0)
    return total


def measure_costs(config: Any, sequence_length: int, repeats: int = 5) -> Costs:
    """Median seconds of each layer and of the head for one sequence, on a whole model made for it.

    It allocates the model; the median of a few forward passes after one to warm up.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = from_config(config, torch.float32)
    family = causal_family(config, model)
    root = model.get_submodule(family.root)
    timed: list[nn.Module] = [*root.get_submodule(family.layers), model.get_output_embeddings()]
    samples: list[list[float]] = [[] for _ in timed]
    started = 0.0

    def begin(*_: Any) -> None:
        nonlocal started
        started = time.perf_counter()

    def end(place: int) -> Any:
        return lambda *_: samples[place].append(time.perf_counter() - started)

    for place, module in enumerate(timed):
        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end(place))
    tokens = torch.arange(sequence_length).remainder(config.vocab_size)[None]
    with torch.no_grad():
        for _ in range(repeats + 1):
            model(input_ids=tokens, use_cache=False)
    *layers, head = (sorted(times[1:])[repeats // 2] for times in samples)
    return Costs(tuple(layers), 0.0, head)
