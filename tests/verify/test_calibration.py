"""Bounds come from honest probes alone, stay under their caps, survive a file, and are never made up."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.claim import Direction
from holdfast.errors import ConfigError
from holdfast.verify.calibration import (
    FLOORS,
    GUILTY,
    HIGHEST_ALARM,
    LEAST_MARGIN,
    MARGIN,
    ROUNDOFF,
    Calibration,
    Pairing,
    Probe,
    calibrate,
    from_toml,
)
from holdfast.verify.tolerance import CAP, ROW_CAP, Agreement, Distance, verdict

A, B, C = "a, float32, cpu", "b, float32, cpu", "c, float32, cpu"
DIRECTIONS = st.sampled_from(list(Direction))
SIZES = st.floats(0, CAP * HIGHEST_ALARM / LEAST_MARGIN * 0.999)


def pairing(
    stage: int = 1, direction: Direction = Direction.FORWARD, dtype: str = "float32", one: str = A, other: str = B
) -> Pairing:
    return Pairing.of(stage, dtype, one, other, direction)


def probes(*sizes: float, of: Pairing | None = None, row: float = 2.0, drift: float = 0.0) -> list[Probe]:
    return [Probe(of or pairing(), Distance(size, row * size), drift) for size in sizes]


def table() -> Calibration:
    found = probes(1e-7, 2e-7, 0.0)
    for direction in (Direction.BACKWARD, Direction.UPDATE):
        found += probes(3e-7, 2e-7, 1e-7, of=pairing(2, direction, one=C), drift=1e-6)
    return calibrate(found + probes(1e-3, 2e-3, 0.0, of=pairing(dtype="bfloat16")))


def test_alarm_and_guilt_are_multiples_of_the_largest_probe() -> None:
    row = table().rows[pairing()]
    assert (row.spread.probes, row.spread.equal) == (3, 1)
    assert row.spread.largest == Distance(2e-7, 4e-7)
    assert row.spread.median == Distance(1e-7, 2e-7)
    assert row.bound.alarm.overall == pytest.approx(MARGIN * 2e-7)
    assert row.bound.guilty.overall == pytest.approx(GUILTY * MARGIN * 2e-7)
    assert row.bound.guilty.worst_row == pytest.approx(GUILTY * MARGIN * 4e-7)


@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("dtype", list(ROUNDOFF))
def test_a_pair_that_no_probe_told_apart_may_still_differ_by_a_rounding(direction: Direction, dtype: str) -> None:
    bound = calibrate(probes(0.0, 0.0, 0.0, of=pairing(1, direction, dtype))).rows[pairing(1, direction, dtype)].bound
    overall, row = (floor * ROUNDOFF[dtype] for floor in FLOORS[direction])
    assert bound.alarm == Distance(min(overall, HIGHEST_ALARM * CAP), min(row, HIGHEST_ALARM * ROW_CAP))


@given(st.lists(SIZES, min_size=3, max_size=9), DIRECTIONS, st.sampled_from(list(ROUNDOFF)), st.floats(1.25, 100))
def test_no_probe_alarms_and_nothing_is_above_its_cap(
    sizes: list[float], direction: Direction, dtype: str, margin: float
) -> None:
    made = probes(*sizes, of=pairing(1, direction, dtype), row=10.0)
    bound = calibrate(made, margin).rows[made[0].pairing].bound
    assert all(verdict(probe.distance, bound) is Agreement.WITHIN for probe in made)
    assert bound.guilty.fits(Distance(CAP, ROW_CAP))
    assert bound.alarm.overall >= LEAST_MARGIN * max(sizes)
    assert not bound.guilty.fits(bound.alarm)


def test_near_the_cap_the_margin_shrinks_and_then_there_is_no_bound() -> None:
    near = HIGHEST_ALARM * CAP / LEAST_MARGIN
    assert calibrate(probes(near, 0.0, 0.0)).rows[pairing()].bound.alarm.overall == HIGHEST_ALARM * CAP
    for size, row in ((near * 1.01, 2.0), (1e-3, 200.0)):
        with pytest.raises(ConfigError, match="one numerics class"):
            calibrate(probes(size, 0.0, 0.0, row=row))


@pytest.mark.parametrize("size", [math.nan, math.inf])
def test_a_probe_that_is_not_finite_calibrates_nothing(size: float) -> None:
    with pytest.raises(ConfigError, match="not finite"):
        calibrate(probes(1e-7, size, 1e-7))


@pytest.mark.parametrize("drift", [math.nan, math.inf, -1e-6, 1.5, 1e308])
def test_a_drift_that_is_no_rounding_calibrates_nothing(drift: float) -> None:
    """The limit of a budget is made of it: of NaN no budget can be made, of 1e308 one that nobody ever spends."""
    with pytest.raises(ConfigError, match="drift"):
        calibrate(probes(1e-7, 1e-7, 1e-7, of=pairing(1, Direction.UPDATE), drift=drift))


def test_too_little_is_no_calibration() -> None:
    with pytest.raises(ConfigError, match="2 probes"):
        calibrate(probes(1e-7, 1e-7))
    with pytest.raises(ConfigError, match="nothing was measured"):
        calibrate([])
    for margin in (1.0, math.nan, math.inf):
        with pytest.raises(ConfigError, match="margin"):
            calibrate(probes(1e-7, 1e-7, 1e-7), margin)
    with pytest.raises(ConfigError, match="float64"):
        calibrate(probes(0.0, 0.0, 0.0, of=pairing(dtype="float64")))


# -- asking --------------------------------------------------------------------------------------------------------------


def test_a_bound_is_found_in_either_order() -> None:
    found = table()
    assert found.bound_for(1, "float32", A, B, Direction.FORWARD) == found.bound_for(1, "float32", B, A, Direction.FORWARD)
    assert found.bound_for(1, "bfloat16", B, A, Direction.FORWARD).guilty.overall == CAP


@pytest.mark.parametrize(
    ("stage", "dtype", "other", "direction"),
    [
        (2, "float32", B, Direction.FORWARD),
        (1, "float32", C, Direction.FORWARD),
        (1, "float32", B, Direction.GRADIENT),
        (2, "bfloat16", B, Direction.FORWARD),
    ],
)
def test_what_was_never_measured_has_no_bound(stage: int, dtype: str, other: str, direction: Direction) -> None:
    with pytest.raises(ConfigError, match="a check that cannot run is not a pass"):
        table().bound_for(stage, dtype, A, other, direction)


def test_within_one_class_there_is_no_bound() -> None:
    with pytest.raises(ConfigError, match="bytes are compared"):
        table().bound_for(1, "float32", A, A, Direction.FORWARD)


def test_a_budget_is_what_honest_updates_would_come_to() -> None:
    found = table()
    assert found.budget_for(2, "float32", B, C, steps=10) == pytest.approx(2 * 10 * 1e-6)
    assert found.budget_for(2, "float32", B, C, steps=10, factor=5) == pytest.approx(5 * 10 * 1e-6)
    without = calibrate(probes(0.0, 0.0, 0.0, of=pairing(1, Direction.UPDATE)))
    assert without.budget_for(1, "float32", A, B, steps=10) > 0
    with pytest.raises(ConfigError, match="never measured"):
        found.budget_for(1, "float32", A, B, steps=10)


# -- the file ------------------------------------------------------------------------------------------------------------


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.text(), st.text(), DIRECTIONS, st.lists(SIZES, min_size=3, max_size=4)), max_size=4
    ),
    st.floats(1.25, 9),
)
def test_a_table_survives_its_file(rows: list[tuple[int, str, str, Direction, list[float]]], margin: float) -> None:
    made = [
        probe
        for stage, one, other, d, sizes in rows
        if one != other
        for probe in probes(*sizes, of=pairing(stage, d, one=one, other=other))
    ]
    assert from_toml(table().to_toml()) == table()
    if made:
        found = calibrate(made, margin)
        assert from_toml(found.to_toml()) == found


def broken(old: str, new: str) -> str:
    text = table().to_toml()
    assert old in text
    return text.replace(old, new, 1)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("version = 1", "version = 2", "version 2"),
        ("version = 1\n", "", "version None"),
        ("margin = 8.0\n", "", "needed are version, margin"),
        ("margin = 8.0", 'margin = "3"', "finite number"),
        ("margin = 8.0", "margin = 8.0\nslack = 1", "slack"),
        ("[[pair]]", "[pair]", "TOML"),
        ("stage = 1", "stage = 1\nextra = 1", "extra"),
        ("stage = 1\n", "", "stage"),
        ("stage = 1", "stage = -1", "whole number"),
        ("stage = 1", "stage = true", "whole number"),
        ('dtype = "float32"', 'dtype = "float64"', "float64"),
        ('direction = "forward"', 'direction = "sideways"', "sideways"),
        ("probes = 3", "probes = 2", "too few probes"),
        ("equal = 1", "equal = 4", "more equal probes"),
        ("drift = 0.0", "drift = nan", "finite number"),
        ("drift = 0.0", "drift = -1.0", "finite number"),
        ("drift = 0.0", "drift = 1e308", "drift of at most 1"),
        ("drift = 0.0", "drift = " + "9" * 18, "drift of at most 1"),
        ("version = 1", "version = 0x" + "F" * 5_000, "64 bits"),
        ("version = 1", "version = true", "version True"),
        ("margin = 8.0", "margin = " + "9" * 400, "64 bits"),
        ("margin = 8.0", "margin = 0.5", "margin of at least"),
        ("margin = 8.0", "margin = " + "[" * 5_000, "TOML"),
        ("margin = 8.0", "margin = " + "{a=" * 5_000, "TOML"),
        ("guilty = [", "guilty = [1e-12, ", "values to unpack"),
        (f'classes = ["{A}", ', f'classes = ["z {A}", ', "sorted order"),
        (f'classes = ["{A}", ', "classes = [1, ", "names"),
    ],
)
def test_a_file_that_was_altered_is_refused(old: str, new: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        from_toml(broken(old, new), "numerics.toml")


def test_a_file_cannot_loosen_a_cap_nor_say_a_thing_twice() -> None:
    lines = table().to_toml().splitlines()
    loose = ["guilty = [0.5, 0.5]" if line.startswith("guilty") else line for line in lines]
    with pytest.raises(ConfigError, match=r"pair 1: needed is 0 < alarm < guilty"):
        from_toml("\n".join(loose))
    tight = ["alarm = [1e-12, 1e-12]" if line.startswith("alarm") else line for line in lines]
    with pytest.raises(ConfigError, match="beyond the alarm"):
        from_toml("\n".join(tight))
    text = table().to_toml()
    first = text.split("[[pair]]")[1]
    with pytest.raises(ConfigError, match="stands there twice"):
        from_toml(f"{text}\n[[pair]]{first}")
    with pytest.raises(ConfigError, match="not valid TOML"):
        from_toml("version = ")
