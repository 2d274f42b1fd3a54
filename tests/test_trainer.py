"""The trainer: what people expect of training, from warm-up to TensorBoard, and no trace left in the process it ran in."""

from __future__ import annotations

import math
import random
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from holdfast import Experiment
from holdfast.errors import FaultWindowExceeded
from holdfast.evaluate import evaluate_directory
from holdfast.event import CheckpointWritten, Evaluated, Event, RolledBack, RunStarted, StepSealed
from holdfast.optimizer import learning_rate
from holdfast.report import RunRecord
from holdfast.result import RunResult
from holdfast.trainer import MAX_ROLLBACKS, prepare_tested

WORDS = ("oak", "birch", "willow", "pine", "holly", "hazel", "rowan", "alder")
TINY: dict[str, Any] = {
    "model": "gpt2:layers=4,width=16,heads=2",
    "stages": 4,
    "micro_batches": 2,
    "micro_batch_size": 2,
    "learning_rate": 1e-2,
    "warmup_steps": 2,
    "steps": 4,
}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    draw = random.Random(0)
    text = tmp_path_factory.mktemp("text") / "trees.txt"
    text.write_text("\n".join(" ".join(draw.choices(WORDS, k=12)) for _ in range(300)))
    return {**TINY, "data": {"name": str(text), "sequence_length": 16, "vocabulary": 280, "validation_tokens": 256}}


class Watch:
    """Observer that keeps everything."""

    def __init__(self) -> None:
        self.told: list[tuple[Event, float]] = []

    def __call__(self, event: Event, seconds: float) -> None:
        self.told.append((event, seconds))

    def of(self, kind: type) -> list[Any]:
        return [event for event, _ in self.told if isinstance(event, kind)]


def run(settings: dict[str, Any], **more: Any) -> tuple[RunResult, Watch]:
    watch = Watch()
    merged = {**settings, **more}
    return Experiment(**merged, observers=[watch]).run(), watch


@pytest.fixture(scope="module")
def once(tiny: dict[str, Any]) -> tuple[RunResult, Watch]:
    return run(tiny)


# -- steps ---------------------------------------------------------------------------------------------------------------


def test_a_run_learns_and_counts(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    result, watch = once
    sealed = watch.of(StepSealed)
    assert [event.step for event in sealed] == [0, 1, 2, 3]
    assert sealed[-1].loss < sealed[0].loss - 0.1
    assert result.train_loss == sealed[-1].loss
    assert {event.tokens for event in sealed} == {2 * 2 * 16}
    assert (result.steps, result.tokens) == (4, 4 * 2 * 2 * 16)
    assert result.tokens_per_second == result.tokens / result.training_seconds > 0
    assert result.training_seconds < result.seconds
    assert 0 < result.virtual_seconds < 60
    (final,) = watch.of(Evaluated)
    assert (final.step, final.perplexity) == (4, result.validation_perplexity)
    assert 1 < result.validation_perplexity < 280
    assert (result.certified, result.interrupted, result.alerts) == (True, False, 0)
    (started,) = watch.of(RunStarted)
    assert started.workers == ("initiator", "w1", "w2", "initiator")
    assert started.environment["threads"] == "1"
    assert len(started.stages) == 4


def test_the_same_settings_give_the_same_run_and_another_seed_another(
    tiny: dict[str, Any], once: tuple[RunResult, Watch]
) -> None:
    result, watch = once
    again, told = run(tiny, seed=0)
    assert again.weights_digest == result.weights_digest
    assert again.virtual_seconds == result.virtual_seconds
    timed = [(type(event), seconds) for event, seconds in told.told]
    assert timed == [(type(event), seconds) for event, seconds in watch.told], "the virtual clock too"
    other, _ = run(tiny, seed=1)
    assert other.weights_digest != result.weights_digest
    assert other.train_loss != result.train_loss


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_learning_rate_follows_its_schedule(tiny: dict[str, Any], schedule: str) -> None:
    optimizer = {"schedule": schedule, "final_ratio": 0.25}
    experiment = Experiment(**{**tiny, "steps": 6, "optimizer": optimizer}, observers=[watch := Watch()])
    experiment.run()
    rates = [event.learning_rate for event in watch.of(StepSealed)]
    assert rates == [learning_rate(experiment.config.optimizer, step, 6) for step in range(6)]
    assert rates[:3] == pytest.approx([0.5e-2, 1e-2, 1e-2])
    falls = {"cosine": 1e-2 * (0.25 + 0.75 * 0.5 * (1 + math.cos(math.pi / 2))), "linear": 1e-2 * 0.625, "constant": 1e-2}
    assert rates[4] == pytest.approx(falls[schedule])


def test_clipping_limits_the_step_and_not_the_norm_that_is_told(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    free, watch = run(tiny, clip_norm=0.0, steps=1)
    tight, other = run(tiny, clip_norm=1e-3, steps=1)
    loose, _ = run(tiny, clip_norm=1e6, steps=1)
    assert watch.of(StepSealed)[0].gradient_norm == other.of(StepSealed)[0].gradient_norm > 1e-3
    assert free.weights_digest == loose.weights_digest != tight.weights_digest


def test_micro_batches_accumulate_to_about_the_gradient_of_the_whole_batch(tiny: dict[str, Any]) -> None:
    _, together = run(tiny, micro_batches=1, micro_batch_size=4, steps=2)
    _, apart = run(tiny, micro_batches=4, micro_batch_size=1, steps=2)
    for whole, parts in zip(together.of(StepSealed), apart.of(StepSealed), strict=True):
        assert parts.loss == pytest.approx(whole.loss, rel=1e-5)
        assert parts.gradient_norm == pytest.approx(whole.gradient_norm, rel=1e-4)


def test_bfloat16_trains_and_is_another_run(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    half, watch = run(tiny, dtype="bfloat16")
    assert half.weights_digest != once[0].weights_digest
    assert half.train_loss == pytest.approx(once[0].train_loss, abs=0.2)
    assert watch.of(StepSealed)[-1].loss < watch.of(StepSealed)[0].loss


@pytest.mark.parametrize("defence", ["none", "duplicate-only"])
def test_neither_the_defence_nor_the_schedule_changes_a_bit(
    tiny: dict[str, Any], once: tuple[RunResult, Watch], defence: str
) -> None:
    result, watch = run(tiny, defence=defence, schedule="gpipe", wire_check=True)
    assert result.weights_digest == once[0].weights_digest
    assert [event.loss for event in watch.of(StepSealed)] == [event.loss for event in once[1].of(StepSealed)]
    assert result.certified is (defence != "none")


# -- what is due in between ----------------------------------------------------------------------------------------------


def test_evaluations_and_checkpoints_come_when_they_are_due(tiny: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    result, watch = run(tiny, out=str(out), steps=5, evaluate_every=2, checkpoint_every=2, keep=9)
    assert [event.step for event in watch.of(Evaluated)] == [2, 4, 5]
    written = watch.of(CheckpointWritten)
    assert [event.step for event in written] == [2, 4, 5]
    assert all(Path(event.path).is_dir() for event in written)
    order = [
        (type(event).__name__, event.step)
        for event in (e for e, _ in watch.told)
        if hasattr(event, "path") or hasattr(event, "perplexity")
    ]
    assert order.index(("Evaluated", 2)) < order.index(("CheckpointWritten", 2)), "a resumed run has nothing to repeat"
    times = [seconds for _, seconds in watch.told]
    assert times == sorted(times)
    data = Experiment(**tiny).config.data
    for event, scored in zip(written, watch.of(Evaluated), strict=True):
        assert evaluate_directory(event.path, data).perplexity == scored.perplexity
    assert result.weights_digest == run(tiny, steps=5)[0].weights_digest, "looking changes nothing"


def test_tensorboard_gets_the_curves(tiny: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = tmp_path / "run"
    _, watch = run(tiny, out=str(out), report_to="tensorboard", evaluate_every=2)
    curves = EventAccumulator(str(out / "tensorboard")).Reload()
    losses = [(point.step, point.value) for point in curves.Scalars("train/loss")]
    assert losses == [(event.step, pytest.approx(event.loss)) for event in watch.of(StepSealed)]
    assert [point.step for point in curves.Scalars("validation/perplexity")] == [2, 4]
    assert {"train/learning_rate", "train/gradient_norm", "defence/alerts"} <= set(curves.Tags()["scalars"])


# -- rollback ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["memory", "disk", "nothing"])
def test_a_stage_that_lost_both_holders_costs_time_and_no_bits(
    tiny: dict[str, Any], once: tuple[RunResult, Watch], tmp_path: Path, kept: str
) -> None:
    faults = ["crash stage=1 step=3 at=forward", "crash stage=2 step=3 at=forward"]
    more: dict[str, Any] = {} if kept == "nothing" else {"checkpoint_every": 2}
    result, watch = run(tiny, faults=faults, **more, **({"out": str(tmp_path / "run")} if kept == "disk" else {}))
    (back,) = watch.of(RolledBack)
    assert (back.step, back.version) == (3, 0 if kept == "nothing" else 2)
    assert result.rollbacks == 1
    assert result.weights_digest == once[0].weights_digest
    assert result.tokens == once[0].tokens, "a step that is taken again is not counted again"
    assert result.virtual_seconds > once[0].virtual_seconds


def test_a_run_that_always_falls_back_ends(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from holdfast.cluster import Cluster

    monkeypatch.setattr("holdfast.trainer.MAX_ROLLBACKS", 2)
    monkeypatch.setattr(Cluster, "run_step", lambda self, step, stopping: "nothing works")
    assert MAX_ROLLBACKS > 2
    with pytest.raises(FaultWindowExceeded, match="fell back 2 times, last in step 0: nothing works"):
        run(tiny)


# -- the process it runs in ----------------------------------------------------------------------------------------------


@pytest.fixture
def two_threads() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_a_run_takes_one_thread_and_gives_the_others_back(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    during: set[int] = set()
    result = Experiment(**tiny, observers=[lambda _event, _seconds: during.add(torch.get_num_threads())]).run()
    assert during == {1}
    assert torch.get_num_threads() == 2
    assert result.weights_digest == once[0].weights_digest


@pytest.mark.usefixtures("two_threads")
def test_threads_come_back_after_an_error_too(tiny: dict[str, Any]) -> None:
    def fail(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Experiment(**tiny, observers=[fail]).run()
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_a_run_in_a_thread_of_its_own_is_the_same(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    found: list[RunResult] = []
    thread = threading.Thread(target=lambda: found.append(Experiment(**tiny).run()))
    thread.start()
    thread.join()
    assert found[0].weights_digest == once[0].weights_digest
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_random_numbers_of_the_process_are_neither_used_nor_moved(tiny: dict[str, Any], dropout: float) -> None:
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        digests.add(run(tiny, dropout=dropout, attack="gaussian,rate=0.5")[0].weights_digest)
        after = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
    assert len(digests) == 1


def test_settings_of_torch_and_of_the_library_are_left_as_they_were(tiny: dict[str, Any]) -> None:
    from transformers.utils import logging

    def state() -> tuple[Any, ...]:
        return (
            torch.get_default_dtype(),
            torch.are_deterministic_algorithms_enabled(),
            torch.is_grad_enabled(),
            torch.get_default_device(),
            logging.get_verbosity(),
            logging.is_progress_bar_enabled(),
        )

    before = state()
    run(tiny, steps=1)
    assert state() == before


def test_two_runs_at_once_do_not_meet(tiny: dict[str, Any], once: tuple[RunResult, Watch]) -> None:
    """One begins and ends inside the other."""
    inner: list[RunResult] = []

    def nest(event: Event, _seconds: float) -> None:
        if isinstance(event, StepSealed) and event.step == 1:
            inner.append(run(tiny, attack="sign-flip")[0])

    outer = Experiment(**tiny, observers=[nest])
    assert outer.run().weights_digest == inner[0].weights_digest == once[0].weights_digest
    assert isinstance(outer.record, RunRecord)
    assert outer.record.result["attacked_claims"] == 0 < inner[0].attacked_claims


def test_the_self_test_is_pinned_as_the_run_will_be(tiny: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever prepares a job does so before the run: on a GPU the test then ran without deterministic kernels."""
    seen: list[int] = []
    monkeypatch.setattr("holdfast.trainer.self_test", lambda *_given: seen.append(torch.get_num_threads()))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        prepare_tested(Experiment(**tiny).config)
        assert (seen, torch.get_num_threads()) == ([1], 2)
    finally:
        torch.set_num_threads(before)
