"""Reports: what happened can be read back, a comparison says which weights are equal, and the page needs nothing outside it."""

from __future__ import annotations

import csv
import io
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.errors import DataError
from holdfast.event import (
    REAL,
    VIRTUAL,
    Alert,
    Evaluated,
    Event,
    Joined,
    Paced,
    Paused,
    Placed,
    Reseated,
    Ruling,
    RunFinished,
    RunStarted,
    StagesSkipped,
    StepRestarted,
    StepSealed,
    TakenOver,
    WorkerLost,
)
from holdfast.report import (
    JsonlReport,
    LineProgress,
    LiveProgress,
    RunRecord,
    TensorBoard,
    make_record,
    open_progress,
    read_report,
    read_run,
    render_csv,
    render_html,
    render_markdown,
    write_run,
)
from holdfast.report.changes import account
from holdfast.report.comparison import clean_run, other_settings
from holdfast.report.curves import loss_curves
from holdfast.report.html import headline, series
from holdfast.report.placements import placement_table, seatings
from holdfast.report.svg import Axis, spread
from holdfast.report.tables import rows
from holdfast.report.tally import Tally, tell
from holdfast.report.timeline import timeline

STEPS = 150
Timed = list[tuple[Event, float]]


def started(stages: int = 6) -> RunStarted:
    blocks = [f"layers {i} to {i}, 49,984 parameters" for i in range(stages)]
    return RunStarted(
        run="r-1",
        command=("holdfast", "demo", "--out", "holdfast demo"),
        environment={"python": "3.11.7", "torch": "2.13.0", "platform": "Linux x86_64", "threads": "1", "commit": "73c6763"},
        parameters=333_952,
        stages=tuple(blocks),
        workers=("initiator-0", *(f"w{i}" for i in range(1, stages - 1)), f"initiator-{stages - 1}"),
    )


def story(remedy: str = "", *, rate: float = 0.7, level: float = 4.5, steps: int = STEPS, seed: int = 0) -> Timed:
    """The events of an invented run: a loss that falls to `level`, and with a remedy the lies that were caught on the way."""
    noise, draw = random.Random(seed), random.Random(1)
    events: Timed = [(started(), 0.0)]
    for step in range(steps):
        clock = 1.9 * step
        stage = draw.randrange(1, 5)
        if remedy and draw.random() < rate:
            for micro_batch in range(4):
                key = ClaimKey(step, 0, Direction.BACKWARD if step % 5 == 0 else Direction.FORWARD, stage, micro_batch)
                events.append((Alert(key, "output", (f"w{stage}", f"w{stage + 1}")), clock))
                events.append((Ruling(key, (f"w{stage}",), stage, "output"), clock + 0.1))
            if remedy == "skip":
                events.append((StagesSkipped(step, (stage,), (stage - 1, stage + 1)), clock))
        loss = level + (6.3 - level) * math.exp(-step / 34) + noise.gauss(0, 0.07)
        events.append((StepSealed(step, 0, loss, 0.8, 3e-3, 1024), clock + 1.6))
    events.append((Evaluated(steps - 1, math.exp(level), 2.5), 1.9 * steps))
    events.append((RunFinished("d" * 64, {}), 1.9 * steps))
    return events


def result(perplexity: float, digest: str, **more: Any) -> dict[str, Any]:
    counts = {"attacked_claims": 0, "detected": 0, "missed": 0, "false_alarms": 0, "alerts": 0}
    return {
        "run_id": "r-1",
        "steps": STEPS,
        "validation_perplexity": perplexity,
        "weights_digest": digest * 64,
        "seconds": 11.2,
        "virtual_seconds": 285.0,
        "blamed_stages": {},
        **counts,
        **more,
    }


def four_runs() -> list[RunRecord]:
    attack = [{"spec": "sign-flip", "rate": 0.7}]
    model = {"name": "gpt2:layers=6,width=64,heads=4"}
    forged = {"attacked_claims": 412}

    def config(attacked: bool, name: str, remedy: str = "replace") -> dict[str, Any]:
        defence = {"name": name, "on_alert": remedy}
        return {"model": model, "pipeline": {"stages": 6}, "defence": defence, "attack": attack if attacked else []}

    caught = {**forged, "detected": 412}
    return [
        make_record("clean", result(92.1, "a"), config(False, "none"), story()),
        make_record("attacked", result(312.4, "b", **forged, missed=412), config(True, "none"), story(level=5.7, seed=3)),
        make_record(
            "skip", result(97.9, "c", **caught, stages_skipped=103), config(True, "duplicate", "skip"), story("skip", level=4.6)
        ),
        make_record(
            "replace", result(92.1, "a", **caught, claims_replaced=412), config(True, "duplicate"), story("replace", seed=0)
        ),
    ]


def test_a_report_is_read_back_event_by_event(tmp_path: Path) -> None:
    events = story("replace", steps=12)
    with JsonlReport(tmp_path / "report.jsonl") as report:
        for event, seconds in events:
            report(event, seconds)
    records = read_report(tmp_path / "report.jsonl")
    assert [record["event"] for record in records] == [type(event).__name__ for event, _ in events]
    assert all(record["schema"] == 1 for record in records)


def test_a_report_is_whole_line_by_line_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    report = JsonlReport(path)
    report(started(), 0.0)
    assert len(read_report(path)) == 1, "an event must be on disk before the next one"
    report.close()
    with path.open("a") as file:
        file.write('{"schema": 1, "event": "StepSe')
    assert len(read_report(path)) == 1, "a torn last line is left out"
    with JsonlReport(path) as resumed:
        resumed(started(), 1.0)
    assert [record["seconds"] for record in read_report(path)] == [0.0, 1.0]


def test_numbers_that_json_lacks_survive(tmp_path: Path) -> None:
    with JsonlReport(tmp_path / "report.jsonl") as report:
        report(StepSealed(0, 0, math.nan, math.inf, 0.0, 4), 0.0)
    (record,) = read_report(tmp_path / "report.jsonl")
    assert (record["loss"], record["gradient_norm"]) == ("nan", "inf")
    run = RunRecord("diverged", {}, {}, (record,))
    assert math.isnan(run.losses[0][1])
    assert "so there is no curve" in render_html([run])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [("nonsense\n", "not JSON"), ("[1]\n", "not an event"), ('{"event": "Alert", "schema": 99}\n', "schema 99")],
)
def test_a_broken_report_is_named(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "report.jsonl"
    path.write_text(content)
    with pytest.raises(DataError, match=complaint):
        read_report(path)


def test_a_run_directory_is_read_back(tmp_path: Path) -> None:
    write_run(tmp_path, "clean", {"steps": 3, "validation_perplexity": math.inf})
    (tmp_path / "config.toml").write_text("[pipeline]\nstages = 6\n")
    (tmp_path / "report.jsonl").write_text("")
    run = read_run(tmp_path)
    assert (run.label, run.stages, run.perplexity) == ("clean", 6, math.inf)
    (tmp_path / "config.toml").unlink()
    with pytest.raises(DataError, match=r"config\.toml is missing"):
        read_run(tmp_path)


def test_later_seals_of_a_step_count_after_a_rollback() -> None:
    events: Timed = [(StepSealed(step, 0, loss, 1.0, 0.1, 4), 0.0) for step, loss in [(0, 5.0), (1, 4.0), (0, 5.5), (1, 3.0)]]
    assert make_record("r", {}, {}, events).losses == [(0, 5.5), (1, 3.0)]


def test_who_was_caught_is_counted_from_rulings() -> None:
    run = four_runs()[3]
    assert sum(catch.lies for catch in run.catches) == len(run.of("Ruling"))
    assert [catch.first_step for catch in run.catches] == sorted(catch.first_step for catch in run.catches)
    assert {catch.worker for catch in run.catches} == {"w1", "w2", "w3", "w4"}


def test_the_comparison_says_whose_weights_equal_the_clean_ones() -> None:
    lines = render_markdown(four_runs()).splitlines()
    weights = [line.split("|")[5].strip() for line in lines[2:]]
    assert weights == ["reference", "differ", "differ", "equal"]
    assert "× 3.39" in lines[3]


def settings_of(steps: int = 15, seed: int = 0, **more: Any) -> dict[str, Any]:
    return {"training": {"steps": steps, "seed": seed, "evaluate_every": 5 * steps}, "pipeline": {"stages": 4}, **more}


def test_runs_that_cannot_be_compared_are_not() -> None:
    """Other steps, seeds or texts give another result with nobody lying: neither a ratio nor `differ` means anything."""
    attack = {"attack": [{"spec": "sign-flip"}]}
    runs = [
        RunRecord("clean", result(100.0, "a"), settings_of(), ()),
        RunRecord("short", result(120.0, "b"), settings_of(steps=12), ()),
        RunRecord("both", result(86.0, "c"), settings_of(20, 7, **attack), ()),
        RunRecord("many", result(86.0, "c"), settings_of(20, 7, optimizer={"learning_rate": 1.0}, **attack), ()),
        RunRecord("lied to", result(150.0, "d"), settings_of(**attack) | {"pipeline": {"stages": 6}}, ()),
        RunRecord("again", result(100.0, "a"), settings_of(data={"name": "a.txt"}), ()),
    ]
    assert [(row.ratio, row.weights) for row in rows(runs)] == [
        ("× 1.00", "reference"),
        ("–", "other steps"),
        ("–", "other steps, seed"),
        ("–", "other learning rate, steps and 1 more"),
        ("× 1.50", "differ"),
        ("–", "equal"),
    ]
    page = render_html(runs)
    assert page.count("perplexity lied to") == 1
    assert "perplexity both" not in page
    assert '<td class="weights other">other steps<code>' in page


def test_the_reference_is_the_clean_run_that_most_can_be_compared_with() -> None:
    runs = [RunRecord(str(steps), result(90.0, "a"), settings_of(steps), ()) for steps in (15, 20)]
    lied = RunRecord("lied to", result(180.0, "b"), settings_of(20, attack=[{"spec": "zeros"}]), ())
    assert clean_run(runs) is runs[0]
    assert clean_run([*runs, lied]) is runs[1]
    assert clean_run([lied]) is None


def test_a_text_is_the_same_by_its_bytes_and_not_by_its_name() -> None:
    def run(name: str, digest: str) -> RunRecord:
        began = RunStarted("r", (), {"data_sha256": digest}, 1, (), ())
        return make_record(name, result(9.0, digest), settings_of(data={"name": name}), [(began, 0.0)])

    assert other_settings(run("a.txt", "1"), run("./a.txt", "1")) == []
    assert other_settings(run("a.txt", "1"), run("a.txt", "2")) == ["data"]


def test_csv_keeps_unrounded_numbers() -> None:
    (clean, *_rest) = csv.DictReader(io.StringIO(render_csv(four_runs())))
    assert (clean["label"], clean["validation_perplexity"]) == ("clean", "92.1")
    assert "blamed_stages" not in clean


class Outline(HTMLParser):
    """Collects what a page refers to and checks that its elements nest."""

    VOID = ("meta", "br", "img", "link")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.names: set[str] = set()
        self.addresses: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        for key, value in attrs:
            if key in ("src", "href", "srcset"):
                self.addresses.append(str(value))
            if key == "id":
                self.ids.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_nests_and_needs_nothing_outside_it() -> None:
    page = render_html(four_runs())
    outline = Outline()
    outline.feed(page)
    assert outline.open == []
    assert outline.addresses == []
    assert not outline.names & {"script", "link", "img", "iframe"}
    assert len(outline.ids) == len(set(outline.ids))
    assert not re.search(r"https?://|@import|url\((?!#)", page)
    assert "nan" not in "".join(re.findall(r'(?: d| x| y|cx|cy)="[^"]*"', page)).lower()


def test_the_page_escapes_what_a_run_was_called() -> None:
    run = make_record("<script>alert(1)</script>", result(1.0, "a"), {"pipeline": {"stages": 3}}, story(steps=3))
    assert "<script>" not in render_html([run])


def test_the_headline_claims_equal_weights_only_where_they_are() -> None:
    runs = four_runs()
    assert headline(runs) == "412 forged claims, and the same weights as the clean run, bit for bit"
    assert "same weights" not in headline(runs[:3])
    assert series(runs) == ["blue", "red", "amber", "teal"]


@pytest.mark.parametrize("stages", [2, 3, 12])
def test_a_page_of_one_run_of_any_size(stages: int) -> None:
    events: Timed = [(started(stages), 0.0), (StepSealed(0, 0, 5.0, 1.0, 0.1, 4), 1.0)]
    events += [(WorkerLost("w1", 0, "crash"), 1.5), (TakenOver(1, "w1", "w2", 0), 1.6)]
    page = render_html([make_record("one", result(90.0, "a"), {"pipeline": {"stages": stages}}, events)])
    assert page.count('class="stage-name middle"') == stages
    assert page.count('class="shadow-name middle"') == max(0, stages - 2)
    assert page.count("wire-name middle jump") == max(0, stages - 2)


def crashed(*more: tuple[Event, float], remedy: str = "replace") -> RunRecord:
    """A run of four stages, of which w2 was lost in step 3 together with whatever else is told."""
    layers, seats = ((0, 1), (1, 3), (3, 5), (5, 6)), ("initiator", "w1", "w2", "initiator")
    events: Timed = [(started(4), 0.0), (Placed(0, "as given", layers, seats, (None,) * 4, 1.6, {}, {}), 0.0)]
    events += [(StepSealed(step, 0, 5.0 - step, 1.0, 0.1, 4), 1.0 + step) for step in range(8)]
    events += [
        (Paced(3, 1.6, 1.7), 3.9),
        (WorkerLost("w2", 3, "the worker died"), 4.0),
        (TakenOver(2, "w2", "initiator", 3), 4.1),
    ]
    events += [(Paced(7, 2.1, 2.2), 7.9), *more]
    settings = {"pipeline": {"stages": 4}, "defence": {"name": "duplicate", "on_alert": remedy}, "faults": ["crash"]}
    return make_record("crash", result(90.0, "a", steps=8), settings, events)


def test_a_page_of_a_crash_says_who_was_lost_and_who_took_over() -> None:
    page = render_html([crashed()])
    assert "<h1>8 steps, 1 worker lost, nobody caught lying</h1>" in page
    assert "Who was lost, and when" in page
    assert "<li>In step 3 w2 was lost, and initiator took over stage 2: the worker died.</li>" in page
    assert "No claim was found wrong, and nobody is suspected of a lie." in page
    assert not re.search("left out|done again|proven to have", page)
    assert re.search(r'<p class="legend"><span><svg[^>]*><circle[^>]*class="turn-dot"/></svg>a worker lost</span></p>', page)


def test_who_comes_back_gets_its_seat_again() -> None:
    seats = ("initiator", "w1", "w2", "initiator")
    run = crashed((Joined("w2", 5), 6.0), (Joined("w7", 5), 6.0), (Reseated(6, seats), 6.1))
    assert account(run)[1:] == ["In step 5 w2 came back.", "In step 5 w7 came."]
    assert [(seating.step, seating.why) for seating in seatings(run)][2:] == [(6, "w2 goes to stage 2")]
    assert seatings(run)[-1].primaries == seats


def test_a_page_says_what_was_done_where_nobody_was_proven_to_lie() -> None:
    key = ClaimKey(5, 0, Direction.FORWARD, 1, 0)
    doubted = (Alert(key, "output", ("w1", "w2")), 6.0)
    skipped = render_html([crashed(doubted, (StagesSkipped(5, (1, 2), (0, 3)), 6.1), remedy="skip")])
    assert "Nobody was proven to have lied: suspects were left out of 1 step." in skipped
    redone = render_html([crashed(doubted, (StepRestarted(5, 1, "an alert"), 6.1), remedy="restart")])
    assert "Nobody was proven to have lied: 1 step done again." in redone
    assert "a worker lost, or a step done again" in redone


def test_a_takeover_is_a_change_of_who_carries_what() -> None:
    assert [(seating.step, seating.primaries) for seating in seatings(crashed())] == [
        (0, ("initiator", "w1", "w2", "initiator")),
        (3, ("initiator", "w1", "initiator", "initiator")),
    ]
    rows = re.findall("<tr>(<td class=num>.*?)</tr>", placement_table(crashed()))
    assert [re.findall("<td[^>]*>(.*?)</td>", row) for row in rows] == [
        ["0", "initiator 0, w1 1–2, w2 3–4, initiator 5", "1.600", "1.700", "as given"],
        ["3", "initiator 0, w1 1–2, initiator 3–4, initiator 5", "2.100", "2.200", "w2 was out: initiator took over stage 2"],
    ]


def test_a_long_label_has_room_beside_the_curves() -> None:
    def widest(label: str) -> tuple[float, list[str]]:
        drawn = loss_curves([RunRecord(label, {}, {}, crashed().events)], ["blue"])
        return float(re.findall('x2="([0-9.]+)"', drawn)[0]), re.findall('class="label blue">(.*?)</text>', drawn)

    assert widest("sign-flip, replace")[1] == ["sign-flip, replace"]
    assert widest("short")[0] > widest("sign-flip+faults, replace")[0] > 640
    edge, [shown] = widest("x" * 60)
    assert shown == "x" * 37 + "…"
    assert edge > 640


def test_whatever_is_wider_than_the_page_scrolls_by_itself() -> None:
    page = render_html([crashed()])
    drawings = re.findall(r'(<[^<]*>)<svg [^>]*width="1040"', page)
    assert len(drawings) == 3
    assert set(drawings) == {'<div class="wide">'}
    caught = render_html(four_runs())
    assert set(re.findall("(<[^<]*>)<table", caught)) == {'<div class="wide">'}


def ended_at(label: str, steps: int, level: float = 4.5) -> RunRecord:
    return make_record(label, result(92.1, "a"), {"pipeline": {"stages": 6}}, story(level=level, steps=steps))


def test_the_label_of_a_shorter_run_is_at_the_end_of_its_own_line() -> None:
    """It stood at the edge of the chart, far from its line, as if that had gone on to there."""
    runs = [ended_at("long", 150), ended_at("short", 60), ended_at("short too", 60), ended_at("other", 60, level=6.2)]
    drawn = loss_curves(runs, ["blue", "amber", "teal", "violet"])
    labels = {
        name: (float(x), float(y))
        for x, y, name in re.findall(r'<text x="([0-9.]+)" y="([0-9.]+)" class="label [^"]*">(.*?)</text>', drawn)
    }
    dots = re.findall(r'<circle cx="([0-9.]+)" cy="([0-9.]+)" r="3.5" class="end-dot (\w+)"', drawn)
    assert [colour for _, _, colour in dots] == ["amber", "teal", "violet"]
    edge = float(re.findall('x2="([0-9.]+)"', drawn)[0])
    assert labels["long"][0] > edge
    for (at, height, _), name in zip(dots, ["short", "short too", "other"], strict=True):
        assert 0 < labels[name][0] - float(at) < 40
        assert abs(labels[name][1] - float(height)) < 45
        assert labels[name][0] < edge
    assert abs(labels["short"][1] - labels["short too"][1]) >= 17


def test_round_ticks_and_labels_apart() -> None:
    assert Axis(4.4, 6.6, 0, 1).ticks() == [4.5, 5.0, 5.5, 6.0, 6.5]
    assert spread([50.0, 50.0, 50.0], 10, 0, 60) == [40, 50, 60]


def test_lines_where_nobody_watches() -> None:
    stream = io.StringIO()
    with LineProgress(stream) as progress:
        observe = progress.observer("replace", STEPS)
        for event, seconds in story("replace"):
            observe(event, seconds)
    lines = stream.getvalue().splitlines()
    assert sum("loss" in line for line in lines) == 10
    assert "caught w" in lines[-2]
    assert "\x1b" not in stream.getvalue()


def test_verbose_lines_tell_each_ruling() -> None:
    stream = io.StringIO()
    observe = LineProgress(stream, verbose=True).observer("", 5)
    events = story("replace", steps=5)
    for event, seconds in events:
        observe(event, seconds)
    assert stream.getvalue().count("ruling: ") == sum(isinstance(event, Ruling) for event, _ in events)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_live_table_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Terminal()
    progress = open_progress(stream)
    assert isinstance(progress, LiveProgress)
    with progress:
        observe = progress.observer("replace", STEPS)
        for event, seconds in story("replace"):
            observe(event, seconds)
    shown = stream.getvalue()
    assert "150/150" in shown
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", shown), "NO_COLOR leaves out colours"


@pytest.mark.parametrize(("quiet", "form"), [(False, "text"), (True, "text"), (False, "json")])
def test_what_the_host_says_is_one_line_however_narrow_the_terminal(
    monkeypatch: pytest.MonkeyPatch, quiet: bool, form: Literal["text", "json"]
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    line = "holdfast join holdfast1:" + "x" * 300 + " [bold]"
    with open_progress(stream, quiet=quiet, form=form) as progress:
        progress.observer("", STEPS)
        progress.say(line)
    assert line in stream.getvalue()


@pytest.mark.parametrize(("clock", "named"), [(VIRTUAL, "virtual"), (REAL, "run")])
def test_the_clock_of_the_run_is_called_what_it_is(monkeypatch: pytest.MonkeyPatch, clock: str, named: str) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    stream, lines = Terminal(), io.StringIO()
    for progress in (LiveProgress(stream, clock=clock), open_progress(lines, clock=clock)):
        with progress:
            observe = progress.observer("", 1)
            observe(StepSealed(0, 0, 5.0, 1.0, 0.1, 100), 1.5)
    assert f" {named} s " in re.sub(r"\x1b\[[0-9;]*m", "", stream.getvalue())
    assert f" {named} 1.5 s" in lines.getvalue()
    assert (" virtual " in stream.getvalue() + lines.getvalue()) == (named == "virtual")


def on_the_clock(label: str, clock: str | None, engine: str = "memory") -> RunRecord:
    found = story("replace", steps=20)
    said = {} if clock is None else {"clock": clock}
    config = {"pipeline": {"stages": 6, "engine": engine}, "attack": [{"spec": "sign-flip"}]}
    return make_record(label, result(92.1, "a", **said), config, found)


REAL_RUNS = [on_the_clock("hosted", REAL), on_the_clock("of before", None, "processes")]


@pytest.mark.parametrize("run", REAL_RUNS, ids=lambda run: run.label)
def test_nothing_of_a_run_on_real_clocks_is_called_virtual(run: RunRecord) -> None:
    page, table = render_html([run]), render_markdown([run])
    assert "virtual" not in (page + table).lower()
    assert "at run s" in page
    assert "run second" in page
    assert "| wall s | run s |" in table
    assert next(csv.DictReader(io.StringIO(render_csv([run]))))["clock"] == "run"


def test_virtual_and_real_seconds_stand_in_columns_of_their_own() -> None:
    runs = [on_the_clock("described", VIRTUAL), on_the_clock("real", REAL), on_the_clock("both", "virtual + run")]
    head, _, *body = [[cell.strip() for cell in line.split("|")] for line in render_markdown(runs).splitlines()]
    assert head[-4:-1] == ["virtual s", "run s", "virtual + run s"]
    assert [row[-4:-1] for row in body] == [["285.0", "–", "–"], ["–", "285.0", "–"], ["–", "–", "285.0"]]


def test_quiet_shows_nothing() -> None:
    stream = Terminal()
    with open_progress(stream, quiet=True) as progress:
        progress.observer("x", 1)(started(), 0.0)
    assert stream.getvalue() == ""


def test_a_tally_counts_tokens_and_time() -> None:
    ticks = iter(range(100))
    tally = Tally("", 3, clock=lambda: float(next(ticks)))
    for step in range(3):
        tally(StepSealed(step, 0, 5.0, 1.0, 0.1, 100), step + 1.0)
    assert (tally.step, tally.tokens, tally.wall_seconds, tally.tokens_per_second) == (3, 300, 2.0, 100.0)
    assert tell(RunFinished("", {})) is None


def test_a_tally_does_not_count_the_time_of_waiting_for_machines() -> None:
    now = 0.0
    tally = Tally("", 9, clock=lambda: now)

    def at(moment: float, event: Event) -> None:
        nonlocal now
        now = moment
        tally(event, moment)

    placed = Placed(0, "as given", ((0, 1),), ("initiator",), (None,), 0.1, {}, {})
    at(0.0, started())
    at(60.0, placed)
    at(62.0, StepSealed(0, 0, 5.0, 1.0, 0.1, 100))
    at(64.0, StepSealed(1, 0, 5.0, 1.0, 0.1, 100))
    at(65.0, Paused(2, "nobody has room"))
    at(95.0, placed)
    at(97.0, StepSealed(2, 0, 5.0, 1.0, 0.1, 100))
    assert (tally.tokens, tally.wall_seconds, tally.tokens_per_second) == (300, 6.0, 50.0)


def test_tensorboard_gets_the_curve(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    board = TensorBoard(tmp_path)
    for event, seconds in story(steps=3):
        board(event, seconds)
    board.close()
    (written,) = tmp_path.iterdir()
    content = written.read_bytes()
    assert b"train/loss" in content
    assert b"validation/perplexity" in content


def test_an_alert_that_nobody_ruled_on_is_hollow() -> None:
    """With `skip` the suspects are left out and no referee is asked: the page must not call them liars."""
    key = ClaimKey(1, 0, Direction.FORWARD, 2, 0)
    events: Timed = [(StepSealed(1, 1, 5.0, 1.0, 0.1, 4), 2.0), (Alert(key, "output", ("w2", "w3")), 1.0)]
    run = make_record("skip", {}, {"pipeline": {"stages": 6}}, events)
    assert 'class="unclear forward"' in timeline(run)
    assert "suspects w2, w3" in timeline(run)
    ruled = make_record("replace", {}, {"pipeline": {"stages": 6}}, [*events, (Ruling(key, ("w2",), 2, "output"), 1.1)])
    assert "unclear" not in timeline(ruled)
    assert "w2 lied in 1 forward claim of stage 2" in timeline(ruled)


def test_claims_dropped_with_their_step_are_neither_detected_nor_missed() -> None:
    run = RunRecord("skip", result(90.0, "a", attacked_claims=8, detected=2, missed=1), {}, ())
    assert render_markdown([run]).splitlines()[2].split("|")[9].strip() == "5"


GOOD = '"event": "Alert", "schema": 1, "seconds": 0.5, "reason": "output"'
KEY = '{"step": 0, "attempt": 0, "direction": "forward", "stage": 1, "micro_batch": 0}'


@pytest.mark.parametrize(
    "rest",
    [
        "",
        f', "key": {KEY}',
        f', "key": {KEY}, "suspects": null',
        f', "key": {KEY}, "suspects": [["w1"]]',
        ', "key": null, "suspects": ["w1"]',
        ', "key": {"step": 0}, "suspects": ["w1"]',
        f', "key": {KEY.replace("0,", "[0],", 1)}, "suspects": ["w1"]',
        f', "key": {KEY}, "suspects": ["w1"], "event": "Rumour"',
        f', "key": {KEY}, "suspects": ["w1"], "seconds": null',
    ],
)
def test_an_event_of_another_form_is_refused(tmp_path: Path, rest: str) -> None:
    """Each of these was read, and broke the page that was made of it."""
    path = tmp_path / "report.jsonl"
    path.write_text(f'{{{GOOD}, "key": {KEY}, "suspects": ["w1"]}}\n')
    assert len(read_report(path)) == 1
    path.write_text(f"{{{GOOD}{rest}}}\n")
    with pytest.raises(DataError, match=r"line 1 is no event .*altered or torn"):
        read_report(path)


@pytest.mark.parametrize("line", ["[" * 10_000, '{"a": ' + "9" * 5_000 + "}", '{"a": NaN}', "\udcff"], ids=repr)
def test_a_line_beyond_all_bounds_is_refused(tmp_path: Path, line: str) -> None:
    path = tmp_path / "report.jsonl"
    path.write_bytes(line.encode(errors="surrogateescape") + b"\n")
    with pytest.raises(DataError, match=r"not JSON|not UTF-8"):
        read_report(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("run.json", "[" * 10_000),
        ("run.json", '{"schema": 1, "result": {}}'),
        ("run.json", '{"schema": 1, "label": "x", "result": []}'),
        ("run.json", '{"schema": 1, "label": "x", "result": {"detected": null}}'),
        ("run.json", '{"schema": 1, "label": "x", "result": {"seconds": "soon"}}'),
        ("config.toml", "pipeline = 3"),
        ("config.toml", "a = " + "[" * 5_000),
    ],
)
def test_a_run_of_another_form_is_refused(tmp_path: Path, name: str, content: str) -> None:
    write_run(tmp_path, "clean", {"steps": 3, "seconds": math.nan})
    (tmp_path / "config.toml").write_text("[pipeline]\nstages = 6\n")
    (tmp_path / "report.jsonl").write_text("")
    run = read_run(tmp_path)
    assert "–" in render_markdown([run, run])
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="altered or torn"):
        read_run(tmp_path)


def test_a_time_that_was_not_measured_is_a_dash(tmp_path: Path) -> None:
    run = RunRecord("torn", {"seconds": None, "virtual_seconds": None}, {}, ())
    assert render_markdown([run]).count("–") >= 2
