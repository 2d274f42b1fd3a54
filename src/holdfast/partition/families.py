"""Where a model can be cut: for each family the modules before its layers, the layers, and the modules after them.

    before: embeddings, their norms and projections    layers: the blocks    after: final norm, output projection
    stage 0 keeps them                                 stage i keeps [lo, hi)  stage K-1 keeps them, and the head

GPT-2, OPT and BLOOM have a row of their own. Every other family is read from the library's `base_model_pp_plan`, which is
only a hint: a family counts as supported when its self-test passes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from holdfast.errors import PartitionError


@dataclass(frozen=True, slots=True)
class Family:
    """Module names inside the module at `root` (a path below the causal model), which runs the layers.

    On later stages the `lookups` (never called with `inputs_embeds`) go, the `positions` add nothing, the `identities`
    return their input, the `absent` become None and the `ones` (attributes that multiply the embeddings) become 1. On earlier
    stages the `after` modules go. `pair` says that a block returns `(hidden, extra)`; `adapters` are the matrices that LoRA
    adapts.
    """

    model_type: str
    root: str
    layers: str
    lookups: tuple[str, ...]
    after: tuple[str, ...]
    positions: tuple[str, ...] = ()
    identities: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    ones: tuple[str, ...] = ()
    pair: bool = False
    adapters: tuple[str, ...] = ("q_proj", "v_proj")

    @property
    def before(self) -> tuple[str, ...]:
        return (*self.lookups, *self.positions, *self.identities, *self.absent)


GPT2 = Family(
    "gpt2",
    "transformer",
    "h",
    lookups=("wte",),
    positions=("wpe",),
    identities=("drop",),
    after=("ln_f",),
    adapters=("c_attn",),
)
OPT = Family(
    "opt",
    "model.decoder",
    "layers",
    lookups=("embed_tokens",),
    positions=("embed_positions",),
    absent=("project_in",),
    after=("final_layer_norm", "project_out"),
)
BLOOM = Family(
    "bloom",
    "transformer",
    "h",
    lookups=("word_embeddings",),
    identities=("word_embeddings_layernorm",),
    after=("ln_f",),
    pair=True,
    adapters=("query_key_value",),
)
ROWS = {family.model_type: family for family in (GPT2, OPT, BLOOM)}

TESTED = (
    "bloom",
    "cohere2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gpt2",
    "gpt_neox",
    "gpt_oss",
    "granite",
    "llama",
    "mistral",
    "mixtral",
    "olmo",
    "olmo2",
    "olmo3",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "qwen3_moe",
    "smollm3",
    "starcoder2",
)
"""Model types that the test suite proves bit-equal; others with a `base_model_pp_plan` are tried by the self-test at load."""

_MULTIPLIERS = {"granite": ("embedding_multiplier",)}
_ADAPTERS = {"gpt_neox": ("query_key_value",), "phi3": ("qkv_proj",)}


def family_of(config: Any) -> Family:
    """The family of a model config. Raises PartitionError where the model cannot be cut, naming what can."""
    row = ROWS.get(config.model_type)
    if row is not None:
        return row
    plan = getattr(config, "base_model_pp_plan", None)
    if not plan:
        raise PartitionError(
            f"models of type {config.model_type!r} cannot be cut into stages: the library names no cutting points for them; "
            f"proven types are {', '.join(TESTED)}"
        )
    return _from_pp_plan(config.model_type, list(plan))


def _from_pp_plan(model_type: str, names: list[str]) -> Family:
    """The plan is an ordered dict: lookups first, then what reads hidden states, then `layers`, then what follows."""
    if "layers" not in names or names[0] == "layers" or any("." in name for name in names):
        raise PartitionError(
            f"models of type {model_type!r} cannot be cut into stages: their plan names {', '.join(names)}, where an "
            f"embedding, 'layers' and a norm are needed; proven types are {', '.join(TESTED)}"
        )
    place = names.index("layers")
    lookup, *identities = names[:place]
    return Family(
        model_type,
        root="",
        layers="layers",
        lookups=(lookup,),
        identities=tuple(identities),
        after=tuple(names[place + 1 :]),
        ones=_MULTIPLIERS.get(model_type, ()),
        adapters=_ADAPTERS.get(model_type, ("q_proj", "v_proj")),
    )
