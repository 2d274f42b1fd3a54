"""The attacks by name, for the command line: one visible table, plug-ins of the group `holdfast.attacks`, `file.py:Class`."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.attacks import adaptive, collusion, disguise, laziness, protocol, sparse, state, targeted, tensors, timing
from holdfast.attacks.attack import Misconduct
from holdfast.config import AttackConfig
from holdfast.plugins import Catalogue

ATTACKS: Mapping[str, type[Misconduct]] = {
    "sign-flip": tensors.SignFlip,
    "gaussian": tensors.Gaussian,
    "zeros": tensors.Zeros,
    "uniform": tensors.Uniform,
    "scale": tensors.Scale,
    "perturb": tensors.Perturb,
    "other-input": tensors.OtherInput,
    "replay": tensors.Replay,
    "permute": tensors.Permute,
    "moment-noise": tensors.MomentNoise,
    "nan": sparse.NotANumber,
    "one-row": sparse.OneRow,
    "bit-flip": sparse.BitFlip,
    "drift": adaptive.Drift,
    "creep": adaptive.Creep,
    "sleeper": disguise.Sleeper,
    "clean-twin": disguise.CleanTwin,
    "wrong-gradient": state.WrongGradient,
    "wrong-norm": state.WrongNorm,
    "wrong-update": state.WrongUpdate,
    "corrupt-shadow": state.CorruptShadow,
    "substitute": state.Substitute,
    "lazy": laziness.Lazy,
    "stale-weights": laziness.StaleWeights,
    "framing": protocol.Framing,
    "flood": protocol.Flood,
    "lie-on-jump": protocol.LieOnJump,
    "lie-on-direct": protocol.LieOnDirect,
    "wrong-parent": protocol.WrongParent,
    "equivocation": protocol.Equivocation,
    "withhold": timing.Withhold,
    "delay": timing.Delay,
    "replay-claim": timing.ReplayClaim,
    "collusion": collusion.Collusion,
    "task-vector": targeted.TaskVector,
    "trigger": targeted.TriggerGradient,
}


CAMPAIGN = tuple(name for name in AttackConfig.model_fields if name != "spec")

CATALOGUE: Catalogue[Misconduct] = Catalogue(
    "attack", "holdfast.attacks", Misconduct, "holdfast.attacks.Attack", ATTACKS, beside=CAMPAIGN
)


def known_attacks() -> dict[str, str]:
    """Every name that `resolve_attack` knows, with one line each; plug-ins are named but not loaded."""
    return CATALOGUE.known()


def resolve_attack(spec: str | Misconduct) -> Misconduct:
    """The attack that `spec` describes; an object passes through. Raises ConfigError with what would have been right."""
    return CATALOGUE.resolve(spec)
