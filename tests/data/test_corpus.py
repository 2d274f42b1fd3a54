"""Every name that `--data` takes gives the same documents each time, with a digest and a held-out part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from holdfast.data import load_corpus, part_of
from holdfast.data.corpus import hold_out, split_articles
from holdfast.errors import ConfigError, DataError

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
needs_corpora = pytest.mark.skipif(not SHARED.is_dir(), reason="the corpora are not at ../shared/data beside the project")


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current directory with no corpora in reach, whatever this machine has."""
    here = tmp_path / "a" / "b"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)
    monkeypatch.delenv("HOLDFAST_DATA", raising=False)
    return here


def test_the_embedded_corpus_is_the_same_each_time_and_holds_out_fresh_text() -> None:
    corpus = load_corpus("embedded")
    assert corpus == load_corpus("embedded", seed=1)
    assert corpus.source.startswith("pydoc_data.topics of Python 3.")
    assert sum(map(len, corpus.train)) > 200_000
    assert 0.05 < sum(map(len, corpus.validation)) / sum(map(len, corpus.train)) < 0.2
    trained = {paragraph.strip() for text in corpus.train for paragraph in text.split("\n\n")}
    held_out = {paragraph.strip() for text in corpus.validation for paragraph in text.split("\n\n")}
    assert not trained & held_out


def test_the_digest_changes_with_one_letter_one_boundary_and_the_split(tmp_path: Path) -> None:
    def digest(train: str, validation: str) -> str:
        (tmp_path / "train.jsonl").write_text(train)
        (tmp_path / "valid.jsonl").write_text(validation)
        return load_corpus(str(tmp_path)).sha256

    a, b, ab, c = (json.dumps({"text": text}) + "\n" for text in ("a", "b", "ab", "c"))
    corpora = [(a + b, c), (ab, c), (a, b + c), (a + c, b), (a + b, c + c)]
    assert len({digest(*each) for each in corpora}) == len(corpora)
    assert digest(a + b, c) == digest(a + '{"text": "  "}\n' + b, c)


def test_the_last_tenth_is_held_out() -> None:
    assert hold_out([str(n) for n in range(25)]) == ([str(n) for n in range(23)], ["23", "24"])
    assert hold_out(["a", "b"]) == (["a"], ["b"])
    assert hold_out(["x" * 995 + "valid"]) == (["x" * 900], ["x" * 95 + "valid"])


def test_a_path_is_a_corpus_of_its_own(elsewhere: Path) -> None:
    Path("poem.txt").write_text("word " * 40)
    corpus = load_corpus("poem.txt")
    assert (corpus.name, corpus.source) == ("poem.txt", "poem.txt")
    assert corpus.train[0] + corpus.validation[0] == "word " * 40


@pytest.mark.parametrize("text", ["", " \n\t\n"])
def test_empty_text_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(text)
    with pytest.raises(DataError, match=r"empty\.txt.*holds no text"):
        load_corpus(str(path))


def test_text_too_short_to_hold_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match="too short to hold a tenth of it out"):
        load_corpus(str(tmp_path / "a.txt"))


def test_a_missing_file_says_what_is_supported(elsewhere: Path) -> None:
    with pytest.raises(
        DataError, match=r"no data at 'nothing\.txt'.*embedded, synthetic, wikitext2.*\.txt, \.jsonl, \.parquet"
    ):
        load_corpus("nothing.txt")


@pytest.mark.parametrize("spec", ["synthetic:order=x", "synthetic:colour=1", "synthetic:tokens=3", "synthetic:order"])
def test_a_wrong_synthetic_parameter_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match="synthetic"):
        load_corpus(spec)


def test_local_folders_are_looked_for_in_order(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def put(root: Path, word: str) -> None:
        (root / "arxiv-abstracts").mkdir(parents=True)
        (root / "arxiv-abstracts" / "train.jsonl").write_text(f'{{"text": "{word}"}}\n{{"text": "v"}}\n')

    put(Path("../shared/data"), "shared")
    assert load_corpus("arxiv").train == ("shared",)
    put(Path("data"), "here")
    assert load_corpus("arxiv").train == ("here",)
    monkeypatch.setenv("HOLDFAST_DATA", str(elsewhere / "nowhere"))
    assert load_corpus("arxiv").train == ("here",)
    put(elsewhere / "set", "set")
    monkeypatch.setenv("HOLDFAST_DATA", str(elsewhere / "set"))
    corpus = load_corpus("arxiv")
    assert (corpus.train, corpus.source) == (("set",), str(elsewhere / "set" / "arxiv-abstracts"))


def test_openwebtext_is_split_by_line(elsewhere: Path) -> None:
    folder = Path("data/openwebtext-1000")
    folder.mkdir(parents=True)
    lines = [json.dumps({"text": f"document {n}"}) for n in range(1, 1001)]
    (folder / "openwebtext-1000.jsonl").write_text("\n".join(lines))
    corpus = load_corpus("openwebtext")
    assert [corpus.train[0], corpus.train[-1]] == ["document 1", "document 900"]
    assert [corpus.validation[0], corpus.validation[-1]] == ["document 901", "document 950"]


def test_articles_begin_at_top_level_headings_only() -> None:
    first = " \n = First = \n \n text = \n = not between blank lines = \n \n = = Section = = \n \n x \n"
    second = " \n = Second ( film ) = \n \n y \n"
    assert split_articles(first + second) == [first, second]
    assert split_articles("no heading") == ["no heading"]


@needs_corpora
@pytest.mark.parametrize(
    ("name", "train", "validation"), [("wikitext2", 600, 60), ("arxiv", 20_000, 1_000), ("openwebtext", 900, 50)]
)
def test_the_corpora_beside_the_project(name: str, train: int, validation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_DATA", str(SHARED))
    corpus = load_corpus(name)
    assert (len(corpus.train), len(corpus.validation)) == (train, validation)
    if name == "wikitext2":
        assert "".join(corpus.validation) == (SHARED / "wikitext-2" / "valid.txt").read_bytes().decode()


def test_parts_of_the_training_text_have_nothing_in_common_and_leave_the_validation_text_alone() -> None:
    corpus = load_corpus("embedded")
    first, second = part_of(corpus, 0.0, 0.5), part_of(corpus, 0.5, 1.0)
    assert first.train + second.train == corpus.train
    assert first.validation == second.validation == corpus.validation
    assert len({corpus.sha256, first.sha256, second.sha256}) == 3
    assert part_of(corpus, 0.0, 1.0) is corpus


def test_a_single_document_is_parted_by_its_text_and_an_empty_part_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("0123456789" * 10)
    corpus = load_corpus(str(tmp_path / "a.txt"))
    assert part_of(corpus, 0.5, 1.0).train == (corpus.train[0][45:],)
    with pytest.raises(DataError, match=r"1 training documents, and none between the shares 0 and 0\.001"):
        part_of(corpus, 0.0, 0.001)
