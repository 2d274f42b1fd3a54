"""The pages say what the program does: every option, every attack, every link."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from holdfast.attacks import ATTACKS
from holdfast.cli.defaults import DEFAULTS, IN_WORDS
from holdfast.cli.templates import render
from holdfast.config import AttackConfig, RunConfig, resolve
from holdfast.settings import SETTINGS
from holdfast.sweep import read_grid
from holdfast.toml import read_toml

ROOT = Path(__file__).parent.parent


def test_every_option_has_a_row() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    rows = [line.split("|") for line in page.splitlines() if line.startswith("| `--")]
    told = {cells[1].strip(" `"): cells[2].strip(" `") for cells in rows}
    assert {setting.option: setting.path for setting in SETTINGS}.items() <= told.items()


@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if setting.name not in ("out", "defence")])
def test_documented_defaults_are_the_real_ones(setting) -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{setting.option}` |"))
    section, _, key = setting.path.partition(".")
    value = getattr(RunConfig(), section)
    value = getattr(value, key) if key else value
    shown = "" if value in (None, ()) else str(value).lower() if isinstance(value, bool) else str(value)
    assert row.split("|")[3].strip(" `") == shown


def test_the_defaults_that_help_shows_are_the_real_ones() -> None:
    real = RunConfig().model_dump(include={"faults"})
    for setting in SETTINGS:
        section, _, key = setting.path.partition(".")
        value = getattr(RunConfig(), section)
        real[setting.name] = getattr(value, key) if key else value
    real.pop("faults")
    plain = {name: value for name, value in real.items() if value not in (None, ())}
    assert plain == {name: value for name, value in DEFAULTS.items() if name not in IN_WORDS}
    assert {name: real[name] for name in IN_WORDS} == dict.fromkeys(IN_WORDS)
    assert AttackConfig(spec="zeros").rate == 1.0  # written in the help of --rate


def test_every_attack_has_a_row() -> None:
    page = (ROOT / "docs/attacks.md").read_text(encoding="utf-8")
    assert all(f"| `{name}` |" in page for name in ATTACKS)


@pytest.mark.parametrize("words", ["new attack slow-drift", "new defence patient"])
def test_the_page_on_plugins_lists_what_the_template_writes(tmp_path: Path, words: str) -> None:
    _, kind, name = words.split()
    render(kind, name, tmp_path)
    written = (tmp_path / f"{name.replace('-', '_')}.py").read_text(encoding="utf-8")
    _, here, after = (ROOT / "docs/plugins.md").read_text(encoding="utf-8").partition(f"    holdfast {words}\n")
    assert here
    assert after.split("```python\n")[1].split("```")[0] == written


def test_every_link_leads_somewhere() -> None:
    done = subprocess.run([sys.executable, str(ROOT / "scripts/check_links.py")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_example_file_is_valid() -> None:
    config = resolve(read_toml(ROOT / "examples/run.toml"))
    assert config.attack[0].spec == "sign-flip"


def test_the_example_of_a_sweep_is_valid() -> None:
    grid = read_grid(ROOT / "examples/sweep.toml")
    assert len(grid.cells) == 3 * (2 + 3 * 4)
