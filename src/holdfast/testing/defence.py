"""The contract of a remedy, as a suite that its author runs: `check_defence(MyRemedy)`.

A remedy answers every dispute that the coordinator can put to it, at once, the same way each time, with a route on which a
step can run; and its retries end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy
from holdfast.route import Route, plain_route, reshadowed, without

SIZES = (3, 4, 6)
ENOUGH_ATTEMPTS = 100
"""By then a remedy that began a step again must have stopped doing so with everybody still in it."""


def check_defence(factory: Callable[[], Remedy]) -> None:
    """Raise AssertionError where the remedies that `factory` makes break the contract of `Remedy`."""
    remedy = factory()
    assert isinstance(remedy, Remedy), f"{remedy!r} is not an object of a subclass of holdfast.recover.remedy.Remedy"
    assert isinstance(getattr(remedy, "name", None), str), "a remedy needs a name, a text"
    assert remedy.name, "a remedy needs a name that is not empty"
    for dispute in disputes():
        _check_answer(factory, remedy, dispute)
        _check_end(remedy, replace(dispute, key=replace(dispute.key, attempt=ENOUGH_ATTEMPTS)))


def disputes() -> Iterator[Dispute]:
    """Every kind of dispute: each middle stage, each sort of claim, first and later attempts, before and after a takeover."""
    for route in _routes():
        for stage in route.stages[1:-1]:
            if route.is_trusted(stage):
                continue
            suspects = tuple(name for name in route.holders(stage) if name not in route.trusted)
            for direction in Direction:
                micro_batch = 0 if direction in (Direction.FORWARD, Direction.BACKWARD) else WHOLE_STEP
                for attempt in (0, 1):
                    key = ClaimKey(7, attempt, direction, stage, micro_batch)
                    yield Dispute(key, "output", suspects, route)
                    yield Dispute(key, "delivery", suspects[:1], route)


def _routes() -> Iterator[Route]:
    for size in SIZES:
        workers = ["initiator", *(f"w{i}" for i in range(1, size - 1)), "initiator"]
        route = plain_route(workers, ["initiator"], shadowed=True)
        yield route
        after = without(route, {"w1"})
        if after is not None:
            yield reshadowed(after)


def _check_answer(factory: Callable[[], Remedy], remedy: Remedy, dispute: Dispute) -> None:
    answer = remedy.answer(dispute)
    assert isinstance(answer, Investigate | Redo), f"answered {answer!r}, not Investigate() or Redo(...), to {dispute}"
    assert remedy.answer(dispute) == answer, f"the same dispute got two answers: {dispute}"
    assert factory().answer(dispute) == answer, f"two remedies made alike answer differently: {dispute}"
    if isinstance(answer, Redo):
        _check_route(dispute.route, answer)


def _check_route(before: Route, answer: Redo) -> None:
    after = answer.route
    assert isinstance(after, Route), f"a step cannot be redone on {after!r}"
    assert after.stages == before.stages, f"a route of {len(before.stages)} stages became one of {len(after.stages)}"
    assert after.trusted == before.trusted, "a remedy cannot make anybody trusted"
    assert after.epoch >= before.epoch, f"the epoch went back from {before.epoch} to {after.epoch}"
    assert not any(after.is_trusted(stage) for stage in after.bypassed), "the initiator's stages cannot be left out"
    assert set(after.bypassed) <= set(after.frozen), "a stage that is left out of a step must be frozen in it"
    strangers = set(after.workers) - set(before.workers)
    assert not strangers, f"nobody knows {', '.join(sorted(strangers))}"


def _check_end(remedy: Remedy, dispute: Dispute) -> None:
    answer: Answer = remedy.answer(dispute)
    if isinstance(answer, Redo):
        still = set(dispute.suspects) & {answer.route.primaries[stage] for stage in answer.route.active}
        assert not still, f"after {ENOUGH_ATTEMPTS} attempts it begins again with the suspects {', '.join(sorted(still))} in it"
