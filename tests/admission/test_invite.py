"""The invite: read back as it was written, mistyped ones refused in words, and never repeated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.admission.invite import Invite
from holdfast.errors import ConfigError

SECRET = bytes(range(16))
INVITE = Invite(("203.0.113.5:7700", "[2001:db8::1]:7700"), "ab" * 32, "run-1", SECRET)

hosts = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(lambda ip: f"[{ip}]"),
    st.from_regex(r"[a-z][a-z0-9.-]{0,20}[a-z]", fullmatch=True),
)
doors = st.lists(st.builds("{}:{}".format, hosts, st.integers(1, 65535)), min_size=1, max_size=4).map(tuple)
invites = st.builds(
    Invite,
    doors,
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.from_regex(r"[A-Za-z0-9._/-]{1,40}", fullmatch=True),
    st.binary(min_size=16, max_size=16),
)


@given(invites)
def test_what_was_written_is_read(invite: Invite) -> None:
    text = invite.text()
    assert Invite.parse(text) == invite
    assert "\n" not in text
    assert text.startswith("holdfast1:")


def test_line_breaks_and_capitals_of_a_mail_program_do_no_harm() -> None:
    text = INVITE.text()
    assert Invite.parse(f"  {text[:40]}\n {text[40:90].upper()}\r\n\t{text[90:]} ") == INVITE


@given(st.data())
def test_one_wrong_letter_is_noticed(data: st.DataObject) -> None:
    text = INVITE.text()
    at = data.draw(st.integers(len("holdfast1:"), len(text) - 2))
    letter = data.draw(st.sampled_from([c for c in "abcdefghijklmnopqrstuvwxyz234567" if c != text[at]]))
    with pytest.raises(ConfigError, match="mistyped or cut short"):
        Invite.parse(text[:at] + letter + text[at + 1 :])


@given(st.integers(1, 120))
def test_a_line_cut_short_is_noticed(cut: int) -> None:
    with pytest.raises(ConfigError, match=r"cut short|no invite"):
        Invite.parse(INVITE.text()[:-cut])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "one begins with holdfast1:"),
        ("hello", "one begins with holdfast1:"),
        ("https://example.org", "one begins with holdfast1:"),
        ("holdfast2:aaaa", "another version of Holdfast"),
        ("holdfast1:", "cut short"),
        ("holdfast1:a1b0", "'0', '1' never stands in one"),
        ("holdfast1:" + "a" * 5000, "one begins with"),
    ],
)
def test_what_is_no_invite_is_told_why(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Invite.parse(text)


@given(st.text(max_size=200))
def test_any_text_is_an_invite_or_a_clear_refusal(text: str) -> None:
    for line in (text, f"holdfast1:{text}"):
        with pytest.raises(ConfigError):
            Invite.parse(line)


def test_the_secret_does_not_show() -> None:
    for shown in (repr(INVITE), str(INVITE), f"{INVITE}"):
        assert SECRET.hex() not in shown
        assert repr(SECRET)[2:-1] not in shown
        assert "secret" not in shown
    text = INVITE.text()
    with pytest.raises(ConfigError) as refused:
        Invite.parse(text[:-1] + ("a" if text[-1] != "a" else "b") + "a")
    assert text[20:60] not in str(refused.value)


@pytest.mark.parametrize(
    "change",
    [
        {"doors": ()},
        {"doors": ("nowhere",)},
        {"doors": ("127.0.0.1:1",) * 9},
        {"fingerprint": "ab"},
        {"run": ""},
        {"run": "a b"},
        {"secret": b"short"},
    ],
)
def test_what_no_invite_can_hold(change: dict) -> None:
    values = {"doors": INVITE.doors, "fingerprint": INVITE.fingerprint, "run": INVITE.run, "secret": INVITE.secret}
    with pytest.raises(ConfigError):
        Invite(**{**values, **change})
