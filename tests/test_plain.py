"""Texts of files as plain values: nothing that stands in one ends in anything but a ValueError."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from holdfast.claim import Direction
from holdfast.plain import fits, from_json, from_own_json, from_toml


@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_what_is_nested_too_deeply_is_a_value_error(depth: int) -> None:
    for read in (from_json, from_own_json):
        with pytest.raises(ValueError, match="deeply"):
            read("[" * depth + "]" * depth)
    for text in ("a = " + "[" * depth + "]" * depth, ".".join(["a"] * 40) + " = 1", "a = " + "[" * 40 + "]" * 40):
        with pytest.raises(ValueError, match="deeply"):
            from_toml(text)


def test_a_toml_file_has_whole_numbers_of_64_bits() -> None:
    """Python read one of 20,000 bits, and could not print it in the error message."""
    assert from_toml("a = [9223372036854775807, -9223372036854775808]") == {"a": [2**63 - 1, -(2**63)]}
    for number in ("0x" + "F" * 5_000, "9" * 5_000, "9223372036854775808"):
        with pytest.raises(ValueError, match=r"64 bits|limit"):
            from_toml(f"a.b = [{{c = {number}}}]")


def test_own_files_have_no_number_that_json_lacks() -> None:
    for number in ("NaN", "Infinity", "-Infinity", "1e999", "9" * 30, "9" * 5_000):
        assert number == "9" * 5_000 or from_json(number) is not None
        with pytest.raises(ValueError, match=r"number|limit"):
            from_own_json(f'{{"a": [{number}]}}')
    assert from_own_json('{"a": [1.5, -3]}') == {"a": [1.5, -3]}


@dataclass(frozen=True)
class Tale:
    name: str
    directions: tuple[Direction, ...]
    losses: dict[str, float]
    end: int | None


@pytest.mark.parametrize(
    ("change", "good"),
    [
        ({}, True),
        ({"more": 1}, True),
        ({"end": None}, True),
        ({"losses": {"a": "nan"}}, True),
        ({"end": 1.0}, False),
        ({"end": True}, False),
        ({"name": None}, False),
        ({"name": ["oak"]}, False),
        ({"directions": "forward"}, False),
        ({"directions": ["sideways"]}, False),
        ({"directions": [["forward"]]}, False),
        ({"losses": []}, False),
        ({"losses": {"a": "many"}}, False),
        ({"losses": {"a": True}}, False),
    ],
)
def test_a_value_has_the_form_of_a_type(change: dict[str, Any], good: bool) -> None:
    whole = {"name": "oak", "directions": ["forward", "update"], "losses": {"a": 1, "b": 0.5}, "end": 3}
    assert fits({**whole, **change}, Tale) is good
    assert not any(fits({name: value for name, value in whole.items() if name != gone}, Tale) for gone in whole)
    assert not any(fits(other, Tale) for other in (None, [], "oak", 3))
