"""The journal of commits: what a host that dies must find again to go on from the very step that was sealed last.

    updates agreed --> states of the stages that only the initiator holds --> commit record --> Seal to everybody
                            states-NNNNNN.safetensors, fsync                 commit-NNNNNN.json, fsync, rename, fsync

A record is on the disk before anybody is told that the step is sealed, and the two newest stay: a kill at any point leaves a
whole one. It is signed, and names the line of the evidence log at which it was written, so that one of another run, or one that
the run has left behind, is known. What other machines hold is not in it: only the digests by which it is recognised.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from holdfast import atomic
from holdfast.claim import StageState
from holdfast.digest import state_digest
from holdfast.errors import CheckpointError, JournalRefused
from holdfast.evidence.identity import Identity, verify
from holdfast.plain import fits, from_own_json

SCHEMA = 1
FOLDER = "journal"
KEPT = 2
"""Commits whose record and states stay."""

DOMAIN = b"holdfast/journal/1\0"
_RECORD = re.compile(r"commit-(\d{6,})\.json")
_STATES = re.compile(r"states-(\d{6,})\.safetensors")


@dataclass(frozen=True)
class Commit:
    """Version `version` of `run` is sealed: the next step to compute is step `version`, from batch `version` on.

    `cut` are the layers (lo, hi) of each stage, `digests` the sealed digest of each stage's weights and optimizer state,
    `primaries` and `shadows` ("" where there is none) who computed them, `members` all machines that were there. `settled` says
    that nothing of the steps so far is still to be checked, `certified` that all of them were; `progress` is what the trainer
    has counted (plain values, the loss among them). `mark` is the number of lines of the evidence log, and the hash of its last
    one, with the seal of this version. `updates` counts the optimizer steps of each stage whose state lies beside the record.
    """

    run: str
    version: int
    tokens: int
    cut: tuple[tuple[int, int], ...]
    digests: tuple[bytes, ...]
    primaries: tuple[str, ...]
    shadows: tuple[str, ...]
    members: tuple[str, ...]
    settled: bool
    certified: bool
    mark: tuple[int, bytes]
    progress: Mapping[str, Any] = field(default_factory=dict)
    updates: Mapping[int, int] = field(default_factory=dict)
    number: int = 0

    @property
    def own(self) -> tuple[int, ...]:
        """The stages whose states lie beside the record, because only trusted members held them."""
        return tuple(sorted(self.updates))


class Journal:
    """The journal in `directory`, signed by `identity`. `written_bytes` and `seconds` are what `count` commits have cost."""

    def __init__(self, directory: Path, identity: Identity) -> None:
        self.directory = directory
        self.count = 0
        self.written_bytes = 0
        self.seconds = 0.0
        self._identity = identity
        self._next: int | None = None

    def write(self, commit: Commit, states: Mapping[int, StageState]) -> None:
        """Put `commit` on the disk, with the `states` of the stages that nobody else holds: their digests, the `number` and
        `updates` are set here.

        Returns when it would survive a loss of power. Raises CheckpointError where it cannot be written; then the one before is
        still whole.
        """
        began = time.perf_counter()
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            number = self._number()
            beside = self.directory / f"states-{number:06d}.safetensors"
            save_file(_named(states), str(beside))
            atomic.sync(beside)
            fresh = {stage: state_digest(state) for stage, state in states.items()}
            digests = tuple(fresh.get(stage, digest) for stage, digest in enumerate(commit.digests))
            content = self._signed(
                replace(commit, digests=digests), number, {stage: state.updates for stage, state in states.items()}
            )
            atomic.write_file(self.directory / f"commit-{number:06d}.json", content)
            self._prune(number)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"could not write the journal in {self.directory}: {error}; nothing that was sealed is lost: make room and "
                "start the host again with the same command, or turn the journal off (machines.journal = false)"
            ) from error
        self._next = number + 1
        self.count += 1
        self.written_bytes += beside.stat().st_size + len(content)
        self.seconds += time.perf_counter() - began

    def newest(self) -> Commit | None:
        """The last commit, or None where there is none. Raises JournalRefused where it is not what was written."""
        paths = self._records()
        if not paths:
            return None
        path = paths[-1]
        try:
            outer = from_own_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise JournalRefused(f"{path.name} is torn or altered ({error})") from None
        if not isinstance(outer, dict) or not fits(outer.get("signature"), str) or not isinstance(outer.get("body"), dict):
            raise JournalRefused(f"{path.name} is torn or altered (it is no signed record)")
        body = outer["body"]
        try:
            signature = bytes.fromhex(outer["signature"])
        except ValueError:
            signature = b""
        if not verify(self._identity.public, signature, _message(body)):
            raise JournalRefused(
                f"{path.name} is not signed by the key of this host: it was altered, or comes from another machine"
            )
        if body.get("schema") != SCHEMA:
            raise JournalRefused(f"{path.name} has schema {body.get('schema')!r}; this version of Holdfast reads {SCHEMA}")
        commit = _commit(body, path)
        if path.name != f"commit-{commit.number:06d}.json":
            raise JournalRefused(f"{path.name} holds commit {commit.number}: it was put there in the place of another")
        return commit

    def states(self, commit: Commit) -> dict[int, StageState]:
        """The states beside `commit`. Raises JournalRefused where they are not those whose digests it names."""
        path = self.directory / f"states-{commit.number:06d}.safetensors"
        weights: dict[int, dict[str, Tensor]] = {stage: {} for stage in commit.own}
        moments: dict[int, dict[str, Tensor]] = {stage: {} for stage in commit.own}
        try:
            with safe_open(str(path), framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 (the file is no mapping)
                    stage, part, parameter = name.split("/", 2)
                    found = {"weights": weights, "moments": moments}[part]
                    found[int(stage)][parameter] = file.get_tensor(name).clone()  # a mapped file aligns its tensors otherwise
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise JournalRefused(f"{path.name} is missing, torn or altered ({error})") from None
        states = {
            stage: StageState(stage, commit.version, commit.updates[stage], weights[stage], moments[stage])
            for stage in commit.own
        }
        for stage, state in states.items():
            if state_digest(state) != commit.digests[stage]:
                raise JournalRefused(f"{path.name} does not hold the state of stage {stage} that was sealed")
        return states

    def clear(self) -> None:
        """Forget all commits: the run goes on from somewhere else. Raises CheckpointError where they cannot be removed."""
        try:
            for path in self._records():
                path.unlink()
            for path in self._files(_STATES):
                path.unlink()
            if self.directory.is_dir():
                atomic.clear_leftovers(self.directory)
        except OSError as error:
            raise CheckpointError(
                f"cannot remove the journal in {self.directory}, which the run has left behind: {error.strerror or error}"
            ) from None

    # -- files -------------------------------------------------------------------------------------------------------

    def _signed(self, commit: Commit, number: int, updates: Mapping[int, int]) -> bytes:
        body = {
            "schema": SCHEMA,
            "number": number,
            "run": commit.run,
            "version": commit.version,
            "tokens": commit.tokens,
            "cut": [list(layers) for layers in commit.cut],
            "digests": [digest.hex() for digest in commit.digests],
            "primaries": list(commit.primaries),
            "shadows": list(commit.shadows),
            "members": list(commit.members),
            "settled": commit.settled,
            "certified": commit.certified,
            "lines": commit.mark[0],
            "last_line": commit.mark[1].hex(),
            "progress": dict(commit.progress),
            "updates": {str(stage): count for stage, count in updates.items()},
        }
        signature = self._identity.sign(_message(body)).hex()
        return (json.dumps({"body": body, "signature": signature}, sort_keys=True, allow_nan=False) + "\n").encode()

    def _number(self) -> int:
        if self._next is None:
            atomic.clear_leftovers(self.directory)
            numbers = [int(match[1]) for path in self._records() if (match := _RECORD.fullmatch(path.name))]
            self._next = max(numbers, default=0) + 1
        return self._next

    def _records(self) -> list[Path]:
        return self._files(_RECORD)

    def _files(self, pattern: re.Pattern[str]) -> list[Path]:
        """Files of the journal of one kind, oldest first."""
        if not self.directory.is_dir():
            return []
        named = ((match, path) for path in self.directory.iterdir() if (match := pattern.fullmatch(path.name)))
        return [path for _number, path in sorted((int(match[1]), path) for match, path in named)]

    def _prune(self, newest: int) -> None:
        """Keep the newest commits and what lies beside them; the states of one that a kill left without a record go too."""
        records = self._records()
        for path in records[:-KEPT]:
            path.unlink()
        numbers = {int(match[1]) for path in records[-KEPT:] if (match := _RECORD.fullmatch(path.name))} | {newest}
        for path in self._files(_STATES):
            match = _STATES.fullmatch(path.name)
            if match is not None and int(match[1]) not in numbers:
                path.unlink()


def _named(states: Mapping[int, StageState]) -> dict[str, Tensor]:
    """Copies: the file's writer refuses tensors that share memory."""
    return {
        f"{stage}/{part}/{name}": tensor.detach().cpu().contiguous().clone()
        for stage, state in states.items()
        for part, tensors in (("weights", state.weights), ("moments", state.moments))
        for name, tensor in tensors.items()
    }


def _message(body: Mapping[str, Any]) -> bytes:
    return DOMAIN + json.dumps(body, sort_keys=True, allow_nan=False).encode()


_FORM: dict[str, Any] = {
    "number": int,
    "run": str,
    "version": int,
    "tokens": int,
    "cut": list[list[int]],
    "digests": list[str],
    "primaries": list[str],
    "shadows": list[str],
    "members": list[str],
    "settled": bool,
    "certified": bool,
    "lines": int,
    "last_line": str,
    "progress": dict[str, Any],
    "updates": dict[str, int],
}


def _commit(body: Mapping[str, Any], path: Path) -> Commit:
    wrong = [name for name, kind in _FORM.items() if not fits(body.get(name), kind)]
    if wrong:
        raise JournalRefused(f"{path.name}: {wrong[0]} is {str(body.get(wrong[0]))[:80]!r}")
    return Commit(
        body["run"],
        body["version"],
        body["tokens"],
        tuple((lo, hi) for lo, hi in body["cut"]),
        tuple(bytes.fromhex(digest) for digest in body["digests"]),
        tuple(body["primaries"]),
        tuple(body["shadows"]),
        tuple(body["members"]),
        body["settled"],
        body["certified"],
        (body["lines"], bytes.fromhex(body["last_line"])),
        body["progress"],
        {int(stage): count for stage, count in body["updates"].items()},
        body["number"],
    )
