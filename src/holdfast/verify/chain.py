"""Every claim names the digests of its inputs, and those must be outputs that the board accepted: the chain of a step.

    a_{i-1} --> FORWARD i --> a_i          g_{i+1}, a_{i-1} --> BACKWARD i --> g_i          GRADIENT i --> UPDATE i

A claim about another input than the accepted one is a lie about its parent, whatever its output. Stage 0 reads tokens, which
stay with the initiator and have no claim; the last stage's backward pass starts from the loss.
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.claim import WHOLE_STEP, ClaimKey, Direction
from holdfast.route import Route


def parents(key: ClaimKey, route: Route) -> tuple[ClaimKey, ...]:
    """The claims whose outputs `key` was computed from, in the order in which its header lists their digests."""
    if key.direction is Direction.GRADIENT:
        return ()
    if key.direction is Direction.UPDATE:
        return (_beside(key, Direction.GRADIENT, key.stage),)
    before, after = route.before(key.stage), route.after(key.stage)
    found = []
    if before is not None:
        found.append(_beside(key, Direction.FORWARD, before))
    if key.direction is Direction.BACKWARD and after is not None:
        found.append(_beside(key, key.direction, after))
    return tuple(found)


def ingredients(key: ClaimKey, route: Route, micro_batches: int) -> tuple[ClaimKey, ...]:
    """The claims whose tensors a referee needs to recompute `key`: its parents, or those of the whole step."""
    if key.micro_batch != WHOLE_STEP:
        return parents(key, route)
    passes = (ClaimKey(key.step, key.attempt, Direction.BACKWARD, key.stage, m) for m in range(micro_batches))
    return tuple(parent for backward in passes for parent in parents(backward, route))


def children(key: ClaimKey, route: Route) -> tuple[ClaimKey, ...]:
    """The claims that may have waited for `key` to be accepted: those with it among their ingredients."""
    forward = key.direction is Direction.FORWARD
    stage = route.after(key.stage) if forward else route.before(key.stage)
    if stage is None or key.micro_batch == WHOLE_STEP:
        return ()
    fed = [_beside(key, key.direction, stage)] + [_beside(key, Direction.BACKWARD, stage)] * forward
    return (*fed, ClaimKey(key.step, key.attempt, Direction.GRADIENT, stage))


def expected_inputs(key: ClaimKey, route: Route, accepted: Mapping[ClaimKey, bytes]) -> tuple[bytes, ...] | None:
    """The digests that an honest header of `key` must name; None while a parent is not accepted yet."""
    wanted = parents(key, route)
    if any(parent not in accepted for parent in wanted):
        return None
    return tuple(accepted[parent] for parent in wanted)


def _beside(key: ClaimKey, direction: Direction, stage: int) -> ClaimKey:
    """The key of the same moment and micro-batch; `dataclasses.replace` takes seven times as long."""
    return ClaimKey(key.step, key.attempt, direction, stage, key.micro_batch)
