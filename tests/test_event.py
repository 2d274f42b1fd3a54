"""Every event becomes one line of JSON that names itself and its schema."""

import json
from typing import get_args

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.event import SCHEMA, Alert, Event, RunFinished, StagesSkipped, StepSealed, to_record

KEY = ClaimKey(3, 1, Direction.BACKWARD, 2, 0)


def sample(kind):
    """An event of `kind` with a plausible value in each field, by the field's written type."""
    values = {"str": "w", "int": 3, "float": 0.5, "ClaimKey": KEY, "dict[str, str]": {"torch": "2"}, "dict[str, Any]": {"a": 1}}
    values |= {"tuple[str, ...]": ("w1", "w2"), "tuple[int, ...]": (1, 2)}
    values |= {"tuple[str | None, ...]": (None, "w1"), "tuple[tuple[int, int], ...]": ((0, 1), (1, 3))}
    values |= {"dict[str, float]": {"w1": 0.5}, "dict[str, int]": {"w1": 1 << 30}}
    return kind(**{name: values[field.type] for name, field in kind.__dataclass_fields__.items()})


@pytest.mark.parametrize("kind", get_args(Event))
def test_a_record_has_schema_name_time_and_the_fields_and_survives_json(kind):
    record = to_record(sample(kind), 1.23456789)
    assert json.loads(json.dumps(record)) == record
    assert list(record)[:3] == ["schema", "event", "seconds"]
    assert (record["schema"], record["event"], record["seconds"]) == (SCHEMA, kind.__name__, 1.234568)
    assert set(record) == {"schema", "event", "seconds", *kind.__dataclass_fields__}


def test_keys_and_tuples_become_plain_values():
    record = to_record(Alert(KEY, "output", ("w2", "w3")), 0.0)
    assert record["key"] == {"step": 3, "attempt": 1, "direction": "backward", "stage": 2, "micro_batch": 0}
    assert type(record["key"]["direction"]) is str
    assert record["suspects"] == ["w2", "w3"]
    assert to_record(StagesSkipped(3, (2, 3), (1, 2, 3)), 0.0)["frozen"] == [1, 2, 3]
    assert to_record(RunFinished("ab", {"by": {"w2": (1,)}}), 0.0)["summary"] == {"by": {"w2": [1]}}


def test_numbers_are_kept_exactly():
    sealed = StepSealed(0, 0, 0.1 + 0.2, 1e-30, 3e-3, 256)
    assert json.loads(json.dumps(to_record(sealed, 0.0)))["loss"] == 0.1 + 0.2
