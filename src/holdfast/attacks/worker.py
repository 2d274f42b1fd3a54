"""A dishonest worker is an honest one whose messages are rewritten on their way out, when and where the campaign says so.

    receive ──> honest worker ──> claims, headers, states ──> struck?  no  ──────────────> out
                 (its own state stays honest,                          yes ──> the lie ──> out
                  unless the lie spoils it)    whatever it hears or does ────> the lie ──> out, unasked

No line of the honest runtime knows of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from holdfast.attacks.attack import Misconduct, Scene
from holdfast.attacks.campaign import Campaign
from holdfast.attacks.ledger import Ledger
from holdfast.attacks.lie import Backstage, computing, header_of, lie_of, with_header
from holdfast.claim import Claim, ClaimKey, Direction, Header
from holdfast.digest import tensor_digest
from holdfast.message import Actor, BeginStep, Envelope, NewRoute, StateTransfer, Work
from holdfast.quantise import AS_COMPUTED, Packing
from holdfast.route import Route


class DishonestWorker:
    """An `Actor` around a worker. It finds the worker's stages by its attribute `seats` (stage number -> seat with an
    `execution`); without it, lies that need them (running the stage on another input, spoiling its state) are left out.

    Two attacks on one worker: wrap it twice; the ledger keeps what was honest at first.
    """

    def __init__(self, inner: Actor, misconduct: Misconduct, campaign: Campaign, ledger: Ledger) -> None:
        self._inner = inner
        self._lie = lie_of(misconduct)
        self._campaign = campaign
        self._ledger = ledger
        self._route: Route | None = None
        self._moment = (-1, 0)
        self._seen: dict[ClaimKey, list[Tensor]] = {}
        self._gradients: dict[tuple[int, int], Tensor] = {}
        self._memory: dict[int, dict[str, Any]] = {}
        self._known: Packing = AS_COMPUTED
        self.name = inner.name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__") or attribute == "_inner":
            raise AttributeError(attribute)
        return getattr(self._inner, attribute)

    # -- the actor ---------------------------------------------------------------------------------------------------

    def receive(self, envelope: Envelope) -> Sequence[Envelope]:
        message = envelope.message
        if isinstance(message, (BeginStep, NewRoute)):
            self._route = message.route
        if isinstance(message, Claim):
            self._remember(message)
        if isinstance(message, BeginStep):
            self._forget(message.step, message.attempt)
        held = self._executions()
        sent = self._inner.receive(envelope)
        if isinstance(message, BeginStep):
            self._heal(held, message.version)
        told = self._outgoing(sent)
        return told + [unasked for scene in self._scenes() for unasked in self._lie.hear(envelope, scene)]

    def next_work(self, device: int) -> Work | None:
        return self._inner.next_work(device)

    def execute(self, work: Work) -> Sequence[Envelope]:
        sent = self._struck(work) if work.role in self._lie.roles and self._strikes(work.key) else self._inner.execute(work)
        unasked = [envelope for scene in self._scenes() for envelope in self._lie.worked(work, scene)]
        return self._outgoing(sent) + unasked

    def _struck(self, work: Work) -> Sequence[Envelope]:
        self._lie.before(work, self._backstage(work.key))

        def believed(output: Tensor) -> Tensor:
            return self._lie.believe(work, output, self._backstage(work.key))

        with computing(self._executions().get(work.stage), work.key.direction, believed):
            sent = self._inner.execute(work)
        self._lie.after(work, self._backstage(work.key))
        return sent

    # -- lying -------------------------------------------------------------------------------------------------------

    def _strikes(self, key: ClaimKey) -> bool:
        return key.direction in self._lie.directions and self._campaign.strikes(key, self.name)

    def _scenes(self) -> list[Backstage]:
        """One for each stage that the worker holds now in a role of the lie; its key is the whole step's."""
        held = () if self._route is None else self._route.seats_of(self.name)
        return [self._backstage(self._whole(stage)) for stage, role in held if role in self._lie.roles]

    def _whole(self, stage: int) -> ClaimKey:
        return ClaimKey(*self._moment, Direction.UPDATE, stage)

    def _outgoing(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        own = {
            message.header.key: message
            for envelope in envelopes
            if isinstance(message := envelope.message, Claim) and message.header.worker == self.name
        }
        rewritten: list[Envelope] = []
        for envelope in envelopes:
            if isinstance(envelope.message, StateTransfer):
                rewritten += self._handed_over(envelope, envelope.message.state.stage)
                continue
            if not isinstance(envelope.message, (Claim, Header)) or (header := header_of(envelope)).worker != self.name:
                rewritten.append(envelope)
                continue
            if isinstance(envelope.message, Header):
                self._ledger.doubt(self.name, header.key)
                if self._ledger.is_tainted(self.name, header.key):
                    self._ledger.record(self.name, header.key, "state", b"", header.output)
            if header.role in self._lie.roles and self._strikes(header.key):
                lying = self._lie.rewrite(envelope, self._backstage(header.key, header, own.get(header.key)))
                rewritten += [self._signed(lie, header) for lie in lying]
            else:
                rewritten.append(envelope)
        return rewritten

    def _handed_over(self, envelope: Envelope, stage: int) -> Sequence[Envelope]:
        backstage = self._backstage(self._whole(stage))
        role = None if self._route is None else self._route.role(stage, self.name)
        return self._lie.hand_over(envelope, backstage) if backstage.struck and role in self._lie.roles else [envelope]

    def _signed(self, envelope: Envelope, honest: Header) -> Envelope:
        """A liar signs its own lies, unsigned they would be refused, not judged; who brings a signature along keeps it."""
        if not isinstance(envelope.message, (Claim, Header)):
            return envelope
        said = header_of(envelope)
        stale = said != honest and said.signature == honest.signature
        return with_header(envelope, self._sign) if stale else envelope

    def _sign(self, header: Header) -> Header:
        sign: Callable[[Header], Header] | None = getattr(self._inner, "sign", None)
        return header if sign is None else sign(header)

    def _is_idle(self) -> bool:
        devices = getattr(self._inner, "devices", 1)
        return all(self._inner.next_work(device) is None for device in range(devices))

    def _backstage(self, key: ClaimKey, header: Header | None = None, claim: Claim | None = None) -> Backstage:
        inputs = self._inputs(key, header)
        seed = self._campaign.generator_seed(key)
        execution = self._executions().get(key.stage)
        scene = Scene(
            key,
            self.name,
            inputs if execution is not None else (),
            torch.Generator().manual_seed(seed),
            _recomputation(execution, key, inputs, seed),
            self._memory.setdefault(key.stage, {}),
            self._gradient(key),
        )
        return Backstage(
            scene,
            self._route,
            execution,
            self._ledger,
            honest=None if claim is None else claim.tensor,
            struck=self._campaign.strikes(key, self.name),
            packing=self._packing,
            sign=self._sign,
            idle=self._is_idle,
        )

    def _executions(self) -> dict[int, Any]:
        return {stage: seat.execution for stage, seat in getattr(self._inner, "seats", {}).items()}

    @property
    def _packing(self) -> Packing:
        """How tensors travel in this run, as any stage that it holds or held knows."""
        for execution in self._executions().values():
            self._known = getattr(execution, "packing", self._known)
        return self._known

    # -- what it has seen --------------------------------------------------------------------------------------------

    def _forget(self, step: int, attempt: int) -> None:
        self._moment = (step, attempt)
        for key in [key for key in self._seen if (key.step, key.attempt) < self._moment]:
            seen = self._seen.pop(key)
            if key.direction is Direction.BACKWARD:
                self._gradients[key.stage, key.micro_batch] = self._packing.unpack(seen[0])
        if attempt > 0:
            self._ledger.retry(self.name, step)

    def _heal(self, held: Mapping[int, Any], version: int) -> None:
        """A spoilt stage is sound again once another state sits there (or a rollback has built this worker anew)."""
        now = self._executions()
        for stage in self._ledger.tainted_stages(self.name):
            if held.get(stage) is None or now.get(stage) is not held[stage]:
                self._ledger.heal(self.name, stage, version)

    def _remember(self, claim: Claim) -> None:
        key = claim.header.key
        if key.direction is Direction.BACKWARD or self._campaign.strike(key.step) is not None:
            self._seen.setdefault(key, []).append(claim.tensor)

    def _gradient(self, key: ClaimKey) -> Tensor | None:
        """The last gradient at the output of the stage, of the same micro-batch, that it was sent before this attempt."""
        after = None if self._route is None else self._route.after(key.stage)
        return None if after is None else self._gradients.get((after, key.micro_batch))

    def _inputs(self, key: ClaimKey, header: Header | None) -> tuple[Tensor, ...]:
        """What the stage worked from for `key`: the deliveries that the header speaks of, or the first ones."""
        if self._route is None or key.direction not in (Direction.FORWARD, Direction.BACKWARD):
            return ()
        sources = [(Direction.FORWARD, self._route.before(key.stage))]
        if key.direction is Direction.BACKWARD:
            sources.insert(0, (Direction.BACKWARD, self._route.after(key.stage)))
        used = () if header is None else header.inputs
        found: list[Tensor] = []
        for direction, stage in sources:
            if stage is None:
                return ()
            seen = self._seen.get(ClaimKey(key.step, key.attempt, direction, stage, key.micro_batch), [])
            if not seen:
                return ()
            right = [tensor for tensor in seen if len(seen) > 1 and tensor_digest(tensor) in used]
            found.append(self._packing.unpack((right or seen)[0]))
        return tuple(found)


def _recomputation(execution: Any, key: ClaimKey, inputs: tuple[Tensor, ...], seed: int) -> Callable[[Tensor], Tensor]:
    """Run the stage honestly on another input, without a trace in it: forward, or the vector-Jacobian product."""

    def forward(other: Tensor) -> Tensor:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            output: Tensor = execution.module(other)
            return output.detach()

    def backward(other: Tensor) -> Tensor:
        hidden = inputs[1].detach().clone().requires_grad_(True)
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            (gradient,) = torch.autograd.grad(execution.module(hidden), hidden, other)
        return gradient.contiguous()

    return forward if key.direction is Direction.FORWARD else backward
