"""What a machine keeps: made at first start, for its owner alone, where HOLDFAST_HOME says."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from holdfast.admission.home import hosts_file, machine_identity
from holdfast.errors import SetupError


def test_the_key_is_made_once_in_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "a" / "b"))
    first = machine_identity()
    assert machine_identity().public == first.public
    assert hosts_file() == tmp_path / "a" / "b" / "hosts.json"
    assert stat.S_IMODE((tmp_path / "a" / "b").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "a" / "b" / "identity.pem").stat().st_mode) == 0o600
    assert machine_identity(tmp_path / "other.pem").public != first.public


def test_the_default_is_below_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOLDFAST_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    machine_identity()
    assert (tmp_path / ".holdfast" / "identity.pem").exists()


def test_a_home_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOLDFAST_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(SetupError, match="HOLDFAST_HOME"):
        machine_identity()
