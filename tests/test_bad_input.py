"""Whatever is wrong with what the user gave: one clear line, the right exit code, no traceback, and nothing written."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file
from torch import Tensor, nn

from holdfast.cli.main import main

WORDS = ("oak", "birch", "willow", "pine", "holly", "hazel", "rowan", "alder")
SMALL = "gpt2:layers=4,width=16,heads=2"
TINY = ("--model", SMALL, "--data", "trees.txt", "--stages", "4", "--seq-length", "16", "--vocabulary", "280")
SHORT = (*TINY, "--micro-batches", "2", "--micro-batch-size", "2", "--steps", "1", "--set", "data.validation_tokens=64")


GPT2: dict[str, Any] = {
    "model_type": "gpt2",
    "vocab_size": 280,
    "n_positions": 64,
    "n_embd": 16,
    "n_layer": 4,
    "n_head": 2,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


@dataclass(frozen=True)
class Refusal:
    code: int
    line: str


Refuse = Callable[..., Refusal]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with a text, which is where the command runs."""
    draw = random.Random(0)
    (tmp_path / "trees.txt").write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(300)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def refuse(place: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Run `holdfast train` with these words after the usual ones; nothing may be printed but one line, nothing written."""

    def run(*words: str, usual: tuple[str, ...] = (*SHORT, "--out", "out")) -> Refusal:
        before = contents(place)
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["train", *usual, *words, "-q"])
        out, err = capsys.readouterr()
        assert contents(place) == before, "something was written"
        assert out == ""
        assert "Traceback" not in err
        assert "defect" not in err, err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        return Refusal(int(left.value.code or 0), line.removeprefix("error: "))

    return run


def config_file(folder: Path, **keys: Any) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(keys))
    return str(folder)


def with_tokenizer(folder: Path, text: Path, eos: bool = True) -> Path:
    from holdfast.data import load_corpus, train_tokenizer

    tokenizer = train_tokenizer(load_corpus(str(text)), 280)
    tokenizer.save_pretrained(folder)
    if not eos:
        file = folder / "tokenizer_config.json"
        settings = json.loads(file.read_text())
        del settings["eos_token"]
        file.write_text(json.dumps(settings))
    return folder


# -- settings ------------------------------------------------------------------------------------------------------------

SETTINGS: dict[str, tuple[tuple[str, ...], str]] = {
    "negative steps": (("--steps", "-3"), r"training\.steps: .*greater than or equal to 1, got -3"),
    "no steps": (("--steps", "0"), r"training\.steps: .*1, got 0"),
    "negative seed": (("--seed", "-1"), r"training\.seed: .*got -1"),
    "negative rate": (("--learning-rate", "-1e-3"), r"optimizer\.learning_rate: .*greater than 0, got -0\.001"),
    "rate that is no number": (("--learning-rate", "nan"), r"optimizer\.learning_rate: .*finite.*got nan"),
    "infinite rate": (("--learning-rate", "inf"), r"optimizer\.learning_rate: .*finite.*got inf"),
    "decay that is no number": (("--weight-decay", "nan"), r"optimizer\.weight_decay: .*finite"),
    "beta of one": (("--set", "optimizer.beta1=1"), r"optimizer\.beta1: .*less than 1"),
    "negative memory": (("--set", "cluster.memory_bytes=-1"), r"cluster\.memory_bytes: .*greater than 0"),
    "dropout of one": (("--dropout", "1"), r"model\.dropout: .*less than 1"),
    "one stage": (("--stages", "1"), r"pipeline\.stages: .*greater than or equal to 2, got 1"),
    "empty micro-batch": (("--micro-batch-size", "0"), r"pipeline\.micro_batch_size: .*got 0"),
    "keep nothing": (("--keep", "0"), r"output\.keep: .*got 0"),
    "unknown section": (("--set", "foo=3"), r"unknown setting 'foo'; here stand: model, data"),
    "unknown key": (("--set", "training.stps=3"), r"unknown setting 'training\.stps'; here stand: steps, seed"),
    "no value": (("--set", "training.steps"), r"expected section\.key=value"),
    "a value for a table": (("--set", "training=3"), r"training: "),
    "a table below a value": (("--set", "data.name.x=3"), r"'name' is a value, not a table|unknown setting"),
    "unknown dtype": (("--dtype", "float8"), r"model\.dtype: .*'float32' or 'bfloat16', got 'float8'"),
    "unknown schedule": (("--schedule", "zigzag"), r"pipeline\.schedule: .*'gpipe' or '1f1b', got 'zigzag'"),
    "unknown remedy": (("--on-alert", "pray"), r"on.alert.*pray|pray.*(known|replace)"),
    "unknown defence": (("--defence", "hope"), r"defence\.name: .*got 'hope'"),
    "unknown reporter": (("--report-to", "stdout"), r"output\.report_to.*tensorboard"),
    "unknown engine": (("--engine", "cloud"), r"pipeline\.engine: .*'processes' or 'ray', got 'cloud'"),
    "spot checks that check nothing": (("--defence", "spot-check", "--check-steps", "0"), r"would check nothing; raise one"),
    "a chance above one": (("--defence", "statistics", "--check-steps", "1.5"), r"defence.check_steps: .*got 1.5"),
    "spot checks without a defence": (("--defence", "none", "--check-steps", "0.5"), r"use --defence spot-check"),
    "seats that change without a defence": (("--defence", "none", "--redraw-every", "5"), r"use --defence spot-check"),
    "a window of no step": (("--window", "0"), r"defence.window: .*got 0"),
    "two stages to defend": (("--stages", "2", "--defence", "duplicate"), r"2 stages.*nothing to defend; use --stages 3"),
    "two stages to attack": (("--stages", "2", "--attack", "zeros"), r"2 stages.*no untrusted stage; use --stages 3"),
    "speeds of others": (("--set", "cluster.speeds=[1,2]"), r"cluster\.speeds has 2 entries; it needs one for each of 4"),
    "speed of zero": (("--set", "cluster.speeds=[1,0,1,1]"), r"speeds .*positive"),
    "unknown device": (("--device", "abacus"), r"device 'abacus' is none that torch knows; give cpu"),
    "device without numbers": (("--device", "meta"), r"'meta' computes nothing; give cpu"),
    "rate without attack": (("--rate", "0.5"), r"there is none; add --attack"),
    "more stages than layers": (("--stages", "5"), r"5 stages for a model of 4 layers; give 2 to 4"),
}


@pytest.mark.parametrize(("words", "complaint"), SETTINGS.values(), ids=SETTINGS.keys())
def test_settings_that_cannot_be(refuse: Refuse, words: tuple[str, ...], complaint: str) -> None:
    refusal = refuse(*words)
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == 2


TOML: dict[str, tuple[str, str]] = {
    "wrong key": ("[training]\nstps = 3\n", r"unknown setting 'training\.stps'; here stand: steps"),
    "wrong table": ("[trainin]\nsteps = 3\n", r"unknown setting 'trainin'; here stand: model"),
    "wrong type": ("[training]\nsteps = 'many'\n", r"training\.steps: .*integer.*got 'many'"),
    "not TOML": ("[training\nsteps = 3\n", r"run\.toml is not valid TOML"),
    "a number where a table belongs": ("training = 3\n", r"training"),
    "a number where attacks belong": ("attack = 3\n", r"attack: needed are tables"),
    "words where attacks belong": ("attack = ['zeros']\n", r"attack: needed are tables"),
    "not finite": ("[optimizer]\nlearning_rate = nan\n", r"learning_rate: .*finite"),
    "attack without a name": ("[[attack]]\nrate = 0.5\n", r"attack\.0\.spec: .*required"),
    "nested too deeply": ("a = " + "[" * 5_000, r"run\.toml is not valid TOML: it is nested too deeply"),
    "a number of 5000 digits": ("[training]\nsteps = " + "9" * 5_000, r"run\.toml is not valid TOML"),
    "a number of 5000 more": ("[training]\nsteps = 0x" + "F" * 5_000, r"run\.toml is not valid TOML: .*64 bits"),
    "wrong key of an attack": ("[[attack]]\nspec = 'zeros'\nrat = 0.5\n", r"'attack\.0\.rat'; here stand: spec, rate"),
}


@pytest.mark.parametrize(("content", "complaint"), TOML.values(), ids=TOML.keys())
def test_files_of_settings_that_cannot_be(refuse: Refuse, place: Path, content: str, complaint: str) -> None:
    (place / "run.toml").write_text(content)
    refusal = refuse("run.toml", usual=("--out", "out"))
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == 2


def test_a_file_of_settings_that_is_not_there(refuse: Refuse) -> None:
    refusal = refuse("nowhere.toml", usual=("--out", "out"))
    assert refusal == Refusal(2, "no config file at nowhere.toml; give the path of a TOML file, or none for the defaults")


@pytest.mark.parametrize(
    "content",
    ["a = " + "[" * 5_000, "version = 0x" + "F" * 5_000, "version = 1\nmargin = nan\npair = []", "\x00", "version = 1"],
)
def test_bounds_that_cannot_be(refuse: Refuse, place: Path, content: str) -> None:
    (place / "bounds.toml").write_text(content)
    unlike = 'cluster.numerics=["native","native","math-attention","native"]'
    refusal = refuse("--set", unlike, "--set", "defence.calibration=bounds.toml")
    assert re.search(r"bounds\.toml", refusal.line), refusal.line
    assert refusal.code == 2


# -- attacks and faults --------------------------------------------------------------------------------------------------

ATTACKS: dict[str, tuple[tuple[str, ...], str]] = {
    "unknown attack": (("--attack", "sing-flip"), r"unknown attack 'sing-flip'; did you mean 'sign-flip'"),
    "unknown parameter": (("--attack", "zeros,size=3"), r"attack 'zeros' has no parameter size; it accepts direction"),
    "campaign's parameter": (
        ("--attack", "sign-flip,ratee=0.3"),
        r"no parameter ratee; did you mean 'rate'\? it accepts direction, factor; and, as every attack, rate, stages, seed",
    ),
    "wrong parameter": (("--attack", "scale,factor=big"), r"factor must be a number, got 'big'"),
    "wrong direction": (("--attack", "zeros,direction=up"), r"direction must be one of forward, backward, both, got 'up'"),
    "no value": (("--attack", "zeros,rate"), r"expected param=value"),
    "rate above one": (("--attack", "zeros", "--rate", "1.5"), r"attack\.0\.rate: .*less than or equal to 1, got 1\.5"),
    "first stage": (("--attack", "zeros,stages=0"), r"names stage 0, but with 4 stages the attackable ones are 1 to 2"),
    "last stage": (("--attack", "zeros", "--attack-stages", "3"), r"names stage 3, .*attackable ones are 1 to 2"),
    "beyond": (("--attack", "zeros", "--attack-stages", "1-9"), r"names stage \d, .*attackable ones are 1 to 2"),
    "no stages": (("--attack", "zeros", "--attack-stages", "x"), r"--attack-stages: expected numbers such as 2, 1-4"),
    "no such micro-batch": (("--attack", "zeros,micro_batches=7"), r"names micro-batch 7; there are 0 to 1"),
    "no such worker": (("--attack", "zeros,worker=w9"), r"names worker 'w9'; untrusted are w1, w2"),
    "the initiator": (("--attack", "zeros,worker=initiator"), r"names worker 'initiator'; untrusted are w1, w2"),
    "no such file": (("--attack", "nowhere.py:Lie"), r"there is no file nowhere\.py"),
    "fault at the first stage": (
        ("--fault", "crash stage=0 step=1"),
        r"names stage 0; with 4 stages the untrusted ones are 1 to 2",
    ),
    "fault at the last stage": (("--fault", "crash stage=3 step=1"), r"names stage 3; with 4 stages"),
    "fault at no moment": (("--fault", "crash stage=1 step=1 at=noon"), r"at must be one of begin, forward.*got 'noon'"),
    "fault of no kind": (("--fault", "melt stage=1 step=1"), r"expected crash, stall or slow first"),
    "fault at no step": (("--fault", "crash stage=1"), r"needs step=N"),
    "fault of nobody": (("--fault", "crash step=1"), r"needs either stage=N or worker=NAME"),
    "fault of a stranger": (("--fault", "crash worker=w9 step=1"), r"names an unknown worker; there are w1, w2"),
    "fault of the initiator": (("--fault", "crash worker=initiator step=1"), r"initiator's own worker; the run ends with it"),
    "stall without time": (("--fault", "stall stage=1 step=1"), r"needs seconds=X"),
    "fault with a typing error": (("--fault", "crash stag=1 step=1"), r"got 'stag=1', expected one of step="),
    "empty fault": (("--fault", ""), r"expected crash, stall or slow first"),
}


@pytest.mark.parametrize(("words", "complaint"), ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks_and_faults_that_cannot_be(refuse: Refuse, words: tuple[str, ...], complaint: str) -> None:
    refusal = refuse(*words)
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == 2


def test_an_attack_whose_file_does_not_load(refuse: Refuse, place: Path) -> None:
    (place / "lie.py").write_text("import nothing_of_this_name\n")
    refusal = refuse("--attack", "lie.py:Lie")
    assert refusal.code == 2
    assert re.search(r"lie\.py does not load: ModuleNotFoundError", refusal.line)


# -- text ----------------------------------------------------------------------------------------------------------------

TEXTS: dict[str, tuple[str, bytes, str]] = {
    "empty": ("empty.txt", b"", r"holds no text; training needs at least one document"),
    "blank": ("blank.txt", b" \n\n", r"holds no text"),
    "too short": ("short.txt", b"ab", r"too short|tokens, but one block"),
    "shorter than a block": (
        "block.txt",
        b"oak birch " * 3,
        r"tokens, but one block of sequence length 16 needs 17; give more text",
    ),
    "not UTF-8": ("latin.txt", b"caf\xe9 " * 99, r"latin\.txt is not UTF-8 .*convert it"),
    "not JSON": ("torn.jsonl", b'{"text": "a"}\n{"te', r"torn\.jsonl, line 2 is not JSON"),
    "without the field": ("other.jsonl", b'{"body": "a"}\n', r"other\.jsonl, line 1 has the fields body; it needs .*'text'"),
    "of no known kind": ("text.pdf", b"%PDF", r"ends in '\.pdf'; files must end in \.txt, \.jsonl, \.parquet"),
    "not Parquet": ("torn.parquet", b"PAR1", r"cannot read torn\.parquet as Parquet"),
}


@pytest.mark.parametrize(("name", "content", "complaint"), TEXTS.values(), ids=TEXTS.keys())
def test_text_that_cannot_be_used(refuse: Refuse, place: Path, name: str, content: bytes, complaint: str) -> None:
    (place / name).write_bytes(content)
    refusal = refuse("--data", name)
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == 2


def test_text_that_is_not_there(refuse: Refuse, place: Path) -> None:
    refusal = refuse("--data", "nowhere.txt")
    assert refusal.code == 2
    assert re.search(r"no data at 'nowhere\.txt'.*embedded", refusal.line)
    (place / "folder").mkdir()
    assert re.search(r"folder has no .*needs train\.txt", refuse("--data", "folder").line)


def test_a_vocabulary_that_cannot_spell(refuse: Refuse) -> None:
    refusal = refuse("--vocabulary", "100")
    assert (refusal.code, "data.vocabulary" in refusal.line, "258" in refusal.line) == (2, True, True)


@pytest.mark.parametrize("source", ["tokenizer", "model"])
def test_a_tokenizer_without_end_of_text(refuse: Refuse, place: Path, tmp_path: Path, source: str) -> None:
    folder = with_tokenizer(place / "words", place / "trees.txt", eos=False)
    if source == "model":
        (folder / "config.json").write_text(json.dumps(GPT2))
    refusal = refuse(f"--{source}", str(folder))
    assert refusal.code == 2
    assert re.search(r"neither an end-of-sequence nor .*set eos_token", refusal.line), refusal.line


def test_a_tokenizer_that_is_not_there(refuse: Refuse, place: Path) -> None:
    (place / "empty").mkdir()
    for name in ("./nowhere", str(place / "empty")):
        refusal = refuse("--tokenizer", name)
        assert refusal.code == 2
        assert re.search(r"no folder|no usable tokenizer", refusal.line)


def test_a_tokenizer_with_more_words_than_the_model(refuse: Refuse) -> None:
    refusal = refuse("--model", f"{SMALL},vocabulary=100")
    assert refusal.code == 2
    assert re.search(r"vocabulary of 100 tokens, but the tokenizer has 280; use", refusal.line)


# -- models --------------------------------------------------------------------------------------------------------------


def test_sequences_longer_than_the_model(refuse: Refuse) -> None:
    refusal = refuse("--model", f"{SMALL},positions=8")
    assert refusal.code == 2
    assert re.search(r"sequences of 16 tokens are longer than the 8 positions of gpt2:.*shorten --seq-length", refusal.line)


SPECS = {
    "unknown kind": ("mamba:layers=2", r"no model 'mamba:layers=2'.*gpt2, opt, bloom, llama, qwen3"),
    "unknown word": ("gpt2:depth=2", r"unknown parameter 'depth'.*layers, width, heads"),
    "heads that do not fit": ("gpt2:layers=4,width=16,heads=3", r"width must be a multiple of heads"),
    "no layers": ("gpt2:layers=0", r"layers is a whole number of at least 1, got 0"),
    "no value": ("gpt2:layers", r"expected param=value"),
    "no such folder": ("./nowhere", r"no model '\./nowhere'"),
    "a file": ("trees.txt", r"'trees\.txt' is a file; give the directory"),
}


@pytest.mark.parametrize(("spec", "complaint"), SPECS.values(), ids=SPECS.keys())
def test_models_that_cannot_be(refuse: Refuse, spec: str, complaint: str) -> None:
    refusal = refuse("--model", spec)
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == 2


def test_a_name_on_a_hub_that_cannot_be_reached(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refusal = refuse("--model", "nobody/nothing")
    assert refusal.code == 3
    assert re.search(r"cannot fetch config\.json of 'nobody/nothing'.*directory that holds the model", refusal.line)


MODELS: dict[str, tuple[dict[str, Any], int, str]] = {
    "unknown family": ({"model_type": "hal9000"}, 2, r"knows no models of type 'hal9000'"),
    "no family": ({"hidden_size": 4}, 3, r"names no model_type"),
    "not a causal model": ({"model_type": "t5"}, 2, r"no causal language model of type 't5'; proven types are .*llama"),
    "a family that cannot be cut": ({"model_type": "mamba"}, 2, r"mamba.*cannot be cut into stages"),
    "code of its own": (
        {"model_type": "gpt2", "_attn_implementation_internal": "evil"},
        3,
        r"begins with an underscore; remove it",
    ),
    "quantised": ({"model_type": "gpt2", "quantization_config": {"bits": 4}}, 2, r"quantised weights cannot be trained"),
}


@pytest.mark.parametrize(("keys", "code", "complaint"), MODELS.values(), ids=MODELS.keys())
def test_model_directories_that_cannot_be(refuse: Refuse, place: Path, keys: dict[str, Any], code: int, complaint: str) -> None:
    refusal = refuse("--model", config_file(place / "model", **keys))
    assert re.search(complaint, refusal.line), refusal.line
    assert refusal.code == code


def test_a_model_directory_without_weights_or_with_torn_ones(refuse: Refuse, place: Path) -> None:
    folder = Path(config_file(place / "model", **GPT2))
    with_tokenizer(folder, place / "trees.txt")
    missing = refuse("--model", str(folder))
    assert (missing.code, "neither model.safetensors nor" in missing.line) == (3, True)
    (folder / "model.safetensors").write_bytes(b"torn")
    torn = refuse("--model", str(folder))
    assert (torn.code, "torn or not a safetensors file" in torn.line) == (3, True)
    from torch import zeros

    save_file({"transformer.wte.weight": zeros(280, 16)}, folder / "model.safetensors")
    lacking = refuse("--model", str(folder))
    assert lacking.code == 3
    assert re.search(r"tensor transformer\.\S+ is in none of its 1 entries", lacking.line)


def test_a_split_that_is_not_the_whole_model(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if a new version of the library did something between the layers."""
    from holdfast.partition.module import StageModule

    honest = StageModule.forward

    def skewed(module: StageModule, inputs: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        output = honest(module, inputs, attention_mask)
        return output if module.first else output * (1 + 2**-20)

    monkeypatch.setattr(StageModule, "forward", skewed)
    refusal = refuse()
    assert refusal.code == 1
    assert re.search(r"not the whole model: first difference at stage 1, output.*proven types are", refusal.line)


def test_a_split_that_cannot_even_be_tried(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> nn.Module:
        raise NotImplementedError("no such kernel")

    monkeypatch.setattr("holdfast.partition.selftest.StageModule", fail)
    refusal = refuse()
    assert refusal.code == 1
    assert re.search(r"could not run \(NotImplementedError: no such kernel\).*not a pass", refusal.line)


def test_lora_without_peft(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    refusal = refuse("--lora-rank", "4")
    assert refusal.code == 3
    assert refusal.line.endswith("run: pip install 'holdfast[lora]'")


def test_lora_of_layers_that_are_not_there(refuse: Refuse) -> None:
    pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    refusal = refuse("--lora-rank", "4", "--lora-target", "no_such_layer")
    assert refusal.code == 2
    assert re.search(r"LoRA cannot adapt no_such_layer", refusal.line)


# -- the machine ---------------------------------------------------------------------------------------------------------


def test_not_enough_memory_for_the_plan(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = refuse("--set", "cluster.memory_bytes=1000")
    assert refusal.code == 3
    assert re.search(r"the worker of stage \d needs .*iB, but a worker has 1000 bytes; use more stages", refusal.line)
    monkeypatch.setattr("holdfast.job.available_memory", lambda: 2000)
    refusal = refuse()
    assert refusal.code == 3
    assert re.search(r"need .* together, but this machine has 2\.0 KiB free; use", refusal.line)


def test_a_device_that_is_not_here(refuse: Refuse) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    refusal = refuse("--device", "cuda")
    assert refusal.code == 3
    assert re.search(r"device 'cuda' cannot be used here .*use --device cpu", refusal.line)


def test_tensorboard_that_is_not_installed(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    refusal = refuse("--report-to", "tensorboard")
    assert refusal.code == 3
    assert refusal.line.endswith("run: pip install 'holdfast[tensorboard]'")


# -- where it is written -------------------------------------------------------------------------------------------------


def test_a_directory_that_has_something_in_it(refuse: Refuse, place: Path) -> None:
    (place / "out").mkdir()
    (place / "out" / "precious.txt").write_text("x")
    for name in ("out", "trees.txt"):
        refusal = refuse("--out", name)
        assert refusal.code == 2
        assert re.search(rf"{name} exists and is not empty; choose another --out", refusal.line)


def test_a_directory_that_cannot_be_made(refuse: Refuse, place: Path) -> None:
    refusal = refuse("--out", "trees.txt/below")
    assert refusal.code == 3
    assert re.search(r"cannot write to .*trees\.txt/below: .*choose another --out", refusal.line)


def test_a_directory_that_may_not_be_written(refuse: Refuse, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "locked").mkdir()
    honest = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **more: "locked" not in str(path) and honest(path, mode, **more))
    refusal = refuse("--out", "locked")
    assert refusal.code == 3
    assert re.search(r"cannot write to .*locked: no permission", refusal.line)


def test_a_resumed_run_goes_on_where_it_is(refuse: Refuse) -> None:
    refusal = refuse("--resume", "out", usual=("--out", "elsewhere"))
    assert refusal.code == 2
    assert "goes on in its own directory" in refusal.line


def test_a_disk_that_is_full_half_way(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the last checkpoint finds no room: the run ends well, says so even if it is quiet, and another can go on from the
    checkpoint before.
    """
    import errno

    import holdfast.checkpoint as checkpoint

    honest, written = checkpoint.save_file, []

    def full(*arguments: Any, **named: Any) -> None:
        written.append(arguments)
        if len(written) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(*arguments, **named)

    words = ["train", *SHORT, "--steps", "4", "--checkpoint-every", "2", "--out", "out", "-q"]
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", full)
        with pytest.raises(SystemExit) as left:
            main(words)
    assert not left.value.code
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(
        r"warning: .*no checkpoint after 4 steps could be; the last good one is after 2 steps; out/holdfast\.log", line
    )
    told = (place / "out" / "holdfast.log").read_text()
    assert re.search(r"could not write the checkpoint .*No space left.*earlier checkpoints are intact", told)
    assert [path.name for path in (place / "out" / "checkpoints").iterdir()] == ["step-000002"]
    with pytest.raises(SystemExit) as left:
        main(["train", "--resume", "out", "-q"])
    assert not left.value.code
    assert (place / "out" / "checkpoints" / "step-000004").is_dir()


def test_a_disk_without_room_for_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was promised is not there, and the error names what to go on from."""
    import errno

    import holdfast.keeper as keeper

    def full(*_arguments: Any, **_named: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(keeper, "new_directory", full)
    with pytest.raises(SystemExit) as left:
        main(["train", *SHORT, "--steps", "2", "--out", "out", "-q"])
    assert left.value.code == 3
    (line,) = capsys.readouterr().err.splitlines()
    last = "out/checkpoints/step-000002"
    assert re.search(
        rf"could not write out/model: .*No space left.*make room and resume, from the last good checkpoint, {last}", line
    )


# -- as a shell sees it --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--model", f"{SMALL},positions=8"), 2),
        pytest.param(("--set", "cluster.memory_bytes=1000"), 3, marks=pytest.mark.slow),
        pytest.param(("--attack", "zeros,stages=0"), 2, marks=pytest.mark.slow),
        pytest.param(("--data", "nowhere.txt"), 2, marks=pytest.mark.slow),
        pytest.param(("--resume", "nowhere"), 2, marks=pytest.mark.slow),
    ],
    ids=["sequence", "memory", "attack", "data", "resume"],
)
def test_the_process_itself(place: Path, words: tuple[str, ...], code: int) -> None:
    command = [
        sys.executable,
        "-m",
        "holdfast",
        "train",
        *SHORT,
        *words,
        "-q",
        *(() if "--resume" in words else ("--out", "out")),
    ]
    before = contents(place)
    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert len(done.stderr.splitlines()) == 1
    assert contents(place) == before


def test_the_usual_words_are_right(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Or every refusal above would prove nothing."""
    with pytest.raises(SystemExit) as left:
        main(["train", *SHORT, "--out", "out", "-q", "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["steps"] == 1
    shutil.rmtree(place / "out")
