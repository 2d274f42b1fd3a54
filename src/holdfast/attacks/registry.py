"""From what a user writes to an attack: a name of the table below, of an installed plug-in, or `file.py:Class`.

sign-flip                      the table ATTACKS
scale,factor=100               with parameters
my-attack                      an entry point of the group `holdfast.attacks`
lies/mine.py:Shrink,factor=2   a class in a file
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from holdfast.attacks import protocol, tensors
from holdfast.attacks.attack import Misconduct
from holdfast.config import parse_spec
from holdfast.errors import ConfigError

GROUP = "holdfast.attacks"

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
}


def known_attacks() -> dict[str, str]:
    """Every name that `resolve_attack` knows, with one line each; plug-ins are named but not loaded."""
    known = {name: (inspect.getdoc(kind) or "").split("\n")[0] for name, kind in ATTACKS.items()}
    for name, plugin in _plugins().items():
        known.setdefault(name, f"plug-in: {plugin.value}")
    return known


def resolve_attack(spec: str | Misconduct) -> Misconduct:
    """The attack that `spec` describes; an object passes through. Raises ConfigError with what would have been right."""
    if isinstance(spec, Misconduct):
        return spec
    if not isinstance(spec, str):
        raise ConfigError(f"an attack is an object of a subclass of holdfast.attacks.Attack or a name, got {_called(spec)}")
    name, parameters = parse_spec(spec)
    return _build(name, _find(name), parameters)


def _find(name: str) -> type[Misconduct]:
    if name in ATTACKS:
        return ATTACKS[name]
    if ":" in name:
        return _checked(name, _from_file(name))
    plugins = _plugins()
    if name not in plugins:
        known = [*ATTACKS, *plugins]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown attack {name!r}; {hint}known are {', '.join(known)}, or file.py:Class")
    try:
        found = plugins[name].load()
    except Exception as error:
        raise ConfigError(f"the plug-in attack {name!r} ({plugins[name].value}) does not load: {error!r}") from error
    return _checked(name, found)


def _plugins() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name)}


def _from_file(name: str) -> object:
    where, _, class_name = name.rpartition(":")
    path = Path(where)
    if not path.is_file():
        raise ConfigError(f"attack {name!r}: there is no file {path}; give file.py:Class with a path from here")
    module = _load(path, name)
    if not hasattr(module, class_name):
        kinds = [key for key, value in vars(module).items() if _is_attack(value) and value.__module__ == module.__name__]
        offered = ", ".join(kinds) if kinds else "no attack"
        raise ConfigError(f"attack {name!r}: {path} has no class {class_name!r}; it defines {offered}")
    return getattr(module, class_name)


def _load(path: Path, name: str) -> ModuleType:
    source = path.resolve()
    unique = f"holdfast_attack_{source.stem}_{hashlib.sha256(str(source).encode() + source.read_bytes()).hexdigest()[:16]}"
    if unique in sys.modules:
        return sys.modules[unique]
    recipe = importlib.util.spec_from_file_location(unique, source)
    if recipe is None or recipe.loader is None:
        raise ConfigError(f"attack {name!r}: {path} is not a Python file; it must end in .py")
    module = importlib.util.module_from_spec(recipe)
    sys.modules[unique] = module  # before execution: dataclasses look their module up
    try:
        recipe.loader.exec_module(module)
    except Exception as error:
        del sys.modules[unique]
        raise ConfigError(f"attack {name!r}: {path} does not load: {type(error).__name__}: {error}") from error
    return module


def _is_attack(found: object) -> bool:
    return isinstance(found, type) and issubclass(found, Misconduct) and not inspect.isabstract(found)


def _checked(name: str, found: object) -> type[Misconduct]:
    if isinstance(found, type) and _is_attack(found):
        return found
    missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
    why = f"it leaves {missing} unwritten" if missing else "it is not a subclass of holdfast.attacks.Attack"
    raise ConfigError(f"attack {name!r}: {_called(found)} is not an attack, because {why}")


def _called(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else repr(found)


def _build(name: str, kind: type[Misconduct], parameters: dict[str, Any]) -> Misconduct:
    signature = inspect.signature(kind)
    accepted = [key for key, item in signature.parameters.items() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    open_ended = len(accepted) < len(signature.parameters)
    unknown = [] if open_ended else [key for key in parameters if key not in accepted]
    if unknown:
        raise ConfigError(f"attack {name!r} has no parameter {', '.join(unknown)}; it accepts {', '.join(accepted) or 'none'}")
    try:
        return kind(**parameters)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"attack {name!r}: {error}; it accepts {', '.join(accepted) or 'none'}") from error
