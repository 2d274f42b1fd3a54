"""Draws are as likely as they say, each for itself, and the same for whoever knows the secret; seats are a permutation."""

from itertools import pairwise
from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.claim import ClaimKey, Direction
from holdfast.verify.spotcheck import Sampling, escape, seats

FORWARD, BACKWARD, *_ = Direction


def claims(steps=500, stages=4, micro_batches=2):
    wire = (FORWARD, BACKWARD)
    return [
        ClaimKey(step, 0, direction, stage, m)
        for step in range(steps)
        for stage in range(1, stages + 1)
        for direction in wire
        for m in range(micro_batches)
    ]


def close(count, chance, trials):
    """Within five standard deviations: fails once in two million honest draws."""
    return abs(count - chance * trials) <= 5 * sqrt(trials * chance * (1 - chance))


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5])
def test_claims_are_drawn_with_their_probability(chance):
    keys = claims()
    assert close(sum(Sampling(7, claims=chance).draws_claim(key) for key in keys), chance, len(keys))


@pytest.mark.parametrize("chance", [0.01, 0.1, 0.5])
def test_steps_are_drawn_with_their_probability(chance):
    drawn = [Sampling(7, steps=chance).draws_step(step, 0, stage) for step in range(2000) for stage in range(1, 5)]
    assert close(sum(drawn), chance, len(drawn))


def test_nothing_and_everything():
    for key in claims(steps=3):
        assert not Sampling(1).draws_claim(key)
        assert Sampling(1, claims=1.0).draws_claim(key)
        assert not Sampling(1, claims=1.0).draws_step(key.step, 0, key.stage)
        assert Sampling(1, steps=1.0).draws_step(key.step, 0, key.stage)


def test_a_raised_rate_draws_more_and_never_fewer():
    draw = Sampling(3, steps=0.2)
    for step in range(200):
        plain, raised = draw.draws_step(step, 0, 1), draw.draws_step(step, 0, 1, rate=0.6)
        assert raised or not plain
        assert draw.draws_step(step, 0, 1, rate=0.0) is plain
        assert draw.draws_step(step, 0, 1, rate=1.0)


def test_one_draw_tells_nothing_of_the_next():
    """What follows on a drawn step is drawn as often as what follows on another one."""
    drawn = [Sampling(11, steps=0.3).draws_step(step, 0, 2) for step in range(6000)]
    after = [now for before, now in pairwise(drawn) if before]
    assert close(sum(after), 0.3, len(after))


@pytest.mark.parametrize("change", ["seed", "attempt", "stage", "step"])
def test_every_coordinate_counts(change):
    def draws(**one):
        where = {"seed": 1, "attempt": 0, "stage": 2, "step": 0} | one
        sampling = Sampling(where["seed"], steps=0.5)
        return [sampling.draws_step(where["step"] + 2 * n, where["attempt"], where["stage"]) for n in range(64)]

    assert draws() == draws()
    assert draws() != draws(**{change: 3})


@given(claims=st.integers(0, 50), updates=st.integers(0, 20), p=st.floats(0, 1), q=st.floats(0, 1))
def test_what_escapes_has_missed_every_draw(claims, updates, p, q):
    expected = 1.0
    for chance in [p] * claims + [q] * updates:
        expected *= 1 - chance
    assert escape(claims, p, q, updates) == pytest.approx(expected, abs=1e-12)


@given(st.integers(1, 12), st.integers(0, 2**62), st.integers(0, 100))
def test_seats_are_a_permutation_of_the_untrusted(middle, seed, step):
    names = ("i", *(f"w{n}" for n in range(middle)), "i")
    drawn = seats(names, ("i",), seed, step)
    assert (drawn[0], drawn[-1]) == ("i", "i")
    assert sorted(drawn) == sorted(names)
    assert drawn == seats(names, ("i",), seed, step)


def test_every_worker_comes_to_every_seat():
    names = ("i", "w1", "w2", "w3", "w4", "i")
    found = {(stage, name) for step in range(200) for stage, name in enumerate(seats(names, ("i",), 5, step))}
    assert len(found) == 2 + 4 * 4
