"""The text of a file as plain values: whatever is wrong with it is a ValueError, however deep it is, however long its numbers.

The parsers of the standard library leave with a RecursionError what is nested too deeply, and TOML's takes whole numbers that
no TOML has and that Python then refuses to print.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
import tomllib
import types
import typing
from collections.abc import Callable
from typing import Any

DEEPEST = 32
"""Levels of tables in a TOML file; dotted keys make as many as they like."""


def from_json(text: str) -> Any:
    """The value of anybody's JSON text, as Python reads it. Raises ValueError (JSONDecodeError for what is no JSON)."""
    return _read(json.loads, text)


def from_own_json(text: str) -> Any:
    """The value of a JSON text as Holdfast writes it: numbers are finite, and whole ones have 64 bits. Raises ValueError."""
    return _read(_OWN.decode, text)


def from_toml(text: str) -> dict[str, Any]:
    """The tables of a TOML text. Raises ValueError, also for a whole number beyond 64 bits.

    >>> from_toml("a.b = 3")
    {'a': {'b': 3}}
    """
    tables: dict[str, Any] = _read(tomllib.loads, text)
    level: list[Any] = [tables]
    for _ in range(DEEPEST):
        for value in level:
            if isinstance(value, int):
                _whole(value)
        level = [inner for value in level for inner in _inside(value)]
    if level:
        raise ValueError("it is nested too deeply")
    return tables


def _read(parser: Callable[[str], Any], text: str) -> Any:
    try:
        return parser(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _whole(value: int | str) -> int:
    number = int(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError("it has a whole number beyond 64 bits")
    return number


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it has the number {text}")
    return number


_OWN = json.JSONDecoder(parse_int=_whole, parse_float=_finite, parse_constant=_finite)


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


NOT_FINITE = ("nan", "inf", "-inf")
"""How a JSON text spells numbers that JSON does not have."""


def fits(value: Any, kind: Any) -> bool:
    """Whether a value out of a JSON text has the form of `kind`; an object may have more fields than its dataclass.

    >>> fits([1, 2], tuple[int, ...]), fits("nan", float), fits(True, int)
    (True, True, False)
    """
    if dataclasses.is_dataclass(kind):
        fields = typing.get_type_hints(kind)
        return isinstance(value, dict) and all(name in value and fits(value[name], hint) for name, hint in fields.items())
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is types.UnionType:
        return any(fits(value, each) for each in arguments)
    if origin in (tuple, list):
        return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if kind is float:
        return type(value) in (int, float) or value in NOT_FINITE
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return value in [each.value for each in kind]
    return kind is Any or type(value) is kind
