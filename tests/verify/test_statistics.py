"""What statistics of traffic see and what they never see; what is odd teaches them nothing."""

import math

import pytest
import torch

from holdfast.verify.statistics import Monitor

LIES = {
    "sign flip": lambda x, noise: -x,
    "zeros": lambda x, noise: torch.zeros_like(x),
    "noise": lambda x, noise: noise,
    "ten times": lambda x, noise: 10 * x,
    "not a number": lambda x, noise: x * math.nan,
    "infinity": lambda x, noise: x + math.inf,
}


def traffic(count, seed=0):
    """Hidden states [4, 8, 64] around a common mean, as those of a stage are."""
    generator = torch.Generator().manual_seed(seed)
    mean = torch.randn(64, generator=generator)
    return [mean + 0.5 * torch.randn(4, 8, 64, generator=generator) for _ in range(count)]


def taught(count=20, **options):
    monitor = Monitor(**options)
    for tensor in traffic(count):
        monitor.observe("a1", tensor)
    return monitor


def test_honest_traffic_is_not_odd():
    monitor = Monitor()
    assert [monitor.observe("a1", tensor) for tensor in traffic(200)] == [None] * 200


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_coarse_lies_are_odd(lie, dtype):
    monitor = taught()
    noise = torch.randn(4, 8, 64, generator=torch.Generator().manual_seed(9))
    assert monitor.observe("a1", LIES[lie](traffic(21)[20], noise).to(dtype)) is not None


@pytest.mark.parametrize("lie", ["permuted", "one row", "ten percent"])
def test_fine_lies_are_not_odd(lie):
    monitor = taught()
    x = traffic(21)[20]
    other = torch.randn_like(x) * x.std()
    row = x.clone()
    row[2, 3] = -row[2, 3]
    made = {"permuted": x.roll(1, 0), "one row": row, "ten percent": x + 0.1 * other}
    assert monitor.observe("a1", made[lie]) is None


def test_nothing_is_odd_before_the_warm_up_but_what_is_no_number():
    monitor = taught(5)
    assert monitor.observe("a1", -traffic(1)[0]) is None
    assert monitor.observe("a1", traffic(1)[0] * math.nan) is not None


def test_an_odd_tensor_teaches_nothing():
    monitor = taught(patience=1000)
    flags = [monitor.observe("a1", -tensor) for tensor in traffic(100)]
    assert all(flags)
    assert monitor.observe("a1", traffic(21)[20]) is None


def test_after_enough_of_them_in_a_row_it_begins_anew():
    monitor = taught(patience=4)
    moved = [10 * tensor for tensor in traffic(30)]
    flags = [monitor.observe("a1", tensor) is not None for tensor in moved]
    assert flags == [True] * 4 + [False] * 26


def test_streams_do_not_mix():
    monitor = taught()
    assert monitor.observe("g1", -traffic(1)[0]) is None
    assert monitor.observe("a1", -traffic(1)[0]) is not None


def test_it_names_the_statistic():
    monitor = taught()
    assert monitor.observe("a1", 10 * traffic(21)[20]).statistic == "norm"
    flipped = monitor.observe("a1", -traffic(21)[20])
    assert (flipped.statistic, flipped.value < -0.9) == ("cosine", True)
