"""Fuzzing: whatever a peer or a file can say, thousands of times over, and what must hold of every answer to it.

    hammer(check, strategy, ...)    quick   some hundred inputs, always the same          in the normal suite
                                    full    10,000 inputs a kind, from a given seed       slow, see scripts/fuzz

A check says in a word or several what became of the input (`refused`, `ignored`); they are counted, and shown after a full run.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib.util
import math
import os
import sys
import time
import types
import typing
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FULL = int(os.environ.get("FUZZ_INPUTS", "10000"))
"""Malformed inputs of each kind in a full run."""

Check = Callable[..., "str | list[str]"]


@dataclasses.dataclass
class Hammer:
    """`inputs` says how many malformed inputs one call of the check makes of what it is given."""

    node: pytest.Item
    full: bool

    def __call__(self, check: Check, *strategies: st.SearchStrategy[Any], quick: int = 100, inputs: int = 1) -> None:
        words: Counter[str] = Counter()
        calls, began = 0, time.perf_counter()

        @settings(
            max_examples=math.ceil(FULL / inputs) if self.full else quick,
            derandomize=not self.full,
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(st.tuples(*strategies))
        def once(drawn: tuple[Any, ...]) -> None:
            nonlocal calls
            calls += 1
            told = check(*drawn)
            words.update([told] if isinstance(told, str) else told)

        once()
        assert not self.full or calls * inputs >= FULL, (
            f"only {calls * inputs} inputs were made; they are too large, or too few"
        )
        told = ", ".join(f"{count} {word}" for word, count in words.most_common())
        name = self.node.nodeid.rpartition("/")[2].replace("[full]", "").replace("[full-", "[")
        line = f"{calls * inputs:>7} inputs {time.perf_counter() - began:>6.0f} s  {name}  {told}"
        self.node.user_properties.append((FULL_RUN if self.full else "fuzz-quick", line))


FULL_RUN = "fuzz-full"


@pytest.fixture(params=["quick", pytest.param("full", marks=pytest.mark.slow)])
def hammer(request: pytest.FixtureRequest) -> Hammer:
    return Hammer(request.node, request.param == "full")


@pytest.fixture(params=[1000, pytest.param(FULL, marks=pytest.mark.slow)], ids=["quick", "full"])
def depth(request: pytest.FixtureRequest) -> int:
    """How many messages a flood has."""
    return int(request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What a full run has put in: one line a kind of input, with what became of it."""
    reports = terminalreporter.stats.get("passed", [])
    lines = [line for report in reports for name, line in report.user_properties if name == FULL_RUN]
    if lines:
        terminalreporter.section("inputs")
        terminalreporter.write_line("\n".join(lines))


# -- what can be said ----------------------------------------------------------------------------------------------------

INTEGERS = st.integers(-2, 8) | st.sampled_from([-(2**63), 2**63 - 1, 2**64 - 1, 2**31, 10**6]) | st.integers(-(2**63), 2**63)
DIGESTS = st.sampled_from([b"", b"\0" * 32, b"d" * 32, b"d" * 31, b"d" * 33, b"d" * 1000]) | st.binary(max_size=40)
FLOATS = st.floats() | st.sampled_from([math.nan, math.inf, -math.inf, -0.0, 5e-324, 1.7e308])
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64)
TENSORS = st.builds(
    lambda shape, dtype, value: torch.full(shape, value, dtype=torch.float64).to(dtype),
    st.lists(st.integers(0, 3), max_size=4).map(tuple),
    st.sampled_from(DTYPES),
    st.sampled_from([0.0, -0.0, 1.0, math.nan, math.inf]),
)
PLAIN: Mapping[Any, st.SearchStrategy[Any]] = {
    int: INTEGERS,
    float: FLOATS,
    str: st.text(max_size=8),
    bytes: DIGESTS,
    bool: st.booleans(),
    Any: TENSORS,
}


def said(kind: Any, words: Mapping[str, st.SearchStrategy[Any]] | None = None) -> st.SearchStrategy[Any]:
    """Any well-typed value of `kind`, a message or a part of one; `words` has what fields of these names hold instead."""
    words = words or {}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return st.builds(kind, **{name: words[name] if name in words else said(hint, words) for name, hint in hints.items()})
    if kind in PLAIN:
        return PLAIN[kind]
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of([st.none() if each is type(None) else said(each, words) for each in arguments])
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(said(arguments[0], words), max_size=3).map(tuple)
    if origin is tuple:
        return st.tuples(*(said(each, words) for each in arguments))
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return st.sampled_from(kind)
    return st.dictionaries(st.text(max_size=8), said(arguments[1], words), max_size=3)  # a mapping of tensors


@pytest.fixture(scope="session")
def speech() -> Callable[..., st.SearchStrategy[Any]]:
    return said


# -- the worlds of the other suites --------------------------------------------------------------------------------------


def neighbour(suite: str) -> ModuleType:
    """The conftest of another suite: tests are collected without being importable from one another."""
    name = f"fuzzed_{suite}"
    if name not in sys.modules:
        path = Path(__file__).parent.parent / suite / "conftest.py"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def suite() -> Callable[[str], ModuleType]:
    return neighbour


SMALL = {"model": "gpt2:layers=4,width=8,heads=2", "stages": 4, "seq_length": 4, "vocabulary": 300, "micro_batches": 2}
SMALL |= {"data": {"name": "synthetic", "validation_tokens": 16}, "micro_batch_size": 1, "steps": 2}


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a finished run with liars in it."""
    from holdfast import Experiment

    out = tmp_path_factory.mktemp("run") / "out"
    Experiment(**SMALL, attack="sign-flip,rate=0.9", out=str(out)).run()
    return out
