"""Short names of the settings that people change most: `--seq-length 64` and `seq_length=64` both mean `data.sequence_length`.

One table serves the options of `holdfast train` and the keyword arguments of `Experiment`; everything else is reached by
`--set section.key=value`, by a TOML file, or by a section as a mapping (`optimizer={"beta2": 0.95}`).
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.errors import ConfigError, MissingExtra, did_you_mean

if TYPE_CHECKING:
    from holdfast.config import RunConfig

SECTIONS = (
    "model",
    "data",
    "pipeline",
    "optimizer",
    "training",
    "defence",
    "attack",
    "cluster",
    "machines",
    "output",
    "faults",
)
CAMPAIGN = ("rate", "stages", "seed", "first_step", "persistent", "micro_batches", "worker")
"""The parameters after an attack's name that belong to its campaign, not to the attack."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`name` in Python, `--name` with dashes on the command line, `path` in the tables of the configuration."""

    name: str
    path: str
    kind: type
    help: str
    panel: str
    many: bool = False

    @property
    def option(self) -> str:
        return "--" + self.name.replace("_", "-")


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "model", "model.name", str, "gpt2:layers=6,width=64,... from scratch; or a directory or hub name", "Model and data"
    ),
    Setting("dtype", "model.dtype", str, "float32 or bfloat16", "Model and data"),
    Setting("device", "model.device", str, "cpu, cuda, ...", "Model and data"),
    Setting("dropout", "model.dropout", float, "dropout probability", "Model and data"),
    Setting("lora_rank", "model.lora_rank", int, "train adapters of this rank (0: all weights)", "Model and data"),
    Setting("lora_alpha", "model.lora_alpha", float, "scale of the adapters", "Model and data"),
    Setting("lora_target", "model.lora_targets", str, "name of a layer to adapt; repeatable", "Model and data", many=True),
    Setting("data", "data.name", str, "embedded, wikitext2, arxiv, openwebtext, a file or a folder", "Model and data"),
    Setting("seq_length", "data.sequence_length", int, "tokens in a sequence", "Model and data"),
    Setting("tokenizer", "data.tokenizer", str, "a tokenizer's directory", "Model and data"),
    Setting("vocabulary", "data.vocabulary", int, "tokens of a tokenizer trained here", "Model and data"),
    Setting("stages", "pipeline.stages", int, "stages K of the pipeline", "Pipeline"),
    Setting("micro_batches", "pipeline.micro_batches", int, "micro-batches M in a step", "Pipeline"),
    Setting("micro_batch_size", "pipeline.micro_batch_size", int, "sequences B in a micro-batch", "Pipeline"),
    Setting("schedule", "pipeline.schedule", str, "gpipe or 1f1b", "Pipeline"),
    Setting("engine", "pipeline.engine", str, "memory, or one process a worker: processes here, ray in a cluster", "Pipeline"),
    Setting("ray_address", "machines.ray_address", str, "a Ray cluster, or auto (default: a Ray of its own)", "Pipeline"),
    Setting("expose_wire", "machines.expose_wire", bool, "let workers be on several nodes of a Ray cluster", "Pipeline"),
    Setting("placement", "cluster.placement", str, "listed: worker i has stage i; measured: where it is fast", "Pipeline"),
    Setting("wire_dtype", "pipeline.wire_dtype", str, "float32, bfloat16 or int8 between stages", "Pipeline"),
    Setting("wire_check", "cluster.wire_check", bool, "send every message through its wire encoding", "Pipeline"),
    Setting("steps", "training.steps", int, "optimizer steps", "Training"),
    Setting("learning_rate", "optimizer.learning_rate", float, "peak learning rate", "Training"),
    Setting("warmup_steps", "optimizer.warmup_steps", int, "steps of warm-up", "Training"),
    Setting("weight_decay", "optimizer.weight_decay", float, "decoupled weight decay", "Training"),
    Setting("clip_norm", "optimizer.clip_norm", float, "largest global gradient norm (0: no clipping)", "Training"),
    Setting("seed", "training.seed", int, "the seed that all others follow from", "Training"),
    Setting("evaluate_every", "training.evaluate_every", int, "steps between evaluations (0: at the end)", "Training"),
    Setting("defence", "defence.name", str, "none, duplicate, duplicate-only, spot-check or statistics", "Defence"),
    Setting("on_alert", "defence.on_alert", str, "restart, relay, skip, replace, a plug-in or file.py:Class", "Defence"),
    Setting("ban_policy", "defence.ban_policy", str, "never, quarantine or ban", "Defence"),
    Setting("check_claims", "defence.check_claims", float, "probability p that a sealed claim is computed again", "Defence"),
    Setting(
        "check_steps", "defence.check_steps", float, "probability q that all of a stage's step is computed again", "Defence"
    ),
    Setting("window", "defence.window", int, "sealed steps that can be checked and gone back to", "Defence"),
    Setting("redraw_every", "defence.redraw_every", int, "steps after which workers change stages (0: never)", "Defence"),
    Setting("fault", "faults", str, 'a fault, for example "crash stage=2 step=7"; repeatable', "Attack and faults", many=True),
    Setting("out", "output.dir", str, "directory of the result", "Output"),
    Setting("checkpoint_every", "output.checkpoint_every", int, "steps between checkpoints (0: at the end)", "Output"),
    Setting("keep", "output.keep", int, "checkpoints to keep", "Output"),
    Setting("log_format", "output.log_format", str, "text or json: lines of holdfast.log, and with json of stderr", "Output"),
    Setting("metrics", "machines.metrics", str, "serve /metrics and /healthz there, as 127.0.0.1:9464", "Output"),
    Setting("expose_metrics", "machines.expose_metrics", bool, "let other machines reach them", "Output"),
    Setting("report_to", "output.report_to", str, "tensorboard; repeatable", "Output", many=True),
)


def merge(tables: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of `tables` with short names and whole sections put in their places; None counts as not given.

    >>> merge({"training": {"steps": 9, "seed": 1}}, {"steps": 5, "defence": "none", "optimizer": {"beta2": 0.95}})
    {'training': {'steps': 5, 'seed': 1}, 'defence': {'name': 'none'}, 'optimizer': {'beta2': 0.95}}
    """
    known = {setting.name: setting for setting in SETTINGS}
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in tables.items()}
    for name, value in settings.items():
        if value is None or (name in known and known[name].many and not value):
            continue
        if name in SECTIONS and (isinstance(value, Mapping) or name in ("attack", "faults")):
            result[name] = {**result.get(name, {}), **value} if isinstance(value, Mapping) else value
        elif name in known:
            _place(result, known[name], value)
        else:
            hint = did_you_mean(name, [*known, *SECTIONS])
            sections = ", ".join(SECTIONS)
            raise ConfigError(f"unknown setting {name!r}; {hint}known: {', '.join(known)}, or a section: {sections}")
    return result


def split_attack(spec: str) -> dict[str, Any]:
    """The table of one attack from `name,param=value,...`, where campaign parameters may stand among its own.

    >>> split_attack("scale,factor=10,rate=0.7,stages=1-3")
    {'spec': 'scale,factor=10', 'rate': 0.7, 'stages': (1, 2, 3)}
    """
    from holdfast.toml import parse_spec

    _, parameters = parse_spec(spec)
    name, *pairs = spec.split(",")
    own = [pair for pair in pairs if _key(pair) not in CAMPAIGN]
    table: dict[str, Any] = {"spec": ",".join([name.strip(), *own])}
    for key in CAMPAIGN:
        if key in parameters:
            several = key in ("stages", "micro_batches")
            table[key] = numbers(str(parameters[key]), f"{key} of attack {name!r}") if several else parameters[key]
    return table


def defence_tables(spec: str) -> dict[str, dict[str, Any]]:
    """The settings that a defence's spec stands for, by section.

    >>> defence_tables("duplicate,on_alert=skip,cluster.speeds=1+2")
    {'defence': {'name': 'duplicate', 'on_alert': 'skip'}, 'cluster': {'speeds': [1, 2]}}
    """
    from holdfast.toml import parse_spec

    name, settings = parse_spec(spec)
    tables: dict[str, dict[str, Any]] = {"defence": {"name": name}}
    for path, value in settings.items():
        section, dot, key = path.partition(".")
        table = tables.setdefault(section if dot else "defence", {})
        table[key if dot else path] = _several(value)
    return tables


def numbers(text: str, what: str) -> tuple[int, ...]:
    """Whole numbers and ranges: `2`, `1-4`, `1,3` or `1+3-4`.

    >>> numbers("1-2,4", "stages")
    (1, 2, 4)
    """
    found: list[int] = []
    for part in re.split(r"[,+]", text):
        match = re.fullmatch(r"\s*(\d{1,5})(?:-(\d{1,5}))?\s*", part)
        if match is None or (match[2] is not None and int(match[2]) < int(match[1])):
            raise ConfigError(f"{what}: expected numbers such as 2, 1-4 or 1+3, got {text!r}")
        found += range(int(match[1]), int(match[2] or match[1]) + 1)
    return tuple(dict.fromkeys(found))


def add_attacks(
    tables: Mapping[str, Any], specs: Sequence[str], rate: float | None = None, stages: str | None = None
) -> dict[str, Any]:
    """Attacks named on the command line replace those of the file; `rate` and `stages` apply to whichever stand then."""
    given = tables.get("attack", ())
    if not isinstance(given, list | tuple) or not all(isinstance(table, Mapping) for table in given):
        raise ConfigError("attack: needed are tables, each [[attack]] with a spec")
    attacks: list[dict[str, Any]] = [split_attack(spec) for spec in specs] or [dict(table) for table in given]
    if not attacks and (rate is not None or stages is not None):
        raise ConfigError("--rate and --attack-stages say how an attack strikes, and there is none; add --attack NAME")
    for table in attacks:
        if rate is not None:
            table["rate"] = rate
        if stages is not None:
            table["stages"] = numbers(stages, "--attack-stages")
    return {**tables, "attack": tuple(attacks)} if attacks else dict(tables)


def run_directory(resume: Path) -> Path:
    """The directory of the run that `--resume` names, by itself or by one of its checkpoints; ConfigError if it is none."""
    for directory in (resume, *resume.absolute().parents[:2]):
        if (directory / "config.toml").is_file():
            return directory
    raise ConfigError(f"{resume} holds no run to resume: config.toml is missing; give the directory of an earlier --out")


def check_available(config: RunConfig) -> None:
    """Raise ConfigError for an unknown remedy, and MissingExtra for an engine whose library is not installed."""
    from holdfast.recover.registry import resolve_remedy

    resolve_remedy(config.defence.on_alert, config.defence.retries)
    if config.pipeline.engine == "ray" and importlib.util.find_spec("ray") is None:
        raise MissingExtra("ray", extra="ray", purpose="--engine ray")


def _place(result: dict[str, Any], setting: Setting, value: Any) -> None:
    if setting.many:
        value = (value,) if isinstance(value, str) else tuple(value)
    section, _, key = setting.path.partition(".")
    if not key:
        result[section] = value
        return
    table = result.setdefault(section, {})
    if not isinstance(table, dict):
        raise ConfigError(f"{section!r} is a table of settings, got {table!r}")
    table[key] = value


def _key(pair: str) -> str:
    return pair.partition("=")[0].strip().replace("-", "_")


def _several(value: Any) -> Any:
    """A list where `+` joins words, which commas cannot."""
    from holdfast.toml import toml_value

    return [toml_value(part) for part in value.split("+")] if isinstance(value, str) and "+" in value else value
