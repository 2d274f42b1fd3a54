"""Adapters for a model that was made from scratch: what they are for is kept, so that they can be opened again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.checkpoint import export_checkpoint
from holdfast.config import DataConfig
from holdfast.errors import CheckpointError, ConfigError, PartitionError
from holdfast.evaluate import evaluate_directory
from holdfast.experiment import Experiment

pytest.importorskip("peft", reason="LoRA needs peft, which is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft asks, not we

DATA = {"name": "embedded", "sequence_length": 32, "validation_tokens": 512, "vocabulary": 300}
SMALL = {
    "model": {"name": "gpt2:layers=3,width=16,heads=2", "lora_rank": 2},
    "data": DATA,
    "stages": 3,
    "micro_batches": 2,
    "micro_batch_size": 2,
}


def test_adapters_for_a_model_from_scratch_can_be_opened_again(tmp_path: Path) -> None:
    """They named `gpt2:layers=3,...`, which no library knows, and the model that they were for was gone."""
    out, data = tmp_path / "run", DataConfig(**DATA)
    first = Experiment(**SMALL, steps=2, out=str(out), checkpoint_every=1).run()
    assert evaluate_directory(out, data).perplexity == first.validation_perplexity
    base = (out / "base" / "model.safetensors").read_bytes()
    second = Experiment(resume=out, steps=3).run()
    assert second.validation_perplexity != first.validation_perplexity
    assert evaluate_directory(out, data).perplexity == second.validation_perplexity
    exported = export_checkpoint(out, tmp_path / "exported")
    assert evaluate_directory(exported, data).perplexity == second.validation_perplexity
    assert (out / "base" / "model.safetensors").read_bytes() == base


def test_an_adapter_whose_base_nobody_kept_says_so(tmp_path: Path) -> None:
    out = tmp_path / "run"
    Experiment(**SMALL, steps=1, out=str(out)).run()
    path = out / "model" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": SMALL["model"]["name"]}))
    with pytest.raises(CheckpointError, match="an adapter for 'gpt2:layers=3,width=16,heads=2', a model that was made from"):
        evaluate_directory(out, DataConfig(**DATA))


def test_an_adapter_is_no_model_to_begin_with(tmp_path: Path) -> None:
    Experiment(**SMALL, steps=1, out=str(tmp_path / "run")).run()
    with pytest.raises(CheckpointError, match="holds an adapter and no model"):
        Experiment(**{**SMALL, "model": str(tmp_path / "run" / "model")}, steps=1).run()


@pytest.mark.parametrize(("setting", "value"), [("lora_rank", 3), ("lora_alpha", 8.0)])
def test_a_run_keeps_the_rank_and_the_scale_of_its_adapters(tmp_path: Path, setting: str, value: float) -> None:
    """Another scale went through: nothing of it is in a checkpoint's tensors."""
    Experiment(**SMALL, steps=1, out=str(tmp_path / "run")).run()
    option = setting.replace("_", "-")
    with pytest.raises(ConfigError, match=f"another --{option} is another run"):
        Experiment(resume=tmp_path / "run", steps=2, **{setting: value}).run()


def test_what_is_to_be_adapted_is_named() -> None:
    with pytest.raises(ConfigError, match="without --lora-rank there are no adapters"):
        Experiment(**{**SMALL, "model": {"name": SMALL["model"]["name"], "lora_targets": ["c_attn"]}})
    with pytest.raises(PartitionError, match=r"cannot adapt nope in this model: it has c_attn, c_proj, c_fc$"):
        Experiment(**{**SMALL, "model": {**SMALL["model"], "lora_targets": ["nope"]}}, steps=1).run()
