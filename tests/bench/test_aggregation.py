"""The experiment on aggregation: the traffic it sees, its tests and tables, honest training with aggregates, the command."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from holdfast.attacks import Ledger
from holdfast.bench import aggregated, aggregation
from holdfast.bench.aggregated import ACTIVATION, INPUT_GRADIENT, NOTHING, WEIGHT_GRADIENT, train
from holdfast.bench.aggregation import SCALES, Findings, Question
from holdfast.bench.aggregation_cells import run, unigram_perplexity
from holdfast.bench.aggregation_report import tables, write
from holdfast.bench.carryover import (
    DOWNSTREAM,
    FORGED,
    OTHERS,
    Cascade,
    Scoreboard,
    area,
    cascade_counts,
    cascade_rows,
    curve,
    score_rows,
    seed_scores,
)
from holdfast.bench.outliers import TESTS, Past, scores, view
from holdfast.bench.replicas import Committee, replica_rows
from holdfast.bench.spread import spreads
from holdfast.bench.traffic import WEIGHTS, Window, watch
from holdfast.claim import ClaimKey, Direction
from holdfast.cli.main import main
from holdfast.config import RunConfig, resolve
from holdfast.errors import ConfigError
from holdfast.job import Job
from holdfast.trainer import Trainer, prepare_tested

STAGES, MICRO_BATCHES, STEPS = 4, 5, 3
LIES = ("sign-flip", "other-input", "perturb,epsilon=0.01", "replay")


def small(**defence: Any) -> RunConfig:
    return resolve(
        {
            "model": {"name": "gpt2:layers=4,width=16,heads=2"},
            "data": {"sequence_length": 8, "vocabulary": 300, "validation_tokens": 64},
            "pipeline": {"stages": STAGES, "micro_batches": MICRO_BATCHES, "micro_batch_size": 2},
            "training": {"steps": STEPS},
            "defence": {"name": "none"},
            **defence,
        }
    )


@pytest.fixture(scope="module")
def job() -> Job:
    return prepare_tested(small())


@pytest.fixture(scope="module")
def clean(job: Job) -> str:
    return Trainer(small(), job=job).run().weights_digest


@pytest.fixture(scope="module")
def windows(job: Job) -> list[Window]:
    seen: list[Window] = []
    watch(small(), job, LIES, seen.append)
    return seen


# -- traffic -------------------------------------------------------------------------------------------------------------


def test_watching_changes_no_bit_and_nobody_lies(job: Job, clean: str) -> None:
    result, ledger = watch(small(), job, LIES, lambda window: None)
    assert result.weights_digest == clean
    assert not ledger.keys


def test_every_untrusted_claim_of_every_step_is_seen(windows: list[Window]) -> None:
    seen = [(window.step, window.stage, window.kind) for window in windows]
    kinds = ("forward", "backward", WEIGHTS)
    assert sorted(seen) == sorted((step, stage, kind) for step in range(STEPS) for stage in (1, 2) for kind in kinds)
    for window in windows:
        assert window.honest.shape == (MICRO_BATCHES, 2 * 8 * 16) or window.kind == WEIGHTS
        assert set(window.forged) == (set() if window.kind == WEIGHTS else set(LIES))


def test_what_is_seen_is_what_the_stage_claims(job: Job, windows: list[Window]) -> None:
    """Stage 1's activations of step 0, recomputed from the initial weights."""
    from holdfast.numerics import NATIVE, resolve_arithmetic
    from holdfast.rehearsal import Rehearsal

    rehearsal = Rehearsal(job, [NATIVE, resolve_arithmetic("split-sums")])
    told = {
        (accounts.stage, str(accounts.direction), accounts.micro_batch): accounts.results[NATIVE.name]
        for accounts in rehearsal.step(0, 1e-3)
        if accounts.micro_batch >= 0
    }
    for window in windows:
        if window.step == 0 and window.kind != WEIGHTS:
            for m in range(MICRO_BATCHES):
                account = told[window.stage, window.kind, m]
                assert isinstance(account, torch.Tensor)
                assert torch.equal(window.honest[m], account.flatten())


def test_the_forgeries_are_those_of_the_attacks(windows: list[Window]) -> None:
    for window in windows:
        if window.kind == WEIGHTS:
            continue
        assert torch.equal(window.forged["sign-flip"], -window.honest)
        moved = torch.linalg.vector_norm(window.forged["perturb,epsilon=0.01"] - window.honest, dim=1)
        assert (moved / torch.linalg.vector_norm(window.honest, dim=1)).tolist() == pytest.approx([0.01] * 5, rel=1e-3)
        assert not torch.equal(window.forged["other-input"], window.honest)
    forward = {(w.step, w.stage): w for w in windows if w.kind == "forward"}
    assert torch.equal(forward[2, 1].forged["replay"], forward[1, 1].honest)


def test_a_stage_run_on_other_rows_has_the_other_rows_outputs(windows: list[Window]) -> None:
    """other-input rolls the two sequences of a micro-batch; each row's result is its own, to the bit."""
    for window in windows:
        if window.kind == "forward":
            rows = window.honest.view(MICRO_BATCHES, 2, -1)
            assert torch.equal(window.forged["other-input"].view(MICRO_BATCHES, 2, -1), rows.roll(1, 1))


def test_a_second_computation_gives_the_same_bytes(windows: list[Window]) -> None:
    looked = [window for window in windows if window.kind != WEIGHTS]
    assert all((window.replicas, window.equal) == (1, 1) for window in looked)


def test_lies_in_earnest_are_in_the_traffic_and_in_the_ledger(job: Job) -> None:
    seen: list[Window] = []
    config = small(attack=[{"spec": "zeros", "rate": 1.0, "stages": [2]}])
    result, ledger = watch(config, job, (), seen.append, weights=False)
    assert result.attacked_claims == len(ledger.keys) == STEPS * MICRO_BATCHES
    for window in seen:
        lied = (window.stage, window.kind) == (2, "forward")
        assert bool((window.honest == 0).all()) == lied


@pytest.mark.parametrize("spec", ["framing", "nonsense", "wrong-update"])
def test_an_attack_that_forges_no_tensor_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError):
        Question(SCALES["smoke"], attacks=(spec,))


# -- tests on values -----------------------------------------------------------------------------------------------------


def test_each_test_finds_what_it_is_for() -> None:
    """Seven alike and one that is not: by its place, its length or its direction."""
    generator = torch.Generator().manual_seed(1)
    base = torch.randn(50, generator=generator)
    honest = base + 0.05 * torch.randn(8, 50, generator=generator)
    past = Past()
    past.learn(honest)
    for lie in (-honest[3], 10 * torch.randn(50, generator=generator)):
        stack = honest.clone()
        stack[3] = lie
        for name, found in scores(stack, past).items():
            if name == "voting":
                assert found.tolist() == [1.0] * 8
            elif name == "norm" and torch.equal(lie, -honest[3]):
                assert found[3] == scores(honest, past)["norm"][3], "a flipped sign has the same length"
            else:
                top = found.argsort(descending=True)[:2].tolist()
                assert 3 in top, name  # in bucketing with whom it shares a bucket


def test_a_vote_among_equal_ones_is_quiet() -> None:
    stack = torch.stack([torch.ones(4)] * 3 + [torch.zeros(4)])
    assert TESTS["voting"](stack, Past()).tolist() == [0.0, 0.0, 0.0, 1.0]


def test_no_number_is_the_oddest_of_all() -> None:
    stack = torch.ones(5, 4)
    stack[2] = torch.nan
    found = scores(stack, Past())
    assert all(found[name][2] == torch.inf for name in ("median", "trimmed-mean", "cosine"))


def test_views() -> None:
    stack = torch.arange(24.0).view(2, 12)
    assert torch.equal(view(stack, (2, 2, 3), "whole"), stack)
    assert view(stack, (2, 2, 3), "mean row").tolist() == [[4.5, 5.5, 6.5], [16.5, 17.5, 18.5]]


def test_area_and_curve_by_hand() -> None:
    quiet, loud = numpy.array([1.0, 2.0, 3.0, 4.0]), numpy.array([2.5, 5.0])
    assert area(quiet, loud) == (2 + 4) / 8
    assert curve(quiet, loud)[-1] == 1.0
    assert curve(quiet, loud)[0] == 0.5
    assert curve(quiet, loud)[-2] == 1.0
    assert area(quiet, quiet) == 0.5


def board(steps: int = 8, lie: float = 5.0) -> Scoreboard:
    """Honest vectors around one point; the lie is so many times as long."""
    generator = torch.Generator().manual_seed(2)
    found = Scoreboard(steps)
    base = torch.randn(2 * 3 * 4, generator=generator)
    for step in range(steps):
        honest = base + 0.1 * torch.randn(5, 24, generator=generator)
        found.add(Window(step, 1, "forward", honest, (2, 3, 4), {"liar": lie * honest}))
        found.add(Window(step, 1, WEIGHTS, honest))
    return found


def test_rates_are_of_the_test_steps_alone() -> None:
    rows = {(row.view, row.test, row.how): row for row in score_rows([seed_scores(board()), seed_scores(board())])}
    norm = rows["whole", "norm", "all"]
    assert (norm.lies, norm.detected, norm.tpr, norm.best, norm.auc) == (2 * 4 * 5, 2 * 4 * 5, 1.0, 1.0, 1.0)
    assert (norm.honest, norm.seeds) == (2 * 4 * 5, 2)
    assert rows["whole", "norm", "one"].lies == 2 * 4
    voting = rows["whole", "voting", "all"]
    assert (voting.tpr, voting.fpr, voting.auc) == (1.0, 1.0, 0.5)
    assert rows["whole", "cosine", "all"].tpr == rows["whole", "cosine", "all"].fpr, "length says nothing about direction"
    assert rows["whole", "median", "one"].tpr == 1.0
    assert rows["whole", "median", "all"].tpr == rows["whole", "median", "all"].fpr, "all lie alike: nothing sticks out"


def test_an_honest_value_is_no_lie() -> None:
    """What is as honest as the others is found no more often than they are."""
    for row in score_rows([seed_scores(board(lie=1.0))]):
        if row.how == "all":
            assert (row.tpr, row.auc) == (row.fpr, 0.5)


def test_who_is_accused_by_kind_of_claim() -> None:
    known = board()
    ledger = Ledger()
    honest = torch.randn(5, 24, generator=torch.Generator().manual_seed(4))
    for m in range(5):
        ledger.record("w1", ClaimKey(5, 0, Direction.FORWARD, 1, m), "output", 0, 1)
    cascade = Cascade("liar", known)
    where = [
        (5, 1, "forward"),
        (5, 2, "forward"),
        (5, 0, "forward"),
        (5, 2, "backward"),
        (5, 1, "backward"),
        (6, 1, "forward"),
        (0, 1, "forward"),
    ]
    windows = [Window(step, 1, "forward", honest, (2, 3, 4)) for step, _, _ in where]
    windows = [replace(window, stage=stage, kind=kind) for window, (_, stage, kind) in zip(windows, where, strict=True)]
    known.honest |= {("backward", name, test): found for (_, name, test), found in known.honest.items()}
    cascade.count(windows, ledger)
    counts = {
        (row.direction, row.claims): row.count
        for row in cascade_rows(cascade_counts(cascade))
        if (row.view, row.test) == ("whole", "norm")
    }
    assert counts == {
        ("forward", FORGED): 5,
        ("forward", DOWNSTREAM): 5,
        ("forward", OTHERS): 10,
        ("backward", DOWNSTREAM): 10,
    }


def test_a_lie_about_a_gradient_reaches_the_stages_before_it() -> None:
    known = board()
    known.honest |= {("backward", name, test): found for (_, name, test), found in known.honest.items()}
    ledger = Ledger()
    ledger.record("w2", ClaimKey(5, 0, Direction.BACKWARD, 2, 0), "output", 0, 1)
    honest = torch.randn(5, 24, generator=torch.Generator().manual_seed(4))
    cascade = Cascade("liar", known)
    where = [(1, "backward"), (2, "backward"), (3, "backward"), (1, "forward")]
    cascade.count([Window(5, stage, kind, honest, (2, 3, 4)) for stage, kind in where], ledger)
    rows = [row for row in cascade_rows(cascade_counts(cascade)) if (row.view, row.test) == ("whole", "norm")]
    assert {(row.direction, row.claims): row.count for row in rows} == {
        ("backward", DOWNSTREAM): 5,
        ("backward", FORGED): 5,
        ("backward", OTHERS): 5,
        ("forward", OTHERS): 5,
    }


def test_spread_of_what_is_known() -> None:
    window = Window(0, 1, "forward", torch.tensor([[1.0, 1.0], [1.0, -1.0]]), (1, 1, 2))
    whole = next(one for one in spreads(window, 0) if one.view == "whole")
    assert (whole.cosine, whole.spread, whole.signal_to_noise) == pytest.approx((0.0, 1.0, 0.0))
    equal = spreads(replace(window, honest=torch.ones(4, 2)), 0)[0]
    assert equal.cosine == pytest.approx(1.0)
    assert equal.spread == 0.0
    assert len(spreads(Window(0, 1, WEIGHTS, torch.ones(4, 2)), 0)) == 1


# -- replicas ------------------------------------------------------------------------------------------------------------


def test_replicas_where_most_are_honest_outvote_the_liars(windows: list[Window], job: Job) -> None:
    committee = Committee()
    for window in windows:
        committee.add(window)
    committee.unlike(job)
    rows = {(row.aggregator, row.machines, row.replicas, row.liars): row for row in replica_rows(committee.ballots())}
    for replicas, liars in ((3, 1), (5, 2)):
        assert rows["voting", "alike", replicas, liars].exact_share == 1.0
        assert rows["median", "alike", replicas, liars].exact_share == 1.0
        assert rows["mean", "alike", replicas, liars].exact == 0
    assert rows["krum", "alike", 5, 1].exact_share == 1.0
    assert rows["krum", "alike", 3, 1].undefined == rows["krum", "alike", 3, 1].outcomes
    assert rows["voting", "alike", 2, 1].undefined == rows["voting", "alike", 2, 1].outcomes
    assert rows["voting", "alike", 3, 2].exact == 0, "the liars are the majority"
    unlike = rows["voting", "unlike", 3, 0]
    assert unlike.exact < unlike.outcomes
    assert unlike.undefined > 0
    worst = rows["median", "unlike", 3, 0].worst
    assert worst is not None
    assert worst < 1e-4


# -- honest training, aggregated -----------------------------------------------------------------------------------------


def test_with_nothing_replaced_training_is_the_runs_to_the_bit(job: Job, clean: str) -> None:
    found = train(job, NOTHING, "-", 1)
    assert found.digest == clean
    assert found.cosine == pytest.approx(1.0)


@pytest.mark.parametrize("replaced", [ACTIVATION, INPUT_GRADIENT, WEIGHT_GRADIENT])
def test_an_aggregate_changes_training(job: Job, clean: str, replaced: str) -> None:
    found = train(job, replaced, "median", 2)
    assert found.digest != clean
    assert found.cosine < 0.999
    assert numpy.isfinite(found.perplexity)


def test_the_mean_of_weight_gradients_is_their_sum(job: Job) -> None:
    """M times the mean is what honest training adds up, but for rounding."""
    stages = range(STAGES)
    honest = aggregated._Line(job, NOTHING, "-", 1).gradient(0, stages)
    assert torch.allclose(aggregated._Line(job, WEIGHT_GRADIENT, "mean", 1).gradient(0, stages), honest, atol=1e-6)
    plain, averaged = train(job, NOTHING, "-", 1), train(job, WEIGHT_GRADIENT, "mean", 1)
    assert averaged.loss == pytest.approx(plain.loss, rel=1e-5)
    assert averaged.perplexity == pytest.approx(plain.perplexity, rel=1e-3)


def test_an_aggregated_activation_is_the_same_for_every_micro_batch(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    original = aggregated.StageExecution.forward

    def watched(execution: Any, micro_batch: int, inputs: torch.Tensor) -> torch.Tensor:
        if execution.module.stage == 2:
            seen.append(inputs)
        return original(execution, micro_batch, inputs)

    monkeypatch.setattr(aggregated.StageExecution, "forward", watched)
    train(job, ACTIVATION, "median", 1)
    first, honest, *steps = [seen[at : at + MICRO_BATCHES] for at in range(0, len(seen), MICRO_BATCHES)]
    assert len(steps) == STEPS
    assert all(torch.equal(one, window[0]) for window in (first, *steps) for one in window)
    assert not torch.equal(honest[0], honest[1]), "the step without a replacement, to compare with"
    assert not torch.equal(steps[0][0], steps[1][0])


def test_unigram_perplexity_is_that_of_the_counts(job: Job) -> None:
    assert 1 < unigram_perplexity(job) < len(job.tokenizer)


# -- the whole, and the command ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def findings() -> Findings:
    return run(
        Question(SCALES["smoke"], range(1), attacks=("sign-flip", "other-input"), parts=("tests", "cascade", "training"))
    )


def test_every_table_has_its_rows(findings: Findings) -> None:
    found = tables(findings)
    assert set(found) == {"tests", "spread", "spread-steps", "cascade", "training", "replicas", "references"}
    assert {(row.direction, row.attack, row.how) for row in findings.tests} == {
        (direction, attack, how)
        for direction in ("forward", "backward")
        for attack in ("sign-flip", "other-input")
        for how in ("one", "all")
    }
    assert all(row.tpr_low <= row.tpr <= row.tpr_high and row.fpr_low <= row.fpr <= row.fpr_high for row in findings.tests)
    assert findings.repeated == findings.repeated_equal > 0


def test_the_same_seed_gives_the_same_tables(findings: Findings) -> None:
    again = tables(run(replace(findings.question, parts=("tests",))))
    assert {name: rows for name, rows in tables(findings).items() if name in again} == again


def test_files(findings: Findings, tmp_path: Path) -> None:
    write(findings, tmp_path, {"command": "holdfast bench aggregation"})
    lines = [json.loads(line) for line in (tmp_path / "aggregation.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {line["table"] for line in lines} == set(tables(findings))
    with (tmp_path / "aggregation.csv").open(encoding="utf-8", newline="") as file:
        assert len(list(csv.DictReader(file))) == len(findings.tests)
    for name in ("aggregation", "roc", "variation"):
        for form in ("svg", "pdf", "png"):
            assert (tmp_path / f"{name}.{form}").stat().st_size > 1000
    page = (tmp_path / "aggregation.md").read_text(encoding="utf-8")
    assert "## Tests on values" in page
    assert "## Replicas of one stage" in page


def command(*words: str) -> int:
    with pytest.raises(SystemExit) as left:
        main(["bench", "aggregation", "--scale", "smoke", "--seeds", "1", *words])
    return int(left.value.code or 0)


def test_the_jump_is_what_the_knowledgeable_liar_meets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregation, "JUMP_ATTACKS", ("sign-flip", "other-input"))
    assert command("--part", "jump", "--out", str(tmp_path / "out"), "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    rows = {(row["attack"], row["defence"]): row for row in told["jump"]}
    assert rows["other-input", "duplicate"]["tpr"] == 1.0
    assert rows["other-input", "duplicate-only"]["tpr"] == 0.0
    assert rows["sign-flip", "duplicate-only"]["tpr"] == 1.0
    assert (tmp_path / "out" / "jump.csv").is_file()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--part", "everything"), "--part 'everything': known are tests"),
        (("--scale", "huge"), "--scale 'huge': known are tiny, smoke"),
        (("--model", "nowhere"), "no model directory 'nowhere'"),
        (("--attack", "framing"), "attack Framing: it forges no tensor"),
        (("--stages", "3"), "use --stages 4 or more"),
        (("--set", "pipeline.colour=red"), "unknown setting"),
    ],
)
def test_wrong_words_are_refused_before_anything_runs(
    words: tuple[str, ...], why: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(*words, "--out", str(tmp_path / "out")) == 2
    assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_full_directory_is_never_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "kept").touch()
    assert command("--out", str(tmp_path)) == 2
    assert "choose another --out" in capsys.readouterr().err
