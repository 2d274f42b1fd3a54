"""The book of invites: uses, time, revocation, a restart, and no secret on the disk."""

from __future__ import annotations

import stat
import threading
from pathlib import Path

import pytest

from holdfast.admission.invitations import Invitations
from holdfast.errors import ConfigError, SetupError

from .conftest import Clock

ONE, TWO, THREE = "1" * 64, "2" * 64, "3" * 64


@pytest.fixture
def clock() -> Clock:
    return Clock(1_800_000_000.0)


@pytest.fixture
def book(tmp_path: Path, clock: Clock) -> Invitations:
    return Invitations(tmp_path / "invites.json", clock=clock)


def states(book: Invitations) -> list[str]:
    return [invite["state"] for invite in book.list()]


def test_each_use_is_for_one_key(book: Invitations) -> None:
    _, secret = book.create(uses=2)
    assert book.redeem(secret, ONE)
    assert book.redeem(secret, ONE), "who spent a use and never got the answer may ask again"
    assert states(book) == ["open"]
    assert book.redeem(secret, TWO)
    assert not book.redeem(secret, THREE)
    assert book.redeem(secret, TWO)
    assert states(book) == ["used up"]


def test_an_invite_has_its_time(book: Invitations, clock: Clock) -> None:
    _, secret = book.create(uses=2, ttl_s=60)
    clock.now += 59.9
    assert book.redeem(secret, ONE)
    clock.now += 0.1
    assert not book.redeem(secret, ONE)
    assert not book.opens(secret, TWO)
    assert states(book) == ["expired"]


def test_a_revoked_one_opens_nothing(book: Invitations) -> None:
    made, secret = book.create(uses=2)
    assert book.redeem(secret, ONE)
    assert book.revoke(made.id).revoked
    assert not book.redeem(secret, ONE)
    assert states(book) == ["revoked"]
    with pytest.raises(ConfigError, match="no such one; there are"):
        book.revoke("nothing")


def test_other_secrets_open_nothing(book: Invitations) -> None:
    _, secret = book.create()
    for wrong in (b"", bytes(16), secret[:-1], secret + b"\0", secret[::-1]):
        assert not book.redeem(wrong, ONE)
    assert states(book) == ["open"]


def test_looking_spends_nothing(book: Invitations) -> None:
    _, secret = book.create()
    assert book.opens(secret, ONE)
    assert book.opens(secret, TWO)
    assert book.list()[0]["used_by"] == []


def test_a_restart_keeps_the_book(tmp_path: Path, book: Invitations, clock: Clock) -> None:
    _, first = book.create()
    book.redeem(first, ONE)
    _, second = book.create(uses=3)
    gone, third = book.create()
    book.revoke(gone.id)
    again = Invitations(tmp_path / "invites.json", clock=clock)
    assert again.list() == book.list()
    assert not again.redeem(first, TWO)
    assert again.redeem(first, ONE)
    assert again.redeem(second, TWO)
    assert not again.redeem(third, TWO)


def test_the_file_is_the_owners_and_holds_no_secret(tmp_path: Path, book: Invitations) -> None:
    path = tmp_path / "invites.json"
    secrets = [book.create()[1] for _ in range(3)]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["invites.json"]
    for secret in secrets:
        assert secret.hex() not in path.read_text()
        assert secret not in path.read_bytes()
    assert not any("hash" in invite for invite in book.list())


def test_what_cannot_be_written_was_not_spent(tmp_path: Path, book: Invitations, monkeypatch: pytest.MonkeyPatch) -> None:
    _, secret = book.create()

    def full(*args: object, **settings: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("holdfast.atomic.write_file", full)
        with pytest.raises(SetupError, match="No space left"):
            book.redeem(secret, ONE)
    assert book.list()[0]["used_by"] == []
    assert book.redeem(secret, TWO)


def test_many_at_once_spend_no_more_than_there_is(book: Invitations) -> None:
    _, secret = book.create(uses=3)
    let_in: list[int] = []
    threads = [
        threading.Thread(target=lambda n=number: let_in.append(n) if book.redeem(secret, f"{n:064d}") else None)
        for number in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(let_in) == 3


@pytest.mark.parametrize(
    "limits", [{"uses": 0}, {"uses": -1}, {"uses": 10_001}, {"ttl_s": 0}, {"ttl_s": 1e9}, {"ttl_s": float("nan")}]
)
def test_limits_out_of_range(book: Invitations, limits: dict) -> None:
    with pytest.raises(ConfigError):
        book.create(**limits)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"schema":1}', '{"schema":1,"invites":[{}]}', '{"schema":1,"invites":[],"x":1}']
)
def test_a_damaged_book_is_not_an_empty_one(tmp_path: Path, content: str) -> None:
    path = tmp_path / "invites.json"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(SetupError, match="damaged"):
        Invitations(path)


def test_a_book_of_another_version_or_for_everybody_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "invites.json"
    path.write_text('{"schema":2}')
    path.chmod(0o600)
    with pytest.raises(SetupError, match="schema 2"):
        Invitations(path)
    path.chmod(0o640)
    with pytest.raises(SetupError, match="chmod 600"):
        Invitations(path)
