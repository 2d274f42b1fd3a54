"""The attacks by name, for the command line: one visible table, plug-ins of the group `holdfast.attacks`, `file.py:Class`."""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.attacks import protocol, targeted, tensors
from holdfast.attacks.attack import Misconduct
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
    "nan": tensors.NotANumber,
    "wrong-gradient": protocol.WrongGradient,
    "wrong-norm": protocol.WrongNorm,
    "wrong-update": protocol.WrongUpdate,
    "corrupt-shadow": protocol.CorruptShadow,
    "framing": protocol.Framing,
    "lie-on-jump": protocol.LieOnJump,
    "lie-on-direct": protocol.LieOnDirect,
    "wrong-parent": protocol.WrongParent,
    "equivocation": protocol.Equivocation,
    "withhold": protocol.Withhold,
    "task-vector": targeted.TaskVector,
    "trigger": targeted.TriggerGradient,
}


CATALOGUE: Catalogue[Misconduct] = Catalogue("attack", "holdfast.attacks", Misconduct, "holdfast.attacks.Attack", ATTACKS)


def known_attacks() -> dict[str, str]:
    """Every name that `resolve_attack` knows, with one line each; plug-ins are named but not loaded."""
    return CATALOGUE.known()


def resolve_attack(spec: str | Misconduct) -> Misconduct:
    """The attack that `spec` describes; an object passes through. Raises ConfigError with what would have been right."""
    return CATALOGUE.resolve(spec)
