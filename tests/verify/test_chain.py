"""The chain of a step: what each claim was computed from, on the plain route, after a takeover and around a bypass."""

from dataclasses import replace

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.recover.skip import bypass
from holdfast.route import plain_route, without
from holdfast.verify.chain import expected_inputs, ingredients, parents

FORWARD, BACKWARD, GRADIENT, UPDATE = Direction
PLAIN = plain_route(["w0", "w1", "w2", "w3", "w4", "w0"], ["w0"], shadowed=True)
SKIP_23 = bypass(PLAIN, {"w2", "w3"})
LETTERS = {"a": FORWARD, "g": BACKWARD, "G": GRADIENT, "U": UPDATE}


def key(text, m=0):
    whole = text[0] in "GU"
    return ClaimKey(3, 1, LETTERS[text[0]], int(text[1]), -1 if whole else m)


def keys(text, m=0):
    return tuple(key(word, m) for word in text.split())


TABLE = [  # claim, parents on the plain route, parents where stages 2 and 3 are bypassed
    ("a0", "", ""),
    ("a1", "a0", "a0"),
    ("a4", "a3", "a1"),
    ("g5", "a4", "a4"),
    ("g4", "a3 g5", "a1 g5"),
    ("g1", "a0 g2", "a0 g4"),
    ("g0", "g1", "g1"),
    ("G1", "", ""),
    ("U1", "G1", "G1"),
    ("U0", "G0", "G0"),
]


@pytest.mark.parametrize("m", [0, 2])
@pytest.mark.parametrize(("claim", "plain", "skipping"), TABLE)
def test_parents(claim, plain, skipping, m):
    assert parents(key(claim, m), PLAIN) == keys(plain, m)
    assert parents(key(claim, m), SKIP_23) == keys(skipping, m)
    assert parents(key(claim, m), without(PLAIN, {"w2"})) == keys(plain, m)


@pytest.mark.parametrize("size", range(3, 8))
def test_every_middle_stage_can_be_bypassed_alone(size):
    route = plain_route([f"w{i}" for i in range(size)], ["w0", f"w{size - 1}"], shadowed=True)
    for stage in range(1, size - 1):
        skipping = bypass(route, {f"w{stage}"})
        behind, before = key(f"a{stage + 1}"), key(f"g{stage - 1}")
        assert parents(behind, skipping) == (key(f"a{stage - 1}"),)
        assert parents(before, skipping)[-1] == key(f"g{stage + 1}")


def test_a_referee_needs_the_parents_or_those_of_the_whole_step():
    assert ingredients(key("a2", 1), PLAIN, 2) == keys("a1", 1)
    assert ingredients(key("g2", 1), PLAIN, 2) == keys("a1 g3", 1)
    whole = keys("a1 g3", 0) + keys("a1 g3", 1)
    assert ingredients(key("G2"), PLAIN, 2) == ingredients(key("U2"), PLAIN, 2) == whole
    assert ingredients(key("G1"), SKIP_23, 1) == keys("a0 g4")


def test_expected_inputs_are_accepted_outputs_in_the_order_of_the_header():
    accepted = {key("a1"): b"a1", key("g3"): b"g3", key("G2"): b"G2"}
    assert expected_inputs(key("g2"), PLAIN, accepted) == (b"a1", b"g3")
    assert expected_inputs(key("U2"), PLAIN, accepted) == (b"G2",)
    assert expected_inputs(key("a0"), PLAIN, accepted) == ()
    assert expected_inputs(key("g2", 1), PLAIN, accepted) is None
    assert expected_inputs(replace(key("g2"), attempt=2), PLAIN, accepted) is None
