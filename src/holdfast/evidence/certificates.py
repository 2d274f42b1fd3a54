"""Checking: an Ed25519 key that people know vouches for the P-256 certificates that TLS asks for.

    fingerprint in the invite --> host's Ed25519 key --signs--> authority's P-256 key, run, validity   (in its certificate)
                                                                     |
                                         authority --signs--> member's name, P-256 key, Ed25519 key    (in its certificate)

TLS knows nothing of Ed25519 here, because gRPC refuses such certificates. Whoever knows the fingerprint checks the authority
with `check_authority` before it believes anything that TLS says. A certificate is short-lived; its beginning lies an hour back,
for clocks that disagree.
"""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from holdfast.errors import NetworkError, ProtocolError
from holdfast.evidence.extensions import EMBEDDED, MEMBER, own_value, statement, vouched
from holdfast.evidence.identity import KEY_BYTES, fingerprint, verify
from holdfast.evidence.request import is_name
from holdfast.evidence.tls_key import spki

DOMAIN = "holdfast"
"""A member's certificate is for the host name NAME.holdfast."""

_UNREADABLE = (x509.InvalidVersion, x509.DuplicateExtension)
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What a certificate says of its holder; worth something only once the certificate itself was checked."""

    name: str
    identity: bytes
    tls_public: bytes
    expires: float


def check_authority(certificate: bytes, expected_fingerprint: str, run: str, *, now: float | None = None) -> bytes:
    """The host's Ed25519 key, if the authority's certificate (PEM or DER) is the one that it vouches for in `run`.

    `expected_fingerprint` is that of the host's key, 64 hex digits. Raises NetworkError where another key vouches,
    ProtocolError where the certificate is malformed, of another run, altered or not valid now.
    """
    found = _parse(certificate)
    public, signature = vouched(found)
    got = fingerprint(public)
    if got != expected_fingerprint:
        raise NetworkError(f"the host shows key {got}, needed is {expected_fingerprint}; a changed key is refused")
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not verify(public, signature, statement(run, spki(found.public_key()), begins, ends)):
        raise ProtocolError(
            f"the authority's certificate is altered or of another run than {run!r}: its host did not sign that"
        )
    _check_issued(found, found)
    constraints = _extension(found, x509.BasicConstraints)
    if not constraints.ca:
        raise ProtocolError("the certificate that the host vouches for is no authority's")
    _check_time(found, "the authority's certificate", now)
    return public


def check_certificate(
    certificate: bytes, authority: bytes, *, name: str | None = None, tls_public: bytes | None = None, now: float | None = None
) -> MemberKeys:
    """The keys in a member's certificate, if `authority` (checked before) issued it and it is valid now.

    Raises ProtocolError, also where it names another member or TLS key than asked for.
    """
    found = _parse(certificate)
    _check_issued(found, _parse(authority))
    _check_time(found, "the certificate", now)
    keys = member_keys(certificate)
    if name is not None and keys.name != name:
        raise ProtocolError(f"the certificate is that of {keys.name!r}, needed is {name!r}")
    if tls_public is not None and keys.tls_public != tls_public:
        raise ProtocolError(f"the certificate of {keys.name!r} is for another TLS key than this process has")
    return keys


def member_keys(certificate: bytes) -> MemberKeys:
    """What a member's certificate (PEM or DER) says; TLS or `check_certificate` says whether it is true.

    Raises ProtocolError for what is no member's certificate.
    """
    found = _parse(certificate)
    names = found.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    identity = own_value(found, MEMBER)
    if len(names) != 1 or not is_name(str(names[0].value)) or len(identity) != KEY_BYTES:
        raise ProtocolError("the certificate is no member's: it names nobody, or no Ed25519 key")
    name = str(names[0].value)
    if _extension(found, x509.SubjectAlternativeName).get_values_for_type(x509.DNSName) != [f"{name}.{DOMAIN}"]:
        raise ProtocolError(f"the certificate of {name!r} is for other hosts too")
    return MemberKeys(name, identity, spki(found.public_key()), found.not_valid_after_utc.timestamp())


def embedded_authority(certificate: bytes) -> bytes:
    """The authority's certificate (PEM) that a door's certificate (PEM or DER) carries, unchecked. Raises ProtocolError."""
    return _parse(own_value(_parse(certificate), EMBEDDED)).public_bytes(Encoding.PEM)


def seconds(now: float | None) -> float:
    """Of the epoch: `now`, or what this machine's clock says."""
    return time.time() if now is None else now


def _parse(certificate: bytes) -> x509.Certificate:
    """A certificate all of whose parts can be read: the library reads most of them only when asked, and raises then."""
    pem = certificate.lstrip().startswith(b"-----")
    try:
        found = x509.load_pem_x509_certificate(certificate) if pem else x509.load_der_x509_certificate(certificate)
        _ = found.version, found.subject, found.issuer, found.extensions, found.not_valid_before_utc, found.not_valid_after_utc
        public = found.public_key()
        if found.serial_number <= 0:
            raise ValueError
    except (ValueError, TypeError, OverflowError, UserWarning, UnsupportedAlgorithm, *_UNREADABLE):
        raise ProtocolError(f"what should be a certificate is none ({len(certificate)} bytes)") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ProtocolError(f"a certificate of Holdfast has an ECDSA P-256 key, got a {type(public).__name__}")
    return found


def _extension(certificate: x509.Certificate, kind: type[_Kind]) -> _Kind:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        raise ProtocolError(f"the certificate has no {kind.__name__}") from None


def _check_issued(certificate: x509.Certificate, issuer: x509.Certificate) -> None:
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        raise ProtocolError("the certificate was not issued by the authority of this run") from None


def _check_time(certificate: x509.Certificate, what: str, now: float | None) -> None:
    moment = datetime.datetime.fromtimestamp(seconds(now), datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= moment <= ends:
        raise ProtocolError(
            f"{what} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, this machine's clock says "
            f"{moment:%Y-%m-%d %H:%M}; set the clock, or ask the host to start again"
        )
