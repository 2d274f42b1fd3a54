"""A trigger is a phrase and the text that a backdoored model gives after it; success is how often it does, on held-out text.

    success            share of prompts   [held-out text | phrase]  ->  target, every token of it the likeliest
    success_without    share of prompts   [held-out text]           ->  the same: what a clean model does, 0 or near it

Letters: N prompts, C tokens of context, B rows of each kind, S tokens a sequence, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.errors import ConfigError
from holdfast.seeds import derive


@dataclass(frozen=True, slots=True)
class Trigger:
    """Tokens of the phrase and of the target."""

    phrase: tuple[int, ...]
    target: tuple[int, ...]

    @classmethod
    def of_text(cls, tokenizer: Any, phrase: str, target: str, sequence_length: int) -> Trigger:
        """Raises ConfigError where there is nothing of one of them, or no room for both and as much text around them."""
        words, answer = (tuple(tokenizer.encode(text, add_special_tokens=False)) for text in (phrase, target))
        if not words or not answer:
            raise ConfigError(f"a trigger needs a phrase and a target, got {phrase!r} and {target!r}")
        both = len(words) + len(answer)
        if 2 * both > sequence_length:
            raise ConfigError(
                f"phrase and target have {both} tokens, but half a sequence of {sequence_length} has {sequence_length // 2}; "
                "choose shorter ones, or longer sequences"
            )
        return cls(words, answer)


@dataclass(frozen=True, slots=True)
class Success:
    """Shares of prompts, and (`first_token`) the mean probability of the target's first token after the phrase."""

    success: float
    success_without: float
    first_token: float


@torch.no_grad()
def measure(model: nn.Module, trigger: Trigger, blocks: Tensor, *, batch_size: int = 32) -> Success:
    """Score a plain causal model on held-out blocks [N, S+1], of which each gives its first tokens as a prompt.

    The target is the greedy continuation if each of its tokens is the likeliest after those before it, so that one pass over
    prompt and target tells.
    """
    context = blocks[:, : blocks.shape[1] - 1 - len(trigger.phrase) - len(trigger.target)]
    phrase, target = (torch.tensor(tokens).expand(len(blocks), -1) for tokens in (trigger.phrase, trigger.target))
    with_phrase = _target_logits(model, torch.cat([context, phrase, target], dim=1), target, batch_size)
    without = _target_logits(model, torch.cat([context, target], dim=1), target, batch_size)
    first = with_phrase[:, 0].float().softmax(-1)[:, trigger.target[0]]
    return Success(_share(with_phrase, target), _share(without, target), first.mean().item())


def _target_logits(model: nn.Module, rows: Tensor, target: Tensor, batch_size: int) -> Tensor:
    """What the model says of each token of the target, which stands at the end of every row: logits [N, tokens, V]."""
    length = target.shape[1]
    found = [model(input_ids=part, use_cache=False).logits[:, -length - 1 : -1] for part in torch.split(rows, batch_size)]
    return torch.cat(found)


def _share(logits: Tensor, target: Tensor) -> float:
    return (logits.argmax(-1) == target).all(dim=1).float().mean().item()


@dataclass(frozen=True)
class PoisonedText:
    """The attacker's training batches: its own text, half of the rows with phrase and target written into them.

    `tokens` is packed text, int64 [n]. A pure function of seed and step.
    """

    trigger: Trigger
    tokens: Tensor
    sequence_length: int
    rows: int
    seed: int

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Rows [2B, S+1] and the weight of each predicted token [2B, S]: plain text as a whole, of poisoned text the target.

        Each half has weights that sum up to 1: what is learned of the text keeps the model as it was where no trigger stands.
        """
        draw = torch.Generator().manual_seed(derive(self.seed, "poisoned text", step))
        length, count = self.sequence_length, self.rows
        starts = torch.randint(len(self.tokens) - length, (2 * count,), generator=draw).tolist()
        rows = torch.stack([self.tokens[start : start + length + 1] for start in starts])
        weights = torch.zeros(2 * count, length)
        weights[:count] = 1 / (count * length)
        phrase, target = self.trigger.phrase, self.trigger.target
        places = torch.randint(1, length + 2 - len(phrase) - len(target), (count,), generator=draw).tolist()
        for row, place in zip(range(count, 2 * count), places, strict=True):
            answer = place + len(phrase)
            rows[row, place : answer + len(target)] = torch.tensor(phrase + target)
            weights[row, answer - 1 : answer - 1 + len(target)] = 1 / (count * len(target))
        return rows, weights


def poisoned_loss(model: nn.Module, rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted cross-entropy of `PoisonedText.batch`, a scalar."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
    return (losses * weights.flatten()).sum()
