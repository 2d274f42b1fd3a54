"""Text from the Hugging Face hub through the optional package `datasets`; a local folder in the hub's form works as well."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.data.files import Split, check_text
from holdfast.errors import ConfigError, DataError, MissingExtra
from holdfast.toml import parse_spec


@dataclass(frozen=True)
class HubDataset:
    """One text dataset: its hub name, and which rows to take (`rows=None`: all; else the first ones, streamed)."""

    path: str
    config: str | None = None
    field: str = "text"
    revision: str | None = None
    rows: int | None = None

    def __str__(self) -> str:
        return f"hub:{self.path}" + (f",config={self.config}" if self.config else "")


NAMED = {
    "wikitext2": HubDataset("Salesforce/wikitext", config="wikitext-2-v1"),
    "arxiv": HubDataset("gfissore/arxiv-abstracts-2021", field="abstract", rows=22_000),
    # the main branch holds a loading script, which `datasets` no longer runs
    "openwebtext": HubDataset("Skylion007/openwebtext", revision="refs/convert/parquet", rows=10_000),
}


def parse_hub(text: str) -> HubDataset:
    """Read `hub:OWNER/NAME[,config=C][,field=F][,revision=R][,rows=N]`.

    >>> parse_hub("hub:someone/poems,field=verse")
    HubDataset(path='someone/poems', config=None, field='verse', revision=None, rows=None)
    """
    name, parameters = parse_spec(text)
    path = name.removeprefix("hub:")
    unknown = sorted(set(parameters) - {"config", "field", "revision", "rows"})
    if not path or unknown:
        what = f"unknown parameter {unknown[0]!r}" if unknown else "no dataset named"
        raise ConfigError(f"{text!r}: {what}; expected hub:OWNER/NAME[,config=C][,field=F][,revision=R][,rows=N]")
    rows = parameters.pop("rows", None)
    if rows is not None and (not isinstance(rows, int) or rows < 1):
        raise ConfigError(f"{text!r}: rows must be a positive integer, got {rows!r}")
    return HubDataset(path, rows=rows, **{key: str(value) for key, value in parameters.items()})


def read_hub(dataset: HubDataset) -> Split:
    """The documents of the splits `train` and (where it exists) `validation`."""
    try:
        import datasets
    except ImportError:
        raise MissingExtra("datasets", extra="datasets", purpose=f"loading {dataset} (no local folder has it)") from None
    streaming = dataset.rows is not None
    try:
        splits = datasets.load_dataset(dataset.path, dataset.config, revision=dataset.revision, streaming=streaming)
        if "train" not in splits:
            raise DataError(f"{dataset} has the splits {', '.join(splits)}; it needs one called 'train'")
        train = _texts(splits["train"], dataset)
        validation = _texts(splits["validation"], dataset) if "validation" in splits else None
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"cannot load {dataset}: {reason}; check the name and the connection, "
            "or put its files in a folder and give that folder's path"
        ) from error
    return train, validation


def _texts(rows: Iterable[Mapping[str, Any]], dataset: HubDataset) -> list[str]:
    texts = []
    for number, row in enumerate(itertools.islice(rows, dataset.rows), start=1):
        if dataset.field not in row:
            raise DataError(f"{dataset} has the fields {', '.join(row)}; name the one with the text: ,field={next(iter(row))}")
        texts.append(check_text(row[dataset.field], f"{dataset}, row {number}"))
    return texts
