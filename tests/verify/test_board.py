"""The board: the first header of a holder stands, the same one again is harmless, another one is evidence."""

from dataclasses import replace

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.verify.board import Board, Posting

KEY = ClaimKey(0, 0, Direction.FORWARD, 2, 0)
HEADER = Header("run", KEY, 5, 1, "w2", Role.PRIMARY, (b"in",), b"out", (1.0, 2.0))
SHADOW = replace(HEADER, worker="w3", role=Role.SHADOW)
NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "posting"),
    [
        ({}, Posting.REPEATED),
        ({"epoch": 9}, Posting.REPEATED),  # the route was edited in between: the account is the same
        ({"signature": b"again"}, Posting.REPEATED),
        ({"output": b"other"}, Posting.EQUIVOCATION),
        ({"inputs": (b"other",)}, Posting.EQUIVOCATION),
        ({"inputs": ()}, Posting.EQUIVOCATION),
        ({"version": 4}, Posting.EQUIVOCATION),
        ({"norms": (1.0, 2.5)}, Posting.EQUIVOCATION),
        ({"norms": ()}, Posting.EQUIVOCATION),
        ({"norms": (1.0, NAN)}, Posting.EQUIVOCATION),
    ],
)
def test_the_first_header_stands(change, posting):
    board = Board()
    assert board.post(HEADER) is Posting.NEW
    assert board.post(replace(HEADER, **change)) is posting
    assert board.header(KEY, Role.PRIMARY) is HEADER


def test_a_nan_norm_is_no_difference_to_itself_and_minus_zero_is_one_to_zero():
    board = Board()
    board.post(replace(HEADER, norms=(NAN, 0.0)))
    assert board.post(replace(HEADER, norms=(float("nan"), 0.0))) is Posting.REPEATED
    assert board.post(replace(HEADER, norms=(NAN, -0.0))) is Posting.EQUIVOCATION


def test_accounts_of_both_holders_stand_side_by_side_the_primary_first():
    board = Board()
    assert board.post(SHADOW) is Posting.NEW
    assert board.post(replace(HEADER, output=b"other")) is Posting.NEW
    assert [header.worker for header in board.headers(KEY)] == ["w2", "w3"]
    assert board.headers(replace(KEY, micro_batch=1)) == ()
    assert list(board.keys()) == [KEY]


def test_a_ruling_is_made_once():
    board = Board()
    board.accept(KEY, b"out")
    with pytest.raises(AssertionError, match="ruled twice"):
        board.accept(KEY, b"out")


def test_what_a_lost_worker_said_is_forgotten_where_it_was_not_accepted():
    board, settled = Board(), replace(HEADER, key=replace(KEY, micro_batch=1))
    for header in (HEADER, SHADOW, settled):
        board.post(header)
    board.accept(settled.key, b"out")
    board.retire("w2")
    assert board.headers(KEY) == (SHADOW,)
    assert board.headers(settled.key) == (settled,)


def test_the_heir_s_account_becomes_the_primary_s():
    board, settled = Board(), replace(SHADOW, key=replace(KEY, micro_batch=1))
    elsewhere = replace(SHADOW, key=replace(KEY, stage=1))
    for header in (HEADER, SHADOW, settled, elsewhere):
        board.post(header)
    board.accept(settled.key, b"out")
    board.promote(2, "w3")
    assert board.header(KEY, Role.PRIMARY) == replace(SHADOW, role=Role.PRIMARY)
    assert board.header(KEY, Role.SHADOW) is None
    assert board.header(settled.key, Role.SHADOW) is settled
    assert board.header(elsewhere.key, Role.SHADOW) is elsewhere
    assert board.post(replace(SHADOW, role=Role.PRIMARY, output=b"other")) is Posting.EQUIVOCATION
