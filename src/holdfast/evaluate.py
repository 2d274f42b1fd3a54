"""How well a model predicts held-out text: perplexity a token, and bits a byte, which compares across tokenizers.

loss           -1/n sum log p(token | the tokens of its block before it)      nats, n predicted tokens
perplexity     exp(loss)
bits per byte  n * loss / (ln 2 * bytes of UTF-8 text that the predicted tokens stand for)
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from holdfast.config import DataConfig
from holdfast.data import Blocks, load_corpus, load_tokenizer, pack_measured, part_of, validation_blocks
from holdfast.errors import CheckpointError, ConfigError, DataError, MissingExtra
from holdfast.partition import describe
from holdfast.partition.hub import check_hub, check_path
from holdfast.partition.weights import no_progress_bar

Part = Literal["validation", "train", "all"]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`loss` in nats a token; `tokens` were predicted, `bytes` is the text that they stand for."""

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int


def evaluate(model: nn.Module, blocks: Blocks, *, batch_size: int = 8) -> Evaluation:
    """Score a plain causal language model of the library on held-out blocks, in their order.

    No gradients, evaluation mode (restored afterwards), sums in float64. Raises ConfigError where the blocks are longer
    than the model's positions, DataError where they hold tokens that it does not know.
    """
    _check_fit(model, blocks)
    device = next(model.parameters()).device
    training = model.training
    model.eval()
    total = 0.0
    try:
        with torch.no_grad():
            for rows in torch.split(blocks.ids, batch_size):
                total += _nats(model, rows.to(device))
    finally:
        model.train(training)
    tokens = blocks.ids[:, 1:].numel()
    loss = total / tokens
    bits = total / math.log(2) / blocks.token_bytes if blocks.token_bytes else math.inf
    return Evaluation(loss, _exp(loss), bits, tokens, blocks.token_bytes)


def evaluate_directory(
    path: str | Path, data: DataConfig, *, device: str = "cpu", seed: int = 0, part: Part = "validation"
) -> Evaluation:
    """Open a Hugging Face model or PEFT adapter directory (or a run's, which holds one as `model/`) and score it.

    The tokenizer is `data.tokenizer`, else the directory's own (for an adapter without one, its base model's).
    """
    directory = _model_directory(path)
    base = _adapter_base(directory)
    tokenizer = load_tokenizer(data.tokenizer or _with_tokenizer(directory, base))
    corpus = part_of(load_corpus(data.name, seed), *data.train_part)
    documents = {"validation": corpus.validation, "train": corpus.train, "all": (*corpus.train, *corpus.validation)}[part]
    tokens = pack_measured(documents, tokenizer, limit_tokens=data.validation_tokens + data.sequence_length)
    blocks = validation_blocks(tokens, data.sequence_length, data.validation_tokens)
    return evaluate(_open(directory, base, data.sequence_length).to(device), blocks)


def _nats(model: nn.Module, rows: Tensor) -> float:
    """The summed negative log-likelihood of the last S tokens of each row, rows [B, S+1]."""
    inputs, targets = rows[:, :-1], rows[:, 1:]
    logits = model(input_ids=inputs, use_cache=False).logits
    losses = nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none")
    return float(losses.double().sum())


def _exp(loss: float) -> float:
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def _check_fit(model: Any, blocks: Blocks) -> None:
    config = model.config
    length, positions = blocks.ids.shape[1] - 1, getattr(config, "max_position_embeddings", None)
    if positions is not None and config.model_type != "bloom" and length > positions:
        raise ConfigError(
            f"sequences of {length} tokens are longer than the model's {positions} positions; shorten --seq-length"
        )
    known, largest = model.get_input_embeddings().num_embeddings, int(blocks.ids.max())
    if largest >= known:
        raise DataError(
            f"the text has token {largest}, but the model knows only {known} tokens; use the tokenizer it was trained with"
        )


def _model_directory(path: str | Path) -> str:
    """`path`, or the model inside it where it is a run's directory; a hub name stays as it is."""
    directory = Path(path).expanduser()
    if not directory.is_dir():
        check_path(str(path))
        return str(path)
    is_model = any((directory / name).exists() for name in ("config.json", "adapter_config.json"))
    inner = directory / "model"
    return str(inner if not is_model and inner.is_dir() else directory)


def _adapter_base(directory: str) -> str | None:
    """The base model that an adapter directory names; None where it is no adapter."""
    if not (Path(directory) / "adapter_config.json").is_file():
        return None
    peft = _peft()
    if not (Path(directory) / "adapter_model.safetensors").is_file():
        raise CheckpointError(f"{directory} holds no adapter_model.safetensors; other formats could run code and are not read")
    try:
        base = peft.PeftConfig.from_pretrained(directory).base_model_name_or_path
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CheckpointError(f"{directory}/adapter_config.json is not a usable adapter config: {error}") from error
    if not base:
        raise CheckpointError(
            f"{directory}/adapter_config.json names no base_model_name_or_path; add the base model's directory"
        )
    return str(base)


def _with_tokenizer(directory: str, base: str | None) -> str:
    names = ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    return base if base is not None and not any((Path(directory) / name).exists() for name in names) else directory


def _open(directory: str, base: str | None, sequence_length: int) -> nn.Module:
    """The model on the CPU, in the dtype it was saved in; from safetensors only, and without code of its own."""
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    name = base or directory
    source = describe(name, positions=sequence_length)
    if source.from_scratch and base is not None:
        raise CheckpointError(
            f"{directory} is an adapter for {base!r}, a model that was made from scratch and that nobody kept; "
            "give adapter_config.json the directory of its base model (base_model_name_or_path)"
        )
    try:
        with no_progress_bar():
            model, loading = AutoModelForCausalLM.from_pretrained(
                name,
                config=source.config,
                dtype="auto",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=not Path(name).is_dir() and not check_hub(name),
                output_loading_info=True,
            )
        if base is not None:
            model = _with_adapter(model, directory)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"cannot load the model at {directory}: {error}") from error
    if loading["missing_keys"]:
        raise CheckpointError(f"{name} lacks the weights of {sorted(loading['missing_keys'])[0]}; random ones would be scored")
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() % 64:  # a view into a mapped file; another alignment may give other bits
                tensor.data = tensor.data.clone()
    opened: nn.Module = model
    return opened


def _with_adapter(model: Any, directory: str) -> Any:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".is_gradient_checkpointing. is deprecated")  # peft asks, not we
        return _peft().PeftModel.from_pretrained(model, directory)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise MissingExtra("peft", extra="lora", purpose="opening an adapter directory") from None
    return peft
