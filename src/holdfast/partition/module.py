"""A stage of a model as a module: the library's own forward, with every layer outside [lo, hi) turned into an identity.

    stage 0          tokens [B, S] int64   -> hidden states [B, S, D]
    stage i          hidden states         -> hidden states
    stage K-1        hidden states         -> logits [B, S, V]

Positions in the list of layers stay, so layer kinds and parameter names are those of the whole model, and masks, rotary
tables and ALiBi stay the library's code. With tied embeddings the last stage holds a copy of stage 0's tensor as its head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import CheckpointError, PartitionError
from holdfast.partition.families import Family
from holdfast.partition.lora import public_name
from holdfast.partition.plan import Plan
from holdfast.partition.skeleton import causal_family, materialise, skeleton


class PassThrough(nn.Module):
    """A layer that is not here: returns its first argument, as a pair where the family's blocks do."""

    def __init__(self, pair: bool = False) -> None:
        super().__init__()
        self.pair = pair

    def forward(self, hidden: Tensor, *_args: Any, **_kwargs: Any) -> Any:
        return (hidden, None) if self.pair else hidden


class NoPositions(nn.Module):
    """Positions that were added by stage 0 already. It adds -0.0, the only number whose addition changes no bits."""

    def __init__(self, dtype: torch.dtype, device: str | torch.device) -> None:
        super().__init__()
        self.register_buffer("nothing", torch.tensor(-0.0, dtype=dtype, device=device), persistent=False)

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self.nothing


class StageModule(nn.Module):
    """Stage `stage` of `plan`. Its parameters are NaN until `load_weights`; `config` must be a prepared one."""

    def __init__(
        self,
        config: Any,
        plan: Plan,
        stage: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> None:
        super().__init__()
        if not 0 <= stage < plan.stages:
            raise PartitionError(f"stage {stage} of a plan of {plan.stages} stages; they are numbered 0 to {plan.stages - 1}")
        self.plan = plan
        self.stage = stage
        self.first = stage == 0
        self.last = stage == plan.stages - 1
        model = skeleton(config, dtype)
        family = causal_family(config, model)
        self._root = family.root
        _prune(model, family, plan, stage)
        if plan.lora is not None:
            plan.lora.inject(model, family)
        materialise(model, device, tie=plan.tied is not None and plan.stages == 1)
        if not self.first:
            _neutralise(model.get_submodule(family.root), family, dtype, device)
        # Packed documents have no padding, so the library's advice about attention masks does not apply.
        model.get_submodule(family.root).warn_if_padding_and_no_attention_mask = _no_advice
        self.model = model
        self._by_name: dict[str, nn.Parameter] = {public_name(name): parameter for name, parameter in model.named_parameters()}
        self._check_names()

    def forward(self, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """One micro-batch through this stage; shapes as drawn above. `attention_mask` is [B, S], 1 for real tokens."""
        given = {"input_ids" if self.first else "inputs_embeds": inputs, "attention_mask": attention_mask, "use_cache": False}
        if self.last:
            logits: Tensor = self.model(**given).logits
            return logits
        hidden: Tensor = self.model.get_submodule(self._root)(**given).last_hidden_state
        return hidden

    def named_owned_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that this stage owns, by whole-model name, in model order (frozen ones too)."""
        return ((name, self._by_name[name]) for name in self.plan.stage_parameters[self.stage])

    def named_trainable_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Those of the owned parameters that an optimizer updates, in model order."""
        return ((name, self._by_name[name]) for name in self.plan.trainable_of(self.stage))

    def tied_parameter(self) -> nn.Parameter | None:
        """The head's copy of the tensor that stage 0 owns, where embeddings are tied: only on the last of several stages.

        Its gradient belongs to stage 0, its value comes from there (`load_tied`).
        """
        if self.plan.tied is None or not self.last or self.first:
            return None
        return self._by_name[self.plan.tied[0]]

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Copy in exactly the owned parameters, by whole-model name. Raises CheckpointError before anything is changed."""
        owned = dict(self.named_owned_parameters())
        for problem, names in (("lack", owned.keys() - weights.keys()), ("hold unknown", weights.keys() - owned.keys())):
            if names:
                shown = ", ".join(sorted(names)[:5]) + (" ..." if len(names) > 5 else "")
                raise CheckpointError(f"weights for stage {self.stage} {problem} {len(names)} tensors: {shown}")
        for name, parameter in owned.items():
            _check(f"{name} of stage {self.stage}", weights[name], parameter)
        for name, parameter in owned.items():
            parameter.copy_(weights[name])

    @torch.no_grad()
    def load_tied(self, weight: Tensor) -> None:
        """Set the tied head [V, D] of the last stage to stage 0's value."""
        tied = self.tied_parameter()
        if tied is None:
            raise CheckpointError(f"stage {self.stage} has no tied head to set")
        _check(f"the tied head of stage {self.stage}", weight, tied)
        tied.copy_(weight)

    def weights(self) -> dict[str, Tensor]:
        """The owned parameters by whole-model name, detached but sharing memory with the module; clone to keep them."""
        return {name: parameter.detach() for name, parameter in self.named_owned_parameters()}

    def _check_names(self) -> None:
        expected = set(self.plan.stage_parameters[self.stage])
        if self.tied_parameter() is not None and self.plan.tied is not None:
            expected.add(self.plan.tied[0])
        found = set(self._by_name)
        if found != expected:
            raise PartitionError(f"stage {self.stage} does not fit its plan: {sorted(found ^ expected)[:5]} differ; plan again")


def _check(what: str, got: Tensor, needed: Tensor) -> None:
    if got.shape != needed.shape or got.dtype != needed.dtype:
        raise CheckpointError(f"{what}: got {list(got.shape)} of {got.dtype}, needed {list(needed.shape)} of {needed.dtype}")


def _no_advice(*_args: Any, **_kwargs: Any) -> None:
    return None


def _prune(model: Any, family: Family, plan: Plan, stage: int) -> None:
    """Drop from a skeleton all that other stages own."""
    root = model.get_submodule(family.root)
    layers = root.get_submodule(family.layers)
    lo, hi = plan.layers[stage]
    for index in range(len(layers)):
        if not lo <= index < hi:
            layers[index] = PassThrough(family.pair)
    if stage > 0:
        for name in (*family.lookups, *family.positions, *family.identities):
            setattr(root, name, PassThrough())
        for name in family.absent:
            setattr(root, name, None)
        for name in family.ones:
            setattr(root, name, 1.0)
    if stage < plan.stages - 1:
        for name in family.after:
            if getattr(root, name) is not None:
                # `project_out` is tested for None; a norm is called in any case, but where it is absent None stands already
                setattr(root, name, PassThrough())
        head = model.get_output_embeddings()
        for name, module in list(model.named_modules()):
            if module is head:
                parent, _, leaf = name.rpartition(".")
                setattr(model.get_submodule(parent), leaf, PassThrough())


def _neutralise(root: Any, family: Family, dtype: torch.dtype, device: str | torch.device) -> None:
    for name in family.positions:
        setattr(root, name, NoPositions(dtype, device))
