"""What a worker keeps of sealed steps: the states that they began from and its own claims, for as long as they may be checked.

version sealed     5    6    7    8      with a window of 3, when version 8 is sealed:
states kept        x    5    6    7      step s began from version s, so steps 5, 6 and 7 can be computed again
"""

from __future__ import annotations

from collections.abc import Mapping

from holdfast.claim import Claim, ClaimKey, StageState


class Retained:
    """`window` sealed steps, 0 for none. States share the memory of the weights that were in use then; nothing is copied."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._states: dict[tuple[int, int], StageState] = {}
        self._claims: dict[ClaimKey, Claim] = {}

    def keep(self, state: StageState, claims: Mapping[ClaimKey, Claim]) -> None:
        """The step that began from `state` is sealed; `claims` are what this worker said in it, tensors included."""
        if not self._window:
            return
        self._states[state.stage, state.version] = state
        self._claims |= claims
        oldest = state.version + 1 - self._window
        self._states = {slot: kept for slot, kept in self._states.items() if slot[1] >= oldest}
        self._claims = {key: kept for key, kept in self._claims.items() if key.step >= oldest}

    def state(self, stage: int, version: int) -> StageState | None:
        return self._states.get((stage, version))

    def claim(self, key: ClaimKey) -> Claim | None:
        return self._claims.get(key)
