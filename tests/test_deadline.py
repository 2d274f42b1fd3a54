"""Who owes what: only what could have been answered is owed, and who is silent beside a talking neighbour comes first."""

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.deadline import due, owing
from holdfast.recover.skip import bypass
from holdfast.route import plain_route, without
from holdfast.verify.board import Board

ROUTE = plain_route(["w0", "w1", "w2", "w3", "w0"], ["w0"], shadowed=True)
LETTERS = {"a": Direction.FORWARD, "g": Direction.BACKWARD, "G": Direction.GRADIENT, "U": Direction.UPDATE}
M = 2


def key(text):
    """a20 is the forward pass of stage 2, micro-batch 0; G2 its gradient."""
    return ClaimKey(4, 1, LETTERS[text[0]], int(text[1]), int(text[2]) if text[2:] else -1)


def text(key):
    letter = next(letter for letter, direction in LETTERS.items() if direction is key.direction)
    return f"{letter}{key.stage}" + ("" if key.micro_batch < 0 else str(key.micro_batch))


def board(accepted, heard="", route=ROUTE):
    """`heard` lists accounts without a ruling: a20P by the primary, a20S by the shadow."""
    found = Board()
    for word in accepted.split():
        post(found, word, Role.PRIMARY, route)
        found.accept(key(word), b"")
    for word in heard.split():
        post(found, word[:-1], Role.PRIMARY if word.endswith("P") else Role.SHADOW, route)
    return found


def post(board, word, role, route):
    worker = route.primaries[int(word[1])] if role is Role.PRIMARY else route.shadows[int(word[1])]
    board.post(Header("run", key(word), 0, 0, worker, role, (), b""))


ALL_FORWARD = "a00 a01 a10 a11 a20 a21 a30 a31"
ALL_BACKWARD = f"{ALL_FORWARD} g40 g41 g30 g31 g20 g21 g10 g11"

TABLE = [  # accepted, heard, what is due
    ("", "", ""),
    ("a00", "", "a10"),
    ("a00 a01", "", "a10 a11"),
    ("a00 a10", "", "a20"),
    ("a00 a10", "a20P a20S", "a20"),
    (ALL_FORWARD, "", ""),  # the last stage is trusted: not an answer that anybody could be blamed for
    (f"{ALL_FORWARD} g40", "", "g30"),
    (f"{ALL_FORWARD} g40 g41 g30 g31", "", "g20 g21 G3"),
    (f"{ALL_FORWARD} g40 g41 g30", "", "g31 g20"),
    (ALL_BACKWARD, "", "G1 G2 G3"),
    (f"{ALL_BACKWARD} G2", "", "G1 G3"),
    (f"{ALL_BACKWARD} G0 G1 G2 G3 G4", "", ""),
]


@pytest.mark.parametrize(("accepted", "heard", "expected"), TABLE)
def test_due_is_what_has_its_inputs_and_no_ruling(accepted, heard, expected):
    found = due(ROUTE, board(accepted, heard), M, updating=False)
    assert sorted(text(key) for key in found) == sorted(expected.split())


def test_updates_are_due_once_they_are_ordered():
    done = board(f"{ALL_BACKWARD} G0 G1 G2 G3 G4 U3")
    assert [text(key) for key in due(ROUTE, done, M, updating=True)] == ["U1", "U2"]


OWED = [  # accepted, heard, who owes, the surest first
    ("a00", "", ["w1", "w2"]),
    ("a00", "a10P", ["w2"]),
    ("a00", "a10S", ["w1"]),
    ("a00 a01 a10", "a20P a11P a11S", ["w3"]),
    ("a00 a01 a10 a11", "a20S", ["w2", "w3"]),  # w2 alone owes a20; both owe a21
    ("a00 a01 a10", "a20P", ["w3", "w1", "w2"]),
    ("a00", "a10P a10S", []),
]


@pytest.mark.parametrize(("accepted", "heard", "expected"), OWED)
def test_who_is_silent_beside_a_neighbour_that_talks_is_the_surest_suspect(accepted, heard, expected):
    assert owing(ROUTE, board(accepted, heard), M, updating=False) == expected


def test_bypassed_stages_owe_nothing_and_frozen_ones_no_gradient():
    route = bypass(ROUTE, {"w2"})  # stage 2 is out, 1 and 2 are frozen
    at = board("a00 a01 a10 a11", route=route)
    assert [text(key) for key in due(route, at, M, updating=False)] == ["a30", "a31"]
    at = board("a00 a01 a10 a11 a30 a31 g40 g41 g30 g31 g10 g11", route=route)
    assert [text(key) for key in due(route, at, M, updating=False)] == ["G3"]
    assert [text(key) for key in due(route, at, M, updating=True)] == ["G3", "U3"]


def test_an_heir_owes_for_both_seats():
    route = without(ROUTE, {"w2"})
    assert owing(route, board("a00 a10", route=route), M, updating=False) == ["w3"]
