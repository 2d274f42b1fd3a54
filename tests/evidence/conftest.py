"""A short run told to a notary by hand: w1 to w3 between two stages of the initiator; whoever lies is told beforehand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.evidence.audit_log import Audit, audit
from holdfast.evidence.casebook import Law
from holdfast.evidence.envelope import sign_header
from holdfast.evidence.identity import derived
from holdfast.evidence.log import EvidenceLog
from holdfast.evidence.notary import Notary, Register
from holdfast.message import Finding
from holdfast.route import Route, plain_route
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates

NAMES = ("initiator", "w1", "w2", "w3", "coordinator")
IDENTITIES = {name: derived(7, name) for name in NAMES}
ROUTE: Route = plain_route(["initiator", "w1", "w2", "w3", "initiator"], ["initiator"], shadowed=True)
LAW = Law(compare, judge, misstates)
INPUT, TRUE, FALSE = b"i" * 32, b"t" * 32, b"f" * 32


@dataclass
class Desk:
    """A notary at work on one file; `key` and `account` make what workers say of stage 1 (primary w1, verifier w2)."""

    path: Path
    deployments: int = 0
    version: int = 0
    secret: int | None = None

    def __post_init__(self) -> None:
        keys = {name: identity.public for name, identity in IDENTITIES.items()}
        self.log = EvidenceLog(self.path, IDENTITIES["coordinator"])
        self.notary = Notary(Register("run", b"c" * 32, keys, tuple(keys), self.secret), self.log)

    def deploy(self, version: int = 0) -> Desk:
        self.deployments, self.version = self.deployments + 1, version
        self.notary.deployed(self.run, version, ROUTE)
        return self

    @property
    def run(self) -> str:
        return f"run/{self.deployments}"

    def key(self, direction: Direction = Direction.FORWARD, micro_batch: int = 0) -> ClaimKey:
        return ClaimKey(self.version, 0, direction, 1, micro_batch)

    def account(self, worker: str, **change: Any) -> Header:
        role = Role.PRIMARY if worker == "w1" else Role.SHADOW
        header = Header(self.run, self.key(), self.version, 1, worker, role, (INPUT,), TRUE)
        return sign_header(replace(header, **change), IDENTITIES[worker])

    def dispute(self, first: Header, second: Header, culprits: tuple[str, ...], finding: bytes = TRUE) -> Desk:
        """Two accounts differ, and the referee has computed `finding`."""
        key, inputs = first.key, (INPUT,)
        found = compare(first, second, inputs)
        self.notary.accuse(key, found.reason, found.suspects, "w2", [first, second], inputs)  # type: ignore[union-attr]
        self.notary.judged(Finding(key, finding), inputs, [first, second], "output", culprits)
        return self

    def seal(self) -> Desk:
        self.version += 1
        self.notary.sealed(self.version, self.version - 1, 0, {stage: bytes([stage]) * 32 for stage in range(5)})
        return self

    def close(self, ended: str = "finished") -> Desk:
        self.notary.close(ended)
        return self

    def audit(self, **more: Any) -> Audit:
        return audit(self.path.read_bytes(), LAW, **more)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "evidence.jsonl").deploy()
    yield made
    made.log.close()


@pytest.fixture(scope="session")
def reopened() -> Callable[[Desk], Desk]:
    """The same log in another process."""
    return lambda desk: Desk(desk.path, desk.deployments, secret=desk.secret)


@pytest.fixture(scope="session")
def told(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A finished log with a lie, a frame-up, an equivocation, two seals and a takeover."""
    desk = Desk(tmp_path_factory.mktemp("log") / "evidence.jsonl").deploy()
    desk.dispute(desk.account("w1", output=FALSE), desk.account("w2"), ("w1",)).seal()
    desk.dispute(desk.account("w1"), desk.account("w2", output=FALSE), ("w2",))
    desk.notary.equivocated(desk.account("w3", output=TRUE), desk.account("w3", output=FALSE), "board")
    desk.seal().notary.took_over(1, "w1", "w2", 2)
    desk.close()
    return desk.path.read_bytes()


@pytest.fixture(scope="session")
def examine() -> Callable[..., Audit]:
    return lambda data, **more: audit(data, LAW, **more)
