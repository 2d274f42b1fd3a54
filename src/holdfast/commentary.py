"""What a machine that takes part is told of its own part: which layers it carries, and now and then how far the run is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

TIMES = 10
"""How often in a run progress is told, at most."""

PAUSE_S = 10.0


@dataclass(frozen=True, slots=True)
class Seated:
    """A machine's part: its `seats` (role by stage), the cut of the model, `version` sealed of `steps` steps."""

    seats: Mapping[int, str]
    layers: Sequence[tuple[int, int]]
    version: int
    steps: int

    def __str__(self) -> str:
        carried = [self._named(stage) for stage, role in sorted(self.seats.items()) if role == "primary"]
        checked = [self._named(stage) for stage, role in sorted(self.seats.items()) if role != "primary"]
        parts = [f"carries {' and '.join(carried)}"] if carried else []
        parts += [f"shadows {' and '.join(checked)}"] if checked else []
        return ", ".join(parts) or "has no seat now, and is a spare until it is needed"

    def _named(self, stage: int) -> str:
        lo, hi = self.layers[stage]
        return f"layers {lo}-{hi - 1} (stage {stage})" if hi - lo > 1 else f"layer {lo} (stage {stage})"


class Commentary:
    """Tells of a part when it changes, and of progress, `TIMES` in a run at most, `PAUSE_S` apart; `clock`: steady seconds."""

    def __init__(self, tell: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._tell = tell
        self._clock = clock
        self._told = ""
        self._version = 0
        self._at = 0.0

    def look(self, seated: Seated | None) -> None:
        """Call often, with what the machine has now; None where it has not begun a step."""
        if seated is None:
            return
        part, now = str(seated), self._clock()
        if part != self._told:
            self._tell(f"this machine {part}; the run is at step {seated.version} of {seated.steps}")
        elif seated.version - self._version < max(1, seated.steps // TIMES) or now - self._at < PAUSE_S:
            self._version = min(self._version, seated.version)  # the run may have gone back
            return
        else:
            self._tell(f"the run is at step {seated.version} of {seated.steps}")
        self._told, self._version, self._at = part, seated.version, now
