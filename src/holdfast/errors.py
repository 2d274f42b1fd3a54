"""Every error that Holdfast raises on purpose, as one tree: the leaf says what went wrong, the branch says whose turn it is.

    HoldfastError                 1   a finding, or a promise that could not be kept
    ├── UsageError                2   the caller can mend it
    │   ├── ConfigError               a wrong key, value or combination of options
    │   ├── PartitionError            a model that cannot be cut as asked
    │   └── DataError                 missing, empty or unusable text
    ├── SetupError                3   the machine or the installation can
    │   ├── MissingExtra              an optional dependency is not installed
    │   ├── NotEnoughMemory           the plan does not fit
    │   └── CheckpointError           a checkpoint that is missing, torn or altered
    ├── NetworkError              4   a peer or a link can
    ├── ProtocolError             1   a peer's message breaks the schema or its limits
    ├── SelfTestFailed            1   split and whole model disagree
    └── FaultWindowExceeded       1   more faults at once than the protocol can carry

The number is the exit code of the command line. Messages say what was got, what was needed and what to do next.
"""

from __future__ import annotations

from typing import ClassVar


class HoldfastError(Exception):
    """Root of the tree; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UsageError(HoldfastError):
    exit_code = 2


class ConfigError(UsageError):
    pass


class PartitionError(UsageError):
    pass


class DataError(UsageError):
    pass


class SetupError(HoldfastError):
    exit_code = 3


class MissingExtra(SetupError):
    """An optional dependency is missing.

    >>> str(MissingExtra("peft", extra="lora", purpose="LoRA fine-tuning"))
    "LoRA fine-tuning needs the package 'peft', which is not installed; run: pip install 'holdfast[lora]'"
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed; run: pip install 'holdfast[{extra}]'"
        )


class NotEnoughMemory(SetupError):
    pass


class CheckpointError(SetupError):
    pass


class NetworkError(HoldfastError):
    exit_code = 4


class ProtocolError(HoldfastError):
    pass


class SelfTestFailed(HoldfastError):
    pass


class FaultWindowExceeded(HoldfastError):
    pass
