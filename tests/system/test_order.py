"""The order in which messages arrive, and who is fast or slow, change when things happen and not one bit of what happens."""

from __future__ import annotations

from typing import Any

import pytest

from holdfast.claim import Direction
from holdfast.event import Ruling, WorkerLost

FORWARD_S = 0.05
"""Virtual seconds of a forward pass: a jitter of several of them reorders messages over whole micro-batches."""
ROUGH = {"jitter_s": 4 * FORWARD_S, "loss": 0.2}
UNLIKE = (1.0, 0.2, 3.0, 1.0, 0.5, 2.0)
TROUBLES: dict[str, dict[str, Any]] = {
    "calm": {},
    "sign-flip": {"attack": "sign-flip,direction=both"},
    "two liars": {"attack": ["gaussian,direction=both,stages=1", "wrong-gradient,mode=state,stages=3"]},
    "framing": {"attack": "framing,direction=both,stages=1-3"},
    "links": {"attack": ["lie-on-jump,stages=1", "lie-on-direct,direction=both,stages=3"]},
    "spoilt": {"attack": "wrong-update,mode=state"},
    "restart": {"attack": "sign-flip,direction=both", "on_alert": "restart"},
    "relay": {"attack": "sign-flip,direction=both,persistent=true", "on_alert": "relay"},
    "ban": {"attack": "sign-flip,worker=w2", "defence": {"ban_policy": "ban", "ban_after": 1}},
    "crash": {"faults": ["crash stage=2 step=1 at=backward sent=1"]},
    "two crashes": {"faults": ["crash stage=1 step=1 at=forward", "crash stage=3 step=1 at=shadow-backward"]},
    "stall": {"faults": ["stall stage=2 step=1 at=forward seconds=500"]},
    "crash and liar": {"attack": "zeros,worker=w4,direction=both", "faults": ["crash worker=w2 step=1 at=backward"]},
}


def check_same(lab: Any, **settings: Any) -> None:
    """The weights, the losses, and who is blamed are those of a calm network of equal machines."""
    result = lab.run(**settings)
    clean = lab.clean(result)
    assert result.digest == clean.digest
    assert result.losses == clean.losses
    assert result.attacked >= result.detected
    assert (result.missed, result.false_alarms, result.counts.rollbacks) == (0, 0, 0)
    assert result.blamed <= set(result.ledger.by_worker)
    assert all(len(ruling.culprits) == 1 for ruling in result.of(Ruling))
    assert len(result.of(WorkerLost)) == len(settings.get("faults", ()))


def network(seed: int, **more: Any) -> dict[str, Any]:
    return {"wire_check": True, "seed": seed, **ROUGH, **more}


@pytest.mark.parametrize("trouble", ["two liars", "links", "crash and liar"])
def test_late_lost_and_reordered_messages(lab: Any, trouble: str) -> None:
    check_same(lab, **TROUBLES[trouble], cluster=network(seed=1), micro_batches=3)


@pytest.mark.slow
@pytest.mark.parametrize(("jitter", "schedule"), [(0.2, "1f1b"), (1.0, "gpipe"), (4.0, "1f1b"), (4.0, "gpipe"), (20.0, "1f1b")])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("trouble", TROUBLES)
def test_late_lost_and_reordered_messages_everywhere(lab: Any, trouble: str, seed: int, jitter: float, schedule: str) -> None:
    cluster = network(seed, jitter_s=jitter * FORWARD_S)
    check_same(lab, **TROUBLES[trouble], cluster=cluster, steps=3, micro_batches=4, schedule=schedule)


@pytest.mark.parametrize("trouble", [pytest.param(n, marks=[] if n == "crash" else [pytest.mark.slow]) for n in TROUBLES])
def test_unlike_machines(lab: Any, trouble: str) -> None:
    """Layers follow the speeds to other stages, and messages come in another order: the model that comes out is the same."""
    model = {"name": "gpt2:layers=9,width=16,heads=2"}
    equal = lab.run(model=model)
    unlike = lab.run(model=model, **TROUBLES[trouble], cluster=network(seed=2, jitter_s=FORWARD_S, speeds=UNLIKE))
    assert lab.job(unlike.config).plan.layers != lab.job(equal.config).plan.layers
    assert unlike.digest == equal.digest
    assert (unlike.missed, unlike.false_alarms) == (0, 0)


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_a_parked_micro_batch_is_overtaken_and_gradients_are_added_in_index_order(lab: Any, schedule: str) -> None:
    """While the referee looks into g_2 of micro-batch 0, w1 goes on with others; in its sum 0 still comes first."""
    settings = {"micro_batches": 4, "schedule": schedule, "steps": 1, "cluster": network(seed=1)}
    result = lab.run(attack="sign-flip,direction=backward,stages=2,micro_batches=0", **settings)
    posted = [header.key for sender, header in result.posted if (sender, header.key.stage) == ("w1", 1)]
    order = list(dict.fromkeys(key.micro_batch for key in posted if key.direction is Direction.BACKWARD))
    assert sorted(order) == [0, 1, 2, 3]
    assert order[0] != 0, "nothing was overtaken; the test shows less than it says"
    assert result.digest == lab.clean(result).digest


@pytest.mark.parametrize("defence", ["none", "duplicate", "duplicate-only"])
def test_the_order_shows_in_the_time_alone(lab: Any, defence: str) -> None:
    calm = lab.run(defence=defence)
    rough = lab.run(defence=defence, cluster=network(seed=3))
    assert rough.digest == calm.digest
    assert rough.accounts == calm.accounts
    assert rough.virtual_s > calm.virtual_s


def test_one_seed_is_one_run(lab: Any) -> None:
    """The same cluster twice: the same events at the same virtual times; another seed gives other times."""
    settings = {**TROUBLES["crash and liar"], "steps": 2}
    first, again, other = (lab.run(**settings, cluster=network(seed)) for seed in (1, 1, 2))
    assert (first.events, first.virtual_s) == (again.events, again.virtual_s)
    assert first.virtual_s != other.virtual_s
