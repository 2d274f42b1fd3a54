"""A machine says what it carries when that changes, and now and then how far the run is."""

from __future__ import annotations

import pytest

from holdfast.commentary import Commentary, Seated

LAYERS = ((0, 1), (1, 3), (3, 4))


@pytest.mark.parametrize(
    ("seats", "told"),
    [
        ({1: "primary"}, "carries layers 1-2 (stage 1)"),
        ({2: "primary", 1: "shadow"}, "carries layer 3 (stage 2), shadows layers 1-2 (stage 1)"),
        ({1: "primary", 2: "primary"}, "carries layers 1-2 (stage 1) and layer 3 (stage 2)"),
        ({}, "has no seat now, and is a spare until it is needed"),
    ],
)
def test_a_part_in_words(seats: dict[int, str], told: str) -> None:
    assert str(Seated(seats, LAYERS, 0, 10)) == told


def test_progress_is_told_now_and_then() -> None:
    told: list[str] = []
    now = 0.0
    commentary = Commentary(told.append, lambda: now)
    commentary.look(None)
    assert told == []
    for version in range(41):
        commentary.look(Seated({1: "primary"}, LAYERS, version, 40))
        commentary.look(Seated({1: "primary"}, LAYERS, version, 40))
        now += 3.0
    assert told[0] == "this machine carries layers 1-2 (stage 1); the run is at step 0 of 40"
    assert told[1:] == [f"the run is at step {version} of 40" for version in range(4, 41, 4)]
    commentary.look(None)
    commentary.look(Seated({1: "primary"}, LAYERS, 30, 40))  # the run went back, and the part is the same
    now += 60.0
    commentary.look(Seated({1: "primary"}, LAYERS, 34, 40))
    commentary.look(Seated({1: "primary", 2: "primary"}, LAYERS, 34, 40))
    assert told[11:] == [
        "the run is at step 34 of 40",
        f"this machine {Seated({1: 'primary', 2: 'primary'}, LAYERS, 34, 40)}; the run is at step 34 of 40",
    ]


def test_fast_runs_are_told_of_by_the_clock() -> None:
    told: list[str] = []
    now = 0.0
    commentary = Commentary(told.append, lambda: now)
    for version in range(1000):
        commentary.look(Seated({1: "primary"}, LAYERS, version, 1000))
        now += 0.05
    assert len(told) == 5  # in 50 seconds
