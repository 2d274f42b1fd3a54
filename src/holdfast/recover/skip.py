"""Skip: the paper's efficient training. The suspects are bypassed for this step, and whatever could no longer agree is frozen.

An alert about stage 2 (worker w2, verified by w3), K = 6:

    stage         0      1      2      3      4      5
    bypassed                    x      x                    the suspects' own stages
    shadow on            w2     w3     w4     w5
    frozen               x      x      x                    1 too: its shadow sits on the suspect w2
    forward       0 ---> 1 ------------------> 4 ---> 5

Frozen means no gradient, no decay, no moment, no step count and no share of the norm. Stage 1 still carries activations and
gradients through; nobody shadows it in this step, so the referee does.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy
from holdfast.route import Route


class Skip(Remedy):
    """Leave the suspects out of this step."""

    name = "skip"

    def answer(self, dispute: Dispute) -> Answer:
        suspects = set(dispute.suspects) - set(dispute.route.trusted)
        if not suspects:
            return Investigate()
        return Redo(bypass(dispute.route, suspects), investigate=False)


def bypass(route: Route, suspects: Collection[str]) -> Route:
    """The route of one step without the suspects; trusted workers are never bypassed."""
    out = set(suspects) - set(route.trusted)
    stages = {i for i in route.stages if route.primaries[i] in out}
    shadows = tuple(None if shadow in out else shadow for shadow in route.shadows)
    return replace(
        route,
        epoch=route.epoch + 1,
        shadows=shadows,
        bypassed=tuple(sorted({*route.bypassed, *stages})),
        frozen=frozen(route, out),
    )


def leave_out(route: Route, stages: Collection[int]) -> Route:
    """The route of a step that leaves out what `skip` would after an alert about each of `stages`, with nobody under suspicion.

    It follows from the stages alone, whoever sits on them. What is only frozen keeps its shadow: that sits on no suspect.

    >>> from holdfast.route import plain_route
    >>> route = leave_out(plain_route(["w0", "w1", "w2", "w3", "w4", "w0"], ["w0"], shadowed=False), [2])
    >>> route.bypassed, route.frozen
    ((2, 3), (1, 2, 3))
    """
    if not stages:
        return route
    untrusted = set(route.stages[1:-1])
    out = {i + beside for i in stages for beside in (0, 1)} & untrusted
    still = {i + beside for i in stages for beside in (-1, 0, 1)} & untrusted
    bypassed, frozen = tuple(sorted({*route.bypassed, *out})), tuple(sorted({*route.frozen, *still}))
    return replace(route, epoch=route.epoch + 1, bypassed=bypassed, frozen=frozen)


def frozen(route: Route, suspects: Collection[str]) -> tuple[int, ...]:
    """The stages that take no update in a step that bypasses `suspects`: theirs, and those that they shadow.

    >>> from holdfast.route import plain_route
    >>> workers = ["w0", "w1", "w2", "w3", "w4", "w5"]
    >>> frozen(plain_route(workers, ["w0", "w5"], shadowed=True), ["w2", "w3"])
    (1, 2, 3)
    """
    seats = {i for i in route.stages for holder in route.holders(i) if holder in suspects}
    return tuple(sorted({*route.frozen, *seats}))
