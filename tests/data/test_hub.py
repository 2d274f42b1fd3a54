"""Loading by hub name, on small local folders in the hub's form; no network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from holdfast.data import hub, load_corpus
from holdfast.data.corpus import split_articles
from holdfast.errors import ConfigError, DataError, MissingExtra

datasets = pytest.importorskip("datasets", reason="needs the package datasets")


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def repository(root: Path, **splits: list[dict[str, object]]) -> Path:
    root.mkdir(exist_ok=True)
    for split, rows in splits.items():
        (root / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def rows(*texts: str, field: str = "text") -> list[dict[str, object]]:
    return [{"id": n, field: text} for n, text in enumerate(texts)]


def test_train_and_validation_splits_are_read(tmp_path: Path) -> None:
    root = repository(tmp_path / "poems", train=rows("a", "b"), validation=rows("v"), test=rows("t"))
    corpus = load_corpus(f"hub:{root}")
    assert (corpus.train, corpus.validation, corpus.source) == (("a", "b"), ("v",), f"hub:{root}")


def test_another_field_and_the_first_rows_only(tmp_path: Path) -> None:
    root = repository(tmp_path / "poems", train=rows(*"abcdef", field="abstract"))
    corpus = load_corpus(f"hub:{root},field=abstract,rows=4")
    assert (corpus.train, corpus.validation) == (("a", "b", "c"), ("d",))


def test_wikitext_rows_become_articles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["", " = One = \n", "", " x \n", "", " = = Part = = \n", "", " y \n", "", " = Two = \n", "", " z \n"]
    root = repository(tmp_path / "wikitext", train=rows(*lines), validation=rows(*lines[:4]))
    monkeypatch.setitem(hub.NAMED, "wikitext2", hub.HubDataset(str(root)))
    corpus = load_corpus("wikitext2")
    assert list(corpus.train) == split_articles("".join(line or " \n" for line in lines))
    assert (len(corpus.train), len(corpus.validation)) == (2, 1)


def test_a_wrong_field_or_split_is_named(tmp_path: Path) -> None:
    root = repository(tmp_path / "poems", train=rows("a", field="verse"))
    with pytest.raises(DataError, match=r"has the fields id, verse; name the one with the text"):
        load_corpus(f"hub:{root}")
    root = repository(tmp_path / "tests", test=rows("a"))
    with pytest.raises(DataError, match=r"has the splits test; it needs one called 'train'"):
        load_corpus(f"hub:{root}")


@pytest.mark.parametrize("name", ["wikitext2", "arxiv", "openwebtext", "hub:nobody/nothing"])
def test_offline_is_one_clear_error(name: str) -> None:
    with pytest.raises(DataError, match=r"cannot load hub:.*check the name and the connection"):
        load_corpus(name)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"hub:gfissore/arxiv-abstracts-2021.*holdfast\[datasets\]"):
        load_corpus("arxiv")


@pytest.mark.parametrize("spec", ["hub:", "hub:a/b,colour=red", "hub:a/b,rows=0", "hub:a/b,rows=many"])
def test_a_wrong_specification_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="hub:"):
        load_corpus(spec)
