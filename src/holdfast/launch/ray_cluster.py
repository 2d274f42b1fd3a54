"""A connection to a Ray cluster: one that is there, or one of this machine alone, for the length of a run and on loopback.

It is checked before anybody is started: room for the workers, and whether they would be reached from outside.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.errors import ConfigError, MissingExtra, NetworkError, SetupError

LOOPBACK = "127.0.0.1"
LOOPBACK_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's variable; with 0 it takes the loopback address for that of the node, and listens nowhere else."""

DIAL_S = 5.0
STORE_BYTES = 80 * 2**20
"""The object store of a Ray of our own; nearly nothing passes through it, and Ray wants 75 MB."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What Ray keeps free for one worker, and whether it starts one again that died."""

    cpus: float = 1.0
    gpus: float = 0.0
    restarts: bool = True


@dataclass(slots=True)
class RayCluster:
    """A connection to Ray. `ip` is the address of this node; with `spread`, workers may be on other nodes than this one.

    `owned` says that the cluster was connected to here, so that `close` leaves it (and ends one that was started here).
    """

    ray: Any
    ip: str
    spread: bool
    owned: bool

    def close(self) -> None:
        """A second call does nothing."""
        if self.owned:
            self.owned = False
            self.ray.shutdown()

    def options(self, needs: Needs) -> Mapping[str, Any]:
        """Of an actor: spread over the nodes, or kept on this one."""
        options = {
            "num_cpus": needs.cpus,
            "num_gpus": needs.gpus,
            "max_restarts": -1 if needs.restarts else 0,
            "max_task_retries": 0,  # a call that is repeated would bring an old part along
        }
        if self.spread:
            return {**options, "scheduling_strategy": "SPREAD"}
        here = self.ray.get_runtime_context().get_node_id()
        affinity = self.ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        return {**options, "scheduling_strategy": affinity(node_id=here, soft=False)}


def import_ray() -> Any:
    """The library; raises MissingExtra where it is not installed."""
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError:
        raise MissingExtra("ray", extra="ray", purpose="--engine ray") from None
    return ray


def connect(address: str | None, workers: int, needs: Needs, *, exposed: bool) -> RayCluster:
    """Connect to the cluster at `address` (`auto`: the one that this machine belongs to), or start one for this run alone.

    Without an address, that of RAY_ADDRESS; without that either, a Ray of this machine that listens on loopback only. Raises
    MissingExtra, NetworkError where no cluster answers, SetupError where it has no room for the workers, and ConfigError
    where they would be on several nodes, and so reached from outside, without being `exposed`.
    """
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise ConfigError(
            f"got the Ray client address {address}; workers must reach this process, so start it on a node of the cluster "
            "and give --ray-address auto"
        )
    if address is None:
        # The variable makes Ray listen on loopback alone; it is read when the library is imported first.
        os.environ.update({LOOPBACK_ONLY: "0", "RAY_USAGE_STATS_ENABLED": "0"})
    ray = import_ray()
    owned = not ray.is_initialized()
    if owned:
        _init(ray, address, workers, needs)
    try:
        if owned and address is None and not exposed:
            _check_loopback(ray)
        return _checked(ray, workers, needs, exposed=exposed, owned=owned)
    except BaseException:
        if owned:
            ray.shutdown()
        raise


def _init(ray: Any, address: str | None, workers: int, needs: Needs) -> None:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address is not None:
            if address not in ("auto", "local"):
                _dial(address)  # Ray itself waits for minutes
            ray.init(address=address, **quiet)
            return
        ray.init(
            address="local",
            num_cpus=max(os.cpu_count() or 1, round(workers * needs.cpus + 0.5)),
            include_dashboard=False,
            object_store_memory=STORE_BYTES,
            _node_ip_address=LOOPBACK,
            **quiet,
        )
    except (RuntimeError, ValueError, OSError, OverflowError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        if address is None:
            raise SetupError(f"Ray cannot be started here: {reason}; see its logs below /tmp/ray") from None
        raise NetworkError(
            f"no Ray cluster answers at {address} ({reason}); start one with `ray start --head`, or leave --ray-address out"
        ) from None


def _check_loopback(ray: Any) -> None:
    """Raise ConfigError where a Ray that was started here is reached from outside: whoever reaches it can run anything."""
    found = ray.util.get_node_ip_address()
    if not ipaddress.ip_address(found).is_loopback:
        raise ConfigError(
            f"Ray would listen at {found}, because this program has imported it before; set {LOOPBACK_ONLY}=0 before that, "
            "or start a Ray of your own and give its --ray-address"
        )


def _dial(address: str) -> None:
    """Raise OSError or ValueError where nothing listens at host:port."""
    host, colon, port = address.rpartition(":")
    if not (colon and port.isdecimal()):
        raise ValueError("an address is auto, or host:port, such as head:6379")
    socket.create_connection((host.strip("[]"), int(port)), DIAL_S).close()


def _checked(ray: Any, workers: int, needs: Needs, *, exposed: bool, owned: bool) -> RayCluster:
    alive = [node for node in ray.nodes() if node["Alive"]]
    here = ray.get_runtime_context().get_node_id()
    others = [node for node in alive if node["NodeID"] != here]
    if others and not exposed:
        raise ConfigError(
            f"the Ray cluster has {len(alive)} nodes, and workers on several must be reached beyond loopback; add "
            "--expose-wire (the wire asks everybody for a certificate of this run), or use a cluster of this node alone"
        )
    for resource, wanted in (("CPU", needs.cpus * workers), ("GPU", needs.gpus * workers)):
        found = sum(node["Resources"].get(resource, 0.0) for node in alive)
        if wanted > found:
            raise SetupError(
                f"the Ray cluster has {found:g} {resource}s on {len(alive)} nodes, and {workers} workers need {wanted:g}; "
                "add nodes, use fewer stages" + (", or let workers share a GPU (machines.ray_gpus=0.5)" * (resource == "GPU"))
            )
    return RayCluster(ray, ray.util.get_node_ip_address() if exposed else LOOPBACK, exposed, owned)
