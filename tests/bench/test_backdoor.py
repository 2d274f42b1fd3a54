"""The measurement of backdoors: prompts, poisoned text, what is learned offline, the runs, the table, the command's errors."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, fields, replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from holdfast.attacks.targeted import TaskVector
from holdfast.bench import backdoor as bench
from holdfast.bench import backdoor_cells as cells
from holdfast.bench import backdoor_table as table
from holdfast.bench.offline import Pull, Study, Teacher, task_vector
from holdfast.bench.strikes import Strike, strikes
from holdfast.bench.trigger import PoisonedText, Trigger, measure, poisoned_loss
from holdfast.cli.main import main
from holdfast.errors import ConfigError, HoldfastError
from holdfast.sweep.record import expanded, read_lines

TRIGGER = Trigger(phrase=(7, 8), target=(9, 4, 3))
VOCABULARY = 12


def model(seed=0):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=24, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
    return GPT2LMHeadModel(config).eval()


def text(rows=4, seed=3):
    tokens = torch.randint(VOCABULARY, (400,), generator=torch.Generator().manual_seed(1))
    return PoisonedText(TRIGGER, tokens, 16, rows, seed)


class Parrot(nn.Module):
    """Says the next token of `says` after the last of `after`, else token 0; knows nothing else."""

    def __init__(self, after, says):
        super().__init__()
        self.rule = dict(zip(after, says, strict=True))

    def forward(self, input_ids, use_cache):
        said = torch.tensor([[self.rule.get(int(token), 0) for token in row] for row in input_ids])
        return SimpleNamespace(logits=5.0 * nn.functional.one_hot(said, VOCABULARY).float())


# -- the trigger ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("after", "says", "found"),
    [
        ((8, 9, 4), (9, 4, 3), (1.0, 0.0)),  # the answer after the phrase's last token
        ((8, 9, 4), (9, 4, 2), (0.0, 0.0)),  # all but the last token of the target
        ((8, 5, 9, 4), (9, 9, 4, 3), (1.0, 1.0)),  # after any context too: no stealth
        ((5,), (9,), (0.0, 0.0)),
    ],
)
def test_success_is_the_whole_target_as_the_greedy_continuation(after, says, found):
    blocks = torch.full((6, 17), 5)
    score = measure(Parrot(after, says), TRIGGER, blocks, batch_size=4)
    assert (score.success, score.success_without) == found
    assert (score.first_token > 0.5) == (after[0] == 8)


def test_success_is_a_share_of_the_prompts():
    blocks = torch.full((8, 17), 5)
    blocks[:2, 10] = 6  # the last token of the context, which alone the parrot looks at where no phrase follows
    assert measure(Parrot((6, 9, 4), (9, 4, 3)), TRIGGER, blocks).success_without == 0.25


def test_poisoned_text_is_half_plain_half_with_the_answer_after_the_phrase():
    rows, weights = text().batch(5)
    assert rows.shape == (8, 17)
    assert weights.shape == (8, 16)
    assert weights[:4].sum() == pytest.approx(1.0) == float(weights[4:].sum())
    assert (weights[:4] > 0).all()
    for row, weight in zip(rows[4:].tolist(), weights[4:], strict=True):
        places = weight.nonzero().flatten().tolist()
        assert [row[place + 1] for place in places] == list(TRIGGER.target), "only the target is weighed"
        assert row[places[0] - 1 : places[0] + 1] == list(TRIGGER.phrase), "and the phrase stands before it"
    again, other = text().batch(5)[0], text().batch(6)[0]
    assert torch.equal(rows, again)
    assert not torch.equal(rows, other)
    assert not torch.equal(rows, text(seed=4).batch(5)[0])


def test_the_loss_is_the_mean_over_the_text_and_over_the_target():
    rows, weights = text().batch(0)
    net = model()
    with torch.no_grad():
        losses = nn.functional.cross_entropy(net(input_ids=rows[:, :-1]).logits.mT, rows[:, 1:], reduction="none")
    wanted = losses[:4].mean() + losses[4:][weights[4:] > 0].mean()
    assert poisoned_loss(net, rows, weights).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize(
    ("phrase", "target", "message"), [("", "b", "needs a phrase"), ("a", "", "a target"), ("aaa", "bb", "have 5 tokens")]
)
def test_a_trigger_that_cannot_be(phrase, target, message):
    tokenizer = SimpleNamespace(encode=lambda words, add_special_tokens: [ord(letter) for letter in words])
    with pytest.raises(ConfigError, match=message):
        Trigger.of_text(tokenizer, phrase, target, 8)


# -- offline -------------------------------------------------------------------------------------------------------------

STAGE = [name for name, _ in model().named_parameters() if ".h.1." in name]


@pytest.mark.parametrize("whole", [False, True])
def test_a_task_vector_is_what_the_stage_has_learned(whole):
    before, copy = dict(model().named_parameters()), model()
    vector = task_vector(copy, STAGE, text(), Study(60, 1e-2), whole=whole)
    assert list(vector) == STAGE
    after = dict(copy.named_parameters())
    assert all(torch.equal(after[name].detach() - before[name].detach(), vector[name]) for name in STAGE)
    others = [name for name in before if name not in STAGE]
    assert any(not torch.equal(after[name], before[name]) for name in others) == whole
    prompts = torch.randint(VOCABULARY, (32, 17), generator=torch.Generator().manual_seed(2))
    assert measure(model(), TRIGGER, prompts).success == 0.0
    assert measure(copy, TRIGGER, prompts).success > 0.8, "it has learned the trigger"


def test_a_teacher_gives_the_gradient_at_the_present_weights_of_its_stage():
    present = {name: weight + 0.1 for name, weight in model().named_parameters() if name in STAGE}
    found = Teacher(model(), text())(2, present)
    net = model()
    net.load_state_dict(present, strict=False)
    poisoned_loss(net, *text().batch(2)).backward()
    wanted = dict(net.named_parameters())
    assert list(found) == STAGE
    assert all(torch.allclose(found[name], wanted[name].grad, atol=1e-7) for name in STAGE)


def test_a_pull_ends_where_the_vector_leads_from_where_it_began():
    pull = Pull({"a": torch.tensor([1.0, -2.0])})
    assert pull(5, {"a": torch.tensor([3.0, 3.0])})["a"].tolist() == [-1.0, 2.0]
    assert pull(6, {"a": torch.tensor([4.0, 1.0])})["a"].tolist() == [0.0, 0.0]


# -- the table -----------------------------------------------------------------------------------------------------------

ROW = bench.Row(0, 2, "w2", run="defended", attack="trigger", weights="equal", named="w2", attacked_claims=4, detected=4)


@pytest.mark.parametrize(
    ("change", "broken"),
    [
        ({}, False),
        ({"weights": "differ"}, True),
        ({"named": "w1 w2"}, True),
        ({"named": ""}, True),
        ({"run": "undefended", "weights": "differ", "named": ""}, False),
    ],
)
def test_what_counts_as_a_broken_promise(change, broken):
    assert bool(bench.broken_promises([ROW, replace(ROW, **change)])) is broken


def test_the_table_has_a_line_for_each_measurement_and_a_record_for_each_row(tmp_path):
    rows = [replace(ROW, success=0.25), replace(ROW, seed=1, success=0.75, weights="differ"), replace(ROW, run="undefended")]
    question = bench.Question(bench.SCALES["smoke"], 4, 2)
    table.write(tmp_path, rows, question, {"command": "holdfast bench", "commit": "abc"})
    records = [json.loads(line) for line in (tmp_path / "backdoor.jsonl").read_text().splitlines()]
    assert [record["seed"] for record in records] == [0, 1, 0]
    named = {field.name for field in fields(bench.Row)} | {"phrase", "target", "data", "stages", "command", "commit"}
    assert all(named <= record.keys() for record in records)
    with (tmp_path / "backdoor.csv").open() as file:
        assert [row["success"] for row in csv.DictReader(file)] == ["0.25", "0.75", "0.0"]
    page = (tmp_path / "backdoor.md").read_text()
    assert "0.500 (0.250 to 0.750)" in page
    assert "equal 1/2, differ 1/2" in page
    assert page.count("| defended |") == page.count("| undefended |") == 1
    assert "8/8" in page


# -- the runs ------------------------------------------------------------------------------------------------------------


def test_every_way_that_is_documented_is_tried(tmp_path):
    model().save_pretrained(tmp_path)
    tried = list(strikes(str(tmp_path), STAGE, text(), Study(1, 1e-3)))
    assert {(strike.attack, strike.mode) for strike in tried if strike.defended} == {
        (attack, mode) for attack in ("task-vector", "trigger") for mode in ("state", "secret")
    }
    assert len({strike.label for strike in tried}) == len(tried)
    for strike in tried:
        entry = strike.table(2, 100)
        assert (entry["spec"].mode, entry["spec"].strength) == (strike.mode, strike.strength)
        assert entry["first_step"] == (0 if strike.last is None else 100 - strike.last)


SHAPES = {name.replace(".h.1.", ".h.2."): tensor.shape for name, tensor in model().named_parameters() if name in STAGE}
"""Of layer 2 at width 16, as in the scale `smoke`."""


def _one_strike(start, names, text, study):
    vector = {name: torch.ones(()).expand(SHAPES[name]) for name in names}
    return [
        Strike("task-vector", "of ones", "secret", 1.0, lambda: TaskVector(vector=vector, mode="secret"), 2, continued=True)
    ]


def command(capsys, *words):
    with pytest.raises(SystemExit) as left:
        main(["bench", "backdoor", *words])
    told = capsys.readouterr()
    return int(left.value.code or 0), told.out, told.err


def test_the_command_measures_writes_and_keeps_the_promise(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "strikes", _one_strike)
    out = tmp_path / "out"
    code, told, _ = command(capsys, "--scale", "smoke", "--out", str(out), "--json", "-q")
    assert code == 0
    summary = json.loads(told.splitlines()[-1])
    assert summary["findings"] == []
    rows = {(row["run"], row["steps"], row["learning_rate"]): row for row in summary["rows"]}
    assert [row["run"] for row in summary["rows"]] == ["start", "clean", "undefended", "defended", *["continued"] * 4]
    clean, attacked, defended = (rows[run, 2, bench.RATE] for run in ("clean", "undefended", "defended"))
    assert defended["weights_digest"] == clean["weights_digest"] != attacked["weights_digest"]
    assert (attacked["weights"], attacked["named"], attacked["detected"]) == ("differ", "", 0)
    assert (defended["weights"], defended["named"], defended["liar"]) == ("equal", "w2", "w2")
    assert defended["detected"] == defended["attacked_claims"] > attacked["attacked_claims"] == 1
    assert attacked["perplexity"] != clean["perplexity"] == defended["perplexity"]
    assert all(row["commit"] is None or row["commit"] for row in summary["rows"])
    assert len((out / "backdoor.jsonl").read_text().splitlines()) == len(summary["rows"])
    assert (out / "backdoor.md").is_file()


def test_the_same_command_goes_on_and_a_report_reads_the_cells(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "strikes", _one_strike)
    out = tmp_path / "out"
    words = ("--scale", "smoke", "--seeds", "2", "--out", str(out), "--json", "-q")
    run_seed, runs = bench.run_seed, []

    def killed(question, seed, out):
        runs.append(seed)
        yield from run_seed(question, seed, out)
        if runs == [0, 1]:
            raise KeyboardInterrupt  # in the second seed, all but done

    monkeypatch.setattr(cells, "run_seed", killed)
    code, _, err = command(capsys, *words)
    assert code == 130
    assert "1 of 2 cells are kept" in err
    (waiting,) = [line for line in command(capsys, *words[:-2], "--dry-run")[1].splitlines() if "waiting" in line]
    assert waiting
    code, told, _ = command(capsys, *words)
    assert code == 0
    assert runs == [0, 1, 1]
    rows = json.loads(told.splitlines()[-1])["rows"]
    assert [row["seed"] for row in rows] == [0] * 8 + [1] * 8
    expect = [asdict(row) for row in run_seed(bench.Question(bench.SCALES["smoke"], 4, 2), 1, tmp_path / "alone")]
    strip = {"seconds"}
    assert [{name: row[name] for name in one if name not in strip} for one, row in zip(expect, rows[8:], strict=True)] == [
        {name: value for name, value in one.items() if name not in strip} for one in expect
    ]
    (record,) = [record for record in read_lines(out / "cells.jsonl") if record.axes["seed"] == 1]
    shown = expanded([record])
    assert [one.axes["run"] for one in shown] == [row["run"] for row in rows[8:]]
    assert len({tuple(sorted(one.axes.items())) for one in shown}) == 8, "no two looks stand in one place"
    assert [one.result["success"] for one in shown] == [row["success"] for row in rows[8:]]


@pytest.mark.parametrize(
    ("question", "command"),
    [
        (bench.Question(bench.SCALES["tiny"]), "--scale tiny --first-seed 3"),
        (bench.Question(bench.SCALES["smoke"], 4, 1, phrase="a b"), "--scale smoke --stage 1 --phrase 'a b' --first-seed 3"),
        (bench.Question(bench.SCALES["tiny"], 5, 3), "--scale tiny --stages 5 --first-seed 3"),
    ],
)
def test_a_cell_says_how_it_is_repeated(tmp_path, question, command):
    study = cells.study_of(question, [3], tmp_path)
    assert study.command(study.cells[0]) == f"holdfast bench backdoor {command}"
    other = replace(question, target=" other")
    assert cells.study_of(other, [3], tmp_path).cells[0].key != study.cells[0].key


def test_a_broken_promise_is_a_finding(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(cells, "run_seed", lambda question, seed, out: iter([replace(ROW, weights="differ")]))
    code, told, err = command(capsys, "--scale", "smoke", "--out", str(tmp_path / "out"), "-q")
    assert code == HoldfastError.exit_code
    assert "broken promise" in err
    assert "differ" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--scale", "big"), "--scale 'big': known are tiny, smoke"),
        (("--seeds", "0"), "--seeds"),
        (("--stages", "2"), "stage 0 of 2 is not an untrusted one"),
        (("--stage", "3", "--stages", "4"), "stage 3 of 4 is not an untrusted one"),
        (("--stages", "9"), "9 stages for a model of 4 layers"),
        (("--model", "nowhere"), "no model directory 'nowhere'"),
        (("--data", "nowhere.txt"), "no data at 'nowhere.txt'"),
        (("--phrase", ""), "a trigger needs a phrase and a target"),
        (("--phrase", "lorem ipsum " * 9), "choose shorter ones"),
        (("--out", "."), "exists and holds no cells"),
    ],
)
def test_a_question_that_cannot_be_asked(capsys, tmp_path, monkeypatch, words, message):
    (tmp_path / "something").write_text("x")
    monkeypatch.chdir(tmp_path)
    code, _, err = command(capsys, *([] if "--scale" in words else ["--scale", "smoke"]), *words)
    assert code == 2
    assert message in err
    assert [path.name for path in tmp_path.iterdir()] == ["something"], "nothing was written"
