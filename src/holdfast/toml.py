"""Settings as text and back: TOML files, `section.key=value` and `name,param=value`, each read without believing it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError
from holdfast.plain import from_toml

if TYPE_CHECKING:
    from holdfast.config import RunConfig


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; raises ConfigError where it is missing or malformed."""
    try:
        return from_toml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no config file at {path}; give the path of a TOML file, or none for the defaults") from None
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; give the path of a TOML file") from None
    except ValueError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def assign(tables: dict[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Apply `section.key=value` assignments (values as TOML; bare words are strings) to a copy of `tables`.

    >>> assign({}, ["training.steps=20", "data.name=wikitext2"])
    {'training': {'steps': 20}, 'data': {'name': 'wikitext2'}}
    """
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in tables.items()}
    for text in assignments:
        path, equals, value = text.partition("=")
        if not equals or not path.strip():
            raise ConfigError(f"--set {text!r}: expected section.key=value, for example training.steps=20")
        *sections, key = path.strip().split(".")
        table = result
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise ConfigError(f"--set {text!r}: {section!r} is a value, not a table")
        table[key] = toml_value(value.strip())
    return result


def toml_value(text: str) -> Any:
    """A value as TOML writes it; what is none is a bare word."""
    try:
        return from_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def parse_spec(text: str) -> tuple[str, dict[str, Any]]:
    """Split `name,param=value,...` (attacks) or `name:param=value,...` (models) into a name and typed parameters.

    >>> parse_spec("scale,factor=10,direction=both")
    ('scale', {'factor': 10, 'direction': 'both'})
    """
    name, *pairs = text.split(",")
    match = re.fullmatch(r"([a-z0-9_]+):(\w+=.*)", name)
    if match is not None:
        name, pairs = match[1], [match[2], *pairs]
    parameters: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"{text!r}: expected param=value after the name, got {pair!r}")
        parameters[key.strip().replace("-", "_")] = toml_value(value.strip())
    return name.strip(), parameters


def to_toml(config: RunConfig) -> str:
    """The resolved config as TOML; reading it back gives an equal config."""
    tables = config.model_dump(mode="json", exclude_none=True)
    lines = [
        f"{key} = {toml_literal(value)}" for key, value in tables.items() if not isinstance(value, dict) and key != "attack"
    ]
    for name, table in tables.items():
        if isinstance(table, dict):
            lines += ["", f"[{name}]", *(f"{key} = {toml_literal(value)}" for key, value in table.items())]
    for attack in tables["attack"]:
        lines += ["", "[[attack]]", *(f"{key} = {toml_literal(value)}" for key, value in attack.items())]
    return "\n".join(lines).strip() + "\n"


def toml_literal(value: Any) -> str:
    """A value as TOML writes it: the inverse of `toml_value`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # JSON's escapes are TOML's too
    if isinstance(value, list):
        return "[" + ", ".join(toml_literal(item) for item in value) + "]"
    return repr(value)
