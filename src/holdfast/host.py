"""The host of an open run: its door, its books, its wire; the machines that come in are the crew of the run.

    DIR/host/   run authority.pem invites.json roster.json door     what a host needs to be the same one when it starts again
    DIR/        control.sock                                        holdfast status, nodes and invite speak to it there
    DIR/journal/                                                    its commits: see holdfast.journal

Everything that a machine says of itself is its own word: it decides where the machine is placed, never what is believed.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from holdfast import atomic
from holdfast.admission.address import Address, check_listen
from holdfast.admission.control import ControlServer, check_alone, control_path
from holdfast.admission.desk import invite_handler, nodes_handler
from holdfast.admission.door import Door
from holdfast.admission.gatekeeper import Gatekeeper, Terms
from holdfast.admission.home import machine_identity
from holdfast.admission.invitations import FILE as INVITES
from holdfast.admission.invitations import Invitations
from holdfast.admission.roster import FILE as ROSTER
from holdfast.admission.roster import Member, Offer, Roster
from holdfast.config import RunConfig
from holdfast.errors import CannotListen, NetworkError, SetupError
from holdfast.event import CheckpointWritten, Event, RunFinished, RunStarted, StepSealed
from holdfast.evidence.authority import Authority
from holdfast.evidence.request import DOOR
from holdfast.journal import FOLDER, Journal
from holdfast.machines import HOST, TRUSTED, Machines, Patience
from holdfast.report.tally import tell as tell_of
from holdfast.stage import INITIATOR
from holdfast.station import ANYTIME, numerics_of
from holdfast.transport import Credentials, Endpoint, WireOptions
from holdfast.transport.grpc import GrpcTransport
from holdfast.transport.listening import family

FOREVER_S = 10 * 365 * 86400.0
"""People take their time to join."""

RUN_FILE = "run"
DOOR_FILE = "door"
LAST_EVENTS = 20


@dataclass(frozen=True, slots=True)
class Premises:
    """Where a host listens, and how it lets machines in; addresses beyond loopback only where it is `exposed`.

    `advertised` are the names or addresses by which others reach the door (none: the address that it listens at).
    """

    door: str = "127.0.0.1:0"
    wire: str = "127.0.0.1:0"
    exposed: bool = False
    accept: Literal["auto", "manual"] = "auto"
    advertised: tuple[str, ...] = ()
    uses: int = 1
    ttl_s: float = 24 * 3600.0


class Guests:
    """A `Crew` of machines that were let in: nobody can be made to come, and who is banned stays out."""

    def __init__(self, roster: Roster, tell: Callable[[str], None]) -> None:
        self._roster = roster
        self._tell = tell

    def gather(self, names: Sequence[str]) -> None:
        if names:
            self._tell(f"waiting for {len(names)} machine{'s' if len(names) > 1 else ''}: {', '.join(names)}")

    def expect(self) -> Sequence[Endpoint]:
        return [Endpoint(m.name, (m.name,), m.offer.listen) for m in self._roster.list() if m.status.inside]

    def key(self, name: str) -> bytes | None:
        member = self._roster.get(name)
        return None if member is None else member.key

    def awaits(self, name: str) -> bool:
        return True

    def left(self, name: str, *, banned: bool) -> None:
        if banned and self._roster.get(name) is not None:
            self._roster.ban(name, "it has lied more often than the run forgives")

    def close(self) -> None:
        self._roster.flush()


class Host:
    """See the module. `engine` carries the run, `observe` is to hear its events, `tell` gets lines for the operator.

    Raises ConfigError for an address beyond loopback that is not `exposed`, SetupError where files or ports cannot be had.
    """

    def __init__(self, config: RunConfig, directory: Path, premises: Premises, tell: Callable[[str], None]) -> None:
        check_listen(premises.door, exposed=premises.exposed)
        check_listen(premises.wire, exposed=premises.exposed)
        self.identity = machine_identity()
        self.journal = Journal(directory / FOLDER, self.identity) if config.machines.journal else None
        self._config = config
        self._directory = directory
        self._premises = premises
        self.tell = tell
        self._events: deque[tuple[float, str]] = deque(maxlen=LAST_EVENTS)
        self._run = ""
        self._step = 0
        self._began = False
        self._over = False
        self._open = contextlib.ExitStack()
        self._machines: Machines | None = None

    def engine(self) -> Machines:
        """Open wire, door and control socket, tell the first invite, and give the engine that waits for machines.

        Where that cannot be had, nothing is left behind, and nothing of a host that runs there already has been touched.
        """
        check_alone(control_path(self._directory))
        books = self._directory / "host"
        with _new_folder(books), contextlib.ExitStack() as opened:
            run = _run_name(books / RUN_FILE)
            authority = Authority.open(books / "authority.pem", self.identity, run)
            roster = Roster(books / ROSTER)
            invitations = Invitations(books / INVITES)
            transport = opened.enter_context(contextlib.closing(self._wire(authority, run)))
            gatekeeper = Gatekeeper(
                authority, invitations, roster, self._terms(transport), judge=self._judge, tell=self._at_the_door
            )
            own = self._config.machines.memory_bytes
            machines = Machines(
                transport,
                lambda _ended: Guests(roster, lambda line: self.tell(line)),
                Patience(start_s=FOREVER_S),
                lambda worker: own if worker == INITIATOR else None,
                over=lambda: self._over,
            )
            self._machines = machines
            machines.refresh()  # who was let in before knocks at once, and may come in when the door says so
            certificate = authority.credentials(DOOR, self.identity)
            before = _door_before(books / DOOR_FILE)
            at = _as_before(self._premises.door, before)
            door = Door(gatekeeper, at, *certificate, exposed=self._premises.exposed)
            address = opened.enter_context(_serving(door))
            doors = self._doors(address)
            invite = invite_handler(invitations, doors, self.identity.fingerprint, run)
            handlers = {
                "status": lambda: self._status(roster, transport),
                "nodes": nodes_handler(roster, changed=self._moved),
                "invite": invite,
            }
            opened.enter_context(ControlServer(control_path(self._directory), handlers))
            atomic.write_file(books / DOOR_FILE, str(address).encode())
            line = invite("new", uses=self._premises.uses, ttl_s=self._premises.ttl_s)["invite"]
            if before is not None:
                self._tell_of_earlier(before, str(address))
            self.tell(f"door at {', '.join(doors)}, host key {self.identity.fingerprint}")
            self.tell(f"on each machine that shall take part: holdfast join {line}")
            self._open = opened.pop_all()
        return machines

    def close(self) -> None:
        """Shut the door; the engine closes the wire itself. A second call does nothing."""
        self._open.close()

    def observe(self, event: Event, _seconds: float) -> None:
        """Remember what happened last, for `holdfast status`, in the words of the log."""
        if isinstance(event, RunStarted):
            self._run = event.run
        elif isinstance(event, RunFinished):
            self._over = not event.summary["interrupted"]
        elif isinstance(event, StepSealed):
            self._step, self._began = event.step + 1, True
        elif not isinstance(event, CheckpointWritten):  # they come all the time
            told = tell_of(event)
            if told is not None:
                self._events.append((time.time(), told))

    # -- opening -----------------------------------------------------------------------------------------------------

    def _wire(self, authority: Authority, run: str) -> GrpcTransport:
        certificate, private_key = authority.credentials(HOST, self.identity)
        try:
            return GrpcTransport(
                Endpoint(HOST, TRUSTED),
                Credentials(authority.certificate, certificate, private_key),
                run=run,
                listen=self._premises.wire,
                options=WireOptions(silence_s=self._config.machines.silence_s),
                anytime=ANYTIME,
            )
        except CannotListen as error:
            raise error.given_by("--wire") from None

    def _terms(self, transport: GrpcTransport) -> Terms:
        assert transport.address is not None
        port = transport.address.rpartition(":")[2]
        terms = {"silence_s": repr(self._config.machines.silence_s), "dtype": self._config.model.dtype}
        return Terms(wire=(f":{port}",), accept=self._premises.accept, terms=terms)

    def _doors(self, address: Address) -> tuple[str, ...]:
        return tuple(_with_port(name, address.port) for name in self._premises.advertised) or (str(address),)

    def _tell_of_earlier(self, before: str, now: str) -> None:
        if before == now or self._premises.advertised:
            self.tell("machines that were let in before come back by themselves, and earlier invites still open what they did")
            return
        self.tell(
            f"the door was at {before} before and is at {now} now: earlier invites do not lead here, nor do machines find back "
            f"that came by them; give --door {before}, or invite them again"
        )

    def _at_the_door(self, line: str) -> None:
        """A newcomer may connect before it is told that it may; where the wire is closed already nobody can."""
        self.tell(line)
        if self._machines is not None:
            with contextlib.suppress(NetworkError):
                self._machines.refresh()

    def _judge(self, offer: Offer) -> str | None:
        """Why a machine is of no use to this run, from its own word; None where it may be.

        Claims are compared byte by byte, so who computes with other bytes would only be accused of it.
        """
        mine = numerics_of(self._config.model.device)
        if self._config.defence_name != "none" and offer.numerics != mine:
            return (
                f"this run compares bytes, and your machine computes in another numerics class ({offer.numerics}) than the "
                f"host ({mine}); use the same kind of processor or GPU and the same torch"
            )
        return None

    # -- asked by the operator ---------------------------------------------------------------------------------------

    def _moved(self, member: Member) -> None:
        self.tell(f"{member.name} is {member.status.value} now ({member.note})")
        if not member.status.inside and self._machines is not None:
            self._machines.release(member.name, f"{member.status.value} by the operator")

    def _status(self, roster: Roster, transport: GrpcTransport) -> dict[str, Any]:
        links = transport.links()
        members = []
        for member in roster.list():
            link = links.get(member.name)
            state = member.status.value if link is None else f"{member.status.value}, {link.state}"
            heard = None if link is None else link.heard_s
            queue = 0 if link is None else link.queued_bytes
            members.append(
                {"name": member.name, "state": state, "last_heard": heard, "speed": member.offer.speed, "queue": queue}
            )
        route = None if self._machines is None else self._machines.route
        stages = (
            []
            if route is None
            else [{"stage": i, "worker": route.primaries[i], "shadow": route.shadows[i]} for i in route.stages]
        )
        return {
            "run": self._run,
            "step": self._step,
            "steps": self._config.training.steps,
            "state": "training" if self._began else "waiting for machines",
            "stages": stages,
            "members": members,
            "events": [{"time": at, "text": text} for at, text in self._events],
        }


@contextlib.contextmanager
def _serving(door: Door) -> Any:
    """The door on an event loop of its own; yields its address."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="holdfast door", daemon=True)
    thread.start()
    try:
        address = asyncio.run_coroutine_threadsafe(door.start(), loop).result()
        try:
            yield address
        finally:
            asyncio.run_coroutine_threadsafe(door.stop(), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _door_before(file: Path) -> str | None:
    """Where the door was when this host ran last; None where it never did."""
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _as_before(wanted: str, before: str | None) -> str:
    """`wanted`, or where any port will do and the one before is free, that: invites name it."""
    host, _, port = wanted.rpartition(":")
    if before is None or port != "0" or before.rpartition(":")[0] != host:
        return wanted
    try:
        socket.create_server((host.strip("[]"), int(before.rpartition(":")[2])), family=family(host)).close()
    except (OSError, ValueError):
        return wanted
    return before


@contextlib.contextmanager
def _new_folder(books: Path) -> Iterator[None]:
    """The folder is made for its owner alone, with those above it; what was made goes again where the block fails."""
    made = [folder for folder in (books, *books.parents) if not folder.exists()]
    try:
        books.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f"cannot make {books}: {error.strerror or error}; choose another --out") from None
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            if books in made:
                shutil.rmtree(books)
            for folder in made[1:]:
                folder.rmdir()
        raise


def _run_name(path: Path) -> str:
    """The name that invites and certificates are bound to: made once, so that a host that starts again is the same."""
    if path.exists():
        return path.read_text(encoding="utf-8").strip()
    name = secrets.token_hex(16)
    atomic.write_file(path, name.encode(), mode=0o600)
    return name


def _with_port(name: str, port: int) -> str:
    return name if ":" in name.rpartition("]")[2] else f"{name}:{port}"
