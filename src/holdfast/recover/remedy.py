"""A remedy answers a dispute with an order to the coordinator: find out who lied, or do the step again by another route.

Investigate    the referee re-executes; the innocent holder's value goes on, nothing is lost
Redo           the step is dropped and begun again from sealed weights, with the same samples
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from holdfast.claim import ClaimKey
from holdfast.route import Route


@dataclass(frozen=True, slots=True)
class Dispute:
    """A rejected claim: what it is about, why, who is suspected, and the route that the step ran on."""

    key: ClaimKey
    reason: str
    suspects: tuple[str, ...]
    route: Route


@dataclass(frozen=True, slots=True)
class Investigate:
    """Ask the referee, then go on with the innocent holder's value."""


@dataclass(frozen=True, slots=True)
class Redo:
    """Begin the step again on `route`; `investigate` asks the referee who lied before the evidence is dropped."""

    route: Route
    investigate: bool


Answer = Investigate | Redo


class Remedy(ABC):
    """Called by the coordinator once for each rejected claim that is not yet under investigation. It may not fail.

    It is not called where a claim is merely unverifiable: then the referee is always asked.
    """

    name: str

    @abstractmethod
    def answer(self, dispute: Dispute) -> Answer: ...
