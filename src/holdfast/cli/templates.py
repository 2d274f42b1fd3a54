"""The files of a new plug-in package, from the templates beside this module; nothing that exists is touched."""

from __future__ import annotations

import keyword
import re
from importlib.resources import files
from pathlib import Path

import holdfast
from holdfast.errors import ConfigError

GROUPS = {"attack": "holdfast.attacks", "defence": "holdfast.remedies"}
FILES = {
    "pyproject.toml": "pyproject.toml.txt",
    "README.md": "README_{kind}.md.txt",
    "{module}.py": "{kind}.py.txt",
    "tests/test_{module}.py": "test_{kind}.py.txt",
}


def render(kind: str, name: str, directory: Path) -> list[Path]:
    """Write the package `name` of `kind` (attack or defence) into `directory`, which must not exist or be empty.

    Returns the files written; raises ConfigError for a name that cannot be one, or where something would be overwritten.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise ConfigError(f"{name!r} cannot name a plug-in: use lower-case words joined by dashes, for example slow-drift")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} exists and is not empty; choose another directory with --to, nothing was written")
    module, class_name = name.replace("-", "_"), "".join(part.capitalize() for part in name.split("-"))
    words = {
        "entry_point": f'[project.entry-points."{GROUPS[kind]}"]\n{name} = "{module}:{class_name}"\n\n',
        "kind": kind,
        "name": name,
        "module": module,
        "class": class_name,
        "version": holdfast.__version__,
    }
    written = []
    for target, template in FILES.items():
        content = files("holdfast.cli").joinpath("templates_text", _fill(template, words)).read_text(encoding="utf-8")
        path = directory / _fill(target, words)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_fill(content, words), encoding="utf-8")
        written.append(path)
    return written


def _fill(text: str, words: dict[str, str]) -> str:
    """Replace `{word}` where it is one of `words`; other braces stay."""
    return re.sub(r"\{(\w+)\}", lambda match: words.get(match[1], match[0]), text)
