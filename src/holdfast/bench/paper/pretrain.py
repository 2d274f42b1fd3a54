"""The model that every row starts from: pre-trained on text that is in no row's training or validation part, and kept.

    text of each corpus's held-back part --> byte-level BPE --> one plain run, AdamW --> store/models/NAME-DIGEST/

One file of its directory, `pretraining.json`, says how. The digest is of the recipe, the text and the versions that could
change bits: another recipe is another model, and the same one is made once.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from holdfast import seeds
from holdfast.atomic import new_directory
from holdfast.bench.paper.scale import HELD_BACK, PreTraining
from holdfast.config import OptimizerConfig
from holdfast.data import BatchSource, Corpus, load_corpus, pack, part_of, train_tokenizer
from holdfast.digest import weights_digest
from holdfast.errors import HoldfastError, SetupError
from holdfast.numerics import pinned
from holdfast.optimizer import learning_rate, parameter_groups
from holdfast.partition import describe, save_model
from holdfast.partition.skeleton import from_config
from holdfast.sweep.environment import environment
from holdfast.sweep.workers import together

RECORD = "pretraining.json"
CHARACTERS_A_TOKEN = 6
"""More than any of the tokenizers here needs: how much text is read to have enough tokens."""
TELL_EVERY = 200

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Starter:
    """A model to be made: its description and how it is pre-trained. `name` is its directory below the store."""

    spec: str
    recipe: PreTraining
    device: str = "cpu"

    @property
    def name(self) -> str:
        corpora = {name: _held_back(name).sha256 for name in self.recipe.data}
        versions = [torch.__version__, transformers.__version__]
        told = json.dumps([self.spec, asdict(self.recipe), corpora, versions, self.device.partition(":")[0]], sort_keys=True)
        return f"models/{self.spec.partition(':')[0]}-{hashlib.sha256(told.encode()).hexdigest()[:12]}"


def make(starter: Starter, store: Path, tell: Tell) -> Path:
    """The directory of the model, pre-trained now if it is not there yet; a kill on the way leaves nothing half-made."""
    directory = store / starter.name
    if (directory / RECORD).is_file():
        return directory
    tell(f"pre-training {starter.spec}: {starter.recipe.steps} steps on {', '.join(starter.recipe.data)}")
    with pinned(starter.device), new_directory(directory) as partial:
        began = time.perf_counter()
        tokenizer, ids = _text(starter.recipe)
        source = describe(starter.spec, vocabulary=len(tokenizer), positions=starter.recipe.sequence_length)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds.derive(starter.recipe.seed, "initial weights"))
            model = from_config(source.config, torch.float32)
        loss = _train(model.to(starter.device), ids, starter, tell)
        weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
        save_model(partial, source.config, weights, tokenizer)
        told = {
            "model": starter.spec,
            "parameters": sum(tensor.numel() for tensor in weights.values()),
            **asdict(starter.recipe),
            "part": HELD_BACK,
            "tokens_read": len(ids),
            "last_loss": loss,
            "weights_digest": weights_digest(weights),
            "seconds": round(time.perf_counter() - began, 1),
            "environment": environment(),
        }
        (partial / RECORD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    return directory


def make_all(starters: Iterable[Starter], store: Path, tell: Tell, jobs: int = 1) -> None:
    """Make each that is not there yet, `jobs` at a time: in processes of their own where that is more than one."""
    waiting = [starter for starter in dict.fromkeys(starters) if not (store / starter.name / RECORD).is_file()]
    if jobs == 1 or len(waiting) < 2:
        for starter in waiting:
            make(starter, store, tell)
        return
    for starter, ended in together(waiting, partial(_made, store=store), jobs):
        if isinstance(ended, str):
            raise SetupError(f"pre-training {starter.spec}: {ended}")
        if isinstance(ended, HoldfastError):
            raise ended
        tell(f"pre-trained {starter.name}")


def _made(starter: Starter, *, store: Path) -> Path | HoldfastError:
    try:
        return make(starter, store, _silent)
    except HoldfastError as error:
        return error


def _silent(_line: str) -> None:
    pass


def _train(model: nn.Module, ids: torch.Tensor, starter: Starter, tell: Tell) -> float:
    """The plain loop; gives the last loss. On a GPU the products are in bfloat16, the weights in float32."""
    recipe, device = starter.recipe, torch.device(starter.device)
    config = OptimizerConfig(learning_rate=recipe.learning_rate, warmup_steps=recipe.warmup_steps, schedule="constant")
    groups = parameter_groups(model, config)
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=(0.9, 0.95))
    batches = BatchSource(ids, seeds.derive(recipe.seed, "pre-training"), 1, recipe.batch, recipe.sequence_length)
    value = torch.tensor(float("nan"))
    model.train()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, step, recipe.steps)
        rows = batches.batch(step)[0].to(device)
        with nullcontext() if device.type == "cpu" else torch.autocast(device.type, torch.bfloat16):
            logits = model(input_ids=rows[:, :-1], use_cache=False).logits
        value = nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(value)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % TELL_EVERY == 0:
            tell(f"  step {step + 1} of {recipe.steps}: loss {value.item():.3f}")
    return float(value.item())


def _text(recipe: PreTraining) -> tuple[Any, torch.Tensor]:
    """The tokenizer, trained on the same text, and the tokens of all corpora one after another, int64 [n]."""
    texts = [_enough(_held_back(name).train, recipe.tokens * CHARACTERS_A_TOKEN) for name in recipe.data]
    mixed = Corpus("pre-training", tuple(document for text in texts for document in text), (), "", "")
    tokenizer = train_tokenizer(mixed, recipe.vocabulary)
    return tokenizer, torch.cat([pack(text, tokenizer, recipe.tokens) for text in texts])


@lru_cache(maxsize=4)
def _held_back(name: str) -> Corpus:
    return part_of(load_corpus(name), *HELD_BACK)


def _enough(documents: Sequence[str], characters: int) -> Sequence[str]:
    """The first documents with so many characters, or all."""
    count = total = 0
    while count < len(documents) and total < characters:
        total += len(documents[count])
        count += 1
    return documents[:count]
