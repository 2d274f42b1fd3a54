"""Who is out of a run, and who has lied how often: kept from one deployment to the next, from the events of all of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from holdfast.commits import too_many
from holdfast.config import DefenceConfig
from holdfast.event import Banned, Event, Joined, WorkerLost


class Standing:
    """`lost` are the workers that do not come along; `lies()` counts the proven ones by name, those of the run before it was
    resumed included.
    """

    def __init__(self, policy: DefenceConfig, lies: Callable[[], Counter[str]]) -> None:
        self.lost: set[str] = set()
        self._policy = policy
        self._lies = lies
        self._fell: tuple[int, frozenset[str]] | None = None

    def hear(self, event: Event) -> None:
        match event:
            case WorkerLost(worker) | Banned(worker):
                self.lost.add(worker)
            case Joined(worker):
                self.lost.discard(worker)
                self._fell = None  # whoever goes again in the same step has been back: that is no run in a circle

    def falls(self, step: int) -> bool:
        """The run goes back in `step`; whether it is in a circle: it did so there before, with the same workers lost."""
        now = step, frozenset(self.lost)
        again, self._fell = self._fell == now, now
        return again

    @property
    def lies(self) -> Counter[str]:
        return self._lies()

    @property
    def barred(self) -> frozenset[str]:
        """Who has lied too often to have a seat again."""
        return frozenset(too_many(self.lies, self._policy))

    @property
    def to_ban(self) -> list[str]:
        """Those of them who would come along still."""
        return sorted(self.barred - self.lost)

    @property
    def out(self) -> frozenset[str]:
        """Who has no seat in the next deployment."""
        return self.barred | self.lost

    @property
    def missed(self) -> frozenset[str]:
        """Who is lost, and could come back."""
        return frozenset(self.lost) - self.barred
