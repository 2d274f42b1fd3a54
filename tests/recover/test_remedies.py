"""What each remedy orders, attempt by attempt (that they keep the contract is tested in tests/contracts)."""

from dataclasses import replace

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.recover.relay import Relay
from holdfast.recover.remedy import Dispute, Investigate, Redo
from holdfast.recover.replace import Replace
from holdfast.recover.restart import Restart
from holdfast.recover.skip import Skip
from holdfast.route import plain_route

ROUTE = plain_route(["w0", "w1", "w2", "w3", "w0"], ["w0"], shadowed=True)
AGAIN = Redo(ROUTE, investigate=True)
RELAYED = Redo(replace(ROUTE, epoch=2, relay=True), investigate=True)
BYPASSED = Redo(
    replace(ROUTE, epoch=2, shadows=(None, None, None, "w0", None), bypassed=(2, 3), frozen=(1, 2, 3)), investigate=False
)

TABLE = [  # remedy, its answers to attempts 0, 1, 2, 3
    (Replace(), [Investigate()] * 4),
    (Restart(0), [Investigate()] * 4),
    (Restart(2), [AGAIN, AGAIN, Investigate(), Investigate()]),
    (Relay(1), [RELAYED, Investigate(), Investigate(), Investigate()]),
    (Skip(), [BYPASSED] * 4),
]


@pytest.mark.parametrize("direction", Direction)
@pytest.mark.parametrize(("remedy", "answers"), TABLE, ids=["replace", "restart 0", "restart 2", "relay 1", "skip"])
def test_answers_by_attempt(remedy, answers, direction):
    disputes = [Dispute(ClaimKey(7, attempt, direction, 2), "output", ("w2", "w3"), ROUTE) for attempt in range(4)]
    assert [remedy.answer(dispute) for dispute in disputes] == answers
