"""A host on loopback with a real door, and machines that knock at it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from holdfast.admission.door import Door
from holdfast.admission.gatekeeper import Gatekeeper, Terms
from holdfast.admission.invitations import FILE as INVITES
from holdfast.admission.invitations import Invitations
from holdfast.admission.invite import Invite
from holdfast.admission.roster import FILE as ROSTER
from holdfast.admission.roster import Offer, Roster
from holdfast.evidence.authority import Authority
from holdfast.evidence.identity import Identity, derived

RUN = "run-1"
HOST = derived(0, "host")
OFFER = Offer("cpu", 1 << 30, 12.5, "x86-64 torch 2.13 float32 1 thread", None, "0.1.0", "2.13.0")


class Clock:
    """Time that passes when the test says so; sleeping is one way to say it."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


class Loop:
    """An event loop in a thread, for servers that the test's own thread talks to."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(120)

    def close(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


class Host:
    """The books in a directory, the authority, and the door; `told` is every line that the gatekeeper told."""

    def __init__(self, directory: Path, loop: Loop, *, identity: Identity = HOST, run: str = RUN, **terms: Any) -> None:
        self.directory = directory
        self.loop = loop
        self.identity = identity
        self.authority = Authority.open(directory / "authority.pem", identity, run)
        self.invitations = Invitations(directory / INVITES)
        self.roster = Roster(directory / ROSTER)
        self.told: list[str] = []
        self.judge: Callable[[Offer], str | None] = lambda offer: None
        settings = {"burst": 10_000, "per_second": 1000.0, **terms}
        self.gatekeeper = Gatekeeper(
            self.authority,
            self.invitations,
            self.roster,
            Terms((":7701",), **settings),
            judge=lambda offer: self.judge(offer),
            tell=self.told.append,
        )
        self.door: Door | None = None
        self.address = ""

    def open(self, address: str = "127.0.0.1:0") -> Host:
        self.door = Door(self.gatekeeper, address, *self.authority.credentials("door", self.identity))
        self.address = str(self.loop.run(self.door.start()))
        return self

    def close(self) -> None:
        if self.door is not None:
            self.loop.run(self.door.stop(0))

    def invite(self, **limits: Any) -> Invite:
        _, secret = self.invitations.create(**limits)
        return Invite((self.address,), self.identity.fingerprint, self.authority.run, secret)


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def make_host(tmp_path: Path, loop: Loop) -> Iterator[Callable[..., Host]]:
    made: list[Host] = []

    def make(**settings: Any) -> Host:
        made.append(Host(settings.pop("directory", tmp_path), loop, **settings).open())
        return made[-1]

    yield make
    for host in made:
        host.close()


@pytest.fixture
def host(make_host: Callable[..., Host]) -> Host:
    return make_host()
