"""The drawings above the generators are the tests: each is simulated and compared with what stands in the module."""

import importlib
import re

import pytest

from holdfast.schedule import (
    SCHEDULES,
    Action,
    Kind,
    Pipeline,
    draw,
    in_flight_limit,
    simulate,
    step_time,
    with_shadow,
)


def pipeline(name, stages, micro_batches, *, shadowed=False, verified=None, hop=0.0):
    verified = shadowed if verified is None else verified
    return Pipeline(
        orders=tuple(tuple(SCHEDULES[name](stages, i, micro_batches)) for i in range(stages)),
        limits=tuple(in_flight_limit(name, stages, i, micro_batches, verified) for i in range(stages)),
        shadowed=shadowed,
        backward_waits=name == "gpipe",
        hop=hop,
    )


@pytest.mark.parametrize(("name", "module"), [("gpipe", "gpipe"), ("1f1b", "one_f_one_b")])
def test_the_drawing_above_the_code_is_what_the_code_does(name, module):
    text = importlib.import_module(f"holdfast.schedule.{module}").__doc__
    drawing = "\n".join(re.findall(r"^    stage \d   (.*)$", text, re.MULTILINE))
    assert draw(simulate(pipeline(name, 3, 4))) == drawing


def test_a_duplicated_step_drawn():
    assert draw(simulate(pipeline("1f1b", 4, 2, shadowed=True))).split("\n") == [
        "F0  F1                                  B0  B0                  B1  B1",
        "    F0  F1                      B0  B0                  B1  B1",
        "    SF0 F0  SF1 F1      B0  B0  SB0 SB0         B1  B1  SB1 SB1",
        "        SF0 F0  B0  B0  SB0 SB0 SF1 F1  B1  B1  SB1 SB1",
    ]


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("stages", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batches", [1, 2, 4, 9])
def test_every_micro_batch_once_each_way_in_index_order_within_the_limit(name, stages, micro_batches):
    for stage in range(stages):
        actions = list(SCHEDULES[name](stages, stage, micro_batches))
        held = most = 0
        for kind in (Kind.FORWARD, Kind.BACKWARD):
            assert [a.micro_batch for a in actions if a.kind is kind] == list(range(micro_batches))
        for action in actions:
            held += 1 if action.kind is Kind.FORWARD else -1
            most = max(most, held)
            assert held >= 0
        assert most == in_flight_limit(name, stages, stage, micro_batches, verified=False)


def test_limits_grow_towards_the_first_stage_and_never_exceed_the_step():
    assert [in_flight_limit("1f1b", 6, i, 4, verified=False) for i in range(6)] == [4, 4, 4, 3, 2, 1]
    assert [in_flight_limit("1f1b", 6, i, 64, verified=True) for i in range(6)] == [12, 10, 8, 6, 4, 2]
    assert {in_flight_limit("gpipe", 6, i, 4, verified=v) for i in range(6) for v in (False, True)} == {4}


def test_shadow_work_goes_before_the_forward_pass_it_gates_and_after_the_backward_pass_it_repeats():
    actions = list(with_shadow(SCHEDULES["1f1b"](3, 1, 2)))
    assert " ".join(map(str, actions)) == "SF0 F0 SF1 F1 B0 SB0 B1 SB1"
    assert actions[0] == Action(Kind.SHADOW_FORWARD, 0)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(("micro_batches", "ratio"), [(4, 1.333), (16, 1.714), (64, 1.913)])
def test_full_duplication_costs_what_the_design_says(name, micro_batches, ratio):
    clean = step_time(pipeline(name, 6, micro_batches))
    assert clean == 3 * (micro_batches + 5)
    assert step_time(pipeline(name, 6, micro_batches, shadowed=True)) / clean == pytest.approx(ratio, abs=1e-3)


def test_a_deeper_limit_changes_nothing_while_machines_and_links_are_even():
    for hop in (0.0, 0.25, 1.0):
        deep, shallow = (step_time(pipeline("1f1b", 6, 8, shadowed=True, verified=v, hop=hop)) for v in (True, False))
        assert deep == shallow


def test_nothing_is_used_before_it_is_verified():
    slots = simulate(pipeline("1f1b", 5, 6, shadowed=True))
    ends = {(slot.machine, slot.action): slot.end for slot in slots}
    for slot in slots:
        m, machine = slot.action.micro_batch, slot.machine
        if slot.action.kind is Kind.FORWARD and machine >= 2:
            assert slot.start >= ends[machine - 1, Action(Kind.FORWARD, m)]
            assert slot.start >= ends[machine, Action(Kind.SHADOW_FORWARD, m)]
        if slot.action.kind is Kind.BACKWARD and 1 <= machine + 1 <= 3:
            assert slot.start >= ends[machine + 2, Action(Kind.SHADOW_BACKWARD, m)]


def test_a_slower_link_lengthens_the_step():
    assert step_time(pipeline("gpipe", 6, 4, hop=0.25)) == 27 + 10 * 0.25
