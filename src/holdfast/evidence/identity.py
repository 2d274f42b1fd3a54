"""Who signs: an Ed25519 key pair; the hash of its public half is the fingerprint by which people know a member of a run.

    generate()            a real machine, once; its private key never leaves it
    derived(seed, name)   a simulation, where all members live in one process and a run must repeat exactly

A derived key protects nothing against whoever knows the seed, and the seed stands in the run's own configuration.
"""

from __future__ import annotations

import hashlib
import os
import stat
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from holdfast import seeds
from holdfast.errors import SetupError

KEY_BYTES = 32
SIGNATURE_BYTES = 64
_MODE = 0o600

_P = 2**255 - 19
_ORDER_8 = (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)
_SMALL_ORDER = frozenset([0, 1, _P - 1, _P, _P + 1, *(int.from_bytes(bytes.fromhex(y), "little") for y in _ORDER_8)])
"""The y of every point whose order divides 8, in every encoding of it."""


class Identity:
    """A private key and what follows from it: `public` (32 bytes) and `fingerprint` (64 hex digits). Never printed whole."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()
        self.fingerprint = fingerprint(self.public)

    def sign(self, message: bytes) -> bytes:
        """64 bytes, the same for the same message each time."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"Identity({self.fingerprint[:16]})"

    def pem(self) -> bytes:
        """The private key, for who may have it: its own file, its own process."""
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def save(self, path: Path) -> None:
        """Write the private key to a new file that only its owner may read. Raises SetupError; overwrites nothing."""
        pem = self.pem()
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
            with os.fdopen(file, "wb") as stream:
                os.fchmod(stream.fileno(), _MODE)
                stream.write(pem)
        except OSError as error:
            raise SetupError(f"cannot write the key file {path}: {error.strerror or error}") from None


def generate() -> Identity:
    """A new key from the system's source of randomness."""
    return Identity(Ed25519PrivateKey.generate())


def derived(seed: int, name: str) -> Identity:
    """The key of member `name` in every simulated run with this seed.

    >>> derived(0, "w1").public == derived(0, "w1").public != derived(0, "w2").public
    True
    """
    words = b"".join(seeds.derive(seed, "identity", name, part).to_bytes(8, "big") for part in range(5))
    return Identity(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(words).digest()))


def load(path: Path) -> Identity:
    """The identity in a file that `save` wrote. Raises SetupError where it is missing, malformed, or others may read it."""
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise SetupError(f"the key file {path} can be read by others; run: chmod 600 {path}")
        pem = path.read_bytes()
    except OSError as error:
        raise SetupError(f"cannot read the key file {path}: {error.strerror or error}") from None
    return from_pem(pem, str(path))


def from_pem(pem: bytes, source: str) -> Identity:
    """The inverse of `Identity.pem`. Raises SetupError."""
    try:
        private = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise SetupError(f"{source} holds no private key in PEM form; make a new one, or give the right file") from None
    if not isinstance(private, Ed25519PrivateKey):
        raise SetupError(f"{source} holds a {type(private).__name__}; needed is an Ed25519 key")
    return Identity(private)


def load_or_make(path: Path) -> Identity:
    """The identity in a file; where there is none, a new one is made and saved there first."""
    if not path.exists():
        generate().save(path)
    return load(path)


def fingerprint(public: bytes) -> str:
    """The sha256 of a public key, as 64 hex digits."""
    return hashlib.sha256(public).hexdigest()


def verify(public: bytes, signature: bytes | None, message: bytes) -> bool:
    """Whether `signature` is that of `message` by the holder of `public`; malformed keys and signatures verify nothing."""
    if signature is None or len(signature) != SIGNATURE_BYTES:
        return False
    key = _key_of(public)
    if key is None:
        return False
    try:
        key.verify(signature, message)
    except InvalidSignature:
        return False
    return True


@lru_cache(maxsize=1024)
def _key_of(public: bytes) -> Ed25519PublicKey | None:
    """The key of these bytes, read once: a run verifies thousands of signatures of a few members."""
    if len(public) != KEY_BYTES or _is_weak(public):
        return None
    try:
        return Ed25519PublicKey.from_public_bytes(public)
    except ValueError:
        return None


def _is_weak(public: bytes) -> bool:
    """A point of small order verifies signatures that nobody made: whoever registers one could deny its own word."""
    return int.from_bytes(public, "little") & ~(1 << 255) in _SMALL_ORDER
