"""One stage computing one step: forward, backward, accumulate, update, the same lines for primary, shadow and referee.

Letters: B sequences a micro-batch, S tokens a sequence, D width, V vocabulary, m micro-batch of M.

The bits are those of the plain model trained with `(loss / M).backward()` for each micro-batch in turn: gradients are added in
index order whatever order the backward passes finish in, and the two gradients of tied embeddings are added to one another
before they are added to the sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from holdfast import seeds
from holdfast.claim import StageState
from holdfast.digest import tensors_digest
from holdfast.numerics import NATIVE, Arithmetic
from holdfast.optimizer import AdamW, Moments
from holdfast.partition import StageModule
from holdfast.quantise import AS_COMPUTED, Packing


@dataclass(frozen=True, slots=True)
class StepShape:
    """What a stage must know of a step besides its tensors: M, and the seed of replayable dropout (None: no dropout).

    `compared` says whether two holders agree on the accumulated gradient; where nobody else has it, nobody asks for its digest,
    and what it was shows in the update.
    """

    micro_batches: int
    dropout_seed: int | None = None
    compared: bool = True


@dataclass(frozen=True, slots=True)
class Gradient:
    """The accumulated gradient of a stage: its digest (empty where none is asked for), each parameter's norm in model order."""

    digest: bytes
    norms: tuple[float, ...]


class StageExecution:
    """A stage's module with its optimizer state; `step` scratch is dropped by `begin`, sealed state only by `seal`.

    Not thread-safe. Tensors given and returned are never modified afterwards, by either side. Those that go between stages are
    packed (holdfast.quantise) on both sides: [B, S, D] below means as it travels, and computed is from what it stands for.
    """

    def __init__(
        self,
        module: StageModule,
        optimizer: AdamW,
        shape: StepShape,
        arithmetic: Arithmetic = NATIVE,
        packing: Packing = AS_COMPUTED,
    ) -> None:
        self.module = module
        self.packing = packing
        self._arithmetic = arithmetic
        self._optimizer = optimizer
        self._shape = shape
        self._trainable = dict(module.named_trainable_parameters())
        self._tied = module.tied_parameter()
        self._device = next(module.parameters()).device
        self._moments = Moments.zeros(self._trainable)
        self._candidate: tuple[dict[str, Tensor], Moments] | None = None
        self._step = -1
        self._graphs: dict[int, tuple[Tensor, Tensor]] = {}
        self._waiting: dict[int, list[Tensor]] = {}
        self._sum: list[Tensor] = []
        self._added = 0

    # -- state -------------------------------------------------------------------------------------------------------

    def load(self, state: StageState) -> None:
        """Take over a stage. Raises CheckpointError where names or shapes are not this stage's."""
        self.module.load_weights(state.weights)
        here = {name: tensor.to(self._device) for name, tensor in state.moments.items()}
        moments = Moments.from_named(here, state.updates)
        self._moments = moments if moments.first else Moments.zeros(self._trainable)
        self._candidate = None

    def state(self, version: int, *, candidate: bool = False) -> StageState:
        """Copies nothing: the state as of `version`, or the one that waits for its seal."""
        weights = {name: tensor.detach() for name, tensor in self.module.weights().items()}
        moments = self._moments
        if candidate and self._candidate is not None:
            weights |= self._candidate[0]
            moments = self._candidate[1]
        return StageState(self.module.stage, version, moments.updates, weights, moments.named())

    @property
    def updated(self) -> bool:
        """Whether a new version waits for its seal."""
        return self._candidate is not None

    def adopt(self, state: StageState) -> None:
        """Take the new state of another holder in place of the own candidate; it waits for its seal as that did."""
        weights = {name: state.weights[name].to(self._device) for name in self._trainable}
        moments = {name: tensor.to(self._device) for name, tensor in state.moments.items()}
        self._candidate = weights, Moments.from_named(moments, state.updates)

    def seal(self) -> None:
        """The update stands: the old version is freed. Without an update (a frozen stage) nothing changes."""
        if self._candidate is not None:
            weights, self._moments = self._candidate
            self._candidate = None
            for name, tensor in weights.items():
                self._trainable[name].data = tensor

    @property
    def tied_name(self) -> str | None:
        """The embedding that the head shares, where it is trained: stage 0 owns it."""
        tied = self.module.plan.tied
        return tied[1] if tied is not None and tied[1] in self.module.plan.trainable else None

    def set_tied(self, weight: Tensor) -> None:
        """The head of tied embeddings takes the value that the first stage sealed."""
        assert self._tied is not None, "this stage has no tied head"
        self._tied.data = weight.to(self._device)

    # -- one step ----------------------------------------------------------------------------------------------------

    def begin(self, step: int) -> None:
        """Drop everything of a step that was not sealed: graphs, gradients, a candidate update."""
        self._step = step
        self._candidate = None
        self._graphs.clear()
        self._waiting.clear()
        self._sum = []
        self._added = 0

    def forward(self, micro_batch: int, inputs: Tensor) -> Tensor:
        """Hidden states [B, S, D] from tokens [B, S] (first stage) or hidden states; the last stage gives logits [B, S, V]."""
        inputs = inputs.to(self._device)
        if not self.module.first:
            inputs = self._read(inputs)
        with self._arithmetic.computing(), self._dropout(micro_batch):
            output: Tensor = self.module(inputs)
        self._graphs[micro_batch] = (inputs, output)
        return output.detach() if self.module.last else self.packing.pack(output.detach())

    def loss(self, micro_batch: int, inputs: Tensor, labels: Tensor) -> float:
        """The last stage's forward pass: mean cross-entropy of `labels` [B, S], nats a token, in fp32."""
        inputs = self._read(inputs.to(self._device))
        with self._arithmetic.computing(), self._dropout(micro_batch):
            logits = self.module(inputs)
            loss = cross_entropy(logits, labels.to(self._device))
        self._graphs[micro_batch] = (inputs, loss / self._shape.micro_batches)
        return loss.item()

    def backward(
        self, micro_batch: int, gradient: Tensor | None, tied: Tensor | None = None
    ) -> tuple[Tensor | None, Tensor | None]:
        """The vector-Jacobian product with `gradient` [B, S, D] (None: the loss itself).

        Gives the gradient of the stage's input (None for tokens) and that of a tied head (only the last stage has one).
        `tied` is the head's gradient on its way into the first stage's embedding.
        """
        inputs, output = self._graphs.pop(micro_batch)
        wanted = list(self._trainable.values())
        head = self._tied if self.tied_name is not None else None
        extra = [tensor for tensor in (head, inputs) if tensor is not None and tensor.requires_grad]
        gradient = None if gradient is None else self.packing.unpack(gradient.to(self._device))
        with self._arithmetic.computing():
            found = list(torch.autograd.grad(output, [*wanted, *extra], gradient, materialize_grads=True))
        gradients, rest = found[: len(wanted)], found[len(wanted) :]
        if tied is not None:
            shared = list(self._trainable).index(self.tied_name or "")
            gradients[shared] = tied.to(self._device) + gradients[shared]
        self._accumulate(micro_batch, gradients)
        of_inputs = rest.pop() if inputs.requires_grad else None
        of_head = rest.pop() if rest else None
        return (None if of_inputs is None else self.packing.pack(of_inputs.contiguous())), of_head

    def _read(self, packed: Tensor) -> Tensor:
        """What hidden states stand for, as the leaf of a graph: their gradient is that of the unpacked numbers."""
        return self.packing.unpack(packed).detach().requires_grad_(True)

    @property
    def complete(self) -> bool:
        """Whether every micro-batch of the step has been added to the gradient."""
        return self._added == self._shape.micro_batches

    def gradient(self) -> Gradient:
        """Digest and norms of the accumulated gradient; to be called when `complete`."""
        named = dict(zip(self._trainable, self._sum, strict=True))
        return Gradient(tensors_digest(named) if self._shape.compared else b"", self.norms())

    def norms(self) -> tuple[float, ...]:
        """The 2-norm of each parameter's gradient in model order, as exact floats of the gradient's dtype."""
        with self._arithmetic.computing():
            norms = [torch.linalg.vector_norm(tensor) for tensor in self._sum]
        return tuple(torch.stack(norms).tolist()) if norms else ()  # one at a time, each would wait for the GPU

    def update(self, clip_scale: float, rate: float) -> None:
        """One optimizer step into new buffers, which wait for `seal`; the weights in use stay as they are."""
        with self._arithmetic.computing():
            self._candidate = self._optimizer.step(self._trainable, self.clipped(clip_scale), self._moments, rate)

    def clipped(self, clip_scale: float) -> dict[str, Tensor]:
        """The accumulated gradient by name, times the clip scale: what `update` makes its step of."""
        return {name: tensor * clip_scale for name, tensor in zip(self._trainable, self._sum, strict=True)}

    def _accumulate(self, micro_batch: int, gradients: Sequence[Tensor]) -> None:
        self._waiting[micro_batch] = list(gradients)
        while (ready := self._waiting.pop(self._added, None)) is not None:
            if self._sum:
                for total, gradient in zip(self._sum, ready, strict=True):
                    total += gradient
            else:  # laid out like the parameter, as autograd does it: another layout gives other bits in the norm
                pairs = zip(self._trainable.values(), ready, strict=True)
                self._sum = [torch.empty_like(parameter).copy_(gradient) for parameter, gradient in pairs]
            self._added += 1

    def _dropout(self, micro_batch: int) -> AbstractContextManager[None]:
        """Random numbers keyed by (run, step, micro-batch, stage) and not by the attempt, so that a check can replay them."""
        if self._shape.dropout_seed is None:
            return nullcontext()
        return _seeded(
            seeds.derive(self._shape.dropout_seed, "dropout", self._step, micro_batch, self.module.stage), self._device
        )


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers from `seed` inside, torch's own as before outside."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all tokens of -log p(label), in fp32: logits [B, S, V], labels [B, S]."""
    return nn.functional.cross_entropy(logits.float().flatten(0, 1), labels.flatten())
