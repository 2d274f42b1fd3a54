"""Tables of results: the right numbers, each with its runs, in every form that a reader may want."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from holdfast.errors import ConfigError, DataError
from holdfast.sweep import Record, Store
from holdfast.sweep.draw import figure
from holdfast.sweep.page import page
from holdfast.sweep.record import LINES, write_lines
from holdfast.sweep.sources import read_sources
from holdfast.sweep.table import ResultTable, make_table
from holdfast.sweep.text import csv_means, csv_runs, escaped, latex, markdown

HERE = {"commit": "c0ffee12", "torch": "2.13", "python": "3.11"}
PERPLEXITY = {"none": 100.0, "sign-flip": 300.0, "zeros_50%": None}


def record(attack: str, defence: str, seed: int, **more: Any) -> Record:
    """A run as it might be: undefended, an attack changes perplexity and weights; NaN is null."""
    hurt = PERPLEXITY[attack if defence == "none" else "none"]
    result = {
        "run_id": f"{attack[:2]}{defence[:2]}{seed}",
        "validation_perplexity": None if hurt is None else hurt + 10 * seed,
        "weights_digest": f"{attack if defence == 'none' else 'none'}-{seed}",
        "detected": 5 * seed if attack != "none" and defence != "none" else 0,
    }
    tables: dict[str, Any] = {"training": {"seed": seed}, "defence": {"name": defence}, "attack": []}
    if attack != "none":
        tables["attack"] = [{"spec": attack}]
    axes = {"attack": attack, "defence": defence, "seed": seed}
    given = {"result": result, "environment": HERE, "command": f"holdfast train --set training.seed={seed}", **more}
    return Record(f"{len(attack)}{len(defence)}{seed}".ljust(64, "0"), axes, tables, **given)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    found = [record(attack, defence, seed) for attack in PERPLEXITY for defence in ("none", "duplicate") for seed in range(3)]
    found[4] = record("none", "duplicate", 1, result=None, error="out of <memory> & luck")
    return found


@pytest.fixture(scope="module")
def table(records: list[Record]) -> ResultTable:
    return make_table(records, name="a & b")


def cells(markdown: str) -> list[list[str]]:
    lines = [line for line in markdown.split("##")[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def test_means_intervals_ratios_and_weights(table: ResultTable) -> None:
    """110 ± t(2) 10/sqrt(3) = 110 ± 24.8; 300/100, 310/110, 320/120 against clean."""
    rows = {tuple(row[:2]): row[2:] for row in cells(markdown(table))}
    assert rows["attack", "defence"] == ["runs", "perplexity", "× clean", "weights equal clean", "detected"]
    assert rows["none", "none"] == ["3", "110 ± 25", "1", "3/3", "0"]
    assert rows["sign-flip", "none"] == ["3", "310 ± 25", "2.83 ± 0.41", "0/3", "0"]
    assert rows["sign-flip", "duplicate"] == ["3", "110 ± 25", "1", "3/3", "5 ± 12"]
    assert rows["none", "duplicate"][:4] == ["3 (1 failed)", "110 ± 127 (1 without)", "1 (1 without)", "2/2"]
    assert rows["zeros_50%", "none"][1] == "–"


def test_the_clean_run_is_that_of_the_same_settings() -> None:
    clean, other = record("none", "none", 0), record("sign-flip", "duplicate", 0)
    larger = {**other.tables, "model": {"name": "gpt2:width=99"}}
    lines = make_table([clean, other, Record("x", other.axes | {"model": "larger"}, larger, other.result)]).to_json()
    assert [line["weights"] for line in lines] == [{"equal": 1, "of": 1}, {"equal": 1, "of": 1}, None]


def test_rows_that_pool_say_so(records: list[Record]) -> None:
    pooled = make_table(records, by=["defence"], values=["validation_perplexity"])
    assert [len(line.records) for line in pooled.lines] == [9, 9]
    assert "a row pools runs that differ in attack" in markdown(pooled)


def test_a_geometric_mean_has_its_own_interval(records: list[Record]) -> None:
    (row,) = cells(markdown(make_table(records[:3], geometric=True, values=["validation_perplexity"])))[2:]
    assert row[-1] == "110 [87, 138]"


@pytest.mark.parametrize("form", [markdown, csv_runs, page])
def test_every_number_leads_to_its_runs(form: Callable[[ResultTable], str], table: ResultTable, records: list[Record]) -> None:
    told = form(table)
    for one in records:
        for part in (one.key[:12], one.command, "c0ffee12", *((one.result or {}).get("run_id"),) * one.ok):
            assert str(part) in told


def test_csv_has_every_number_unrounded(table: ResultTable) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_runs(table))))
    assert len(rows) == 18
    assert rows[0]["validation_perplexity"] == "100.0"
    means = list(csv.DictReader(io.StringIO(csv_means(table))))
    assert float(means[0]["validation_perplexity_high"]) - 110 == pytest.approx(24.8413771)
    assert (means[0]["weights_equal"], means[0]["weights_of"]) == ("3", "3")
    assert [len(row["cells"].split()) for row in means] == [3] * 6


def test_latex_is_a_table_with_booktabs(table: ResultTable) -> None:
    lines = [line for line in latex(table).splitlines() if not line.startswith("%")]
    (columns,) = re.findall(r"\\begin\{tabular\}\{([lr]+)\}", lines[0])
    assert columns == "llrrrrr"
    assert [lines[1], lines[3], *lines[-2:]] == ["\\toprule", "\\midrule", "\\bottomrule", "\\end{tabular}"]
    rows = [lines[2], *lines[4:-2]]
    assert all(row.endswith(r" \\") and len(re.findall(r"(?<!\\)&", row)) == len(columns) - 1 for row in rows)
    assert r"zeros\_50\%" in lines[8]
    assert r"110 $\pm$ 25" in lines[4]
    assert "% seed 0, cell " in latex(table)


def test_latex_prints_whatever_a_name_has() -> None:
    told = escaped("a\\b{c}$d#e^f~g<h>i|j[k]\n%")
    assert told == (
        r"a\textbackslash{}b\{c\}\$d\#e\textasciicircum{}f\textasciitilde{}g\textless{}h\textgreater{}i\textbar{}j{[}k{]} \%"
    )


def test_figures_are_equal_for_equal_tables(table: ResultTable) -> None:
    assert figure(table, form="pdf").startswith(b"%PDF")
    drawn = figure(table, form="svg")
    assert drawn == figure(table, form="svg")
    words = "".join(ElementTree.fromstring(drawn).itertext())
    assert "perplexity" in words
    assert "sign-flip, duplicate" in words


def test_nothing_to_draw_is_said(records: list[Record]) -> None:
    with pytest.raises(ConfigError, match="nothing to draw"):
        figure(make_table([records[4]]), form="svg")


class Reader(HTMLParser):
    """Ids, what refers to them, and whether all elements are closed in their order."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.outside: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name == "popovertarget" or (name == "href" and str(value).startswith("#")):
                self.wanted.append(str(value).removeprefix("#"))
            elif name in ("src", "href") or tag == "script":
                self.outside.append(f"{tag} {name}={value}")

    def handle_startendtag(self, tag: str, attrs: Sequence[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"{tag} closed out of order"


def test_the_page_is_whole_and_self_contained(table: ResultTable) -> None:
    reader = Reader()
    told = page(table)
    reader.feed(told)
    assert reader.open == []
    assert len(set(reader.ids)) == len(reader.ids), "two of these cells are twins, with one key"
    assert set(reader.wanted) <= set(reader.ids)
    assert reader.outside == []
    assert "<memory>" not in told
    assert "prefers-color-scheme: dark" in told


def filled(directory: Path, records: Sequence[Record]) -> Path:
    store = Store(directory)
    for one in records:
        store.put(one)
    return directory


def test_several_sweeps_stand_side_by_side(tmp_path: Path, records: list[Record]) -> None:
    one, two = filled(tmp_path / "one", records[:3]), filled(tmp_path / "two", records[:3])
    name, found = read_sources([one, two])
    assert name == "one, two"
    assert [next(iter(record.axes)) for record in found] == ["source"] * 6
    assert [line["runs"] for line in make_table(found).to_json()] == [3, 3]


def test_the_records_of_an_experiment_are_read_from_one_file(tmp_path: Path, records: list[Record]) -> None:
    several = replace(records[0], result={"rows": [{"way": "one", "s": 1.0}, {"way": "two", "s": 2.0}]})
    (tmp_path / "speed").mkdir()
    path = tmp_path / "speed" / LINES
    write_lines(path, [several, *records[1:]])
    for given in (path.parent, path):
        name, found = read_sources([given])
        assert name == "speed"
        assert found[2:] == records[1:]
        assert [record.axes["way"] for record in found[:2]] == ["one", "two"]
        assert [record.result for record in found[:2]] == [{"s": 1.0}, {"s": 2.0}]
        assert found[0].key == found[1].key == several.key
    path.write_text(path.read_text().replace('"s": 2.0', '"s": 3.0'))
    with pytest.raises(DataError, match=r"line 1 is no record of a cell \(its content is not what was written"):
        read_sources([tmp_path / "speed"])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"by": ["atack"]}, "--by 'atack': did you mean 'attack'. the runs have"),
        ({"values": ["x"]}, "--value 'x': the runs have"),
        ({"values": ["perplexty"]}, "--value 'perplexty': did you mean 'perplexity'. the runs have"),
    ],
)
def test_what_is_not_there_is_named(records: list[Record], given: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_table(records, **given)


def test_what_a_column_is_headed_is_a_name_as_well(records: list[Record]) -> None:
    asked, told = make_table(records, values=["perplexity"]), make_table(records, values=["validation_perplexity"])
    assert asked.values == told.values == ("validation_perplexity",)


@pytest.mark.parametrize(
    ("engines", "heading"), [(["memory"], "virtual s"), (["processes"], "run s"), (["memory", "processes"], "virtual / run s")]
)
def test_seconds_are_called_what_the_clocks_of_the_runs_are(engines: list[str], heading: str) -> None:
    found = []
    for seed, engine in enumerate(engines):
        run = record("none", "none", seed)
        found.append(replace(run, tables={**run.tables, "pipeline": {"engine": engine}}, result={"virtual_seconds": 3.0}))
    told = make_table(found, values=["virtual_seconds"])
    assert heading in markdown(told)
    assert heading in latex(told)
    assert heading in page(told)
    assert make_table(found, values=[heading]).values == ("virtual_seconds",)


def test_values_that_are_no_numbers_are_refused(records: list[Record]) -> None:
    with pytest.raises(ConfigError, match="'run_id' has 'nono0', which is no number"):
        make_table(records, values=["run_id"])
