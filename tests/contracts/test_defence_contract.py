"""The contract of a remedy holds for every remedy that Holdfast has, and catches those that break it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from holdfast.recover.relay import Relay
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy
from holdfast.recover.replace import Replace
from holdfast.recover.restart import Restart
from holdfast.recover.skip import Skip
from holdfast.testing import check_defence

REMEDIES: dict[str, Callable[[], Remedy]] = {
    "restart": lambda: Restart(2),
    "relay": lambda: Relay(2),
    "skip": Skip,
    "replace": Replace,
}


@pytest.mark.parametrize("name", list(REMEDIES))
def test_every_remedy_keeps_the_contract(name: str) -> None:
    check_defence(REMEDIES[name])


def remedy(answer: Callable[[Dispute], object], called: str = "mine") -> Callable[[], Remedy]:
    class Mine(Remedy):
        name = called

        def answer(self, dispute: Dispute) -> Answer:
            return answer(dispute)  # type: ignore[return-value]

    return Mine


WRONG = [
    (remedy(lambda dispute: None), "not Investigate"),
    (remedy(lambda dispute: Investigate(), called=""), "name"),
    (remedy(lambda dispute: Redo(dispute.route, investigate=True)), "begins again with the suspects"),
    (remedy(lambda dispute: Redo(replace(dispute.route, bypassed=(0,), frozen=(0,)), False)), "initiator's stages"),
    (remedy(lambda dispute: Redo(replace(dispute.route, bypassed=(dispute.key.stage,)), False)), "must be frozen"),
    (remedy(lambda dispute: Redo(replace(dispute.route, trusted=dispute.suspects), False)), "make anybody trusted"),
    (remedy(lambda dispute: Redo(replace(dispute.route, epoch=-1), False)), "epoch went back"),
    (lambda: "no remedy", "not an object"),
]


@pytest.mark.parametrize(("factory", "complaint"), WRONG, ids=lambda value: value if isinstance(value, str) else "")
def test_a_remedy_that_breaks_it_is_told_how(factory: Callable[[], Remedy], complaint: str) -> None:
    with pytest.raises(AssertionError, match=complaint):
        check_defence(factory)


def test_an_answer_that_depends_on_mood_is_caught() -> None:
    moods = iter([Investigate(), *[Redo] * 1000])

    def moody(dispute: Dispute) -> object:
        mood = next(moods)
        return Redo(dispute.route, True) if mood is Redo else mood

    with pytest.raises(AssertionError, match="two answers"):
        check_defence(remedy(moody))
