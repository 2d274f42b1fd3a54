"""The comparer measures two tensors of one claim once, whichever comes first, and forgets with the step."""

import pytest
import torch

from holdfast.claim import Claim, ClaimKey, Direction, Header, Role
from holdfast.comparer import Comparer
from holdfast.digest import tensor_digest
from holdfast.verify.tolerance import distance

KEY = ClaimKey(3, 0, Direction.BACKWARD, 2, 1)
ONE, OTHER = (torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2))


def claim(tensor, role, key=KEY):
    return Claim(Header("run", key, 3, 0, "w", role, (), tensor_digest(tensor)), tensor)


def begun(step=3, attempt=0):
    comparer = Comparer()
    comparer.begin(step, attempt)
    return comparer


@pytest.mark.parametrize("first", [Role.PRIMARY, Role.SHADOW])
def test_it_speaks_when_both_are_there(first):
    comparer = begun()
    given = {Role.PRIMARY: ONE, Role.SHADOW: OTHER}
    second = Role.SHADOW if first is Role.PRIMARY else Role.PRIMARY
    assert comparer.take(claim(given[first], first), first) is None
    found = comparer.take(claim(given[second], second), second)
    assert (found.primary, found.shadow) == (tensor_digest(ONE), tensor_digest(OTHER))
    assert found.apart == distance(ONE, OTHER)


def test_it_speaks_once_and_of_the_first():
    comparer = begun()
    comparer.take(claim(ONE, Role.PRIMARY), Role.PRIMARY)
    comparer.take(claim(-ONE, Role.PRIMARY), Role.PRIMARY)
    assert comparer.take(claim(OTHER, Role.SHADOW), Role.SHADOW).primary == tensor_digest(ONE)
    assert comparer.take(claim(ONE, Role.PRIMARY), Role.PRIMARY) is None
    assert comparer.take(claim(ONE, Role.SHADOW), Role.SHADOW) is None


def test_what_is_late_is_dropped_and_what_is_early_is_kept():
    comparer = begun(step=4)
    assert comparer.take(claim(ONE, Role.PRIMARY), Role.PRIMARY) is None
    assert comparer.take(claim(OTHER, Role.SHADOW), Role.SHADOW) is None
    early = ClaimKey(5, 0, Direction.FORWARD, 1, 0)
    comparer.take(claim(ONE, Role.PRIMARY, early), Role.PRIMARY)
    comparer.begin(5, 0)
    assert comparer.take(claim(OTHER, Role.SHADOW, early), Role.SHADOW) is not None


def test_nothing_is_kept_of_a_step_that_is_over():
    comparer = begun()
    comparer.take(claim(ONE, Role.PRIMARY), Role.PRIMARY)
    comparer.begin(4, 0)
    assert comparer._seen == {}
    assert comparer._told == set()


def test_one_holder_fills_its_own_places_only():
    """A primary that sends tensors of steps to come, or of micro-batches that there are not, filled the comparer's memory."""
    comparer = Comparer(waiting=4)
    comparer.begin(3, 0)
    for number in range(100):
        for step in (3, 4, 5 + number):
            comparer.take(claim(ONE, Role.PRIMARY, ClaimKey(step, 0, Direction.BACKWARD, 2, number + 2)), Role.PRIMARY)
    assert len(comparer._seen) == 4
    other = ClaimKey(3, 0, Direction.BACKWARD, 1, 0)
    comparer.take(claim(ONE, Role.PRIMARY, other), Role.PRIMARY)
    assert comparer.take(claim(OTHER, Role.SHADOW, other), Role.SHADOW) is not None
