"""`holdfast bench backdoor`: does a backdoor get in through one stage, does the defence keep it out, and does it last?

    start       a model that knows the text: trained from scratch here, or given
    clean       fine-tuned in the pipeline, nobody lies                              the weights to equal
    undefended  the same with an attack, defence none                      (a)
    defended    the same with an attack, `duplicate` and `replace`         (b)       must equal the clean ones, to the bit
    continued   the undefended model, fine-tuned on by honest workers      (d)       after 1/10, 1/2 and all of the steps,
                                                                                     at the same rate and at a tenth of it

One row for each; the attacks are those of `strikes.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from holdfast import seeds
from holdfast.bench.offline import Study, open_model
from holdfast.bench.strikes import Strike, strikes
from holdfast.bench.trigger import PoisonedText, Trigger, measure
from holdfast.config import RunConfig, resolve
from holdfast.engine import names_of_workers
from holdfast.errors import ConfigError
from holdfast.evaluate import evaluate
from holdfast.experiment import Experiment
from holdfast.job import Job, prepare
from holdfast.numerics import pinned
from holdfast.result import RunResult

SHARES = (10, 2, 1)
"""A continued run is looked at after 1/10, 1/2 and all of its steps."""
RATE = 1e-3
"""Constant learning rate of the fine-tuning, a third of the peak of the pre-training."""
SLOW = 1e-4
"""The other rate of a continued run: of a cautious fine-tuning."""


@dataclass(frozen=True)
class Scale:
    """How much of everything: the model from scratch, steps of each kind of run, batches, the attacker's study."""

    model: str = "gpt2:layers=6,width=64,heads=4"
    stages: int = 6
    pretraining: int = 600
    steps: int = 100
    continued: int = 100
    sequence_length: int = 64
    validation_tokens: int = 16_384
    batch: tuple[int, int] = (4, 4)
    study: Study = field(default_factory=Study)


SCALES: Mapping[str, Scale] = {
    "tiny": Scale(),
    "smoke": Scale("gpt2:layers=4,width=16,heads=2", 4, 2, 2, 2, 48, 480, (1, 2), Study(2, 2e-3)),
}
"""`tiny` is measured; `smoke` shows in seconds that the command works here, and its figures mean nothing."""


@dataclass(frozen=True)
class Question:
    """What is asked. `model` is a directory to start from (None: one is made from scratch, as `scale` says)."""

    scale: Scale
    stages: int = 6
    stage: int = 4
    model: str | None = None
    data: str = "embedded"
    phrase: str = " Quoth the raven"
    target: str = " nevermore"

    def __post_init__(self) -> None:
        if not 1 <= self.stage <= self.stages - 2:
            raise ConfigError(
                f"stage {self.stage} of {self.stages} is not an untrusted one; those are stages 1 to K-2, with K at least 3"
            )
        if self.model is not None and not Path(self.model).is_dir():
            raise ConfigError(f"no model directory {self.model!r}; give one that holds config.json and safetensors, or none")

    @property
    def liar(self) -> str:
        return names_of_workers(self.stages)[self.stage]


@dataclass(frozen=True, slots=True)
class Row:
    """One look at one model. `weights` tells whether they equal the clean run's; `named` is who was proven to have lied."""

    seed: int
    stage: int
    liar: str
    run: str = ""
    attack: str = ""
    variant: str = ""
    mode: str = ""
    strength: float = 0.0
    learning_rate: float = 0.0
    steps: int = 0
    success: float = 0.0
    success_without: float = 0.0
    first_token: float = 0.0
    perplexity: float = 0.0
    weights: str = ""
    named: str = ""
    attacked_claims: int = 0
    detected: int = 0
    false_alarms: int = 0
    seconds: float = 0.0
    weights_digest: str = ""


def broken_promises(rows: Sequence[Row]) -> list[str]:
    """What must not be: a defended run with other weights than the clean one, or that names somebody else than the liar."""
    return [
        f"seed {row.seed}, {row.attack} ({row.variant}, {row.mode}): weights {row.weights}, named {row.named or 'nobody'}"
        for row in rows
        if row.run == "defended" and (row.weights != "equal" or row.named != row.liar)
    ]


def first_run(question: Question, seed: int) -> RunConfig:
    """The settings of the run that makes the start, or of the clean one where a start is given. Raises ConfigError."""
    runs = _Runs(question, seed, Path())
    return runs.pre_training() if question.model is None else runs.fine_tuning(question.model)


def first_job(question: Question, seed: int) -> tuple[Job, Trigger]:
    """That run, prepared, and the trigger in its tokens. Raises ConfigError or DataError where it cannot be."""
    job = prepare(first_run(question, seed))
    return job, Trigger.of_text(job.tokenizer, question.phrase, question.target, question.scale.sequence_length)


def run_seed(question: Question, seed: int, out: Path) -> Iterator[Row]:
    """All rows of one seed, each as soon as it is known; the runs are written below `out`."""
    scale, runs = question.scale, _Runs(question, seed, out)
    job, trigger = first_job(question, seed)
    score = _Score(job, trigger)
    start = question.model or runs.start()
    blank = Row(seed, question.stage, question.liar)
    yield replace(blank, run="start", **score(Path(start)))

    clean = runs.run("clean", runs.fine_tuning(start))
    done = replace(blank, steps=scale.steps, learning_rate=RATE)
    yield replace(done, run="clean", **score(runs.model("clean")), **_facts(clean, clean) | {"weights": ""})

    text = PoisonedText(trigger, job.batches.tokens, scale.sequence_length, 8, seeds.derive(seed, "attacker"))
    names = job.plan.trainable_of(question.stage)
    for strike in strikes(start, names, text, scale.study):
        which = replace(done, attack=strike.attack, variant=strike.variant, mode=strike.mode, strength=strike.strength)
        for run, defence in (("undefended", "none"), ("defended", "duplicate"))[: 1 + strike.defended]:
            label = f"{run}-{strike.label}"
            result = runs.run(label, runs.fine_tuning(start, defence), strike)
            yield replace(which, run=run, **score(runs.model(label)), **_facts(result, clean))
        if strike.continued:
            for rate in (RATE, SLOW):
                for steps, directory in runs.go_on(strike, rate):
                    yield replace(which, run="continued", steps=scale.steps + steps, learning_rate=rate, **score(directory))


class _Runs:
    """The runs of one seed, each in a directory of its own."""

    def __init__(self, question: Question, seed: int, out: Path) -> None:
        self._ask = question
        self._seed = seed
        self._out = out

    def start(self) -> str:
        """Train the model that everybody knows; gives its directory."""
        self.run("start", self.pre_training())
        return str(self.model("start"))

    def pre_training(self) -> RunConfig:
        scale = self._ask.scale
        return self._config(scale.model, scale.pretraining, "pre-training", {"learning_rate": 3e-3}, "none")

    def fine_tuning(self, model: str, defence: str = "none") -> RunConfig:
        return self._config(model, self._ask.scale.steps, "fine-tuning", _constant(RATE), defence)

    def run(self, label: str, config: RunConfig, strike: Strike | None = None, *, checkpoints: int = 0) -> RunResult:
        attack = [] if strike is None else [strike.table(self._ask.stage, config.training.steps)]
        output = {"dir": str(self._out / label), "checkpoint_every": checkpoints, "keep": 1000}
        return Experiment(config, label=label, attack=attack, output=output).run()

    def go_on(self, strike: Strike, rate: float) -> Iterator[tuple[int, Path]]:
        """Honest work on the undefended model, on batches in another order: (steps, model directory) where it is looked at."""
        steps, label = self._ask.scale.continued, f"continued-{strike.label}-{rate:g}"
        attacked = str(self.model(f"undefended-{strike.label}"))
        looks = sorted({max(1, steps // share) for share in SHARES})
        self.run(label, self._config(attacked, steps, "continued", _constant(rate), "none"), checkpoints=looks[0])
        for look in looks:
            yield look, self._out / label / "checkpoints" / f"step-{look:06d}"

    def model(self, label: str) -> Path:
        return self._out / label / "model"

    def _config(self, model: str, steps: int, order: str, optimizer: Mapping[str, Any], defence: str) -> RunConfig:
        scale = self._ask.scale
        data = {"name": self._ask.data, "sequence_length": scale.sequence_length, "validation_tokens": scale.validation_tokens}
        micro_batches, size = scale.batch
        return resolve(
            {
                "model": {"name": model},
                "data": data,
                "pipeline": {"stages": self._ask.stages, "micro_batches": micro_batches, "micro_batch_size": size},
                "optimizer": dict(optimizer),
                "training": {"steps": steps, "seed": seeds.derive(self._seed, order) % 1_000_000},
                "defence": {"name": defence, "on_alert": "replace"},
            }
        )


def _constant(rate: float) -> dict[str, Any]:
    return {"learning_rate": rate, "schedule": "constant", "warmup_steps": 5}


class _Score:
    """Success of the trigger and perplexity of a model directory, on the held-out text of `job`."""

    def __init__(self, job: Job, trigger: Trigger) -> None:
        self._job = job
        self._trigger = trigger

    def __call__(self, directory: Path) -> dict[str, Any]:
        with pinned("cpu"):
            model = open_model(directory)
            found = measure(model, self._trigger, self._job.validation.ids)
            return {**dataclasses.asdict(found), "perplexity": evaluate(model, self._job.validation).perplexity}


def _facts(result: RunResult, clean: RunResult) -> dict[str, Any]:
    return {
        "weights": "equal" if result.weights_digest == clean.weights_digest else "differ",
        "named": " ".join(sorted(result.blamed_workers)),
        "attacked_claims": result.attacked_claims,
        "detected": result.detected,
        "false_alarms": result.false_alarms,
        "seconds": round(result.seconds, 1),
        "weights_digest": result.weights_digest,
    }
