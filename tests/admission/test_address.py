"""Addresses, and the rule that nothing listens beyond this machine unless told to."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.admission.address import check_listen, parse_address
from holdfast.errors import ConfigError


@pytest.mark.parametrize("text", ["127.0.0.1:7700", "[::1]:7700", "example.org:1", "w3:65535"])
def test_addresses_are_read_back(text: str) -> None:
    assert str(parse_address(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", ":", "7700", "host", "host:", "host:0", "host:65536", "host:-1", "host:+1", "host:\uff11", "::1:7700", "[::1]"),
        *("[host]:1", "1.2.3:4", "300.1.1.1:1", "a b:1", "a\n:1", "-a:1", "[fe80::1%eth0]:1", "a/b:1", "user@host:1"),
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ConfigError, match="address"):
        parse_address(text)


@given(st.text(max_size=60))
def test_any_text_is_an_address_or_a_clear_refusal(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert parse_address(str(parse_address(text))) == parse_address(text)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "127.1.2.3:1", "[::1]:0", "localhost:0"])
def test_loopback_needs_no_word(text: str) -> None:
    assert check_listen(text, exposed=False).loopback


@pytest.mark.parametrize(
    "text", ["0.0.0.0:0", "[::]:0", "192.168.1.5:1", "203.0.113.5:1", "example.org:1", "localhost.example:1"]
)
def test_anything_else_does(text: str) -> None:
    with pytest.raises(ConfigError, match="--expose"):
        check_listen(text, exposed=False)
    assert not check_listen(text, exposed=True).loopback
