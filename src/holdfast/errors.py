"""Every error that Holdfast raises on purpose, as one tree: the leaf says what went wrong, the branch says whose turn it is.

    HoldfastError                 1   a finding, or a promise that could not be kept
    ├── UsageError                2   the caller can mend it
    │   ├── ConfigError               a wrong key, value or combination of options
    │   ├── PartitionError            a model that cannot be cut as asked
    │   └── DataError                 missing, empty or unusable text
    ├── SetupError                3   the machine or the installation can
    │   ├── MissingExtra              an optional dependency is not installed
    │   ├── CannotListen              an address of this machine that is taken, or that it does not have
    │   ├── NotEnoughMemory           the plan does not fit
    │   └── CheckpointError           a checkpoint that is missing, torn or altered
    │       └── JournalRefused        a journal of commits that cannot be gone on from; the run goes back to a checkpoint
    ├── NetworkError              4   a peer or a link can
    ├── ProtocolError             1   a peer's message breaks the schema or its limits
    ├── SelfTestFailed            1   split and whole model disagree
    └── FaultWindowExceeded       1   more faults at once than the protocol can carry

The number is the exit code of the command line. Messages say what was got, what was needed and what to do next.

Two signals stand outside the tree, because nobody is to blame and no user sees them: an actor that raises `WorkerDied` or
`WorkerStalled` tells its launcher that its machine is gone, or busy with nothing, in the middle of what it was doing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from holdfast.message import Envelope
else:
    Envelope = Any


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


class CannotListen(SetupError):
    """An address cannot be listened at; who knows by which `option` it was given says so.

    >>> str(CannotListen("127.0.0.1:7701", "address already in use").given_by("--wire"))
    'cannot listen at 127.0.0.1:7701: address already in use; choose another with --wire'
    """

    def __init__(self, address: str, why: str, option: str = "") -> None:
        choose = f"choose another with {option}" if option else "give a free ip:port of this machine, as in 127.0.0.1:0"
        super().__init__(f"cannot listen at {address}: {why}; {choose}")
        self.address = address
        self.why = why

    def given_by(self, option: str) -> CannotListen:
        return CannotListen(self.address, self.why, option)


class NotEnoughMemory(SetupError):
    pass


class CheckpointError(SetupError):
    pass


class JournalRefused(CheckpointError):
    pass


class NetworkError(HoldfastError):
    exit_code = 4


class ProtocolError(HoldfastError):
    pass


class SelfTestFailed(HoldfastError):
    pass


class FaultWindowExceeded(HoldfastError):
    pass


class NothingLeft(HoldfastError):
    """The run that was to go on has all its steps and its model: there is nothing to do, and nothing was touched."""

    exit_code = 0


class StoppedWaiting(HoldfastError):
    """The run was told to stop while it waited for machines, and before it had any."""

    exit_code = 130


class WorkerDied(Exception):
    """The machine is gone for good; only the envelopes `sent` still left it."""

    def __init__(self, sent: Sequence[Envelope] = ()) -> None:
        super().__init__(f"the worker died after {len(sent)} envelopes")
        self.sent: tuple[Envelope, ...] = tuple(sent)


class WorkerStalled(Exception):
    """The machine does nothing for `seconds`; the envelopes `sent` left before.

    What was interrupted is not lost: the actor offers it again as its next work once the time is over.
    """

    def __init__(self, seconds: float, sent: Sequence[Envelope] = ()) -> None:
        super().__init__(f"the worker stalls for {seconds} s after {len(sent)} envelopes")
        self.seconds = seconds
        self.sent: tuple[Envelope, ...] = tuple(sent)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """For the middle of a message about a wrong name: the known one that is most like it, or nothing.

    >>> did_you_mean("defense", ["attack", "defence"])
    "did you mean 'defence'? "
    """
    import difflib

    near = difflib.get_close_matches(name, list(known), n=1)
    return f"did you mean {near[0]!r}? " if near else ""
