"""Whole runs whose tensors travel packed: checks stay exact, so that liars and crashes change no bit, as without packing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from holdfast import Experiment
from holdfast.attacks import ATTACKS, Attack
from holdfast.attacks.lie import Backstage, Lie, with_header
from holdfast.blueprint import Bounds, Builder, blueprint_of
from holdfast.claim import Claim, Direction
from holdfast.cluster import Cluster, Deployment, arithmetics
from holdfast.digest import tensor_digest
from holdfast.engine import MemoryEngine
from holdfast.errors import ConfigError, ProtocolError
from holdfast.event import SpotChecked
from holdfast.likeness import likeness_of
from holdfast.message import Envelope
from holdfast.transport.wire import wire_bytes
from holdfast.verify.calibration import Calibration
from holdfast.verify.statistics import Monitor

PACKED = ("bfloat16", "int8")
ON_TENSORS = [name for name, kind in ATTACKS.items() if issubclass(kind, Attack)]
LIES = [
    *(f"{name},direction=both" for name in ON_TENSORS),
    "lie-on-jump,header=false",
    "lie-on-direct,direction=both",
    "lazy,mode=forward,direction=both",
    "lazy,mode=copy,direction=both",
    "equivocation,direction=backward",
    "wrong-parent,direction=both",
    "framing,direction=both",
    "wrong-gradient,mode=state",
    "wrong-update,mode=state",
]


def check_undone(lab: Any, result: Any) -> None:
    assert result.attacked == result.detected > 0
    assert (result.missed, result.false_alarms, result.restarted) == (0, 0, 0)
    assert result.blamed <= set(result.ledger.by_worker)
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize("wire", PACKED)
def test_with_nobody_lying_no_defence_schedule_or_network_changes_a_bit(lab: Any, wire: str) -> None:
    clean = lab.run(wire_dtype=wire)
    assert clean.counts.alerted == {}
    assert clean.digest != lab.run().digest
    past_the_wire = {"defence": "none", "cluster": {"wire_check": False}}
    shaken = {"schedule": "gpipe", "cluster": {"wire_check": True, "jitter_s": 0.02, "loss": 0.2, "seed": 3}}
    for settings in (past_the_wire, shaken, {"defence": "duplicate-only"}, {"defence": "statistics"}):
        other = lab.run(wire_dtype=wire, **settings)
        assert other.digest == clean.digest, settings
        assert other.losses == clean.losses, settings


def test_the_models_own_dtype_by_name_is_the_default(lab: Any) -> None:
    assert lab.run(wire_dtype="float32").accounts == lab.run().accounts
    bfloat16 = {"model": {"dtype": "bfloat16", "name": "gpt2:layers=6,width=16,heads=2"}}
    plain = lab.run(**bfloat16)
    assert lab.run(**bfloat16, wire_dtype="bfloat16").accounts == plain.accounts
    assert lab.run(**bfloat16, wire_dtype="float32").digest == plain.digest, "nothing is lost in more bits"


@pytest.mark.parametrize(("attack", "wire"), [(attack, PACKED[i % 2]) for i, attack in enumerate(LIES)])
def test_every_lie_is_caught_and_undone(lab: Any, attack: str, wire: str) -> None:
    check_undone(lab, lab.run(wire_dtype=wire, attack=f"{attack},stages=2"))


@pytest.mark.slow
@pytest.mark.parametrize("wire", PACKED)
@pytest.mark.parametrize("stage", [1, 2, 3, 4])
@pytest.mark.parametrize("attack", LIES)
def test_every_lie_at_every_stage_is_caught_and_undone(lab: Any, attack: str, stage: int, wire: str) -> None:
    if attack.startswith(("lie-on-jump", "lazy,mode=copy", "framing")) and stage == 4:
        pytest.skip("the shadow of the last middle stage and the only holder of the last stage are the initiator's")
    check_undone(lab, lab.run(wire_dtype=wire, attack=f"{attack},stages={stage}", steps=3))


def test_in_a_bfloat16_model(lab: Any) -> None:
    settings = {"model": {"dtype": "bfloat16", "name": "gpt2:layers=6,width=16,heads=2"}, "wire_dtype": "int8"}
    check_undone(lab, lab.run(**settings, attack="sign-flip,direction=both,stages=2"))


@pytest.mark.parametrize("wire", PACKED)
def test_without_the_jump_the_input_that_is_shown_is_packed_too(lab: Any, wire: str) -> None:
    check_undone(lab, lab.run(wire_dtype=wire, defence="duplicate-only", attack="sign-flip,direction=both,stages=2"))
    fooled = lab.run(wire_dtype=wire, defence="duplicate-only", attack="other-input,stages=2")
    assert fooled.attacked == fooled.missed > 0, "honest work on the disguised input, whose bytes are those that were shown"
    check_undone(lab, lab.run(wire_dtype=wire, attack="other-input,stages=2"))


@pytest.mark.parametrize("on_alert", ["restart", "relay", "skip"])
def test_the_other_remedies(lab: Any, on_alert: str) -> None:
    settings = {"on_alert": on_alert, "attack": lab.only("X.", "sign-flip", 2)}
    result, plain = lab.run(wire_dtype="int8", **settings), lab.run(**settings)
    for name in ("attacked", "detected", "missed", "false_alarms", "blamed", "restarted"):
        assert getattr(result, name) == getattr(plain, name), name
    assert result.attacked > 0
    assert (result.digest == lab.clean(result).digest) == (on_alert != "skip")


@pytest.mark.parametrize("wire", PACKED)
@pytest.mark.parametrize("at", ["forward", "backward"])
def test_a_crash_in_the_middle_of_a_step(lab: Any, wire: str, at: str) -> None:
    result = lab.run(wire_dtype=wire, faults=[f"crash stage=2 step=1 at={at}"], steps=3)
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize("wire", PACKED)
def test_spot_checks_compute_from_what_was_claimed(lab: Any, wire: str) -> None:
    clean = lab.run(wire_dtype=wire, defence="spot-check", check_steps=1.0, steps=3)
    assert clean.digest == lab.run(wire_dtype=wire, steps=3).digest
    assert clean.counts.alerted == {}
    assert sum(event.claims for event in clean.of(SpotChecked)) > 0


def test_with_adapters_only(lab: Any) -> None:
    lora = {"name": "gpt2:layers=6,width=16,heads=2", "lora_rank": 2}
    check_undone(lab, lab.run(model=lora, wire_dtype="int8", attack="sign-flip,direction=both,stages=2"))


def test_dropout(lab: Any) -> None:
    clean = lab.run(model={"name": "gpt2:layers=6,width=16,heads=2", "dropout": 0.2}, wire_dtype="int8")
    assert clean.counts.alerted == {}


@pytest.mark.parametrize("wire", PACKED)
def test_the_losses_are_near_those_of_unpacked_tensors(lab: Any, wire: str) -> None:
    packed, plain = (lab.run(wire_dtype=name, steps=6).losses for name in (wire, None))
    assert packed != plain
    assert packed == pytest.approx(plain, rel=2e-3)


def test_bytes_of_boundary_traffic(lab: Any) -> None:
    sent = {wire: boundary_bytes(lab, wire) for wire in (None, *PACKED)}
    assert sent[None] / sent["bfloat16"] == pytest.approx(2, rel=0.1)
    assert sent[None] / sent["int8"] == pytest.approx(4 * 64 / 68, rel=0.15)


def boundary_bytes(lab: Any, wire: str | None) -> int:
    """What the claims of one step weigh, headers and all."""
    job = lab.job(lab.config(wire_dtype=wire, steps=1, seq_length=32, model={"name": "gpt2:layers=6,width=64,heads=4"}))
    cluster = Cluster(Deployment("run"), job, lambda _event, _seconds: None, MemoryEngine(job.config))
    found: list[int] = []

    def weighed(envelope: Any) -> None:
        if isinstance(envelope.message, Claim):
            tensor = envelope.message.tensor
            assert envelope.message.header.key.direction in (Direction.FORWARD, Direction.BACKWARD)
            assert tensor.dtype == {None: torch.float32, "bfloat16": torch.bfloat16, "int8": torch.int8}[wire]
            found.append(wire_bytes(envelope))
        send(envelope)

    cluster.deploy({stage: job.initial_state(stage) for stage in range(job.plan.stages)}, 0)
    send = cluster.transport.send
    cluster.transport.send = weighed  # type: ignore[method-assign]
    assert cluster.run_step(0) is None
    assert found
    return sum(found)


class Hostile(Lie):
    """Bytes that no packing makes: this scale for every row, codes that run through all there are."""

    def __init__(self, scale: float) -> None:
        super().__init__(direction="both")
        self.scale = scale

    def rewrite(self, envelope: Envelope, backstage: Backstage) -> Sequence[Envelope]:
        honest = backstage.honest
        if honest is None:  # whoever holds the neighbour too sends nobody a tensor
            return [envelope]
        told = (torch.arange(honest.numel()) % 256 - 128).to(torch.int8).reshape(honest.shape)
        told[..., -4:] = torch.tensor([self.scale]).view(torch.int8)
        backstage.record("output", tensor_digest(honest), tensor_digest(told))
        lying = with_header(envelope, lambda header: replace(header, output=tensor_digest(told) if header.output else b""))
        claim = lying.message
        return [replace(lying, message=replace(claim, tensor=told)) if isinstance(claim, Claim) else lying]


@pytest.mark.parametrize("scale", [float("inf"), float("nan"), -1.0, 0.0])
def test_bytes_that_no_packing_makes_break_nobody(lab: Any, scale: float) -> None:
    attack = {"attack": "sign-flip,stages=2", "wire_dtype": "int8"}
    check_undone(lab, lab.run({0: Hostile(scale)}, **attack))
    believed = lab.run({0: Hostile(scale)}, **attack, defence="none")
    assert believed.missed > 0


def test_bytes_that_no_packing_makes_are_watched_and_spot_checked() -> None:
    small = {"model": "gpt2:layers=6,width=16,heads=2", "data": "synthetic", "seq_length": 8, "vocabulary": 300, "steps": 3}
    settings = {**small, "micro_batches": 2, "micro_batch_size": 2, "wire_dtype": "int8", "defence": "statistics"}
    clean = Experiment(**settings).run()
    result = Experiment(**settings, check_steps=1.0, attack={"spec": Hostile(float("inf")), "stages": (2,)}).run()
    assert result.weights_digest == clean.weights_digest
    assert result.attacked_claims > 0
    assert (result.missed, result.false_alarms) == (0, 0)


@pytest.mark.parametrize("wire", PACKED)
def test_statistics_are_those_of_the_numbers(lab: Any, monkeypatch: pytest.MonkeyPatch, wire: str) -> None:
    seen: list[tuple[torch.dtype, int]] = []
    monkeypatch.setattr(Monitor, "observe", lambda _self, _name, tensor: seen.append((tensor.dtype, tensor.shape[-1])))
    lab.run(wire_dtype=wire, defence="statistics", steps=1)
    assert set(seen) == {(torch.float32, 16)}


@pytest.mark.parametrize("wire", PACKED)
def test_between_unlike_arithmetics_it_is_refused(lab: Any, wire: str) -> None:
    numerics = ["native", "split-sums", "native", "native", "native", "native"]
    config = lab.config(wire_dtype=wire, cluster={"numerics": numerics})
    for calibration in (None, Calibration(8.0, {})):
        with pytest.raises(ConfigError, match=f"wire_dtype {wire} with a float32 model"):
            likeness_of(lab.job(config), arithmetics(config), calibration)
    bounds = Bounds(classes={}, calibration="", drift_factor=2.0)
    blueprint = blueprint_of(lab.job(config), "run", arithmetics(config), None).model_copy(update={"bounds": bounds})
    with pytest.raises(ProtocolError, match=f"wire_dtype {wire} with a float32 model"):
        Builder.unfold(blueprint, "cpu")
    alike = lab.config(wire_dtype=wire, cluster={"numerics": ["split-sums"] * 6})
    assert likeness_of(lab.job(alike), arithmetics(alike)) is None
