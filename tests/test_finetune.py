"""A trained model goes on learning in stages, whole or by adapters, and comes out as a directory that the library opens."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from holdfast import Experiment
from holdfast.config import DataConfig
from holdfast.digest import same_bytes, weights_digest
from holdfast.evaluate import evaluate_directory
from holdfast.event import Event, Ruling, StepSealed
from holdfast.job import prepare
from holdfast.report import read_run
from holdfast.result import RunResult

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
STORIES, WIKITEXT = SHARED / "stories260K-hf", SHARED / "wikitext-2" / "valid.txt"
pytestmark = pytest.mark.skipif(
    not STORIES.is_dir() or not WIKITEXT.is_file(), reason=f"the trained model and text of {SHARED} are not here"
)

ATTACK = {"attack": ["sign-flip,rate=0.7,direction=both", "gaussian,rate=0.5"]}
LORA = {"lora_rank": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tuning(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four steps of the trained model in three stages on a slice of WikiText."""
    text = tmp_path_factory.mktemp("text") / "slice.txt"
    text.write_text(WIKITEXT.read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    return {
        "model": str(STORIES),
        "data": {"name": str(text), "sequence_length": 32, "validation_tokens": 512},
        "stages": 3,
        "micro_batches": 2,
        "micro_batch_size": 2,
        "learning_rate": 1e-3,
        "warmup_steps": 1,
        "steps": 4,
    }


@pytest.fixture(scope="module")
def tuned(tuning: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    out = tmp_path_factory.mktemp("tuned") / "run"
    return out, Experiment(**tuning, out=str(out), evaluate_every=1).run()


@pytest.fixture(scope="module")
def adapted(tuning: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
    out = tmp_path_factory.mktemp("adapted") / "run"
    return out, Experiment(**{**tuning, **LORA}, out=str(out), checkpoint_every=2).run()


def data_of(tuning: dict[str, Any], tokenizer: Path | None = None) -> DataConfig:
    return DataConfig(**tuning["data"], tokenizer=None if tokenizer is None else str(tokenizer))


def stop_after(step: int, experiment: list[Experiment]) -> Any:
    def watch(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == step:
            experiment[0].stop()

    return watch


# -- the whole model -----------------------------------------------------------------------------------------------------


def test_the_library_opens_the_result_and_it_is_what_the_run_says(
    tuning: dict[str, Any], tuned: tuple[Path, RunResult]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, result = tuned
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert weights_digest(dict(model.named_parameters())) == result.weights_digest
    assert weights_digest(load_file(out / "model" / "model.safetensors")) == result.weights_digest
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    assert tokenizer("Once upon a time")["input_ids"] == AutoTokenizer.from_pretrained(STORIES)("Once upon a time")["input_ids"]
    scored = evaluate_directory(out, data_of(tuning))
    assert (scored.perplexity, scored.bits_per_byte) == (result.validation_perplexity, result.validation_bits_per_byte)


def test_it_has_learned(tuning: dict[str, Any], tuned: tuple[Path, RunResult]) -> None:
    before = evaluate_directory(STORIES, data_of(tuning)).perplexity
    record = read_run(tuned[0])
    scores = [event["perplexity"] for event in record.of("Evaluated")]
    assert len(scores) == 4
    assert scores[-1] < 0.9 * scores[0] < scores[0] < before


def test_the_command_line_says_the_same(
    tuning: dict[str, Any], tuned: tuple[Path, RunResult], capsys: pytest.CaptureFixture[str]
) -> None:
    from holdfast.cli.main import main

    with pytest.raises(SystemExit) as left:
        main(["eval", str(tuned[0]), "--json"])
    assert not left.value.code
    assert json.loads(capsys.readouterr().out)["perplexity"] == tuned[1].validation_perplexity


def test_an_attacked_run_ends_with_the_same_weights(tuning: dict[str, Any], tuned: tuple[Path, RunResult]) -> None:
    result = Experiment(**{**tuning, **ATTACK}).run()
    assert result.attacked_claims == result.detected > 0
    assert result.weights_digest == tuned[1].weights_digest
    assert Experiment(**tuning, defence="none").run().weights_digest == tuned[1].weights_digest


def test_a_stage_reads_only_its_own_tensors(tuning: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.partition import shards

    read: list[str] = []
    honest = shards._Reader.read

    def watched(reader: Any, name: str) -> torch.Tensor:
        read.append(name)
        return honest(reader, name)

    monkeypatch.setattr(shards._Reader, "read", watched)
    job = prepare(Experiment(**tuning).config)
    assert read == [], "to prepare a run no weight is read"
    for stage in range(3):
        read.clear()
        job.initial_state(stage)
        assert sorted(read) == sorted(job.plan.stage_parameters[stage])
        assert 0 < len(read) < len(load_file(STORIES / "model.safetensors"))


def test_bfloat16_is_another_model_and_its_attacked_run_is_the_same(tuning: dict[str, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    out = tmp_path / "run"
    result = Experiment(**tuning, dtype="bfloat16", out=str(out)).run()
    model = AutoModelForCausalLM.from_pretrained(out / "model")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert weights_digest(dict(model.named_parameters())) == result.weights_digest
    assert evaluate_directory(out, data_of(tuning)).perplexity == result.validation_perplexity
    attacked = Experiment(**{**tuning, **ATTACK}, dtype="bfloat16").run()
    assert attacked.attacked_claims == attacked.detected > 0
    assert attacked.weights_digest == result.weights_digest


def test_a_sharded_checkpoint_is_the_same_model(tuning: dict[str, Any], tuned: tuple[Path, RunResult], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = tmp_path / "sharded"
    AutoModelForCausalLM.from_pretrained(STORIES).save_pretrained(sharded, max_shard_size="300KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 2
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(STORIES / name, sharded / name)
    assert Experiment(**{**tuning, "model": str(sharded)}).run().weights_digest == tuned[1].weights_digest


def test_a_result_can_be_trained_further(tuning: dict[str, Any], tuned: tuple[Path, RunResult]) -> None:
    again = Experiment(**{**tuning, "model": str(tuned[0] / "model"), "steps": 1}).run()
    assert again.validation_perplexity < evaluate_directory(STORIES, data_of(tuning)).perplexity * 0.9
    assert again.weights_digest != tuned[1].weights_digest


# -- dropout -------------------------------------------------------------------------------------------------------------


def test_dropout_can_be_replayed_by_shadow_and_referee(tuning: dict[str, Any], tuned: tuple[Path, RunResult]) -> None:
    """Random numbers keyed by step, micro-batch and stage: a check draws the same ones, and so does a step that is redone."""
    dropping = {**tuning, "dropout": 0.1}
    clean = Experiment(**dropping, defence="none").run()
    assert clean.weights_digest == Experiment(**dropping, defence="none").run().weights_digest
    assert clean.weights_digest == Experiment(**dropping).run().weights_digest
    assert clean.weights_digest != tuned[1].weights_digest
    for remedy in ("replace", "restart"):
        rulings: list[Ruling] = []
        attacked = Experiment(
            **{**dropping, **ATTACK},
            on_alert=remedy,
            observers=[lambda event, _, found=rulings: found.append(event) if isinstance(event, Ruling) else None],
        ).run()
        assert attacked.weights_digest == clean.weights_digest
        assert (attacked.detected > 0, attacked.missed, attacked.false_alarms) == (True, 0, 0)
        assert {culprit for ruling in rulings for culprit in ruling.culprits} <= {"w1"}


def test_dropout_with_another_seed_drops_others(tuning: dict[str, Any]) -> None:
    scratch = {**tuning, "model": "gpt2:layers=3,width=16,heads=2", "steps": 1, "dropout": 0.3}
    scratch["data"] = {**tuning["data"], "vocabulary": 300}
    losses = {Experiment(**scratch, seed=seed).run().train_loss for seed in (0, 0, 1)}
    assert len(losses) == 2


# -- LoRA ----------------------------------------------------------------------------------------------------------------


def test_only_adapters_change_and_the_digest_is_theirs(adapted: tuple[Path, RunResult]) -> None:
    from holdfast.checkpoint import read_checkpoint

    out, result = adapted
    adapters = load_file(out / "model" / "adapter_model.safetensors")
    assert weights_digest(adapters) == result.weights_digest
    assert all(".lora_" in name for name in adapters)
    assert any(tensor.abs().sum() > 0 for name, tensor in adapters.items() if ".lora_B" in name), "B begins at zero"
    kept, base = read_checkpoint(out / "checkpoints" / "step-000004").weights, load_file(STORIES / "model.safetensors")
    frozen = {name: tensor for name, tensor in kept.items() if ".lora_" not in name}
    assert frozen.keys() == base.keys()
    assert all(same_bytes(frozen[name], base[name]) for name in base)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks, not we
def test_the_adapter_directory_is_a_normal_one(
    tuning: dict[str, Any], adapted: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out, result = adapted
    monkeypatch.chdir(tmp_path)
    base = json.loads((out / "model" / "adapter_config.json").read_text())["base_model_name_or_path"]
    plain = AutoModelForCausalLM.from_pretrained(base)
    tokens = torch.tensor([[1, 20, 30, 40]])
    before = plain(tokens).logits
    opened = PeftModel.from_pretrained(plain, out / "model")
    named = {name.replace(".default.", "."): tensor for name, tensor in opened.named_parameters() if ".lora_" in name}
    assert weights_digest(named) == result.weights_digest
    assert not torch.equal(opened(tokens).logits, before)
    assert AutoTokenizer.from_pretrained(out / "model").vocab_size == AutoTokenizer.from_pretrained(STORIES).vocab_size
    assert evaluate_directory(out, data_of(tuning)).perplexity == result.validation_perplexity


def test_an_attacked_lora_run_ends_with_the_same_adapters(tuning: dict[str, Any], adapted: tuple[Path, RunResult]) -> None:
    attacked = Experiment(**{**tuning, **LORA, **ATTACK}).run()
    assert attacked.attacked_claims == attacked.detected > 0
    assert attacked.weights_digest == adapted[1].weights_digest


def test_a_lora_run_is_resumed(tuning: dict[str, Any], adapted: tuple[Path, RunResult], tmp_path: Path) -> None:
    out, holder = tmp_path / "run", []
    holder.append(Experiment(**{**tuning, **LORA}, out=str(out), observers=[stop_after(1, holder)]))
    assert holder[0].run().steps == 2
    resumed = Experiment(resume=out).run()
    assert resumed.weights_digest == adapted[1].weights_digest
    assert read_run(out).losses == read_run(adapted[0]).losses


def test_a_lora_run_can_be_cut_otherwise(tuning: dict[str, Any], adapted: tuple[Path, RunResult]) -> None:
    pytest.importorskip("peft")
    assert Experiment(**{**tuning, **LORA, "stages": 5}).run().weights_digest == adapted[1].weights_digest


@pytest.mark.slow
@pytest.mark.parametrize("corpus", ["wikitext2", "arxiv", "openwebtext"])
def test_the_named_corpora_teach_the_trained_model(
    tuning: dict[str, Any], corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOLDFAST_DATA", str(SHARED))
    data = {"name": corpus, "sequence_length": 64, "validation_tokens": 2048}
    result = Experiment(**{**tuning, "data": data, "steps": 30, "learning_rate": 2e-3}).run()
    assert result.validation_perplexity < evaluate_directory(STORIES, DataConfig(**data)).perplexity * 0.7
