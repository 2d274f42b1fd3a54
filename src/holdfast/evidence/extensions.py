"""What Holdfast itself writes into X.509 certificates, each an extension of its own, and what a host signs of its authority."""

from __future__ import annotations

import datetime

from cryptography import x509

from holdfast.errors import ProtocolError
from holdfast.evidence.envelope import pack
from holdfast.evidence.identity import KEY_BYTES, SIGNATURE_BYTES

_ARC = "2.25.143697445463160389466884235294575238735"  # a random UUID: nobody registers those
VOUCHED = x509.ObjectIdentifier(f"{_ARC}.1")
"""In an authority's certificate: the host's Ed25519 key, and its signature of the `statement`."""

MEMBER = x509.ObjectIdentifier(f"{_ARC}.2")
"""In a member's: its Ed25519 key."""

EMBEDDED = x509.ObjectIdentifier(f"{_ARC}.3")
"""In the door's: the authority's certificate in DER."""

_AUTHORITY_DOMAIN = b"holdfast/authority/1\0"


def statement(run: str, public: bytes, begins: datetime.datetime, ends: datetime.datetime) -> bytes:
    """What the host signs. The validity is in it, so that a leaked authority cannot extend its own life."""
    return _AUTHORITY_DOMAIN + pack((run, public, int(begins.timestamp()), int(ends.timestamp())))


def own(kind: x509.ObjectIdentifier, content: bytes) -> x509.UnrecognizedExtension:
    """An extension holds DER: one OCTET STRING."""
    length = len(content)
    size = bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2, "big")
    return x509.UnrecognizedExtension(kind, b"\x04" + size + content)


def own_value(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> bytes:
    """What `own` wrote into the certificate. Raises ProtocolError where nothing of that kind is in it, or it is malformed."""
    try:
        extension = certificate.extensions.get_extension_for_oid(kind).value
    except x509.ExtensionNotFound:
        raise ProtocolError("the certificate is none of Holdfast's: an extension is missing") from None
    value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    header = 4 if value[1:2] == b"\x82" else 2
    content = value[header:]
    if own(kind, content).value != value:
        raise ProtocolError("the certificate is malformed: its extension is no octet string")
    return content


def vouched(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    """The host's Ed25519 key and its signature in an authority's certificate, unchecked. Raises ProtocolError."""
    content = own_value(certificate, VOUCHED)
    if len(content) != KEY_BYTES + SIGNATURE_BYTES:
        raise ProtocolError("the authority's certificate is malformed: no key and signature of a host in it")
    return content[:KEY_BYTES], content[KEY_BYTES:]
