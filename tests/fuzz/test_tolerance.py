"""Tolerance under garbage: whatever is claimed, measured or read from a file, nothing is within a bound that is not near.

tensors, norms, states, drifts --> Distance --> verdict          never WITHIN but for equal bytes, or what an oracle calls near
probes, a table's file         --> bounds and budgets            below their caps and finite, or a ConfigError
claims of two holders          --> Comparer                      the distance of two tensors that came, once, in a bounded heap
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role, StageState
from holdfast.comparer import Comparer
from holdfast.config import OptimizerConfig
from holdfast.digest import same_bytes, tensor_digest
from holdfast.errors import ConfigError
from holdfast.implied import implied_by
from holdfast.optimizer import AdamW, Moments
from holdfast.verify.calibration import Calibration, Pairing, Probe, calibrate, from_toml
from holdfast.verify.resync import Budget, Candidate, compare_updates, judge_update
from holdfast.verify.tolerance import (
    CAP,
    ROW_CAP,
    Agreement,
    Bound,
    Distance,
    distance,
    distance_of_gradients,
    distance_of_norms,
    verdict,
)

LOOSE = Bound(Distance(0.8 * CAP, 0.8 * ROW_CAP), Distance(CAP, ROW_CAP))
"""The loosest that a calibration can give."""

LEAST = Fraction(10) ** -300
"""The square of what no dtype of a model has."""

NUMBERS = [0.0, -0.0, 1.0, -1.0, 1.001, 2.0, 1e-3, 1e-30, 1e30, 3e38, -3e38, 5e-324, 1.7e308, math.nan, math.inf, -math.inf]
SHAPES = [(), (0,), (1,), (4,), (2, 2), (2, 0), (0, 2), (2, 3), (1, 2, 3), (2, 1, 0), (2, 2, 2), (0, 0, 0)]
DTYPES = [torch.float32, torch.bfloat16, torch.float64, torch.float16]


def filled(shape: Sequence[int], dtype: torch.dtype, numbers: Sequence[float]) -> Tensor:
    count = math.prod(shape)
    several = [numbers[i % len(numbers)] for i in range(count)]
    return torch.tensor(several, dtype=torch.float64).reshape(tuple(shape)).to(dtype)


def exact(tensor: Tensor) -> list[Fraction] | None:
    """Its numbers without rounding; None where one is not finite."""
    numbers = tensor.double().flatten().tolist()
    return [Fraction(number) for number in numbers] if all(map(math.isfinite, numbers)) else None


def near(claimed: Tensor, own: Tensor, share: float) -> bool:
    """Whether they are alike and at most `share` apart, relative to one's own: no floating point, so nothing overflows."""
    if claimed.shape != own.shape or claimed.dtype != own.dtype:
        return False
    one, other = exact(claimed), exact(own)
    if same_bytes(claimed, own):
        return True
    if one is None or other is None:
        return False
    error = sum(((x - y) ** 2 for x, y in zip(one, other, strict=True)), Fraction(0))
    return error <= Fraction(share * 1.0001) ** 2 * sum((y**2 for y in other), Fraction(0)) + LEAST


numbers = st.lists(st.sampled_from(NUMBERS), min_size=1, max_size=4)
tensors = st.builds(filled, st.sampled_from(SHAPES), st.sampled_from(DTYPES), numbers)
nudges = st.sampled_from([0.0, 1e-9, 1e-4, 7e-3, 9e-3, 0.5])


def test_distances_of_tensors(hammer: Any) -> None:
    def check(claimed: Tensor, own: Tensor, alike: bool, nudge: float) -> str:
        if alike:  # else almost nothing would ever be near
            claimed = (own.double() * (1 + nudge)).to(own.dtype)
        found = verdict(distance(claimed, own), LOOSE)
        assert found is not Agreement.WITHIN or near(claimed, own, LOOSE.alarm.overall)
        assert found is Agreement.GUILTY or near(claimed, own, CAP)
        return str(found)

    hammer(check, tensors, tensors, st.booleans(), nudges)


def test_distances_of_norms(hammer: Any) -> None:
    """One unit in the last place of the dtype is not counted; whatever else is off, is."""

    def check(claimed: list[float], own: list[float], alike: bool, nudge: float, dtype: torch.dtype) -> str:
        if alike:
            claimed = [norm * (1 + nudge) for norm in own]
        found = verdict(distance_of_norms(claimed, own, dtype), LOOSE)
        if found is not Agreement.GUILTY:
            slack = CAP + float(torch.finfo(dtype).eps)
            one, other = (torch.tensor(each, dtype=torch.float64) for each in (claimed, own))
            floor = torch.full_like(other, torch.finfo(dtype).tiny)
            assert near(one, other, slack) or bool(((one - other).abs() <= floor).all())
        return str(found)

    several = st.lists(st.sampled_from(NUMBERS) | st.floats(), max_size=4)
    hammer(check, several, several, st.booleans(), nudges, st.sampled_from(DTYPES[:2]))


def test_distances_of_gradients(hammer: Any) -> None:
    """The errors are one's own computation; what is not finite in them, or in oneself, passes nothing."""

    def check(errors: list[Tensor], own: list[Tensor]) -> str:
        names = [f"p{i}" for i in range(min(len(errors), len(own)))]
        mine = dict(zip(names, own, strict=False))
        off = {
            name: filled(mine[name].shape, torch.float64, error.flatten().tolist() or [1.0])
            for name, error in zip(names, errors, strict=False)
        }
        found = verdict(distance_of_gradients(off, mine), LOOSE)
        if found is not Agreement.GUILTY and any(bool((error != 0).any()) for error in off.values()):
            whole = (torch.cat([each.double().flatten() for each in several]) for several in (off.values(), mine.values()))
            error, size = (exact(tensor) for tensor in whole)
            assert error is not None
            assert size is not None or sum(x**2 for x in error) <= LEAST
            assert size is None or sum(x**2 for x in error) <= Fraction(CAP * 1.0001) ** 2 * sum(x**2 for x in size) + LEAST
        return str(found)

    several = st.lists(tensors, max_size=3)
    hammer(check, several, several)


# -- updates -------------------------------------------------------------------------------------------------------------

CONFIG = OptimizerConfig(weight_decay=0.1)


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(before: StageState, gradient: dict[str, Tensor]) -> StageState:
    new, after = AdamW(CONFIG).step(before.weights, gradient, Moments.from_named(before.moments, before.updates), 3e-3)
    return StageState(1, before.version + 1, after.updates, {**before.weights, **new}, after.named())


@pytest.fixture(scope="module")
def update() -> tuple[StageState, StageState, dict[str, Tensor]]:
    """A sealed state, the state that follows, and the gradient between them."""
    weights = {"w": draw(3, 4, seed=1), "b": draw(3, seed=2), "frozen": draw(2, seed=3)}
    state = StageState(1, 0, 0, weights, Moments.zeros({name: weights[name] for name in ("w", "b")}).named())
    before = stepped(state, {"w": draw(3, 4, seed=4), "b": draw(3, seed=5)})
    gradient = {"w": draw(3, 4, seed=6), "b": draw(3, seed=7)}
    return before, stepped(before, gradient), gradient


def spoilt(state: StageState, where: str, name: str, number: float, place: int, how: str) -> StageState:
    """The state with something else in one place of one tensor, or with another tensor there, or none."""
    tables = {"weights": dict(state.weights), "moments": dict(state.moments)}
    table = tables[where]
    names = sorted(table)
    chosen = names[place % len(names)]
    tensor = table[chosen].clone()
    match how:
        case "number" | "factor":
            flat = tensor.reshape(-1)
            at = place % max(1, len(flat))
            flat[at : at + 1] = torch.tensor(
                number if how == "number" else float(flat[at : at + 1].sum()) * number, dtype=torch.float64
            )
            table[chosen] = tensor
        case "all":
            table[chosen] = torch.full(tensor.shape, number, dtype=torch.float64).to(tensor.dtype)
        case "shape":
            table[chosen] = tensor.reshape(-1)[:place]
        case "dtype":
            table[chosen] = tensor.to(DTYPES[place % len(DTYPES)])
        case "name":
            table[name] = table.pop(chosen)
        case "version":
            return replace(state, version=place)
        case "updates":
            return replace(state, updates=place)
    return replace(state, **tables)


def test_updates(hammer: Any, update: Any) -> None:
    before, right, gradient = update
    own = Candidate(right, gradient)
    formula = implied_by(CONFIG, 3e-3)

    def close(claimed: StageState) -> bool:
        pairs = [(claimed.weights, right.weights), (claimed.moments, right.moments)]
        return all(near(one[name], other[name], 0.1) for one, other in pairs for name in other)

    def check(todo: list[tuple[str, str, float, int, str]]) -> str:
        claimed = right
        for change in todo:
            claimed = spoilt(claimed, *change)
        found = compare_updates(before, claimed, own, formula)
        word = judge_update(found, LOOSE)
        if word is Agreement.WITHIN:
            assert close(claimed)
            assert (claimed.stage, claimed.version, claimed.updates) == (right.stage, right.version, right.updates)
            assert math.isfinite(found.drift)
            assert same_bytes(claimed.weights["frozen"], right.weights["frozen"])
        return str(word)

    how = st.sampled_from(
        ["number", "number", "factor", "factor", "factor", "all", "shape", "dtype", "name", "version", "updates"]
    )
    number = st.sampled_from([*NUMBERS, 1 + 2.0**-23, 1 - 2.0**-22, 1 + 1e-5, 1 + 1e-3])
    names = st.sampled_from(["w", "b", "w.exp_avg", "", "frozen"])
    change = st.tuples(st.sampled_from(["weights", "moments"]), names, number, st.integers(0, 12), how)
    hammer(check, st.lists(change, max_size=3))


def test_drifts(hammer: Any) -> None:
    """What is accepted adds up to the limit at most, and no garbage makes room for more."""

    def check(limit: float, drifts: list[tuple[int, float]]) -> list[str]:
        try:
            budget = Budget(limit)
        except ValueError:
            assert not (math.isfinite(limit) and limit > 0)
            return ["no budget"]
        told = []
        for stage, drift in drifts:
            before = budget.left(stage)
            accepted = budget.accept(stage, drift)
            assert not accepted or (0 <= drift <= before + 1e-15 * limit and budget.left(stage) <= before)
            assert accepted or budget.left(stage) == before
            assert all(0 <= spent <= limit for spent in budget.spent.values())
            told.append("accepted" if accepted else "refused")
        return told or ["nothing"]

    drift = st.sampled_from(NUMBERS) | st.floats()
    hammer(check, drift, st.lists(st.tuples(st.integers(-1, 2), drift), max_size=6))


# -- bounds --------------------------------------------------------------------------------------------------------------

NAMES = ("a, float32, cpu", "b, float32, cpu", "c, float32, cpu")


def sound(table: Calibration) -> str:
    """All bounds below their caps, all budgets usable, and the file says the same."""
    for pairing, row in table.rows.items():
        assert 0 < row.bound.alarm.overall < row.bound.guilty.overall <= CAP
        assert 0 < row.bound.alarm.worst_row < row.bound.guilty.worst_row <= ROW_CAP
        assert row.spread.largest.fits(row.bound.alarm)
        if pairing.direction is Direction.UPDATE:
            Budget(table.budget_for(pairing.stage, pairing.dtype, *pairing.classes, steps=1000, factor=1e6))
    assert from_toml(table.to_toml()) == table
    return "read"


def test_probes(hammer: Any) -> None:
    sane = st.sampled_from([0.0, 1e-7, 1e-6, 2e-6, 1e-3])
    pairing = st.builds(
        Pairing.of,
        st.just(1) | st.integers(-1, 3),
        st.sampled_from(["float32", "float32", "bfloat16", "float64", ""]),
        st.sampled_from(NAMES[:2]),
        st.sampled_from(NAMES[1:]),
        st.sampled_from(Direction),
    )
    usual = st.builds(Pairing.of, st.integers(0, 3), st.just("float32"), *map(st.just, NAMES[:2]), st.sampled_from(Direction))
    number = st.sampled_from(NUMBERS)
    honest = st.tuples(usual, st.lists(st.tuples(sane, sane, sane), min_size=3, max_size=4))
    junk = st.tuples(pairing, st.lists(st.tuples(*[sane | number] * 3), min_size=2, max_size=4))
    margin = st.sampled_from([8.0, 8.0, 8.0, 8.0, 1.25, 1e300, 0.0, math.nan, math.inf])

    def check(drawn: list[Any], margin: float) -> str:
        probes = [Probe(of, Distance(overall, row), drift) for of, each in drawn for overall, row, drift in each]
        try:
            return sound(calibrate(probes, margin))
        except ConfigError:
            return "refused"

    hammer(check, st.lists(honest, max_size=3) | st.lists(honest | junk, min_size=1, max_size=3), margin)


WORDS = [
    *(
        "nan",
        "inf",
        "-inf",
        "-1",
        "0",
        "1",
        "1e308",
        "1e-308",
        "true",
        '""',
        '"x"',
        "[]",
        "[[]]",
        "{}",
        "{a = 1}",
        "1979-05-27",
    ),
    *("[1]", "[1, 2, 3]", "[nan, 1.0]", '["a", "b"]', "[" * 5000, "{a=" * 2000, "9" * 5000, "9" * 300, "0x" + "F" * 5000),
    *("1.5", "2", '"forward"', '"float64"', "[0.5, 0.5]", "[0, 0]", "[-1.0, -1.0]", "[1e-5, 1e-4]", "\x00", "\ufeff"),
]


@pytest.fixture(scope="module")
def file() -> list[str]:
    """The lines of a table of one pair in every direction."""
    of = [Pairing.of(1, "float32", *NAMES[:2], direction) for direction in Direction]
    return (
        calibrate([Probe(pairing, Distance(size, size), 1e-6) for pairing in of for size in (0.0, 1e-7, 2e-7)])
        .to_toml()
        .splitlines()
    )


def test_files_of_bounds(hammer: Any, file: list[str]) -> None:
    def check(todo: list[tuple[str, float, float, str]]) -> str:
        lines = list(file)
        for how, which, there, word in todo:
            one, other = int(which * len(lines)), int(there * len(lines))
            key, equals, _ = lines[one].partition("=")
            match how:
                case "put":
                    lines[one] = f"{key}{equals} {word}"
                case "name":
                    lines[one] = f"{word} = {key}"
                case "line":
                    lines.insert(one, word)
                case "repeat":
                    lines.insert(one, lines[other])
                case "swap":
                    lines[one], lines[other] = lines[other], lines[one]
                case "drop":
                    del lines[one]
                case _:
                    lines[one] = lines[one][: int(there * len(lines[one]))]
            lines = lines or [""]
        try:
            return sound(from_toml("\n".join(lines)))
        except ConfigError:
            return "refused"

    how = st.sampled_from(["put", "put", "put", "put", "name", "line", "repeat", "swap", "drop", "cut"])
    ratio = st.floats(0, 1, exclude_max=True)
    hammer(check, st.lists(st.tuples(how, ratio, ratio, st.sampled_from(WORDS)), min_size=1, max_size=3))


# -- the comparer --------------------------------------------------------------------------------------------------------

WAITING = 8
HOLDERS = [
    (direction, stage, role) for direction in list(Direction)[:2] for stage in (1, 2) for role in (Role.PRIMARY, Role.SHADOW)
]


def claim_of(step: int, attempt: int, holder: int, micro_batch: int, tensor: Tensor) -> tuple[Claim, Role]:
    direction, stage, role = HOLDERS[holder]
    key = ClaimKey(step, attempt, direction, stage, micro_batch)
    return Claim(Header("run", key, 0, 0, "w", role, (), tensor_digest(tensor)), tensor), role


def test_anything_for_the_comparer(hammer: Any) -> None:
    """It speaks of tensors that came for the same key, once, with their true distance; what it keeps is bounded."""

    def check(told: list[tuple[Any, ...]]) -> list[str]:
        comparer, now, came, spoken, words = Comparer(WAITING), (-1, 0), {}, set(), []
        for begins, step, attempt, holder, micro_batch, tensor in told:
            if begins:
                now = max(now, (step, attempt))
                comparer.begin(*now)
                continue
            claim, role = claim_of(step, attempt, holder, micro_batch, tensor)
            key = claim.header.key
            came.setdefault((key, role), []).append(tensor)
            found = comparer.take(claim, role)
            words.append("silent" if found is None else "told")
            assert len(comparer._seen) + 2 * len(comparer._told) <= len(HOLDERS) * WAITING
            if found is None:
                continue
            assert found.key == key
            assert key not in spoken
            assert (key.step, key.attempt) >= now
            spoken.add(key)
            pairs = [(one, other) for one in came[key, Role.PRIMARY] for other in came[key, Role.SHADOW]]
            assert any(
                (found.primary, found.shadow) == (tensor_digest(one), tensor_digest(other))
                and repr(found.apart) == repr(distance(one, other))
                for one, other in pairs
            )
        return words or ["nothing"]

    small = st.sampled_from([filled((2, 2), torch.float32, several) for several in ([1.0], [1.0, 2.0], [math.nan], [0.0])])
    message = st.tuples(
        st.sampled_from([True, *[False] * 15]),
        st.sampled_from([0, 0, 0, 0, 0, 1, 1, 2, 10**9, -1]),
        st.sampled_from([0, 0, 0, 0, 0, 0, 1, 40, -1]),
        st.sampled_from([0, 1, 0, 1, *range(len(HOLDERS))]),
        st.sampled_from([0, 1, 0, 1, 0, 1, -1, 10**6]),
        small,
    )
    hammer(check, st.lists(message, max_size=40), quick=50)


@pytest.mark.parametrize("kind", ["micro-batches", "next step", "attempts", "far steps", "pairs of two liars"])
def test_a_flood_of_one_holder_leaves_the_comparer_bounded_and_of_use(depth: int, kind: str) -> None:
    """It fills its own places only: what the others send is still compared, and the next step is another one."""
    comparer, tensor = Comparer(WAITING), torch.ones(2, 2)
    comparer.begin(3, 0)
    for number in range(depth):
        step = {"next step": 4, "far steps": number + 5}.get(kind, 3)
        attempt = number if kind == "attempts" else 0
        for holder in (0, 1) if kind == "pairs of two liars" else (0,):
            comparer.take(*claim_of(step, attempt, holder, number + 2, tensor))
    assert len(comparer._seen) + 2 * len(comparer._told) <= 2 * WAITING
    assert comparer.take(*claim_of(3, 0, 2, 0, tensor)) is None
    assert comparer.take(*claim_of(3, 0, 3, 0, tensor)) is not None
    comparer.begin(4, 0)
    comparer.begin(5, 0)
    assert (comparer._seen, comparer._told) == ({}, set())
    for holder in (0, 1):
        found = comparer.take(*claim_of(5, 0, holder, 0, tensor))
    assert found is not None
