"""Actors and the connection to Ray, against a stand-in with Ray's interface; tests/machines/test_ray.py has the real one."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from holdfast.actors import needs_of
from holdfast.config import resolve
from holdfast.errors import ConfigError, HoldfastError, MissingExtra, NetworkError, SetupError
from holdfast.launch.ray import Place, RayActors, Seat
from holdfast.launch.ray_cluster import Needs, RayCluster, connect
from holdfast.settings import check_available

ECHO, BROKEN = "tests_launch_ray:echo", "tests_launch_ray:broken"
ONE = Needs()


class RayError(Exception):
    pass


class Lines:
    """What a call that streams gives: references to lines, until the actor dies."""

    def __init__(self, actor: FakeActor, lines: Iterator[bytes]) -> None:
        self._actor = actor
        self._life = actor.lives
        self._said: queue.Queue[Any] = queue.Queue()
        threading.Thread(target=self._pump, args=(lines,), daemon=True).start()

    def _pump(self, lines: Iterator[bytes]) -> None:
        try:
            for line in lines:
                self._said.put(line)
            self._said.put(None)
        except HoldfastError as error:
            told = RayError(f"ray::Seat.serve() (pid=7)\n  {error}")
            told.cause = error  # type: ignore[attr-defined]
            self._said.put(told)

    def __iter__(self) -> Lines:
        return self

    def __next__(self) -> Any:
        while True:
            if self._actor.lives != self._life or self._actor.dead:
                raise RayError("The actor died unexpectedly before finishing this task.\n\tclass_name: Seat")
            try:
                line = self._said.get(timeout=0.01)
            except queue.Empty:
                continue
            if isinstance(line, Exception):
                raise line
            if line is None:
                raise StopIteration
            return line


class FakeActor:
    def __init__(self, made: type, options: dict[str, Any], *, stillborn: bool = False) -> None:
        self.options = options
        self.lives = 1
        self.dead = stillborn
        self._made = made
        self.told: list[bytes] = []
        self.serve = SimpleNamespace(options=lambda num_returns: SimpleNamespace(remote=self._serve))

    def _serve(self, entry: str, told: bytes) -> Lines:
        self.told.append(told)
        return Lines(self, self._made().serve(entry, told))


class FakeRay:
    """The part of Ray that is used, in threads of this process."""

    def __init__(self, nodes: list[dict[str, Any]] | None = None) -> None:
        self.actors: list[FakeActor] = []
        self.stillborn = 0
        self.inits: list[dict[str, Any]] = []
        self.running = False
        self._nodes = nodes or [node("here", "127.0.0.1")]
        self.exceptions = SimpleNamespace(RayError=RayError)
        affinity = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda **kept: kept)
        self.util = SimpleNamespace(get_node_ip_address=lambda: "10.1.0.1", scheduling_strategies=affinity)

    def is_initialized(self) -> bool:
        return self.running

    def init(self, **given: Any) -> None:
        self.inits.append(given)
        self.running = True

    def shutdown(self) -> None:
        self.running = False

    def nodes(self) -> list[dict[str, Any]]:
        return self._nodes

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "here")

    def remote(self, made: type) -> Any:
        def make(**options: Any) -> Any:
            def remote() -> FakeActor:
                self.actors.append(FakeActor(made, options, stillborn=self.stillborn > 0))
                self.stillborn -= 1
                return self.actors[-1]

            return SimpleNamespace(remote=remote)

        return SimpleNamespace(options=make)

    def get(self, reference: Any) -> Any:
        return reference

    def kill(self, actor: FakeActor, *, no_restart: bool) -> None:
        if actor.dead:
            raise RayError("it is dead")
        actor.dead = no_restart
        actor.lives += 1


def node(name: str, ip: str, cpus: float = 4.0, **more: float) -> dict[str, Any]:
    return {"NodeID": name, "NodeManagerAddress": ip, "Alive": True, "Resources": {"CPU": cpus, **more}}


class Heard:
    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.ends: list[tuple[str, str]] = []

    def ended(self, name: str, why: str) -> None:
        self.ends.append((name, why))

    def heard(self, name: str, line: bytes) -> None:
        self.lines.append((name, line))


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


LEAVES = threading.Event()


def echo(told: bytes, say: Callable[[bytes], None], ip: str) -> None:
    say(told + b" at " + ip.encode())
    LEAVES.wait(20)


def broken(told: bytes, say: Callable[[bytes], None], ip: str) -> None:
    raise SetupError("no room on this node")


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    found = FakeRay()
    _install(found, monkeypatch)
    return found


def _install(found: FakeRay, monkeypatch: pytest.MonkeyPatch) -> None:
    LEAVES.clear()
    monkeypatch.setitem(sys.modules, "ray", found)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray.util", found.util)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", found.util.scheduling_strategies)
    monkeypatch.setitem(sys.modules, "tests_launch_ray", SimpleNamespace(echo=echo, broken=broken))  # type: ignore[arg-type]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")  # so that it is put back


def crew_of(fake: FakeRay, entry: str = ECHO, needs: Needs = ONE) -> tuple[RayActors, Heard]:
    heard = Heard()
    return RayActors(RayCluster(fake, "127.0.0.1", False, True), needs, entry, heard.ended, heard.heard), heard


# -- actors ---------------------------------------------------------------------------------------------------------------


def test_what_an_actor_is_told_and_says(fake: FakeRay) -> None:
    actors, heard = crew_of(fake, needs=Needs(1.0, 0.5))
    actors.start("w1", b"a part")
    until(lambda: heard.lines)
    assert heard.lines == [("w1", b"a part at 10.1.0.1")]
    assert actors.place("w1") == Place("10.1.0.1", os.getpid())
    assert actors.alive() == ("w1",)
    options = fake.actors[0].options
    assert (options["num_cpus"], options["num_gpus"], options["max_restarts"]) == (1.0, 0.5, -1)
    assert options["max_task_retries"] == 0, "Ray would tell it an old part again"
    assert options["scheduling_strategy"] == {"node_id": "here", "soft": False}
    actors.close(patience_s=0.1)
    assert fake.actors[0].dead
    assert heard.ends == [], "who is closed has not been lost"


def test_who_is_killed_is_told_of_once_and_started_again_in_the_actor_that_ray_has_up_again(fake: FakeRay) -> None:
    actors, heard = crew_of(fake)
    actors.start("w1", b"a part")
    until(lambda: heard.lines)
    actors.kill("w1")
    until(lambda: heard.ends)
    assert heard.ends == [("w1", "its actor ended: The actor died unexpectedly before finishing this task.")]
    assert actors.alive() == ()
    actors.kill("w1")  # the run drops who is gone: the new process must not suffer for it
    assert fake.actors[0].lives == 2
    actors.start("w1", b"another part")
    until(lambda: len(heard.lines) == 2)
    assert fake.actors[0].told == [b"a part", b"another part"]
    assert len(fake.actors) == len(heard.ends) == 1
    actors.close(patience_s=0.1)


def test_who_is_killed_for_good_gives_its_place_up(fake: FakeRay) -> None:
    actors, heard = crew_of(fake)
    actors.start("w1", b"")
    until(lambda: heard.lines)
    actors.kill("w1", for_good=True)
    until(lambda: heard.ends)
    assert fake.actors[0].dead
    actors.close(patience_s=0.1)


def test_an_actor_that_never_came_up_is_made_anew(fake: FakeRay) -> None:
    fake.stillborn = 1
    actors, heard = crew_of(fake)
    actors.start("w1", b"a part")
    until(lambda: heard.ends)
    actors.start("w1", b"a part")
    until(lambda: heard.lines)
    assert len(fake.actors) == 2
    actors.close(patience_s=0.1)


def test_the_reason_is_what_the_worker_itself_says(fake: FakeRay) -> None:
    actors, heard = crew_of(fake, BROKEN)
    actors.start("w1", b"")
    until(lambda: heard.ends)
    assert heard.ends == [("w1", "its actor ended: no room on this node")]
    actors.close(patience_s=0.1)


def test_who_leaves_in_time_is_not_waited_for(fake: FakeRay) -> None:
    actors, _ = crew_of(fake)
    actors.start("w1", b"")
    LEAVES.set()
    actors.close(patience_s=20.0)


def test_an_actor_says_first_where_it_is(fake: FakeRay) -> None:
    LEAVES.set()
    first, *rest = Seat().serve(ECHO, b"x")
    assert json.loads(first) == {"ip": "10.1.0.1", "pid": os.getpid()}
    assert rest == [b"x at 10.1.0.1"]


# -- the cluster ----------------------------------------------------------------------------------------------------------


def test_without_an_address_a_ray_of_its_own_on_loopback(fake: FakeRay) -> None:
    fake._nodes = [node("here", "127.0.0.1", 8)]
    fake.util.get_node_ip_address = lambda: "127.0.0.1"
    cluster = connect(None, 5, Needs(), exposed=False)
    assert cluster.ip == "127.0.0.1"
    assert fake.inits[0]["address"] == "local"
    assert fake.inits[0]["_node_ip_address"] == "127.0.0.1"
    assert fake.inits[0]["num_cpus"] >= 5, "they share what processors there are"
    assert os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    cluster.close()
    assert not fake.running


def test_a_ray_of_its_own_that_others_would_reach_is_refused(fake: FakeRay) -> None:
    """Its variable counts when it is imported first, and somebody had."""
    fake.util.get_node_ip_address = lambda: "10.1.0.1"
    with pytest.raises(ConfigError, match=r"would listen at 10\.1\.0\.1"):
        connect(None, 1, ONE, exposed=False)
    assert not fake.running


def test_a_cluster_that_the_caller_is_connected_to_is_left_alone(fake: FakeRay) -> None:
    fake.running = True
    cluster = connect(None, 1, Needs(), exposed=False)
    cluster.close()
    assert fake.running
    assert fake.inits == []


def test_several_nodes_only_where_workers_may_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeRay([node("here", "10.1.0.1"), node("there", "10.1.0.2")])
    _install(fake, monkeypatch)
    with pytest.raises(ConfigError, match=r"has 2 nodes.*--expose-wire"):
        connect("auto", 4, Needs(), exposed=False)
    assert not fake.running, "what was connected to for nothing is left again"
    cluster = connect("auto", 8, Needs(), exposed=True)
    assert fake.inits[-1]["address"] == "auto"
    assert cluster.ip == "10.1.0.1"
    assert cluster.options(Needs())["scheduling_strategy"] == "SPREAD"


@pytest.mark.parametrize(
    ("needs", "told"),
    [(Needs(), "4 CPUs on 1 nodes, and 5 workers need 5"), (Needs(0.5, 1.0), "1 GPUs .*need 5.*ray_gpus=0.5")],
)
def test_too_little_room_is_told_before_anybody_starts(monkeypatch: pytest.MonkeyPatch, needs: Needs, told: str) -> None:
    fake = FakeRay([node("here", "10.1.0.1", 4.0, GPU=1.0)])
    _install(fake, monkeypatch)
    with pytest.raises(SetupError, match=told):
        connect("auto", 5, needs, exposed=False)


@pytest.mark.parametrize(("device", "gpus"), [("cpu", 0.0), ("cuda", 0.5), ("cuda:1", 0.5)])
def test_a_worker_takes_its_share_of_a_gpu_where_there_is_one(device: str, gpus: float) -> None:
    config = resolve({"model": {"device": device}, "machines": {"ray_gpus": 0.5, "restart_workers": False}})
    assert needs_of(config) == Needs(1.0, gpus, False)


def test_a_client_of_ray_is_no_node_of_it(fake: FakeRay) -> None:
    with pytest.raises(ConfigError, match="on a node of the cluster"):
        connect("ray://head:10001", 1, Needs(), exposed=False)


@pytest.mark.parametrize("address", ["head", "head:x", "127.0.0.1:1", "127.0.0.1:99999"])
def test_nobody_is_waited_for_where_nothing_listens(fake: FakeRay, address: str) -> None:
    with pytest.raises(NetworkError, match=f"no Ray cluster answers at {address} .*ray start --head"):
        connect(address, 1, ONE, exposed=False)
    assert fake.inits == []


def test_without_ray_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    told = r"needs the package 'ray', which is not installed; run: pip install 'holdfast\[ray\]'"
    with pytest.raises(MissingExtra, match=told) as caught:
        connect("auto", 1, Needs(), exposed=False)
    assert caught.value.exit_code == 3
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=told):
        check_available(resolve({"pipeline": {"engine": "ray"}}))
    check_available(resolve({}))
