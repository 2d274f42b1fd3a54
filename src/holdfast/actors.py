"""The crew of the `ray` engine: an actor for each worker, on the nodes and GPUs of a Ray cluster of one owner.

actors(staging) --> connect to Ray --> Machines, on the wire <-- gRPC, mutual TLS --> the workers, in their actors
                                          |
                                          +-- Actors: launch, end, launch again --> launch.ray.RayActors
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from holdfast.config import RunConfig
from holdfast.crew import Staging, Started, Told, machines
from holdfast.launch.ray import RayActors
from holdfast.launch.ray_cluster import Needs, RayCluster, connect
from holdfast.machines import Crew, Machines, Patience
from holdfast.station import numerics_of


class Actors(Started):
    """Each worker is an actor in a Ray cluster. Closing it leaves the cluster, or ends one that was started for the run."""

    def __init__(self, cluster: RayCluster, *given: Any) -> None:
        super().__init__(*given)
        self._cluster = cluster
        self.children = RayActors(
            cluster, needs_of(self._staging.config), "holdfast.cli.play:perform", self._ended, self._staging.heard
        )

    def _launch(self, name: str, told: Told) -> None:
        self.children.start(name, told.model_dump_json().encode())

    def _end(self, name: str, *, for_good: bool) -> None:
        self.children.kill(name, for_good=for_good)

    def _running(self) -> Sequence[str]:
        return self.children.alive()

    def _finish(self) -> None:
        self.children.close()
        self._cluster.close()

    @property
    def _device(self) -> str:
        """Ray shows each actor its own GPU only."""
        return "cuda" if self._staging.config.model.device.startswith("cuda") else self._staging.config.model.device

    @property
    def _numerics(self) -> str | None:
        """Claims are compared byte by byte: who computes with other bytes would only be accused."""
        config = self._staging.config
        return None if config.defence_name == "none" else numerics_of(config.model.device)


def needs_of(config: RunConfig) -> Needs:
    """What one worker takes of a Ray cluster: a processor, and its share of a GPU where the run computes on one."""
    gpus = config.machines.ray_gpus if config.model.device.startswith("cuda") else 0.0
    return Needs(1.0, gpus, config.machines.restart_workers)


def actors(staging: Staging, crew: Callable[..., Crew] = Actors, patience: Patience | None = None) -> Machines:
    """The engine `ray`; `crew` makes the crew (as `Actors` is made). Connects to Ray, or starts one.

    The wire listens on loopback where all workers are on this node, else at the address of this node. Raises as
    `holdfast.launch.ray.connect` does, and CannotListen if it cannot listen.
    """
    config = staging.config
    workers = max(0, config.pipeline.stages - 2)
    found = connect(config.machines.ray_address, workers, needs_of(config), exposed=config.machines.expose_wire)
    try:
        listen = f"[{found.ip}]:0" if ":" in found.ip else f"{found.ip}:0"
        return machines(staging, partial(crew, found), patience, listen)
    except BaseException:
        found.close()
        raise
