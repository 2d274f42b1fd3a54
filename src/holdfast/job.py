"""What is to be trained, found and checked before anything starts: text, tokenizer, model, plan, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from holdfast import seeds
from holdfast.claim import StageState
from holdfast.config import ModelConfig, RunConfig
from holdfast.data import BatchSource, Blocks, Corpus, load_corpus, load_tokenizer, pack, pack_measured, train_tokenizer
from holdfast.data import validation_blocks as cut_validation
from holdfast.partition import Lora, ModelSource, Plan, describe, initial_weights, make_plan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """Everything that a cluster needs to train one model, and that does not change while it does."""

    config: RunConfig
    source: ModelSource
    plan: Plan
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    batches: BatchSource
    validation: Blocks

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.config.model.dtype]

    @property
    def lora(self) -> Lora | None:
        return self.plan.lora

    def initial_state(self, stage: int) -> StageState:
        """Version 0 of a stage: weights from the seed or the files, a fresh optimizer."""
        weights = initial_weights(self.source, self.plan, stage, self.config.training.seed, self.dtype)
        return fresh_state(self.plan, stage, weights)


def fresh_state(plan: Plan, stage: int, weights: dict[str, torch.Tensor]) -> StageState:
    """Version 0 with these weights: both moments zero for every trainable parameter."""
    trainable = plan.trainable_of(stage)
    moments = {f"{name}.{kind}": torch.zeros_like(weights[name]) for name in trainable for kind in ("exp_avg", "exp_avg_sq")}
    return StageState(stage, 0, 0, weights, moments)


def prepare(config: RunConfig) -> Job:
    """Load and check all that a run needs. Raises DataError, ConfigError, PartitionError, SetupError; writes nothing."""
    corpus = load_corpus(config.data.name, config.training.seed)
    tokenizer = _tokenizer(config, corpus)
    length = config.data.sequence_length
    source = describe(
        config.model.name,
        vocabulary=len(tokenizer),
        positions=length,
        attention=config.model.attention,
        dropout=config.model.dropout,
    )
    lora = _lora(config.model)
    plan = make_plan(source.config, config.pipeline.stages, sequence_length=length, speeds=config.cluster.speeds, lora=lora)
    batches = BatchSource(
        pack(corpus.train, tokenizer),
        seeds.derive(config.training.seed, "batches"),
        config.pipeline.micro_batches,
        config.pipeline.micro_batch_size,
        length,
    )
    limit = config.data.validation_tokens
    held_out = cut_validation(pack_measured(corpus.validation, tokenizer, limit), length, limit)
    return Job(config, source, plan, corpus, tokenizer, batches, held_out)


def _tokenizer(config: RunConfig, corpus: Corpus) -> Any:
    """The one that is named, else the model's own, else one trained on the text."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    if ":" in config.model.name:
        return train_tokenizer(corpus, config.data.vocabulary)
    return load_tokenizer(config.model.name)


def _lora(model: ModelConfig) -> Lora | None:
    if model.lora_rank == 0:
        return None
    return Lora(rank=model.lora_rank, alpha=model.lora_alpha, targets=model.lora_targets)
