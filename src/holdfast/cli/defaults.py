"""The defaults of the settings, for `--help`: the configuration has them too, but importing it takes longer than help may."""

from __future__ import annotations

from collections.abc import Mapping

Default = str | int | float | bool | None

DEFAULTS: Mapping[str, Default] = {
    "model": "gpt2:layers=6,width=64,heads=4",
    "dtype": "float32",
    "device": "cpu",
    "dropout": 0.0,
    "lora_rank": 0,
    "lora_alpha": 16.0,
    "data": "embedded",
    "seq_length": 64,
    "vocabulary": 512,
    "stages": 6,
    "micro_batches": 4,
    "micro_batch_size": 4,
    "schedule": "1f1b",
    "engine": "memory",
    "expose_wire": False,
    "placement": "listed",
    "wire_dtype": "the model's dtype",
    "wire_check": False,
    "steps": 150,
    "learning_rate": 0.003,
    "warmup_steps": 10,
    "weight_decay": 0.01,
    "clip_norm": 1.0,
    "seed": 0,
    "evaluate_every": 0,
    "defence": "duplicate",
    "on_alert": "replace",
    "ban_policy": "never",
    "check_claims": 0.0,
    "check_steps": "0.1 without shadows, else 0",
    "window": 8,
    "redraw_every": 0,
    "out": "runs/DATE-TIME",
    "checkpoint_every": 0,
    "keep": 3,
    "log_format": "text",
    "expose_metrics": False,
}
"""By the name of the setting; who is not here has none."""

IN_WORDS = ("wire_dtype", "defence", "check_steps", "out")
"""Those that follow from other settings, or from the time; with 2 stages `defence` is none, as there is nobody to check."""
