"""Run directories: whatever became of their files, each command that reads one ends in its own error, and leaves all as it was.

a finished run --> files altered, torn, exchanged, gone --> report, audit, export, evaluate, train --resume
                                                            exit code 0, 1 (audit), 2 or 3; one line; nothing written
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from holdfast.atomic import write_manifest
from holdfast.cli.main import main

Tree = dict[str, bytes | None]


def tree(folder: Path) -> Tree:
    """Every path below `folder` with its bytes; None for what is no file."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture(scope="module")
def whole(finished: Path) -> Tree:
    """The directory of a finished run with liars in it."""
    return tree(finished)


@pytest.fixture
def run(whole: Tree, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # a word in config.toml may be a name on the hub
    monkeypatch.chdir(tmp_path)
    restore(tmp_path / "run", whole)
    return tmp_path / "run"


def restore(run: Path, whole: Tree) -> None:
    found = tree(run) if run.is_dir() else {}
    if found.keys() - whole.keys() or any(
        found.get(name, content) is None != (content is None) for name, content in whole.items()
    ):
        shutil.rmtree(run, ignore_errors=True)
        found = {}
    for name, content in whole.items():
        if content is None:
            (run / name).mkdir(parents=True, exist_ok=True)
    for name, content in whole.items():
        if content is not None and found.get(name) != content:
            (run / name).parent.mkdir(parents=True, exist_ok=True)
            (run / name).write_bytes(content)


def command(words: tuple[str, ...]) -> tuple[int, str, str]:
    """What `holdfast` does with these words: exit code, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as left:
        main(list(words))
    return int(left.value.code or 0), out.getvalue(), err.getvalue()


COMMANDS: dict[str, tuple[str, ...]] = {
    "report": ("report", "run"),
    "report of two": ("report", "run", "whole", "--format", "html"),
    "audit": ("audit", "run"),
    "audit one": ("audit", "run", "--explain", "1", "--json"),
    "export": ("export", "run", "--to", "model"),
    "evaluate": ("eval", "run", "--tokens", "8", "--json"),
    "resume": ("train", "--resume", "run", "--steps", "2", "-q"),
}

WORDS = [
    *(
        b"",
        b"null",
        b"{}",
        b"[]",
        b"0",
        b"-1",
        b"1e999",
        b"NaN",
        b"9" * 5000,
        b"0x" + b"F" * 5000,
        b'"\\ud800"',
        b"\xff\xfe",
        b"\x00",
    ),
    *(
        b"[" * 20_000,
        b'{"a":' * 20_000,
        b"[a]\n",
        b"a = 1\n",
        b'"x"',
        b"3",
        b"true",
        b"\n",
        b"}",
        b"\xed\xa0\x80",
        b"inf",
        b"'",
    ),
]
ratio = st.floats(0, 1, exclude_max=True)
damages = st.tuples(
    ratio,
    st.sampled_from(["put", "put", "put", "value", "value", "value", "cut", "whole", "gone", "folder", "loop", "other"]),
    ratio,
    ratio,
    st.sampled_from(WORDS) | st.binary(max_size=4),
)


def damaged(run: Path, whole: Tree, which: float, how: str, where: float, there: float, word: bytes) -> None:
    """One file of the run with other bytes, another value, or gone."""
    texts = [name for name in whole if name.endswith((".json", ".jsonl", ".toml", ".sha256")) or "SUMS" in name]
    files = texts * 2 + [name for name, content in whole.items() if content is not None]
    name = files[int(which * len(files))]
    path, content = run / name, whole[name]
    if content is None or not path.is_file():
        return
    place = int(where * len(content))
    match how:
        case "put":
            path.write_bytes(content[:place] + word + content[place + int(there * 8) :])
        case "value":
            spots = list(re.finditer(rb'(?<=[:=\[,]) *(?:"[^"\n]*"|[-+.\w]+)', content[:200_000]))
            found = spots[int(where * len(spots))] if spots else None
            path.write_bytes(word if found is None else content[: found.start()] + word + content[found.end() :])
        case "cut":
            path.write_bytes(content[:place])
        case "whole":
            path.write_bytes(word)
        case "gone":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "loop":
            path.unlink()
            path.symlink_to(path)
        case _:
            path.write_bytes(whole[files[int(there * len(files))]] or b"")


def test_commands_on_damaged_runs(hammer: Any, run: Path, whole: Tree) -> None:
    """`again`: the manifests of the checkpoints are written anew, as somebody would who knows of them."""
    restore(run.parent / "whole", whole)
    (checkpoint,) = (run / "checkpoints").iterdir()

    def check(name: str, todo: list[Any], again: bool) -> str:
        restore(run, whole)
        for damage in todo:
            damaged(run, whole, *damage)
        if again and checkpoint.is_dir():
            with contextlib.suppress(OSError):
                write_manifest(checkpoint)
        before = tree(run.parent)
        code, _, err = command(COMMANDS[name])
        assert "Traceback" not in err
        assert "defect of Holdfast" not in err, err
        assert code in ((0, 1) if name.startswith("audit") else (0,)) or (code in (2, 3) and err.startswith("error: ")), err
        assert len(err) < 4000, "an error that fills the screen"
        if name not in ("export", "resume") or code:
            assert tree(run.parent) == before, "something was written"
        else:
            shutil.rmtree(run.parent / "model", ignore_errors=True)
        return f"{name} {code}"

    often = st.sampled_from([*["report", "report of two", "audit", "audit one", "export"] * 6, "evaluate", "resume"])
    hammer(check, often, st.lists(damages, min_size=1, max_size=2), st.booleans(), quick=60)


@pytest.mark.parametrize("name", list(COMMANDS))
def test_commands_on_the_whole_run(run: Path, whole: Tree, name: str) -> None:
    """Without this, nothing above could be told from chance."""
    restore(run.parent / "whole", whole)
    code, _, err = command(COMMANDS[name])
    assert (code, "error" in err) == (int(name.startswith("audit")), False), err
