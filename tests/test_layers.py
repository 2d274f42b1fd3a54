"""Dependencies point one way: words <- machine, trust, adversary <- run <- edge, function-level imports included."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "holdfast"

WORDS = {
    "claim",
    "route",
    "errors",
    "seeds",
    "config",
    "toml",
    "message",
    "event",
    "digest",
    "atomic",
    "plugins",
    "plain",
    "quantise",
}
MACHINE = {"partition", "schedule", "transport", "launch"}
TRUST = {"verify", "recover", "evidence", "privacy"}
ADVERSARY = {"attacks", "faults"}
EDGE = {"experiment", "cast", "settings", "presets", "bench", "sweep", "cli", "dash", "testing", "__main__", "__init__"}

MODULES = sorted(SOURCE.rglob("*.py"))


def top(module: Path) -> str:
    """The first name below `holdfast`: a package or a module."""
    return module.relative_to(SOURCE).parts[0].removesuffix(".py")


def layer(name: str) -> str:
    layers = {"words": WORDS, "machine": MACHINE, "trust": TRUST, "adversary": ADVERSARY, "edge": EDGE}
    return next((layer for layer, members in layers.items() if name in members), "run")


def imports(module: Path) -> set[str]:
    """What a module imports of ours, wherever the import stands; `holdfast` itself counts as the word `__version__`."""
    found = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.ImportFrom) and node.module == "holdfast":
            names = [f"holdfast.{alias.name}" for alias in node.names]
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("holdfast.")}
    return found - {"__version__"}


def may_import(importer: str, imported: str) -> bool:
    here, there = layer(importer), layer(imported)
    if importer == imported or there == "words" or here == "edge":
        return True
    return here == "run" and there in ("machine", "trust", "run")


@pytest.mark.parametrize("module", MODULES, ids=lambda module: str(module.relative_to(SOURCE)))
def test_imports_point_one_way(module: Path) -> None:
    wrong = sorted(name for name in imports(module) if not may_import(top(module), name))
    assert not wrong, f"{top(module)} ({layer(top(module))}) must not import {', '.join(f'{n} ({layer(n)})' for n in wrong)}"


def test_the_honest_runtime_does_not_know_the_word_attack() -> None:
    telling = {"report", "result"}  # they print what the edge found out afterwards, under the contract's names
    honest = [m for m in MODULES if layer(top(m)) in ("machine", "trust", "run") and top(m) not in telling]
    assert [str(m) for m in honest if "attack" in _code(m)] == []


def test_experiments_stand_on_the_sweep_and_not_the_other_way_round() -> None:
    below = [module for module in MODULES if top(module) in ("sweep", "settings", "experiment")]
    assert [str(module) for module in below if {"bench", "cli"} & imports(module)] == []
    assert any("sweep" in imports(module) for module in MODULES if top(module) == "bench")


def test_the_rules_can_fail() -> None:
    assert not may_import("worker", "attacks")
    assert not may_import("partition", "schedule")
    assert not may_import("claim", "worker")
    assert not may_import("trainer", "cli")
    assert may_import("trainer", "partition")


def _code(module: Path) -> str:
    """The module without comments and docstrings."""
    tree = ast.parse(module.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            node.body = node.body[1:] or [ast.Pass()]
    return ast.unparse(tree).lower()
