"""Keys: made, derived, kept in a file that nobody else can read."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from holdfast.errors import SetupError
from holdfast.evidence.identity import derived, fingerprint, generate, load, load_or_make, verify


def test_derived_keys_repeat_and_differ_by_seed_and_name() -> None:
    assert derived(3, "w1").public == derived(3, "w1").public
    others = {derived(seed, name).public for seed in range(3) for name in ("w1", "w2", "w11")}
    assert len(others) == 9


def test_derived_keys_are_the_same_on_every_machine() -> None:
    assert derived(0, "w1").fingerprint == fingerprint(derived(0, "w1").public)
    assert derived(0, "w1").fingerprint.startswith(EXPECTED)


EXPECTED = "0351cce78623b063"


def test_generated_keys_differ() -> None:
    assert generate().public != generate().public


def test_a_key_file_is_for_its_owner_alone_and_is_never_written_over(tmp_path: Path) -> None:
    path, identity = tmp_path / "key", generate()
    before = os.umask(0)
    try:
        identity.save(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path).public == identity.public
    with pytest.raises(SetupError, match="File exists"):
        generate().save(path)
    assert load(path).public == identity.public


def test_a_key_is_made_once(tmp_path: Path) -> None:
    first = load_or_make(tmp_path / "key")
    assert load_or_make(tmp_path / "key").public == first.public
    assert load_or_make(tmp_path / "other").public != first.public


def test_a_key_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    generate().save(path)
    path.chmod(0o640)
    with pytest.raises(SetupError, match="chmod 600"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"not a key", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(SetupError, match="no private key"):
        load(path)
    with pytest.raises(SetupError, match="cannot read"):
        load(tmp_path / "absent")


def test_a_key_of_an_unknown_kind_is_refused(tmp_path: Path) -> None:
    """One letter of the file altered, and it names an algorithm that nobody knows."""
    path = tmp_path / "key"
    generate().save(path)
    lines = path.read_bytes().split(b"\n")
    octets = bytearray(base64.b64decode(lines[1]))
    octets[octets.index(b"\x2b\x65\x70") + 2] += 9
    path.write_bytes(b"\n".join([lines[0], base64.b64encode(octets), *lines[2:]]))
    with pytest.raises(SetupError, match="no private key"):
        load(path)


def test_a_key_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    other = generate_private_key(SECP256R1())
    path.write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    path.chmod(0o600)
    with pytest.raises(SetupError, match="needed is an Ed25519 key"):
        load(path)


def test_nothing_malformed_verifies() -> None:
    one = generate()
    signature = one.sign(b"x")
    assert verify(one.public, signature, b"x")
    assert not verify(one.public, signature, b"y")
    assert not verify(generate().public, signature, b"x")
    for public, made in [(one.public, None), (one.public, b""), (one.public, signature + b"\0"), (b"", signature)]:
        assert not verify(public, made, b"x")
    assert not verify(b"\xff" * 32, signature, b"x")


def test_a_key_of_small_order_verifies_nothing() -> None:
    """The neutral element as a public key verified one and the same signature under every message, a key of all zeros
    under every fourth: nobody can be held to what such a key signed.
    """
    signature = b"\x01" + bytes(63)
    order_8 = "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03"
    weak = [b"\x01" + bytes(31), b"\x01" + bytes(30) + b"\x80", bytes(32), b"\xec" + b"\xff" * 30 + b"\x7f"]
    weak += [bytes.fromhex(order_8 + "7a"), bytes.fromhex(order_8 + "fa")]
    for public in weak:
        assert not any(verify(public, signature, b"%d" % number) for number in range(64)), public.hex()


def test_a_private_key_does_not_show() -> None:
    assert repr(derived(0, "w1")) == f"Identity({derived(0, 'w1').fingerprint[:16]})"
