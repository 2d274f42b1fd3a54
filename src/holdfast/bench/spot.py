"""A market of spot instances: machines go without warning and others come, each at a random moment of a virtual day.

    Market(life_s, gone_s, seed)     exponential life of a machine, exponential time until another one takes its place
    SpotEngine(config, market)       the engine in memory, whose untrusted workers go and come as the market says

The protocol runs as it is; only who is there, and when, is drawn. A machine that comes has nothing of what its predecessor had.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import partial

from holdfast.config import RunConfig
from holdfast.engine import Ensemble, MemoryEngine
from holdfast.launch import Hooks, InProcess
from holdfast.message import Actor
from holdfast.seeds import derive

LEAST_GONE_S = 1.0
"""Nobody comes back before it was noticed that he went."""


@dataclass(frozen=True, slots=True)
class Market:
    """Means of the exponential distributions, in seconds: how long a machine stays, how long its place stays empty."""

    life_s: float
    gone_s: float
    seed: int = 0

    def moments(self, worker: str, until_s: float) -> list[tuple[float, bool]]:
        """When the machine in the place of `worker` goes (False) and another one is there (True), in order.

        >>> [there for _, there in Market(100.0, 50.0).moments("w1", 1000.0)][:3]
        [False, True, False]
        """
        dice = random.Random(derive(self.seed, "market", worker))
        found, now, there = [], 0.0, True
        while now < until_s:
            now += dice.expovariate(1 / self.life_s) if there else LEAST_GONE_S + dice.expovariate(1 / self.gone_s)
            there = not there
            found.append((now, there))
        return found


class SpotEngine(MemoryEngine):
    """See the module. The market's clock goes on over rollbacks, while each cluster begins its own; `gone` counts deaths."""

    def __init__(self, config: RunConfig, market: Market, until_s: float, restart_s: float = 0.0) -> None:
        super().__init__(config)
        self._market = market
        self._until_s = until_s
        self._restart_s = restart_s
        self._before_s = 0.0
        self._launcher: InProcess | None = None
        self._ensemble: Ensemble | None = None
        self._names: tuple[str, ...] = ()
        self._alive: set[str] = set()
        self.gone = 0

    def deploy(self, ensemble: Ensemble, hooks: Hooks) -> InProcess:
        again = self._launcher is not None
        if self._launcher is None:
            self._names = tuple(ensemble.workers)
        else:
            self._before_s += self._launcher.now
        self._ensemble = ensemble
        self._alive = set(ensemble.workers)
        launcher = self._launcher = super().deploy(ensemble, hooks)
        launcher.transport.now_s += self._restart_s if again else 0.0
        for name in self._names:
            for moment_s, there in self._market.moments(name, self._until_s):
                if moment_s >= self._before_s:
                    launcher.later(
                        max(0.0, moment_s - self._before_s - launcher.now), partial(self._turn, launcher, name, there)
                    )
        return launcher

    def _turn(self, launcher: InProcess, name: str, there: bool) -> None:
        if launcher is not self._launcher:
            return
        if there and name not in self._alive:
            self._alive.add(name)
            launcher.join(self._build(name))
        elif not there and name in self._alive:
            self._alive.discard(name)
            self.gone += 1
            launcher.kill(name)

    def _build(self, name: str) -> Actor:
        assert self._ensemble is not None
        return self._ensemble.builder.worker(name, self._ensemble.sign(name))
