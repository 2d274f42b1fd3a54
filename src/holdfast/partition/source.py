"""Where a model comes from: a description of a small one to make from scratch, a Hugging Face directory, or a name on the hub.

    gpt2:layers=6,width=64,heads=4      made from scratch (gpt2, opt, bloom, llama, qwen3)
    path/to/directory                   config.json and safetensors
    openai-community/gpt2-xl            the hub, through the library's own cache

A config is data from a stranger: no key may name code, and none is run.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.errors import CheckpointError, ConfigError, PartitionError, SetupError
from holdfast.partition.hub import check_hub, check_path, unreachable
from holdfast.partition.scratch import SCRATCH_KINDS, config_from_spec
from holdfast.partition.shards import SINGLE, SUMS, Files
from holdfast.partition.skeleton import prepare_config
from holdfast.plain import from_json

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelSource:
    """A model before it is loaded: its prepared config, and its files (None: weights are drawn from a seed)."""

    name: str
    config: Any
    files: Files | None = None

    @property
    def from_scratch(self) -> bool:
        return self.files is None

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def positions(self) -> int | None:
        """The longest sequence that the model takes (None: any)."""
        found = getattr(self.config, "max_position_embeddings", None)
        return int(found) if found is not None and self.model_type != "bloom" else None


@dataclass(frozen=True)
class LocalFiles:
    """Files of a directory."""

    directory: Path

    @property
    def name(self) -> str:
        return str(self.directory)

    def find(self, filename: str) -> Path | None:
        path = self.directory / filename
        return path if path.is_file() else None


@dataclass(frozen=True)
class HubFiles:
    """Files of a hub repository at one commit, fetched into the library's cache when they are asked for."""

    name: str
    revision: str | None = None

    def find(self, filename: str) -> Path | None:
        from huggingface_hub import is_offline_mode
        from huggingface_hub.errors import HfHubHTTPError
        from transformers.utils import cached_file

        answers = is_offline_mode() or check_hub(self.name)
        try:
            found = cached_file(
                self.name,
                filename,
                revision=self.revision,
                local_files_only=not answers,
                _raise_exceptions_for_missing_entries=False,
            )
        except (OSError, HfHubHTTPError, ValueError) as error:
            if not answers:
                raise unreachable(self.name) from None
            raise SetupError(
                f"cannot fetch {filename} of {self.name!r} from the hub: {str(error).splitlines()[0]} "
                "Check the name and the connection, or give a directory that holds the model"
            ) from error
        if found is None and filename not in (SINGLE, SUMS) and not answers:
            raise unreachable(self.name)
        if found is None and filename not in (SINGLE, SUMS) and is_offline_mode():
            raise SetupError(
                f"cannot fetch {filename} of {self.name!r}: the hub is switched off (HF_HUB_OFFLINE) and the file is not in "
                "the cache; allow the connection once, or give a directory that holds the model"
            )
        return Path(found) if found is not None else None


def describe(
    name: str,
    *,
    vocabulary: int | None = None,
    positions: int | None = None,
    attention: str = "sdpa",
    dropout: float = 0.0,
) -> ModelSource:
    """Find a model and check its config; no weights are read.

    `vocabulary` (the tokenizer's size) and `positions` (the sequence length) are needs: a model from scratch gets them where
    its description says nothing, another one must have them. Raises ConfigError, CheckpointError, SetupError, PartitionError.
    """
    kind, colon, _ = name.partition(":")
    if colon and kind in SCRATCH_KINDS:
        config = config_from_spec(name, vocabulary, positions)
        source = ModelSource(name, prepare_config(config, attention, dropout))
    else:
        files = _files(name)
        config = read_config(files)
        source = ModelSource(name, prepare_config(config, attention, dropout), files)
    _meet(source, vocabulary, positions)
    return source


def _meet(source: ModelSource, vocabulary: int | None, positions: int | None) -> None:
    if vocabulary is not None and source.config.vocab_size < vocabulary:
        raise ConfigError(
            f"{source.name} has a vocabulary of {source.config.vocab_size} tokens, but the tokenizer has {vocabulary}; "
            "use the model's own tokenizer, or a smaller one"
        )
    limit = source.positions
    if positions is not None and limit is not None and limit < positions:
        raise ConfigError(
            f"sequences of {positions} tokens are longer than the {limit} positions of {source.name}; shorten --seq-length"
        )


def _files(name: str) -> LocalFiles | HubFiles:
    path = Path(name).expanduser()
    if path.is_dir():
        return LocalFiles(path)
    if path.exists():
        raise ConfigError(f"model {name!r} is a file; give the directory that holds config.json and the safetensors")
    check_path(name)
    if not re.fullmatch(r"[\w][\w.\-]*(/[\w][\w.\-]*)?", name):
        raise ConfigError(
            f"no model {name!r}: neither a directory, nor a hub name, nor a description such as gpt2:layers=6,width=64,heads=4 "
            f"(kinds: {', '.join(SCRATCH_KINDS)})"
        )
    hub = HubFiles(name)
    config = hub.find(CONFIG)
    if config is None:
        raise SetupError(
            f"found no config.json of {name!r}: the hub does not have it, or cannot be reached from here; "
            "check the name and the connection, or give the directory of a model"
        )
    commit = re.search(r"/snapshots/([0-9a-f]{40})/", config.as_posix())
    return HubFiles(name, commit[1] if commit else None)


_HARMLESS = {"_name_or_path", "_num_labels", "_commit_hash"}
_SHAPE = {"_remove_final_layer_norm", "_sliding_window_pattern"}
_CODE = {"auto_map", "attn_implementation", "experts_implementation", "custom_pipelines", "trust_remote_code"}


def read_config(files: Files) -> Any:
    """The library's config object from config.json, with every key that could choose code refused or dropped."""
    path = files.find(CONFIG)
    if path is None and files.find("adapter_config.json") is not None:
        raise CheckpointError(
            f"{files.name} holds an adapter and no model; give a model's directory, such as that of adapter and base together "
            "(peft: merge_and_unload, then save_pretrained)"
        )
    if path is None:
        raise CheckpointError(f"{files.name} holds no config.json; a Hugging Face model directory is needed")
    try:
        keys = from_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not valid JSON: {error}") from error
    return config_from_keys(keys, str(path))


def config_from_keys(keys: Any, origin: str) -> Any:
    """The library's config object from the keys of a config.json that came from `origin`; nothing in it may choose code.

    Raises CheckpointError and PartitionError.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if not isinstance(keys, dict) or not isinstance(keys.get("model_type"), str):
        raise CheckpointError(f"{origin} names no model_type; it is not the config of a model")
    model_type = keys["model_type"]
    if model_type not in CONFIG_MAPPING:
        raise PartitionError(
            f"{origin}: the library knows no models of type {model_type!r}, and code from a checkpoint is never run"
        )
    if keys.get("quantization_config"):
        raise PartitionError(f"{origin}: quantised weights cannot be trained; give the unquantised model")
    try:
        return CONFIG_MAPPING[model_type].from_dict(_without_code(keys, origin))
    except (ValueError, TypeError, KeyError, AttributeError, ZeroDivisionError, StrictDataclassError) as error:
        raise CheckpointError(f"{origin} is not a valid config of type {model_type!r}: {error}") from error


def _without_code(keys: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """Refuse keys with a leading underscore (one of them once ran code), drop those that choose kernels or code.

    The library itself writes a few: two that describe the model's shape are kept, notes of where it came from are dropped.
    """
    kept = {}
    for key, value in keys.items():
        if key.startswith("_") and (key not in _HARMLESS | _SHAPE or isinstance(value, (dict, list))):
            raise CheckpointError(
                f"{origin}: the key {key!r} begins with an underscore; remove it, such keys reach into the library"
            )
        if key in _CODE | _HARMLESS:
            continue
        kept[key] = _without_code(value, origin) if isinstance(value, dict) else value
    return kept
