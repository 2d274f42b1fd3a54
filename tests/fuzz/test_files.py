"""Files: whatever stands in one that Holdfast reads, the answer is a value that can be used or one of its own errors."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from holdfast.atomic import write_manifest
from holdfast.checkpoint import STATE
from holdfast.config import resolve
from holdfast.errors import CheckpointError, ConfigError, DataError, HoldfastError, SetupError, UsageError
from holdfast.toml import assign, parse_spec, read_toml, to_toml

ratio = st.floats(0, 1, exclude_max=True)
DEEP = [nest * depth for nest in ("[", '{"a":') for depth in (100, 990, 20_000)] + ["[" * 20_000 + "]" * 20_000]
WORDS = [
    "null",
    "true",
    "-1",
    "0",
    "3",
    "1.5",
    "1e999",
    "-Infinity",
    "NaN",
    "9" * 400,
    "9" * 5000,
    '""',
    '"x"',
    "[]",
    "{}",
    "[[]]",
]
WORDS += [
    '"\\ud800"',
    '"\\u0000"',
    '"nan"',
    '"inf"',
    '{"x": 1}',
    "[1, 2]",
    '["w1"]',
    '["initiator"]',
    '[null, {"a": []}]',
    "18446744073709551616",
]


def spots(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to every value inside another one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [found for name, each in inside for found in ((*path, name), *spots(each, (*path, name)))]


MARK = "\N{PILCROW SIGN}"


def doctored(text: str, todo: list[tuple[str, float, str]]) -> str:
    """A JSON text with other words in the places of some of its values, without some, or no longer JSON at all."""
    for how, where, word in todo:
        place = int(where * len(text))
        try:
            content = json.loads(text)
            path = random.Random(where).choice(spots(content))
        except (ValueError, IndexError, RecursionError):
            how = "text"
        match how:
            case "put" | "drop" | "name":
                holder = content
                for step in path[:-1]:
                    holder = holder[step]
                if how == "put":
                    holder[path[-1]] = MARK
                    text = json.dumps(content).replace('"\\u00b6"', word)
                else:
                    value = holder.pop(path[-1])
                    if how == "name" and isinstance(holder, dict):
                        holder[word] = value
                    text = json.dumps(content)
            case "all":
                text = word
            case "cut":
                text = text[:place]
            case _:
                text = text[:place] + word + text[place + len(word) % 7 :]
    return text


HOW = st.sampled_from(["put", "put", "put", "put", "drop", "name", "all", "cut", "text"])
changes = st.lists(st.tuples(HOW, ratio, st.sampled_from([*WORDS, *WORDS, *DEEP])), min_size=1, max_size=3)


def refused(read: Callable[[], Any], *kinds: type[HoldfastError]) -> str:
    """Read, or refused with one of these errors; another one is a traceback for the user."""
    try:
        read()
    except kinds:
        return "refused"
    return "read"


def put_text(path: Path, text: str) -> None:
    """A text as it is, lone surrogates and all."""
    path.write_bytes(text.encode("utf-8", "surrogatepass"))


# -- settings ------------------------------------------------------------------------------------------------------------

BASE = to_toml(
    resolve(
        {
            "attack": ({"spec": "zeros", "rate": 0.5, "stages": (1, 2)}, {"spec": "scale,factor=10", "worker": "w1"}),
            "faults": ("crash stage=2 step=7",),
            "cluster": {"speeds": (1.0, 2.0, 1.0, 1.0, 1.0, 1.0)},
            "output": {"dir": 'a "quoted"\tdirectory'},
        }
    )
)
LINES = BASE.splitlines()
TOML = [
    "1979-05-27",
    "07:32:00",
    "inf",
    "-nan",
    "0xFF",
    "0x" + "F" * 5000,
    "1e400",
    "'''x'''",
    '"\\u0000"',
    "{a=1}",
    "[[1]]",
    "1_000",
    "_",
    "=",
]
TOML += [
    "[" * 5000,
    "{b=" * 2000,
    "[a.b]",
    "[[model]]",
    "a." * 2000 + "b = 1",
    "9" * 5000,
    "9" * 300,
    '"x" = 1',
    "true",
    "-1",
    "2**3",
    "\x00",
    "\ufeff",
    "💥",
]


def settings_of(path: Path) -> None:
    config = resolve(read_toml(path))
    path.write_text(to_toml(config), encoding="utf-8")
    assert resolve(read_toml(path)) == config


def test_config_files(hammer: Any, tmp_path: Path) -> None:
    def check(todo: list[tuple[str, float, float, str]]) -> str:
        lines = list(LINES)
        for how, which, there, word in todo:
            one, other = int(which * len(lines)), int(there * len(lines))
            key, equals, _ = lines[one].partition("=")
            match how:
                case "put":
                    lines[one] = f"{key}{equals} {word}"
                case "name":
                    lines[one] = f"{word} = {key}"
                case "line":
                    lines.insert(one, word)
                case "repeat":
                    lines.insert(one, lines[other])
                case "swap":
                    lines[one], lines[other] = lines[other], lines[one]
                case _:
                    lines[one] = lines[one][: int(there * len(lines[one]))]
        put_text(tmp_path / "config.toml", "\n".join(lines))
        return refused(lambda: settings_of(tmp_path / "config.toml"), ConfigError)

    how = st.sampled_from(["put", "put", "put", "name", "line", "repeat", "swap", "cut"])
    hammer(check, st.lists(st.tuples(how, ratio, ratio, st.sampled_from([*TOML, *WORDS])), min_size=1, max_size=3))


def test_config_files_of_random_bytes(hammer: Any, tmp_path: Path) -> None:
    def check(where: float, octets: bytes, keep: bool) -> str:
        whole, place = BASE.encode(), int(where * len(BASE))
        (tmp_path / "config.toml").write_bytes(whole[:place] + octets + whole[place:] if keep else octets)
        return refused(lambda: settings_of(tmp_path / "config.toml"), ConfigError)

    hammer(check, ratio, st.binary(max_size=30), st.booleans())


def test_words_of_the_command_line(hammer: Any) -> None:
    from holdfast.faults import Faults
    from holdfast.partition.scratch import config_from_spec
    from holdfast.settings import add_attacks, merge, numbers, split_attack

    keys = [line.partition(" =")[0] for line in LINES if " = " in line]
    sections = [
        "model",
        "data",
        "pipeline",
        "training",
        "optimizer",
        "cluster",
        "attack",
        "faults",
        "",
        "a.b",
        "output",
        "x" * 50,
    ]
    names = st.builds(lambda *parts: ".".join(parts), st.sampled_from(sections), st.sampled_from([*keys, "", " ", "é"]))
    values = st.sampled_from(
        [*TOML, *WORDS, *DEEP, "1-2", "2-1", "1+3", "0-99999999999", "1-", "٣", "²", "9" * 5000]
    ) | st.text(max_size=6)
    specs = st.builds(
        "{}{}{}={}".format,
        st.sampled_from(["zeros", "scale", "gpt2", "llama", "file.py:A", ""]),
        st.sampled_from([",", ":"]),
        st.sampled_from(["stages", "rate", "factor", "layers", "width", "seed", "micro_batches", "tied", ""]),
        values,
    )
    scripts = st.builds(
        "{} {}={}".format,
        st.sampled_from(["crash", "stall", "", "x"]),
        st.sampled_from(["step", "stage", "seconds", "at", "sent", "worker"]),
        values,
    )

    def check(name: str, value: str, spec: str, script: str) -> str:
        told = [
            refused(lambda: to_toml(resolve(assign({}, [f"{name}={value}"]))), ConfigError),
            refused(lambda: resolve(add_attacks({}, [spec])), ConfigError),
            refused(lambda: (parse_spec(spec), split_attack(spec), numbers(value, "stages")), ConfigError),
            refused(lambda: Faults.parse([script]), ConfigError),
            refused(lambda: merge({}, {name.partition(".")[0]: value}), ConfigError),
            refused(lambda: config_from_spec(spec, 300, 8), UsageError),
        ]
        return "refused" if "refused" in told else "read"

    hammer(check, names, values, specs, scripts)


# -- checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(finished: Path) -> Path:
    return finished


@pytest.fixture(scope="module")
def checkpoint(run: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Callable[[], str]]:
    """A copy of its checkpoint, and a way to resume from that: everything is read that a resumed run reads before it starts."""
    from holdfast.cluster import seats
    from holdfast.digest import state_digest
    from holdfast.job import prepare
    from holdfast.keeper import Keeper

    (found,) = (run / "checkpoints").iterdir()
    copy = tmp_path_factory.mktemp("copy") / found.name
    shutil.copytree(found, copy)
    config = resolve(read_toml(run / "config.toml"))
    job = prepare(config)

    def resume() -> None:
        states, progress = Keeper(config, job, "run").resume(copy)
        assert [len(state_digest(state)) for state in states.values()] == [32] * 4
        assert all(0 <= state.updates <= state.version <= 2 for state in states.values())
        assert len(seats(4, frozenset(progress.lost))) == 4
        json.dumps(progress.to_json(), allow_nan=False)

    resume()
    return copy, lambda: refused(resume, CheckpointError, ConfigError)


def restored(copy: Path, run: Path) -> None:
    (found,) = (run / "checkpoints").iterdir()
    for file in copy.iterdir():
        if not (found / file.name).exists():
            file.unlink()
    for file in found.iterdir():
        shutil.copyfile(file, copy / file.name)


def test_states_of_checkpoints(hammer: Any, run: Path, checkpoint: Any) -> None:
    """The manifest is written anew each time: it tells what was torn, not who may write."""
    copy, resume = checkpoint
    restored(copy, run)
    text = (copy / STATE).read_text()

    def check(todo: Any) -> str:
        put_text(copy / STATE, doctored(text, todo))
        write_manifest(copy)
        return resume()

    hammer(check, changes, quick=60)


def test_counts_in_checkpoints(hammer: Any, run: Path, checkpoint: Any) -> None:
    """Of the many places in a state, those that a resumed run counts on from."""
    copy, resume = checkpoint
    restored(copy, run)
    state = json.loads((copy / STATE).read_text())

    def check(todo: Any) -> str:
        text = json.dumps({**state, "progress": MARK}).replace('"\\u00b6"', doctored(json.dumps(state["progress"]), todo))
        put_text(copy / STATE, text)
        write_manifest(copy)
        return resume()

    hammer(check, changes, quick=60)


def test_manifests(hammer: Any, run: Path, checkpoint: Any) -> None:
    copy, resume = checkpoint
    restored(copy, run)
    text = (copy / "manifest.json").read_text()

    def check(todo: Any) -> str:
        put_text(copy / "manifest.json", doctored(text, todo))
        return resume()

    hammer(check, changes, quick=60)


def test_other_files_of_checkpoints(hammer: Any, run: Path, checkpoint: Any) -> None:
    copy, resume = checkpoint
    restored(copy, run)
    names = ["model.safetensors", "optimizer.safetensors", "tokenizer.json", "config.json", "SHA256SUMS"]
    whole = {name: (copy / name).read_bytes() for name in names if (copy / name).exists()}

    def check(name: str, where: float, octets: bytes, near: int, length: int) -> str:
        for file, content in whole.items():
            (copy / file).write_bytes(content)
        content = whole[name]
        place = int(where * min(near, len(content)))
        (copy / name).write_bytes(content[:place] + octets + content[place + length :])
        write_manifest(copy)
        return resume()

    octets = st.binary(max_size=8) | st.sampled_from([word.encode("utf-8", "surrogatepass") for word in WORDS])
    hammer(check, st.sampled_from(sorted(whole)), ratio, octets, st.sampled_from([8, 300, 10**9]), st.integers(0, 9), quick=60)


# -- reports -------------------------------------------------------------------------------------------------------------


def test_records_of_runs(hammer: Any, run: Path, tmp_path: Path) -> None:
    """run.json, report.jsonl and config.toml, and the comparison that is made of them."""
    from holdfast.report import read_run, render_csv, render_html, render_markdown

    names = ["run.json", "report.jsonl", "config.toml"]
    whole = {name: (run / name).read_text() for name in names}

    def read() -> None:
        runs = [read_run(run), read_run(tmp_path)]
        for render in (render_markdown, render_csv, render_html):
            render(runs)

    def check(name: str, which: float, todo: Any) -> str:
        for file, content in whole.items():
            (tmp_path / file).write_text(content)
        lines = whole[name].splitlines() if name != "run.json" else [whole[name]]
        index = int(which * len(lines))
        if name == "config.toml":
            key, equals, _ = lines[index].partition("=")
            lines[index] = f"{key}{equals} {todo[0][2]}" if todo[0][0] == "put" else todo[0][2]
        else:
            lines[index] = doctored(lines[index], todo)
        put_text(tmp_path / name, "\n".join(lines) + "\n")
        return refused(read, DataError)

    hammer(check, st.sampled_from(["run.json", "report.jsonl", "report.jsonl", "config.toml"]), ratio, changes, quick=60)


def test_reports_that_a_resumed_run_goes_on_with(hammer: Any, run: Path, tmp_path: Path) -> None:
    from holdfast.event import Resumed
    from holdfast.report.jsonl import JsonlReport

    lines = (run / "report.jsonl").read_text().splitlines()

    def go_on() -> None:
        with JsonlReport(tmp_path / "report.jsonl") as report:
            report(Resumed(1), 0.0)

    def check(which: float, todo: Any, end: str) -> str:
        text = list(lines)
        text[int(which * len(text))] = doctored(text[int(which * len(text))], todo)
        put_text(tmp_path / "report.jsonl", "\n".join(text) + end)
        return refused(go_on, DataError)

    hammer(check, ratio, changes, st.sampled_from(["\n", "", "\n{"]))


# -- keys, texts, weights ------------------------------------------------------------------------------------------------


def test_key_files(hammer: Any, tmp_path: Path) -> None:
    from holdfast.evidence.identity import derived, load

    path = tmp_path / "key.pem"
    derived(1, "coordinator").save(path)
    whole = path.read_bytes()

    def check(where: float, octets: bytes, length: int) -> str:
        place = int(where * len(whole))
        path.write_bytes(whole[:place] + octets + whole[place + length :])
        return refused(lambda: load(path), SetupError)

    octets = st.binary(max_size=4) | st.sampled_from(
        [b"A", b"/", b"=", b"\n", b"-----BEGIN RSA PRIVATE KEY-----\n", b"ENCRYPTED "]
    )
    hammer(check, ratio, octets, st.integers(0, 4))


def test_texts(hammer: Any, tmp_path: Path) -> None:
    from holdfast.data.files import read_documents

    path = tmp_path / "train.jsonl"
    good = '{"text": "oak and birch", "id": 3}'

    def check(todo: Any, octets: bytes) -> str:
        put_text(path, doctored(good, todo) + "\n" + good)
        with path.open("ab") as file:
            file.write(octets)
        return refused(lambda: [document.encode() for document in read_documents(path)], DataError)

    hammer(check, changes, st.just(b"") | st.binary(max_size=4))


def test_shards_and_their_index(hammer: Any, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    from holdfast.partition.shards import INDEX, SUMS, read_tensors, write_sums
    from holdfast.partition.source import LocalFiles

    save_file({"a.w": torch.ones(2, 3)}, tmp_path / "one.safetensors")
    save_file({"a.v": torch.ones(3)}, tmp_path / "two.safetensors")
    write_sums(tmp_path)
    index = json.dumps({"metadata": {}, "weight_map": {"a.w": "one.safetensors", "a.v": "two.safetensors"}})
    whole = {name: (tmp_path / name).read_bytes() for name in ("one.safetensors", "two.safetensors", SUMS)}
    shapes = {"a.w": (2, 3), "a.v": (3,)}

    def read() -> None:
        found = read_tensors(LocalFiles(tmp_path), shapes, prefix="a", aliases={}, dtype=torch.float32)
        assert {name: tuple(tensor.shape) for name, tensor in found.items()} == shapes

    def check(name: str, where: float, octets: bytes, todo: Any, sums: bool) -> str:
        for file, content in whole.items():
            place = int(where * len(content))
            (tmp_path / file).write_bytes(content[:place] + octets + content[place + 1 :] if file == name else content)
        put_text(tmp_path / INDEX, doctored(index, todo) if name == INDEX else index)
        if not sums:
            (tmp_path / SUMS).unlink()
        return refused(read, CheckpointError)

    names = st.sampled_from([INDEX, INDEX, *whole])
    hammer(check, names, ratio, st.binary(max_size=4), changes, st.booleans())


def test_model_configs(hammer: Any, tmp_path: Path) -> None:
    from holdfast.partition.source import LocalFiles, read_config

    gpt2 = {"model_type": "gpt2", "vocab_size": 280, "n_positions": 64, "n_embd": 16, "n_layer": 4, "n_head": 2}
    llama = {"model_type": "llama", "hidden_size": 16, "num_attention_heads": 2, "rope_parameters": {"rope_theta": 1.0}}

    def check(keys: Any, todo: Any) -> str:
        put_text(tmp_path / "config.json", doctored(json.dumps(keys), todo))
        return refused(lambda: read_config(LocalFiles(tmp_path)), UsageError, SetupError)

    hammer(check, st.sampled_from([gpt2, llama]), changes, quick=40)
