"""The paper's tables: the grid, the draws, the pre-training text, a small table by the command, going on after a kill."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest

from holdfast.bench.paper.columns import ATTACKS, CLEAN, COLUMNS, DEPTH
from holdfast.bench.paper.figures import printed
from holdfast.bench.paper.grid import ask, cells_of, check_models
from holdfast.bench.paper.pretrain import Starter, make
from holdfast.bench.paper.scale import CORPORA, HELD_BACK, SCALES, PreTraining
from holdfast.bench.paper.table import Results, broken_promises, grid, sections, words
from holdfast.bench.paper.write import latex
from holdfast.cli.main import main
from holdfast.config import resolve
from holdfast.data import load_corpus, part_of
from holdfast.errors import ConfigError, SetupError
from holdfast.sweep import Record
from holdfast.sweep.record import read_lines

SMOKE = ["--scale", "smoke", "--models", "GPT-2", "-q"]


def holdfast(*words_):
    with pytest.raises(SystemExit) as left:
        main([str(word) for word in words_])
    return left.value.code


def smoke(table="table2", **more):
    return ask(table, "smoke", models=("GPT-2",), **more)


def made_up(question, perplexity, digest=lambda column: column):
    """Records as if every cell had been run: `perplexity(column, seed)`."""
    records = []
    for cell in cells_of(question):
        column, seed = cell.axes["column"], cell.axes["seed"]
        values = {"run_id": "r", "validation_perplexity": perplexity(column, seed), "weights_digest": digest(column)}
        records.append(Record(cell.key, dict(cell.axes), dict(cell.tables), values))
    return Results(question, records)


# -- the grid ------------------------------------------------------------------------------------------------------------


def test_table_1_has_the_papers_columns_and_table_2_every_remedy_and_both_controls():
    names = {table: [column.name for column in columns] for table, columns in COLUMNS.items()}
    paper = ["clean", "forward 0.3", "forward 0.7", "backward 0.3", "backward 0.7"]
    assert names["table1"][:6] == ["before", *paper]
    defended = [f"{attack} 0.5, {remedy}" for attack in ATTACKS for remedy in ("skip", "restart", "replace")]
    assert {"before", "clean", "dropout", "depth", *defended, *(f"{attack} 0.5" for attack in ATTACKS)} == set(names["table2"])


@pytest.mark.parametrize("scale", ["tiny", "small", "paper"])
def test_all_fine_tune_as_the_paper_does(scale):
    tables = SCALES[scale].tables
    assert tables["pipeline"] == {"stages": 6, "micro_batches": 4, "micro_batch_size": 1}
    assert tables.get("model", {}).get("dropout", 0.0) == 0.0
    assert (tables["optimizer"]["learning_rate"] == 5e-6) == (scale == "paper")


def test_every_cell_has_a_key_of_its_own_and_the_same_question_the_same_keys():
    question = smoke(seeds=range(3))
    keys = [cell.key for cell in cells_of(question)]
    assert len(set(keys)) == len(keys) == 1 + 3 * 15
    assert keys == [cell.key for cell in cells_of(question)]
    assert not set(keys) & {cell.key for cell in cells_of(smoke(seeds=range(3), steps=4)) if cell.axes["column"] != "before"}


def test_one_seed_strikes_the_same_stages_in_every_column_and_the_control_leaves_out_those():
    settings = {column.name: column.settings(7, 6, 40) for column in COLUMNS["table2"]}
    seeds = {attack["seed"] for tables in settings.values() for attack in tables.get("attack", ())}
    assert len(seeds) == 1
    drawn = settings[DEPTH]["training"]["bypass"]
    assert 10 < len(drawn) < 30
    assert {stage for _step, stage in drawn} <= {1, 2, 3, 4}
    assert [len(settings[f"{attack} 0.5"]["attack"]) for attack in ATTACKS] == [1, 1, 2]


def test_unknown_names_are_refused():
    with pytest.raises(ConfigError, match=r"--scale 'huge'.*tiny, small, paper, smoke"):
        ask("table1", "huge")
    with pytest.raises(ConfigError, match=r"no model 'GPT-5' at --scale tiny; there are 'GPT-2 small'"):
        ask("table1", "tiny", models=("GPT-5",))


def test_where_clean_runs_overfit_they_read_little_often_and_columns_can_be_chosen():
    question = smoke(overfit=True, columns=("depth", "forward 0.5, skip"))
    assert [column.name for column in question.columns] == ["clean", "depth", "forward 0.5, skip"]
    training = cells_of(question)[0].config.training
    assert (training.steps, training.evaluate_every) == (4, 2)
    tiny, plain = SCALES["tiny"].overfit, SCALES["tiny"].tables
    read = tiny["training"]["steps"] * 4 * plain["data"]["sequence_length"]
    assert read > 4 * tiny["data"]["train_tokens"], "every sequence comes several times"
    with pytest.raises(ConfigError, match="--overfit: nobody has looked for it at --scale paper; known are tiny, smoke"):
        ask("table2", "paper", overfit=True)
    with pytest.raises(ConfigError, match="--columns 'depht': table2 has 'before', 'clean'"):
        ask("table2", "smoke", columns=("depht",))


# -- what the models are made from ---------------------------------------------------------------------------------------


def test_pre_training_reads_nothing_that_a_row_trains_or_validates_on():
    for scale in ("tiny", "small", "smoke"):
        part = SCALES[scale].tables["data"]["train_part"]
        assert part[1] <= HELD_BACK[0]
    corpus = load_corpus("embedded")
    tuned, kept = (set(part_of(corpus, *part).train) for part in (SCALES["smoke"].tables["data"]["train_part"], HELD_BACK))
    assert tuned
    assert kept
    assert not tuned & kept
    assert not kept & set(corpus.validation)


def test_a_row_does_not_start_from_a_model_that_knows_its_corpus():
    assert [PreTraining(1, 300).for_row(data).data for data in CORPORA] == [CORPORA[1:], CORPORA[::2], CORPORA[:2]]


def test_a_model_is_made_once_and_another_recipe_is_another_model(tmp_path):
    told = []
    starter = Starter("gpt2:layers=6,width=16,heads=2", SCALES["smoke"].pre_training)
    first = make(starter, tmp_path, told.append)
    assert make(starter, tmp_path, told.append) == first
    assert len(told) == 1
    record = json.loads((first / "pretraining.json").read_text())
    assert record["steps"] == 5
    assert math.isfinite(record["last_loss"])
    assert record["environment"]["torch"]
    assert replace(starter, recipe=replace(starter.recipe, steps=6)).name != starter.name


# -- the table -----------------------------------------------------------------------------------------------------------


def test_the_papers_figures_stand_beside_ones_own_at_the_papers_scale_only():
    assert printed("table1", "OPT-350M", "wikitext2")["backward 0.7"] == 2128.31
    for scale, there in (("paper", True), ("tiny", False)):
        question = ask("table1", scale, models=("OPT-350M",) if there else ("OPT",), data=("arxiv",))
        results = made_up(question, lambda _column, _seed: 20.0)
        told = [cell for part in sections(question) for line in grid(results, part)[1] for cell in line]
        assert ("20.0 [paper: 22.61]" in told) == there
        assert any("paper:" in cell for cell in told) == there
        assert any("the paper's 5e-06, which would barely move" in line for line in words(results)) != there


def test_the_words_follow_from_the_numbers():
    question = smoke(seeds=range(3))

    def perplexity(column, seed):
        return {"before": 200.0, CLEAN: 100.0 + seed, "forward 0.5": 300.0 + seed}.get(column, 101.0)

    told = "\n".join(words(made_up(question, perplexity, digest=lambda _column: "same")))
    assert "Clean fine-tuning improves on the starting model in 1 of 1 rows (0.51 times before)" in told
    assert "forward 0.5, undefended: 2.98 times clean; in 1 of 1 rows every attacked run is worse than every clean one" in told
    assert (
        "200.00 standard deviations of the clean seeds apart; seed by seed 2.98 times clean, 95 % interval 2.93 to 3.03" in told
    )
    assert "Defended by replace: 9 of 9 runs end with the weights of the clean run, bit for bit." in told
    assert "9 of 9 runs with skip end with the bits of that control" in told


def test_overfitting_is_told_from_the_best_on_the_way():
    results = made_up(smoke(overfit=True, seeds=range(2)), lambda _column, seed: 130.0 + seed)
    assert not any(line.startswith("Overfitting") for line in words(results))
    for record in results.records:
        record.result.update(best_perplexity=100.0, best_step=20)
    (told,) = (line for line in words(results) if line.startswith("Overfitting"))
    assert "2 of 2 clean runs end worse than they had been: 1.30 to 1.31 times their own best, which was after step 20." in told


def test_other_weights_under_replace_are_a_broken_promise_and_infinite_perplexity_is_told():
    results = made_up(smoke(), lambda column, _seed: None if column == "both 0.5" else 5.0)
    assert any(line.startswith("forward 0.5, replace: 1 of 1 runs have other weights") for line in broken_promises(results))
    assert any("0 of 3 runs with skip end with the bits of that control." in line for line in words(results))
    assert "inf" in latex(results)


def test_what_cannot_be_had_is_named_with_what_to_download(monkeypatch, tmp_path):
    def nowhere(*_address):
        raise OSError("no such host")

    monkeypatch.setattr("socket.getaddrinfo", nowhere)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_file: None)
    advice = r"hf download facebook/opt-350m --local-dir DIR.*--model-dir 'OPT-350M=DIR'"
    named = rf"facebook/opt-350m \(OPT-350M\), .*{advice}.*no such host"
    with pytest.raises(SetupError, match=named):
        check_models(ask("table1", "paper", device="cpu"))
    with pytest.raises(SetupError, match=r"holds no config\.json"):
        check_models(ask("table1", "paper", models=("OPT-350M",), directories={"OPT-350M": str(tmp_path)}))


# -- the command ---------------------------------------------------------------------------------------------------------


def test_a_killed_table_goes_on_to_the_same_table(tmp_path, capsys):
    out, bench = tmp_path / "out", ("bench", "table2", *SMOKE)
    assert holdfast(*bench, "--out", out, "--json") == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert told["cells"] == 16
    assert told["failed"] == 0
    assert any("Defended by replace: 3 of 3" in line for line in told["words"])
    assert any("3 of 3 runs with skip end with the bits of that control" in line for line in told["words"])
    assert {path.suffix for path in out.glob("table2.*")} == {".md", ".tex", ".csv", ".svg", ".pdf", ".png"}
    records = read_lines(out / "cells.jsonl")
    assert all(record.result["run_id"] and record.environment["torch"] and record.started for record in records)
    assert resolve(records[1].tables).optimizer.learning_rate == 1e-3
    assert records[0].command.startswith(f"holdfast eval {out}/store/models/gpt2-")
    assert records[1].command.startswith("holdfast train --set")
    assert f"model.name={out}/store/models" in records[1].command
    assert "paper:" not in (out / "table2.md").read_text()

    lost = sorted((out / "store/cells").iterdir())[::3]
    for path in lost:
        path.unlink()
    assert holdfast(*bench, "--out", out, "--dry-run") == 0
    assert f"16 cells, {len(lost)} to be run: about " in capsys.readouterr().out
    table = (out / "table2.tex").read_text()
    assert holdfast(*bench, "--out", out) == 0
    assert (out / "table2.tex").read_text() == table
    assert "forward 0.5" in capsys.readouterr().out


def test_the_papers_scale_takes_models_from_directories(tmp_path, capsys):
    given = make(Starter("opt:layers=6,width=16,heads=2", SCALES["smoke"].pre_training), tmp_path, lambda _line: None)
    chosen = ["--scale", "paper", "--device", "cpu", "--models", "OPT-350M", "--data", "embedded", "--steps", "2", "-q"]
    small = ["--set", "data.sequence_length=16", "--set", "data.validation_tokens=128"]
    words_ = ("bench", "table1", *chosen, *small, "--out", tmp_path / "out", "--model-dir", f"OPT-350M={given}")
    assert holdfast(*words_) == 0
    told = capsys.readouterr().out
    assert "Scale paper: 2 steps at learning rate 5e-06; with data.sequence_length=16" in told
    assert "Defended by replace: 1 of 1" in told


@pytest.mark.slow
def test_the_small_scale_runs_on_a_cpu_in_bfloat16(tmp_path, monkeypatch):
    scale = SCALES["small"]
    brief = replace(scale, pre_training=replace(scale.pre_training, steps=2, vocabulary=300, batch=1, tokens=20_000))
    narrow = replace(brief, models={"GPT-2 small": "gpt2:layers=6,width=32,heads=2"}, chosen={"table1": ("GPT-2 small",)})
    monkeypatch.setitem(SCALES, "small", narrow)
    settings = ["--set", "data.train_tokens=20000", "--set", "data.validation_tokens=512"]
    words_ = ["bench", "table1", "--scale", "small", "--device", "cpu", "--data", "embedded", "--steps", "2", *settings]
    assert holdfast(*words_, "--out", tmp_path / "out", "-q") == 0
    assert "the weights of the clean run, bit for bit" in (tmp_path / "out/table1.md").read_text()
