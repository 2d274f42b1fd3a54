"""Known hosts: a key met once is the only one that counts for that run at that address."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from holdfast.admission.invite import Invite
from holdfast.admission.known_hosts import KnownHosts
from holdfast.errors import NetworkError, SetupError

OLD = Invite(("127.0.0.1:7700", "example.org:7700"), "ab" * 32, "run-1", bytes(16))
NEW = dataclasses.replace(OLD, fingerprint="cd" * 32)


def test_a_changed_key_is_refused_at_any_known_address(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    hosts = KnownHosts(path)
    hosts.check(NEW)
    hosts.remember(OLD)
    for again in (hosts, KnownHosts(path)):
        again.check(OLD)
        for doors in (OLD.doors, OLD.doors[1:], ("127.0.0.1:1", OLD.doors[0])):
            with pytest.raises(NetworkError, match="HAS CHANGED") as refused:
                again.check(dataclasses.replace(NEW, doors=doors))
            assert "ab" * 32 in str(refused.value)
            assert "cd" * 32 in str(refused.value)
            assert str(path) in str(refused.value)


def test_another_run_or_address_may_have_another_key(tmp_path: Path) -> None:
    hosts = KnownHosts(tmp_path / "hosts.json")
    hosts.remember(OLD)
    hosts.check(dataclasses.replace(NEW, run="run-2"))
    hosts.check(dataclasses.replace(NEW, doors=("example.net:7700",)))


def test_the_file_is_the_owners_and_holds_no_secret(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    invite = dataclasses.replace(OLD, secret=b"0123456789abcdef")
    KnownHosts(path).remember(invite)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "0123456789abcdef" not in path.read_text()
    assert b"0123456789abcdef".hex() not in path.read_text()
    written = path.stat().st_mtime_ns
    KnownHosts(path).remember(invite)
    assert path.stat().st_mtime_ns == written


def test_a_damaged_file_is_not_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "hosts.json"
    path.write_text("{}")
    path.chmod(0o600)
    with pytest.raises(SetupError, match="damaged"):
        KnownHosts(path)
