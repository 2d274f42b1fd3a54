"""Who is silent: when a step does not move, the workers that owe a claim although all that it needs was sent to them.

A worker that owes what the other holder of the same stage has delivered is the surest suspect. Who merely complains about
another proves nothing; who misses the coordinator's own deadline counts as dead.
"""

from __future__ import annotations

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction, Role
from holdfast.likeness import Likeness
from holdfast.route import Route
from holdfast.verify.board import Board
from holdfast.verify.chain import parents


def owing(route: Route, board: Board, micro_batches: int, *, updating: bool, likeness: Likeness | None = None) -> list[str]:
    """Workers with an unanswered duty in this step, the surest first, each once."""
    sure: list[str] = []
    likely: list[str] = []
    for key in due(route, board, micro_batches, updating=updating):
        missing = absent(route, board, key, likeness)
        (sure if len(missing) == 1 else likely).extend(missing)
    return list(dict.fromkeys([*sure, *likely]))


def absent(route: Route, board: Board, key: ClaimKey, likeness: Likeness | None = None) -> list[str]:
    """The holders of the key's stage that have not posted their account of it; if both have, and are unlike, the comparer."""
    holders = {Role.PRIMARY: route.primaries[key.stage], Role.SHADOW: route.shadows[key.stage]}
    found = [name for role, name in holders.items() if name is not None and board.header(key, role) is None]
    if found or likeness is None or not likeness.splits(route, key.stage):
        return found
    comparer = route.comparer(key.direction, key.stage)
    return [] if comparer is None or board.header(key, Role.COMPARER) is not None else [comparer]


def due(route: Route, board: Board, micro_batches: int, *, updating: bool) -> list[ClaimKey]:
    """The claims that could have been made by now and were not accepted, in the order of the computation."""
    if not board.keys():
        return []
    moment = next(iter(board.keys()))
    middle = [i for i in route.active if not route.is_trusted(i)]
    found = []
    for direction, stages in ((Direction.FORWARD, middle), (Direction.BACKWARD, middle[::-1])):
        for stage in stages:
            for m in range(micro_batches):
                key = ClaimKey(moment.step, moment.attempt, direction, stage, m)
                if key not in board.accepted and all(parent in board.accepted for parent in parents(key, route)):
                    found.append(key)
    for stage in middle:
        if stage in route.frozen:
            continue
        backward = [ClaimKey(moment.step, moment.attempt, Direction.BACKWARD, stage, m) for m in range(micro_batches)]
        gradient = ClaimKey(moment.step, moment.attempt, Direction.GRADIENT, stage, WHOLE_STEP)
        update = ClaimKey(moment.step, moment.attempt, Direction.UPDATE, stage, WHOLE_STEP)
        if all(key in board.accepted for key in backward) and gradient not in board.accepted:
            found.append(gradient)
        if updating and update not in board.accepted:
            found.append(update)
    return found
