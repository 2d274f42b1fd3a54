"""A placement is short, fits, and keeps to the rules of seats; few candidates are all tried, many come near the best."""

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import NotEnoughMemory, PartitionError
from holdfast.placement import Load, Machine, place, predict

SIX = (
    Machine("initiator", 1.0),
    Machine("w1", 0.6),
    Machine("w2", 1.0),
    Machine("w3", 0.8),
    Machine("w4", 0.3),
)
"""Six unlike devices, as in section 6.3 of the paper: the initiator has the first and the last."""


def load(layers=12, **changes):
    link = (1e-3, 125e6)
    given = {
        "layer_s": (0.05,) * layers,
        "before_s": 0.0,
        "after_s": 0.02,
        "settle_s": 0.0025,
        "micro_batches": 4,
        "tensor_bytes": 4e6,
        "link": lambda _sender, _recipient: link,
    }
    return Load(**{**given, **changes})


def everything(work, stages, machines):
    """Every cut with every order of machines, predicted; where there is one machine a stage."""
    names = [machine.name for machine in machines[1:]]
    bounds = itertools.combinations(range(1, len(work.layer_s)), stages - 1)
    cuts = [tuple(itertools.pairwise((0, *inner, len(work.layer_s)))) for inner in bounds]
    for seated in itertools.permutations(names, stages - 2):
        for layers in cuts:
            yield predict(work, layers, (machines[0].name, *seated, machines[0].name), machines)


def best_of(found):
    return min(placement.step_s for placement in found)


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
@pytest.mark.parametrize(("checked", "shadowed"), [(False, False), (True, True), (True, False)])
def test_of_few_placements_the_best_is_found(schedule, checked, shadowed):
    work = load(7, schedule=schedule, checked=checked, shadowed=shadowed)
    machines = SIX[:4]
    found = place(work, 5, machines)
    assert found.step_s == pytest.approx(best_of(everything(work, 5, machines)))
    assert "of all" in found.why


@pytest.mark.parametrize("shadowed", [True, False])
def test_of_many_placements_one_near_the_best_is_found(shadowed):
    work = load(9, checked=shadowed, shadowed=shadowed)
    machines = SIX[:4]
    found = place(work, 5, machines, passes=20 * 80)  # 420 are possible, 80 may be tried
    assert "tried" in found.why
    assert found.step_s <= 1.03 * best_of(everything(work, 5, machines))


@pytest.mark.parametrize("schedule", ["gpipe", "1f1b"])
def test_six_unlike_devices_do_better_than_an_even_cut_in_listed_order(schedule):
    work = load(24, schedule=schedule)
    even = tuple((4 * i, 4 * i + 4) for i in range(6))
    names = ("initiator", "w1", "w2", "w3", "w4", "initiator")
    found = place(work, 6, SIX)
    assert found.step_s < 0.6 * predict(work, even, names, SIX).step_s
    slowest = found.primaries.index("w4")
    own = found.layers[slowest][1] - found.layers[slowest][0]
    assert own <= min(hi - lo for lo, hi in found.layers[1:-1])


def test_equal_machines_stay_in_listed_order_with_an_even_cut():
    machines = [Machine("initiator"), *(Machine(f"w{i}") for i in range(1, 5))]
    found = place(load(12, after_s=0.0, shadowed=False, checked=False, link=lambda _a, _b: (0.0, math.inf)), 6, machines)
    assert found.primaries == ("initiator", "w1", "w2", "w3", "w4", "initiator")
    assert found.layers == tuple((2 * i, 2 * i + 2) for i in range(6))


def test_the_rules_of_seats_are_kept():
    found = place(load(), 6, SIX)
    assert found.primaries[0] == found.primaries[-1] == "initiator"
    assert found.shadows == (None, *found.primaries[2:], None)
    assert max(found.busy.values()) <= 1.0


def test_a_spare_machine_is_taken_where_it_is_faster():
    found = place(load(), 5, SIX)
    assert "w4" not in found.primaries


def test_fewer_machines_than_stages_carry_neighbouring_ones():
    found = place(load(), 6, SIX[:3])
    assert set(found.primaries) == {"initiator", "w1", "w2"}
    middle = [name for name, _ in itertools.groupby(found.primaries[1:-1])]
    assert sorted(middle) == ["w1", "w2"]


def test_memory_is_a_hard_limit():
    sizes = {"memory": lambda held: sum(hi - lo for lo, hi in held) * 100}
    tight = [*SIX[:2], Machine("w2", 1.0, memory_bytes=200), *SIX[3:]]
    found = place(load(12, **sizes), 6, tight)
    assert found.memory.get("w2", 0) <= 200
    assert found.step_s > place(load(12, **sizes), 6, SIX).step_s


def test_what_fits_nowhere_is_refused_and_says_who_lacks_how_much():
    tight = [Machine("initiator", memory_bytes=300), *(Machine(f"w{i}", memory_bytes=150) for i in range(1, 3))]
    with pytest.raises(
        NotEnoughMemory, match=r"initiator has 300 bytes, but no placement was found.*need \d+ bytes; give it more memory"
    ):
        place(load(8, memory=lambda held: sum(hi - lo for lo, hi in held) * 100), 4, tight)


def test_where_a_machine_has_too_little_room_the_initiator_carries_its_stage():
    machines = [Machine("initiator"), Machine("w1", memory_bytes=250), Machine("w2", memory_bytes=50)]
    found = place(load(4, memory=lambda held: sum(hi - lo for lo, hi in held) * 100), 4, machines)
    assert "w2" not in found.primaries


def test_more_stages_than_layers_are_refused():
    with pytest.raises(PartitionError, match="6 stages for a model of 5 layers"):
        place(load(5), 6, SIX)


@settings(max_examples=25, deadline=None)
@given(
    speeds=st.lists(st.floats(0.2, 3.0), min_size=3, max_size=3),
    costs=st.lists(st.floats(0.01, 0.2), min_size=5, max_size=6),
    micro_batches=st.integers(1, 4),
)
def test_properties(speeds, costs, micro_batches):
    machines = [Machine("i", speeds[0]), Machine("a", speeds[1]), Machine("b", speeds[2])]
    work = load(layer_s=tuple(costs), micro_batches=micro_batches)
    found = place(work, 4, machines)
    assert [lo for lo, _ in found.layers] == [0, *(hi for _, hi in found.layers[:-1])]
    assert found.layers[-1][1] == len(costs)
    assert all(lo < hi for lo, hi in found.layers)
    assert found == place(work, 4, machines)
    assert found.step_s == pytest.approx(predict(work, found.layers, found.primaries, machines).step_s)
    assert found.step_s <= best_of(everything(work, 4, machines)) + 1e-9
    assert found.step_s >= max(found.busy.values()) * found.step_s
