"""From what a user writes to an object: a name of a table, of an installed plug-in, or `file.py:Class`, with parameters.

sign-flip                      a name of the catalogue's table
scale,factor=100               with parameters
my-attack                      an entry point of the catalogue's group
lies/mine.py:Shrink,factor=2   a class in a file
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar, cast

from holdfast.errors import ConfigError, did_you_mean
from holdfast.toml import parse_spec

T = TypeVar("T")


@dataclass(frozen=True)
class Catalogue(Generic[T]):
    """The classes of one kind of plug-in: `table` by name, `group` of entry points, all subclasses of `base` (abstract).

    `beside` are parameters that may stand after a name on the command line and are not the class's own.
    """

    kind: str
    group: str
    base: Any
    base_name: str
    table: Mapping[str, type[T]]
    beside: tuple[str, ...] = ()

    def known(self) -> dict[str, str]:
        """Every name that `resolve` knows, with one line each; plug-ins are named but not loaded."""
        known = {name: (inspect.getdoc(found) or "").split("\n")[0] for name, found in self.table.items()}
        for name, plugin in self._plugins().items():
            known.setdefault(name, f"plug-in: {plugin.value}")
        return known

    def resolve(self, spec: str | T, defaults: Mapping[str, Any] | None = None) -> T:
        """The object that `spec` describes; an object passes through. Raises ConfigError with what would have been right.

        `defaults` are parameters that a class gets where it takes them and `spec` says nothing.
        """
        if isinstance(spec, self.base):
            return cast(T, spec)
        if not isinstance(spec, str):
            raise ConfigError(f"{self._a} is an object of a subclass of {self.base_name} or a name, got {_called(spec)}")
        name, parameters = parse_spec(spec)
        found = self._find(name)
        fitting = {key: value for key, value in (defaults or {}).items() if key in inspect.signature(found).parameters}
        return self._build(name, found, {**fitting, **parameters})

    def _find(self, name: str) -> type[T]:
        if name in self.table:
            return self.table[name]
        if ":" in name:
            return self._checked(name, self._from_file(name))
        plugins = self._plugins()
        if name not in plugins:
            known = [*self.table, *plugins]
            raise ConfigError(
                f"unknown {self.kind} {name!r}; {did_you_mean(name, known)}known are {', '.join(known)}, or file.py:Class"
            )
        try:
            loaded = plugins[name].load()
        except Exception as error:
            raise ConfigError(f"the plug-in {self.kind} {name!r} ({plugins[name].value}) does not load: {error!r}") from error
        return self._checked(name, loaded)

    def _plugins(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in sorted(entry_points(group=self.group), key=lambda entry: entry.name)}

    def _from_file(self, name: str) -> object:
        where, _, class_name = name.rpartition(":")
        path = Path(where)
        if not path.is_file():
            raise ConfigError(f"{self.kind} {name!r}: there is no file {path}; give file.py:Class with a path from here")
        module = self._load(path, name)
        if not hasattr(module, class_name):
            kinds = [key for key, value in vars(module).items() if self._fits(value) and value.__module__ == module.__name__]
            offered = ", ".join(kinds) if kinds else f"no {self.kind}"
            raise ConfigError(f"{self.kind} {name!r}: {path} has no class {class_name!r}; it defines {offered}")
        return getattr(module, class_name)

    def _load(self, path: Path, name: str) -> ModuleType:
        source = path.resolve()
        content = hashlib.sha256(str(source).encode() + source.read_bytes()).hexdigest()[:16]
        unique = f"holdfast_{self.kind}_{source.stem}_{content}"
        if unique in sys.modules:
            return sys.modules[unique]
        recipe = importlib.util.spec_from_file_location(unique, source)
        if recipe is None or recipe.loader is None:
            raise ConfigError(f"{self.kind} {name!r}: {path} is not a Python file; it must end in .py")
        module = importlib.util.module_from_spec(recipe)
        sys.modules[unique] = module  # before execution: dataclasses look their module up
        try:
            recipe.loader.exec_module(module)
        except Exception as error:
            del sys.modules[unique]
            raise ConfigError(f"{self.kind} {name!r}: {path} does not load: {type(error).__name__}: {error}") from error
        return module

    def _fits(self, found: object) -> bool:
        return isinstance(found, type) and issubclass(found, self.base) and not inspect.isabstract(found)

    def _checked(self, name: str, found: object) -> type[T]:
        if isinstance(found, type) and self._fits(found):
            return cast(type[T], found)
        missing = ", ".join(sorted(getattr(found, "__abstractmethods__", ())))
        why = f"it leaves {missing} unwritten" if missing else f"it is not a subclass of {self.base_name}"
        raise ConfigError(f"{self.kind} {name!r}: {_called(found)} is not {self._a}, because {why}")

    def _build(self, name: str, found: type[T], parameters: dict[str, Any]) -> T:
        signature = inspect.signature(found)
        accepted = [key for key, item in signature.parameters.items() if item.kind is not inspect.Parameter.VAR_KEYWORD]
        open_ended = len(accepted) < len(signature.parameters)
        unknown = [] if open_ended else [key for key in parameters if key not in accepted]
        takes = ", ".join(accepted) or ("none of its own" if self.beside else "none")
        takes += f"; and, as every {self.kind}, {', '.join(self.beside)}" if self.beside else ""
        misplaced = [key for key in unknown if key in self.beside]
        if misplaced:
            raise ConfigError(f"{self.kind} {name!r}: {misplaced[0]} is no parameter of its own; set it beside the spec")
        if unknown:
            hint = did_you_mean(unknown[0], [*accepted, *self.beside])
            raise ConfigError(f"{self.kind} {name!r} has no parameter {', '.join(unknown)}; {hint}it accepts {takes}")
        try:
            return found(**parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.kind} {name!r}: {error}; it accepts {takes}") from error

    @property
    def _a(self) -> str:
        return f"{'an' if self.kind[0] in 'aeiou' else 'a'} {self.kind}"


def _called(found: object) -> str:
    return f"the class {found.__name__}" if isinstance(found, type) else repr(found)
