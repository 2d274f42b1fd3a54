"""Which runs can be compared with the clean one: those that would have its result if nobody lied and nothing broke."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from holdfast.report.record import RunRecord

DECIDING: Mapping[str, tuple[str, ...]] = {
    "model": (),
    "data": (),
    "optimizer": (),
    "training": ("steps", "seed"),
    "pipeline": ("micro_batches", "micro_batch_size", "wire_dtype"),
    "cluster": ("numerics",),
}
"""The settings that decide the result of a clean run, by section; none named: all of it."""
MOST_NAMED = 2


def clean_run(runs: Sequence[RunRecord]) -> RunRecord | None:
    """The reference of a comparison: a run without attack and without fault, that with which most of `runs` can be compared,
    of several the first; None where each has some.
    """
    clean = [run for run in runs if not run.config.get("attack") and not run.config.get("faults")]
    return max(clean, key=lambda one: sum(not other_settings(run, one) for run in runs), default=None)


def other_settings(run: RunRecord, reference: RunRecord) -> list[str]:
    """The settings that decide the result and are not those of `reference`, by their names for people; empty: comparable."""
    mine, theirs = _deciding(run), _deciding(reference)
    unlike = [path for path in dict.fromkeys([*mine, *theirs]) if mine.get(path) != theirs.get(path)]
    texts = [one.started.get("environment", {}).get("data_sha256") for one in (run, reference)]
    if all(texts):  # a file under two names is one file, and one under the same name may be another
        unlike = [path for path in unlike if path != "data.name"] + ["data.name"] * (texts[0] != texts[1])
    return [path.removesuffix(".name").rpartition(".")[2].replace("_", " ") for path in unlike]


def unlike_words(run: RunRecord, reference: RunRecord) -> str:
    """Why `run` cannot be compared, `other steps, seed`; empty where it can."""
    names = other_settings(run, reference)
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    return f"other {', '.join(names[:MOST_NAMED])}{more}" if names else ""


def _deciding(run: RunRecord) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for section, names in DECIDING.items():
        table = run.config.get(section) or {}
        found |= {f"{section}.{name}": _plain(table[name]) for name in (names or table) if name in table}
    # without these it is the plain model, to the bit, however it is cut
    if found.get("model.dropout") or found.get("pipeline.wire_dtype"):
        found["pipeline.stages"] = run.stages
    return found


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
