"""What is to be trained, found and checked before anything starts: text, tokenizer, model, plan, memory."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from holdfast import seeds
from holdfast.claim import StageState
from holdfast.commit import commit
from holdfast.config import ModelConfig, RunConfig
from holdfast.data import (
    BatchSource,
    Blocks,
    Corpus,
    load_corpus,
    load_tokenizer,
    pack,
    pack_measured,
    part_of,
    train_tokenizer,
)
from holdfast.data import validation_blocks as cut_validation
from holdfast.errors import ConfigError, SetupError
from holdfast.partition import Lora, ModelSource, Plan, Range, costs_of, cut, describe, initial_weights, planned
from holdfast.partition.costs import Costs
from holdfast.partition.memory import Batch, WorkerMemory, available_memory, check_memory, memory_per_worker
from holdfast.partition.scratch import SCRATCH_KINDS
from holdfast.quantise import Packing, packing_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Job:
    """Everything that a cluster needs to train one model, and that does not change while it does."""

    config: RunConfig
    source: ModelSource
    plan: Plan
    costs: Costs
    corpus: Corpus
    tokenizer: PreTrainedTokenizerBase
    batches: BatchSource
    validation: Blocks

    @property
    def dtype(self) -> torch.dtype:
        return DTYPES[self.config.model.dtype]

    @property
    def packing(self) -> Packing:
        """How tensors between stages travel."""
        return packing_of(self.dtype, self.config.pipeline.wire_dtype)

    @property
    def batch(self) -> Batch:
        """The sizes of one step, for what it takes of memory and of links."""
        pipeline = self.config.pipeline
        sizes = pipeline.micro_batches, pipeline.micro_batch_size, self.config.data.sequence_length
        return Batch(*sizes, self.dtype, self.packing.wire)

    @property
    def lora(self) -> Lora | None:
        return self.plan.lora

    def recut(self, layers: tuple[Range, ...]) -> Job:
        """The same job with other ranges of layers for its stages."""
        if layers == self.plan.layers:
            return self
        return replace(self, plan=planned(self.source.config, layers, self.costs, self.lora))

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
    check_device(config.model.device)
    if not _from_scratch(config.model.name):
        describe(config.model.name, positions=config.data.sequence_length)  # a wrong name is no missing tokenizer
    corpus = part_of(load_corpus(config.data.name, config.training.seed), *config.data.train_part)
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
    costs = costs_of(source.config, length, measure=config.pipeline.costs == "measured")
    ranges = cut(costs.layers, costs.before, costs.after, config.pipeline.stages, config.cluster.speeds)
    plan = planned(source.config, ranges, costs, lora)
    batches = BatchSource(
        pack(corpus.train, tokenizer, config.data.train_tokens),
        seeds.derive(config.training.seed, "batches"),
        config.pipeline.micro_batches,
        config.pipeline.micro_batch_size,
        length,
    )
    limit = config.data.validation_tokens
    held_out = cut_validation(pack_measured(corpus.validation, tokenizer, limit), length, limit)
    return Job(config, source, plan, costs, corpus, tokenizer, batches, held_out)


def check_fits(job: Job) -> None:
    """Raise NotEnoughMemory where a worker of the described cluster, or this machine, cannot hold what the plan gives it."""
    check_memory(memory_needs(job), worker_bytes=job.config.cluster.memory_bytes, machine_bytes=available_memory())


def memory_needs(job: Job) -> tuple[WorkerMemory, ...]:
    """What each worker must hold under the job's defence, one entry a stage."""
    return memory_per_worker(job.plan, job.batch, shadows=job.config.shadowed, window=job.config.window)


def environment(job: Job) -> dict[str, str]:
    """What besides the config could change bits: versions, machine, threads, and the text itself."""
    import transformers

    from holdfast import __version__

    source = commit()
    return {
        "holdfast": __version__,
        **({"commit": source} if source is not None else {}),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "machine": f"{platform.system()} {platform.machine()}",
        "threads": str(torch.get_num_threads()),
        "data": job.corpus.source,
        "data_sha256": job.corpus.sha256,
    }


def check_device(name: str) -> None:
    """Raise ConfigError for a device that torch does not know, SetupError for one that this machine does not have."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is none that torch knows; give cpu, cuda or cuda:N") from None
    if device.type == "meta":
        raise ConfigError("the device 'meta' computes nothing; give cpu, cuda or cuda:N")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".")
        raise SetupError(
            f"device {name!r} cannot be used here ({reason}); use --device cpu, or install a torch for it"
        ) from None


def _tokenizer(config: RunConfig, corpus: Corpus) -> Any:
    """The one that is named, else the model's own, else one trained on the text."""
    if config.data.tokenizer is not None:
        return load_tokenizer(config.data.tokenizer)
    if _from_scratch(config.model.name):
        return train_tokenizer(corpus, config.data.vocabulary)
    return load_tokenizer(config.model.name)


def _from_scratch(model: str) -> bool:
    kind, colon, _ = model.partition(":")
    return bool(colon) and kind in SCRATCH_KINDS


def _lora(model: ModelConfig) -> Lora | None:
    if model.lora_rank == 0:
        return None
    return Lora(rank=model.lora_rank, alpha=model.lora_alpha, targets=model.lora_targets)
