"""What a run pins, it gives back."""

import torch

from holdfast.numerics import pinned


def test_one_thread_inside_and_the_former_number_after():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pinned("cpu"):
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_other_devices_compute_deterministically():
    with pinned("cuda:0"):
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()
    with pinned("cpu"):
        assert not torch.are_deterministic_algorithms_enabled()
