"""The inbox as the table of its first page: what was delivered, what was ruled, what may be used, who is told on."""

from dataclasses import replace

import pytest
import torch

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.digest import same_bytes, tensor_digest
from holdfast.inbox import Boundary, Inbox
from holdfast.message import Complaint
from holdfast.quantise import pack, packed_shape

KEY = ClaimKey(3, 1, Direction.FORWARD, 1, 0)
TRUE = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
FALSE = -TRUE
RULING = tensor_digest(TRUE)


def inbox(*, checked=True):
    found = Inbox(Boundary((2, 3, 4), torch.float32), checked=checked)
    found.begin(3, 1)
    return found


def claim(tensor=TRUE, key=KEY, origin=None, said=None):
    return Claim(Header("run", key, 0, 0, "w1", Role.PRIMARY, (), said or tensor_digest(tensor)), tensor, origin)


COMPLAINT = Complaint(KEY, "w1", tensor_digest(FALSE))
TABLE = [  # what comes in which order (rule, true, false), what may be used, who is told on
    ("true", False, []),
    ("rule", False, []),
    ("false", False, []),
    ("rule true", True, []),
    ("true rule", True, []),
    ("rule false", False, [COMPLAINT]),
    ("false rule", False, [COMPLAINT]),
    ("rule true false", True, []),  # too late to do harm
    ("rule false true", True, [COMPLAINT]),
    ("false true rule", False, [COMPLAINT]),  # one place a sender: the second one is not even kept
    ("rule rule true true", True, []),
]


@pytest.mark.parametrize(("order", "usable", "complaints"), TABLE)
def test_a_tensor_counts_once_its_digest_is_the_board_s(order, usable, complaints):
    box, told = inbox(), []
    for word in order.split():
        if word == "rule":
            told += box.rule(KEY, RULING)
        else:
            told += box.deliver("w1", claim(TRUE if word == "true" else FALSE))
    assert told == complaints
    assert (box.claim(KEY) is not None) is (box.tensor(KEY) is not None) is usable
    assert not usable or same_bytes(box.tensor(KEY), TRUE)


def test_the_digest_of_the_tensor_counts_and_not_what_its_header_says():
    box = inbox()
    box.rule(KEY, RULING)
    assert box.deliver("w1", claim(FALSE, said=RULING)) == [COMPLAINT]
    assert box.deliver("w1", claim(TRUE, said=b"nonsense")) == []
    assert box.digest(KEY) == RULING


def test_nothing_is_usable_because_a_ruling_came_twice():
    box = inbox()
    box.rule(KEY, RULING)
    box.deliver("w1", claim(FALSE))
    assert box.rule(KEY, tensor_digest(FALSE)) == []
    assert box.tensor(KEY) is None
    assert box.digest(KEY) == RULING


def test_another_sender_s_copy_waits_beside_a_false_one():
    box = inbox()
    box.deliver("w1", claim(FALSE))
    box.deliver("w2", claim(TRUE))
    assert box.rule(KEY, RULING) == [COMPLAINT]
    assert same_bytes(box.tensor(KEY), TRUE)


def test_a_false_copy_behind_a_true_one_is_too_late_to_do_harm():
    box = inbox()
    box.deliver("w2", claim(TRUE))
    box.deliver("w1", claim(FALSE))
    assert box.rule(KEY, RULING) == []


def test_a_sender_cannot_fill_the_memory():
    box = inbox()
    for _ in range(10):
        box.deliver("w1", claim(FALSE))
    assert len(box.rule(KEY, RULING)) == 1


MALFORMED = {
    "another batch": TRUE[:1],
    "a flat tensor": TRUE.flatten(),
    "a transposed one": TRUE.transpose(1, 2),
    "another dtype": TRUE.to(torch.bfloat16),
    "integers": TRUE.to(torch.int64),
    "nothing": torch.empty(0),
}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", MALFORMED)
def test_what_does_not_fit_the_boundary_is_refused_at_once(name, checked):
    box = inbox(checked=checked)
    assert box.deliver("w1", claim(MALFORMED[name])) == [Complaint(KEY, "w1", b"")]
    assert box.deliver("w1", claim(TRUE, origin=MALFORMED[name])) == [Complaint(KEY, "w1", b"")]
    assert box.tensor(KEY) is None
    assert box.origin(KEY, ("w1",)) is None


@pytest.mark.parametrize(("step", "attempt", "kept"), [(2, 9, False), (3, 0, False), (3, 1, True), (3, 2, True), (4, 0, True)])
def test_what_is_old_is_dropped_and_what_is_early_is_kept(step, attempt, kept):
    box, key = inbox(), replace(KEY, step=step, attempt=attempt)
    box.deliver("w1", claim(key=key))
    box.rule(key, RULING)
    assert (box.tensor(key) is not None) is kept
    box.begin(4, 0)
    assert (box.tensor(key) is not None) is (step == 4)
    assert box.digest(key) == (RULING if step == 4 else b"")


def test_a_new_attempt_forgets_the_deliveries_of_the_old_one():
    box, later = inbox(), replace(KEY, attempt=2)
    box.deliver("w1", claim(FALSE, origin=TRUE))
    box.deliver("w1", claim(key=later))
    box.begin(3, 2)
    assert box.origin(KEY, ("w1",)) is None
    assert box.rule(KEY, RULING) == []
    box.rule(later, RULING)
    assert box.tensor(later) is not None


def test_with_defences_off_the_first_delivery_is_usable_and_nothing_is_hashed():
    box = inbox(checked=False)
    assert box.deliver("w1", claim(FALSE)) == []
    assert box.deliver("w2", claim(TRUE)) == []
    assert same_bytes(box.tensor(KEY), FALSE)
    assert box.digest(KEY) == b""
    box.deliver("w1", claim(key=replace(KEY, step=2)))
    assert box.tensor(replace(KEY, step=2)) is None


def test_with_defences_off_nobody_can_fill_the_memory_either():
    """Nothing is ruled there, so whatever came was usable, and kept: a tensor for every step to come."""
    found = Inbox(Boundary((2, 3, 4), torch.float32, waiting=5), checked=False)
    found.begin(3, 1)
    keys = [replace(KEY, step=3 + number) for number in range(9)]
    for key in keys:
        assert found.deliver("w1", claim(key=key)) == []
    assert [found.claim(key) is not None for key in keys] == [True] * 5 + [False] * 4
    found.begin(5, 0)
    found.deliver("w1", claim(key=keys[-1]))
    assert found.claim(keys[-1]) is not None


def test_the_claimed_origin_is_shown_before_the_ruling():
    """Without the jumping connection it is the verifier's only source; the header that follows names its digest."""
    box = inbox()
    assert box.origin(KEY, ("w1",)) is None
    box.deliver("w1", claim(TRUE, origin=FALSE))
    assert same_bytes(box.origin(KEY, ("w1",)), FALSE)
    assert box.tensor(KEY) is None
    box.rule(KEY, RULING)
    assert same_bytes(box.origin(KEY, ("w1",)), FALSE)


# -- what was computed on this worker ------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["vouch deliver", "deliver vouch"])
@pytest.mark.parametrize(("tensor", "usable"), [(TRUE, True), (FALSE, False)])
def test_what_the_own_shadow_computed_is_right_before_the_board_has_ruled(order, tensor, usable):
    box = inbox()
    for word in order.split():
        if word == "vouch":
            box.vouch(KEY, RULING)
        else:
            assert box.deliver("w1", claim(tensor)) == []
    assert (box.tensor(KEY) is not None) is usable
    assert box.digest(KEY) == RULING
    assert box.rule(KEY, RULING) == ([] if usable else [COMPLAINT])


def test_the_own_output_is_usable_at_once_and_forgotten_with_its_step():
    box = inbox()
    box.own(claim())
    assert same_bytes(box.tensor(KEY), TRUE)
    assert box.digest(KEY) == RULING
    box.begin(3, 2)
    box.own(claim())  # of the attempt before
    assert box.tensor(KEY) is None
    assert box.digest(KEY) == b""
    box.begin(3, 1)
    assert box.tensor(KEY) is None


def test_a_ruling_against_the_own_output_is_what_headers_name():
    box = inbox()
    box.own(claim(FALSE))
    assert box.rule(KEY, RULING) == []
    assert box.digest(KEY) == RULING


@pytest.mark.parametrize("order", ["rule true false", "vouch false true rule", "vouch true rule false"])
@pytest.mark.parametrize("signed", [True, False])
def test_a_signed_contradiction_is_told_of_even_where_it_does_no_harm(order, signed):
    box, told = inbox(), []
    false = claim(FALSE)
    false = Claim(replace(false.header, signature=b"signed"), FALSE) if signed else false
    for word in order.split():
        match word:
            case "rule":
                told += box.rule(KEY, RULING)
            case "vouch":
                box.vouch(KEY, RULING)
            case _:
                told += box.deliver("w1" if word == "false" else "w2", claim() if word == "true" else false)
    assert same_bytes(box.tensor(KEY), TRUE)
    assert told == ([Complaint(KEY, "w1", tensor_digest(FALSE), false.header)] if signed else [])


PACKED = pack(TRUE, torch.int8)
SHAPED_LIKE_IT = {
    "as computed": TRUE,
    "another width": torch.zeros(2, 3, 4, dtype=torch.int8),
    "another dtype": torch.zeros(2, 3, 8),
    "one long row": PACKED.reshape(1, 1, 48),
    "nothing": torch.zeros(0, dtype=torch.int8),
}


@pytest.mark.parametrize("tensor", SHAPED_LIKE_IT.values(), ids=SHAPED_LIKE_IT)
@pytest.mark.parametrize("checked", [True, False])
def test_where_tensors_are_packed_only_packed_ones_fit(tensor, checked):
    box = Inbox(Boundary(packed_shape((2, 3, 4), torch.int8), torch.int8), checked=checked)
    box.begin(3, 1)
    assert box.deliver("w1", claim(tensor)) == [Complaint(KEY, "w1", b"")]
    assert box.deliver("w1", claim(PACKED, origin=tensor)) == [Complaint(KEY, "w1", b"")]
    assert box.deliver("w1", claim(PACKED)) == []
    box.rule(KEY, tensor_digest(PACKED))
    assert same_bytes(box.tensor(KEY), PACKED)
