"""A skeleton is the whole causal model without memory: every name, shape and tie of it, from which the stages are cut.

It is built on torch's meta device by the library's own constructor, so no parameter is allocated or drawn.
"""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from holdfast.errors import ConfigError, PartitionError
from holdfast.partition.families import TESTED, Family, family_of

MAX_LAYERS = 1024
"""More layers than any model has: a config that asks for more is broken or hostile."""

_ATTENTION = ("sdpa", "eager")
_DROPOUT = re.compile(r"dropout|pdrop|drop_path")
_LAYERDROP = re.compile(r"layerdrop|layer_drop")


def prepare_config(config: Any, attention: str = "sdpa", dropout: float = 0.0) -> Any:
    """A copy of a model config for training in stages: explicit attention kernel, every dropout set to `dropout`.

    Families without an SDPA kernel (BLOOM, Gemma 2, gpt-oss) get `eager`. Layer dropping is always off, and so are router
    outputs and other extras that only a whole model could use.
    """
    if attention not in _ATTENTION:
        raise ConfigError(f"attention {attention!r} is not supported; use {' or '.join(_ATTENTION)}")
    config = copy.deepcopy(config)
    config._attn_implementation = attention if _model_class(config)._supports_sdpa else "eager"
    for extra in ("output_attentions", "output_hidden_states", "output_router_logits"):
        if getattr(config, extra, False):
            setattr(config, extra, False)
    for key, value in list(vars(config).items()):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            continue
        if _LAYERDROP.search(key):
            setattr(config, key, 0.0)
        elif _DROPOUT.search(key):
            setattr(config, key, float(dropout))
    return config


def _model_class(config: Any) -> Any:
    """The library's causal model class for `config`; raises PartitionError where there is none."""
    from transformers import AutoModelForCausalLM

    mapping = AutoModelForCausalLM._model_mapping
    if type(config) not in mapping:
        raise PartitionError(
            f"the library has no causal language model of type {config.model_type!r}; proven types are {', '.join(TESTED)}"
        )
    return mapping[type(config)]


def skeleton(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The causal model of `config` on the meta device. Raises PartitionError where the library cannot build it."""
    from huggingface_hub.errors import StrictDataclassError

    layers = getattr(config, "num_hidden_layers", None)
    if not isinstance(layers, int) or not 1 <= layers <= MAX_LAYERS:
        raise PartitionError(f"the model config asks for {layers!r} layers; a number from 1 to {MAX_LAYERS} is needed")
    try:
        with torch.device("meta"):
            return from_config(config, dtype)
    except (ValueError, TypeError, KeyError, AttributeError, RuntimeError, IndexError, ZeroDivisionError) as error:
        raise PartitionError(f"the library cannot build a {config.model_type!r} model from this config: {error}") from error
    except StrictDataclassError as error:
        raise PartitionError(f"the config of this {config.model_type!r} model is not valid: {error}") from error


def from_config(config: Any, dtype: torch.dtype) -> Any:
    """The library's causal model, randomly initialised from torch's global generator (nothing is drawn on meta)."""
    from transformers import AutoModelForCausalLM

    attention = config._attn_implementation or "eager"
    return AutoModelForCausalLM.from_config(
        copy.deepcopy(config), dtype=dtype, attn_implementation=attention, trust_remote_code=False
    )


def causal_family(config: Any, model: Any) -> Family:
    """The family of `config`, checked against the modules that `model` really has; the root is resolved to a full path."""
    family = family_of(config)
    root = family.root or str(model.base_model_prefix)
    try:
        inner = model.get_submodule(root)
        layers = inner.get_submodule(family.layers)
    except AttributeError as error:
        raise PartitionError(f"models of type {config.model_type!r} cannot be cut into stages: {error}") from error
    if not isinstance(layers, nn.ModuleList) or len(layers) != config.num_hidden_layers:
        raise PartitionError(
            f"models of type {config.model_type!r} cannot be cut into stages: {root}.{family.layers} is not a list of "
            f"{config.num_hidden_layers} layers"
        )
    state = {name.rpartition(".")[2] for name in model.state_dict()} - {
        name.rpartition(".")[2] for name, _ in model.named_parameters(remove_duplicate=False)
    }
    if state:
        raise PartitionError(
            f"models of type {config.model_type!r} keep state outside their parameters ({', '.join(sorted(state))}), which "
            "this version does not carry from stage to stage"
        )
    return replace(family, root=root)


def materialise(model: Any, device: str | torch.device = "cpu", *, tie: bool) -> None:
    """Give a skeleton memory: parameters are NaN until they are loaded, buffers (rotary tables, scales) get their real values.

    The library's own initialiser computes the buffers, as it does after loading a checkpoint. `tie` makes a whole model's head
    share its embedding again.
    """
    model.to_empty(device=device)
    if tie:
        model.tie_weights(recompute_mapping=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(torch.nan)
            parameter._is_hf_initialized = True
        floating = {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        for buffer in floating.values():
            buffer.fill_(torch.nan)
    with torch.random.fork_rng(devices=[]):
        model.initialize_weights()
    for name, buffer in model.named_buffers():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            raise PartitionError(f"models of this type cannot be cut into stages: nothing computes their table {name}")
