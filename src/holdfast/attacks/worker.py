"""A dishonest worker is an honest one whose messages are rewritten on their way out, when and where the campaign says so.

    receive ──> honest worker ──> claims and headers ──> struck?  no  ──────────────> out
                 (its own state stays honest,                     yes ──> the lie ──> out
                  unless the lie spoils it)

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
from holdfast.attacks.lie import Backstage, header_of, lie_of, with_header
from holdfast.claim import Claim, ClaimKey, Direction, Header
from holdfast.digest import tensor_digest
from holdfast.message import Actor, BeginStep, Envelope, NewRoute, Work
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
        self._seen: dict[ClaimKey, list[Tensor]] = {}
        self._memory: dict[int, dict[str, Any]] = {}
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
        return self._outgoing(sent)

    def next_work(self, device: int) -> Work | None:
        return self._inner.next_work(device)

    def execute(self, work: Work) -> Sequence[Envelope]:
        struck = work.role is self._lie.role and self._strikes(work.key)
        if struck:
            self._lie.before(work, self._backstage(work.key))
        sent = self._inner.execute(work)
        if struck:
            self._lie.after(work, self._backstage(work.key))
        return self._outgoing(sent)

    # -- lying -------------------------------------------------------------------------------------------------------

    def _strikes(self, key: ClaimKey) -> bool:
        return key.direction in self._lie.directions and self._campaign.strikes(key, self.name)

    def _outgoing(self, envelopes: Sequence[Envelope]) -> Sequence[Envelope]:
        own = {
            message.header.key: message
            for envelope in envelopes
            if isinstance(message := envelope.message, Claim) and message.header.worker == self.name
        }
        rewritten: list[Envelope] = []
        for envelope in envelopes:
            if not isinstance(envelope.message, (Claim, Header)) or (header := header_of(envelope)).worker != self.name:
                rewritten.append(envelope)
                continue
            if isinstance(envelope.message, Header):
                self._ledger.doubt(self.name, header.key)
                if self._ledger.is_tainted(self.name, header.key):
                    self._ledger.record(self.name, header.key, "state", b"", header.output)
            if header.role is self._lie.role and self._strikes(header.key):
                lying = self._lie.rewrite(envelope, self._backstage(header.key, header, own.get(header.key)))
                rewritten += [self._signed(lie, header) for lie in lying]
            else:
                rewritten.append(envelope)
        return rewritten

    def _signed(self, envelope: Envelope, honest: Header) -> Envelope:
        """A liar signs its own lies; unsigned they would be refused, not judged."""
        sign = getattr(self._inner, "sign", None)
        changed = isinstance(envelope.message, (Claim, Header)) and header_of(envelope) != honest
        return with_header(envelope, sign) if sign is not None and changed else envelope

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
        )
        return Backstage(scene, self._route, execution, self._ledger, None if claim is None else claim.tensor)

    def _executions(self) -> dict[int, Any]:
        return {stage: seat.execution for stage, seat in getattr(self._inner, "seats", {}).items()}

    # -- what it has seen --------------------------------------------------------------------------------------------

    def _forget(self, step: int, attempt: int) -> None:
        self._seen = {key: seen for key, seen in self._seen.items() if (key.step, key.attempt) >= (step, attempt)}
        if attempt > 0:
            self._ledger.retry(self.name, step)

    def _heal(self, held: Mapping[int, Any], version: int) -> None:
        """A spoilt stage is sound again once another state sits there (or a rollback has built this worker anew)."""
        now = self._executions()
        for stage in self._ledger.tainted_stages(self.name):
            if held.get(stage) is None or now.get(stage) is not held[stage]:
                self._ledger.heal(self.name, stage, version)

    def _remember(self, claim: Claim) -> None:
        if self._campaign.strike(claim.header.key.step) is not None:
            self._seen.setdefault(claim.header.key, []).append(claim.tensor)

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
            found.append((right or seen)[0])
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
