"""Cuts are optimal and fair; a plan lists every parameter once, in model order, under the stage that owns it."""

from __future__ import annotations

import itertools
import math
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ConfigError, NotEnoughMemory, PartitionError
from holdfast.partition import Lora, cut, describe, make_plan
from holdfast.partition.memory import Batch, available_memory, check_memory, memory_per_worker
from holdfast.partition.skeleton import prepare_config


def bottleneck(ranges, costs, before, after, speeds) -> float:
    times = [sum(costs[lo:hi]) for lo, hi in ranges]
    times[0] += before
    times[-1] += after
    return max(time / speed for time, speed in zip(times, speeds, strict=True))


@settings(max_examples=60, deadline=None)
@given(
    costs=st.lists(st.integers(0, 9), min_size=2, max_size=8),
    before=st.integers(0, 5),
    after=st.integers(0, 20),
    data=st.data(),
)
def test_no_cut_has_a_smaller_bottleneck(costs: list[int], before: int, after: int, data: st.DataObject) -> None:
    stages = data.draw(st.integers(1, len(costs)))
    speeds = data.draw(st.lists(st.sampled_from([1, 2, 4]), min_size=stages, max_size=stages))
    ranges = cut(costs, before, after, stages, speeds)
    assert [lo for lo, _ in ranges] == [0, *(hi for _, hi in ranges[:-1])]
    assert ranges[-1][1] == len(costs)
    assert all(lo < hi for lo, hi in ranges)
    every = (
        tuple(itertools.pairwise((0, *inner, len(costs)))) for inner in itertools.combinations(range(1, len(costs)), stages - 1)
    )
    best = min(bottleneck(other, costs, before, after, speeds) for other in every)
    assert math.isclose(bottleneck(ranges, costs, before, after, speeds), best)


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert cut([1.0] * 12, 0, 3.0, 3) == ((0, 5), (5, 10), (10, 12))


def test_among_equal_bottlenecks_the_even_cut_wins() -> None:
    assert cut([1, 1, 1, 1, 4], stages=3) == ((0, 2), (2, 4), (4, 5))


def test_a_fast_device_gets_more_layers() -> None:
    assert cut([1.0] * 6, stages=2, speeds=(1, 2)) == ((0, 2), (2, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layer_costs": [1, 1], "stages": 3}, "3 stages for a model of 2 layers"),
        ({"layer_costs": [1, 1], "stages": 0}, "0 stages"),
        ({"layer_costs": [1, 1], "stages": 2, "speeds": (1,)}, "one positive number"),
        ({"layer_costs": [1, 1], "stages": 2, "speeds": (1, 0)}, "one positive number"),
        ({"layer_costs": [1, math.nan], "stages": 2}, "finite"),
    ],
)
def test_impossible_cuts_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        cut(**arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["gpt2", "opt-350m", "bloom", "qwen3-tied", "llama"])
def test_every_parameter_stands_once_in_model_order(tiny: ModuleType, name: str) -> None:
    config = tiny.config_of(name)
    plan = make_plan(config, 3)
    whole = dict(tiny.random_whole(config).named_parameters())
    assert plan.model_order == tuple(whole)
    assert sorted(itertools.chain(*plan.stage_parameters)) == sorted(whole)
    for names in plan.stage_parameters:
        assert list(names) == [name for name in plan.model_order if name in set(names)]
    assert plan.parameters == sum(parameter.numel() for parameter in whole.values())
    assert all(plan.shapes[name] == tuple(parameter.shape) for name, parameter in whole.items())
    assert plan.trainable == set(whole)
    assert math.isclose(sum(plan.costs), 3)
    if plan.tied is not None:
        assert plan.tied[0] not in whole
        assert plan.stage_of(plan.tied[1]) == 0


def test_costs_follow_the_vocabulary(tiny: ModuleType) -> None:
    small, large = (make_plan(tiny.config_of("llama", vocab_size=size), 3) for size in (64, 4096))
    assert small.layers == ((0, 2), (2, 4), (4, 6))
    assert large.layers[-1] == (5, 6)
    assert large.costs[-1] > small.costs[-1]


def test_only_the_experts_that_a_token_visits_count(tiny: ModuleType) -> None:
    few, many = (make_plan(tiny.config_of("qwen3_moe", num_experts=count), 3) for count in (4, 16))
    assert many.parameters > few.parameters
    assert math.isclose(few.costs[-1], many.costs[-1], rel_tol=0.1)


def test_measured_costs_are_positive_and_cover_the_model(tiny: ModuleType) -> None:
    plan = make_plan(tiny.config_of("gpt2"), 3, sequence_length=16, measure=True)
    assert plan.layers[0][0] == 0
    assert plan.layers[-1][1] == 6
    assert all(cost > 0 for cost in plan.costs)


def test_planning_a_model_of_a_hundred_billion_parameters_allocates_nothing() -> None:
    source = describe("llama:layers=80,width=8192,heads=64,kv_heads=8,hidden=28672,vocabulary=128000,positions=8192")
    plan = make_plan(source.config, 10, sequence_length=4096)
    assert plan.parameters > 65_000_000_000
    needs = memory_per_worker(plan, Batch(4, 1, 4096))
    with pytest.raises(NotEnoughMemory, match=r"stage \d+ needs .* GiB, but a worker has 80\.0 GiB"):
        check_memory(needs, worker_bytes=80 * 2**30)


def test_memory_is_32_bytes_a_parameter_and_24_more_until_the_seal() -> None:
    """Two middle stages of equal size: worker 2 holds both."""
    plan = make_plan(describe("llama:layers=8,width=32", vocabulary=64).config, 4)
    batch = Batch(micro_batches=4, micro_batch_size=2, sequence_length=8)
    need = memory_per_worker(plan, batch)[2]
    assert plan.parameter_counts[1] == plan.parameter_counts[2]
    assert need.shadow == 1
    assert need.state_bytes == 32 * plan.parameter_counts[2]
    assert need.pending_bytes == 24 * plan.parameter_counts[2]
    assert need.boundary_bytes == 7 * 4 * (2 * 8 * 32 * 4)
    assert [found.shadow for found in memory_per_worker(plan, batch)] == [None, None, 1, 2]
    assert [found.shadow for found in memory_per_worker(plan, batch, shadows=False)] == [None] * 4
    half = memory_per_worker(plan, Batch(4, 2, 8, torch.bfloat16))[2]
    assert half.total_bytes * 2 == need.total_bytes


def test_tensors_in_flight_count_as_they_travel() -> None:
    plan = make_plan(describe("llama:layers=8,width=32", vocabulary=64).config, 4)
    plain, same, half, bytes_ = (
        memory_per_worker(plan, Batch(4, 2, 8, wire=wire), window=3)[2]
        for wire in (None, torch.float32, torch.bfloat16, torch.int8)
    )
    unpacked = 2 * 4 * (2 * 8 * 32 * 4)  # the inputs of both seats, for their backward passes
    assert same == plain
    assert half.boundary_bytes == plain.boundary_bytes // 2 + unpacked
    assert bytes_.boundary_bytes == 7 * 4 * (2 * 8 * (32 + 4)) + unpacked
    assert plain.window_bytes - half.window_bytes == 3 * 2 * 2 * 4 * (2 * 8 * 32 * 2)


def test_adapters_need_little_state() -> None:
    config = describe("llama:layers=4,width=32", vocabulary=64).config
    full, adapted = (memory_per_worker(make_plan(config, 4, lora=lora), Batch()) for lora in (None, Lora(2)))
    assert all(one.state_bytes < other.state_bytes / 3 for one, other in zip(adapted, full, strict=True))


def test_the_machine_must_hold_all_workers() -> None:
    needs = memory_per_worker(make_plan(describe("gpt2:layers=3,width=32").config, 3), Batch())
    check_memory(needs, worker_bytes=2**30, machine_bytes=2**31)
    with pytest.raises(NotEnoughMemory, match="3 workers of this plan need"):
        check_memory(needs, machine_bytes=2**16)
    free = available_memory()
    assert free is None or free > 0


def test_dropout_is_off_unless_asked_for() -> None:
    from transformers import GPT2Config, OPTConfig

    gpt2 = prepare_config(GPT2Config(bos_token_id=None, eos_token_id=None))
    assert (gpt2.resid_pdrop, gpt2.embd_pdrop, gpt2.attn_pdrop) == (0, 0, 0)
    opt = prepare_config(OPTConfig(layerdrop=0.5), dropout=0.1)
    assert (opt.dropout, opt.layerdrop) == (0.1, 0)
    with pytest.raises(ConfigError, match="attention 'flash' is not supported"):
        prepare_config(gpt2, attention="flash")
    assert prepare_config(gpt2, attention="eager")._attn_implementation == "eager"


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        ("GPTNeoConfig", {}, "type 'gpt_neo' cannot be cut into stages.*proven types are"),
        ("MambaConfig", {}, "type 'mamba' cannot be cut"),
        ("Gemma3Config", {}, "type 'gemma3' cannot be cut"),
        ("ApertusConfig", {"num_hidden_layers": 2}, "keep state outside their parameters"),
        ("LlamaConfig", {"num_hidden_layers": 100_000}, "asks for 100000 layers"),
        ("LlamaConfig", {"num_hidden_layers": 0}, "asks for 0 layers"),
        ("GPT2Config", {"n_embd": 30, "n_head": 4}, "cannot build a 'gpt2' model"),
    ],
)
def test_models_that_cannot_be_cut_are_refused(kind: str, arguments: dict[str, int], message: str) -> None:
    import transformers

    with pytest.raises(PartitionError, match=message):
        make_plan(getattr(transformers, kind)(**arguments), 2)
