"""The P-256 key that one process has for TLS, which knows nothing of Ed25519 here: gRPC refuses such certificates."""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)

from holdfast.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class TlsKey:
    """A P-256 key of one process: `private` is PEM and never printed, `public` its SubjectPublicKeyInfo in DER."""

    private: bytes = field(repr=False)
    public: bytes


def new_tls_key() -> TlsKey:
    """A fresh key for the TLS connections of one process; it needs no file, since each admission may bring another one."""
    private = ec.generate_private_key(ec.SECP256R1())
    return TlsKey(private_pem(private), spki(private.public_key()))


def check_tls_public(public: bytes) -> None:
    """Raises ProtocolError for bytes that are no P-256 key (SubjectPublicKeyInfo in DER)."""
    p256(public)


def p256(encoded: bytes) -> ec.EllipticCurvePublicKey:
    """The key in SubjectPublicKeyInfo, DER. Raises ProtocolError for any other key."""
    try:
        public = load_der_public_key(encoded)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ProtocolError(f"what should be a TLS key is none ({len(encoded)} bytes)") from None
    if (
        not isinstance(public, ec.EllipticCurvePublicKey)
        or not isinstance(public.curve, ec.SECP256R1)
        or spki(public) != encoded
    ):
        raise ProtocolError(f"a TLS key must be ECDSA P-256 in its shortest form, got a {type(public).__name__}")
    return public


def spki(public: object) -> bytes:
    """The SubjectPublicKeyInfo of a public key, in DER."""
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def private_pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    """PKCS8, not encrypted."""
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
