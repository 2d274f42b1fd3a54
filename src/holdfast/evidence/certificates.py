"""The run's own certificate authority: an Ed25519 key that people know vouches for the P-256 certificates that TLS asks for.

    fingerprint in the invite --> host's Ed25519 key --signs--> authority's P-256 key, run, validity   (in its certificate)
                                                                     |
                                         authority --signs--> member's name, P-256 key, Ed25519 key    (in its certificate)

TLS knows nothing of Ed25519 here, because gRPC refuses such certificates. Whoever knows the fingerprint checks the authority
with `check_authority` before it believes anything that TLS says. A certificate is short-lived; its beginning lies an hour back,
for clocks that disagree.
"""

from __future__ import annotations

import datetime
import os
import re
import stat
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast import atomic
from holdfast.errors import ConfigError, NetworkError, ProtocolError, SetupError
from holdfast.evidence.envelope import pack
from holdfast.evidence.identity import KEY_BYTES, SIGNATURE_BYTES, Identity, fingerprint, verify

SKEW_S = 3600.0
"""How far the clocks of two machines may disagree."""

AUTHORITY_DAYS = 90.0
MEMBER_HOURS = 24.0
HOST = "host"
DOOR = "door"
DOMAIN = "holdfast"
LONGEST_RUN = 128

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,30}[a-z0-9])?")
_RUN = re.compile(r"[A-Za-z0-9._/-]{1,128}")
_AUTHORITY_DOMAIN = b"holdfast/authority/1\0"
_REQUEST_DOMAIN = b"holdfast/admission/1\0"

_ARC = "2.25.143697445463160389466884235294575238735"  # a random UUID: nobody registers those
_VOUCHED = x509.ObjectIdentifier(f"{_ARC}.1")
_MEMBER = x509.ObjectIdentifier(f"{_ARC}.2")
_EMBEDDED = x509.ObjectIdentifier(f"{_ARC}.3")

_UNREADABLE = (x509.InvalidVersion, x509.DuplicateExtension)
_Kind = TypeVar("_Kind", bound=x509.ExtensionType)


@dataclass(frozen=True, slots=True)
class TlsKey:
    """A P-256 key of one process: `private` is PEM and never printed, `public` its SubjectPublicKeyInfo in DER."""

    private: bytes = field(repr=False)
    public: bytes


@dataclass(frozen=True, slots=True)
class MemberKeys:
    """What a certificate says of its holder; worth something only once the certificate itself was checked."""

    name: str
    identity: bytes
    tls_public: bytes
    expires: float


@dataclass(frozen=True, slots=True)
class AdmissionRequest:
    """What a joiner signs: for which host and run, under which name (or ""), for which TLS key, answering which challenge.

    `details` is whatever else it says, as sent.
    """

    host: str
    run: str
    name: str
    tls_public: bytes
    challenge: bytes
    details: bytes = b""

    def message(self) -> bytes:
        """The bytes under the signature; no signature of another kind covers the same."""
        return _REQUEST_DOMAIN + pack((self.host, self.run, self.name, self.tls_public, self.challenge, self.details))


def sign_request(request: AdmissionRequest, identity: Identity) -> bytes:
    return identity.sign(request.message())


def verify_request(request: AdmissionRequest, public: bytes, signature: bytes) -> bool:
    """Whether the holder of the Ed25519 key `public` asked for just this."""
    return verify(public, signature, request.message())


def new_tls_key() -> TlsKey:
    """A fresh key for the TLS connections of one process; it needs no file, since each admission may bring another one."""
    private = ec.generate_private_key(ec.SECP256R1())
    return TlsKey(_private_pem(private), _spki(private.public_key()))


def check_name(name: str) -> str:
    """A name that can stand in a certificate. Raises ConfigError."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:40]!r}: needed are 1 to 32 of a-z, 0-9 and -, and no - at either end")
    return name


def check_run(run: str) -> str:
    """An id of a run that can stand in an invite and a certificate. Raises ConfigError."""
    if not _RUN.fullmatch(run):
        raise ConfigError(f"run id {run[:40]!r}: needed are 1 to {LONGEST_RUN} letters, digits, and any of . _ / -")
    return run


def check_tls_public(public: bytes) -> None:
    """Raises ProtocolError for bytes that are no P-256 key (SubjectPublicKeyInfo in DER)."""
    _p256(public)


class Authority:
    """The certificate of a run's authority (PEM), and its private key, which never leaves the host."""

    def __init__(self, private: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, run: str) -> None:
        self._private = private
        self._certificate = certificate
        self.run = run
        self.certificate = certificate.public_bytes(Encoding.PEM)
        self.host_public = _vouched(certificate)[0]
        self.fingerprint = fingerprint(self.host_public)
        self.expires = certificate.not_valid_after_utc.timestamp()

    def __repr__(self) -> str:
        return f"Authority(run={self.run!r}, host={self.fingerprint[:16]})"

    @classmethod
    def generate(cls, identity: Identity, run: str, *, days: float = AUTHORITY_DAYS, now: float | None = None) -> Authority:
        """A new authority for `run` that the host's `identity` vouches for. Raises ConfigError for an id that cannot be one."""
        check_run(run)
        private = ec.generate_private_key(ec.SECP256R1())
        public = private.public_key()
        begins, ends = _validity(now, days * 86400)
        statement = identity.sign(_statement(run, _spki(public), begins, ends))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"holdfast run {fingerprint(run.encode())[:16]}")])
        builder = _builder(subject, subject, public, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(DOMAIN)], None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        builder = builder.add_extension(_own(_VOUCHED, identity.public + statement), critical=False)
        return cls(private, builder.sign(private, SHA256()), run)

    @classmethod
    def open(cls, path: Path, identity: Identity, run: str, *, now: float | None = None) -> Authority:
        """The authority in a file; where there is none, or its time is half over, a new one is made and saved there.

        Members of the former one knock again. Raises SetupError where the file is another host's or another run's.
        """
        if path.exists():
            found = cls.load(path, run)
            if found.fingerprint != identity.fingerprint:
                raise SetupError(
                    f"{path} is of the host key {found.fingerprint[:16]}, this host's is {identity.fingerprint[:16]}; "
                    "the run began with another key: start it as the same user, with the HOLDFAST_HOME of then (default "
                    "~/.holdfast), where that key is"
                )
            if found.expires - _now(now) > AUTHORITY_DAYS * 86400 / 2:
                return found
        made = cls.generate(identity, run, now=now)
        made.save(path)
        return made

    def save(self, path: Path) -> None:
        """Write key and certificate to one file that only its owner may read. Raises SetupError."""
        try:
            atomic.write_file(path, _private_pem(self._private) + self.certificate)
        except OSError as error:
            raise SetupError(f"cannot write the authority's file {path}: {error.strerror or error}") from None

    @classmethod
    def load(cls, path: Path, run: str) -> Authority:
        """What `save` wrote. Raises SetupError where it is missing, malformed, another run's, or others may read it."""
        try:
            if stat.S_IMODE(os.stat(path).st_mode) & 0o077:
                raise SetupError(f"the key file {path} can be read by others; run: chmod 600 {path}")
            content = path.read_bytes()
            private = load_pem_private_key(content, password=None)
            certificate = x509.load_pem_x509_certificate(content)
            host = fingerprint(_vouched(certificate)[0])
            check_authority(content, host, run, now=certificate.not_valid_before_utc.timestamp() + SKEW_S)
        except OSError as error:
            raise SetupError(f"cannot read the authority's file {path}: {error.strerror or error}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SetupError(
                f"{path} holds no authority's key and certificate in PEM form; move it away to begin anew"
            ) from None
        except ProtocolError as error:
            raise SetupError(f"{path}: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or _spki(private.public_key()) != _spki(
            certificate.public_key()
        ):
            raise SetupError(f"{path}: its key and its certificate do not belong together; move it away to begin anew")
        return cls(private, certificate, run)

    def issue(
        self,
        name: str,
        public_key: bytes,
        identity_public: bytes,
        *,
        hours: float = MEMBER_HOURS,
        now: float | None = None,
    ) -> bytes:
        """A certificate (PEM) for the P-256 key `public_key` (SubjectPublicKeyInfo in DER) of the member `name`.

        It never outlives the authority. Raises ConfigError for a name that cannot be one, ProtocolError for a wrong key.
        """
        check_name(name)
        public = _p256(public_key)
        if len(identity_public) != KEY_BYTES:
            raise ProtocolError(f"an Ed25519 key has {KEY_BYTES} bytes, got {len(identity_public)}")
        begins, ends = _validity(now, hours * 3600)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        limits = self._certificate.not_valid_before_utc, self._certificate.not_valid_after_utc
        builder = _builder(subject, self._certificate.subject, public, max(begins, limits[0]), min(ends, limits[1]))
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_usage(authority=False), critical=True)
        roles = [ExtendedKeyUsageOID.SERVER_AUTH] + ([ExtendedKeyUsageOID.CLIENT_AUTH] if name != DOOR else [])
        builder = builder.add_extension(x509.ExtendedKeyUsage(roles), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(f"{name}.{DOMAIN}")]), critical=False)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._private.public_key())
        builder = builder.add_extension(issuer, critical=False)
        builder = builder.add_extension(_own(_MEMBER, identity_public), critical=False)
        if name == DOOR:  # so that a joiner sees the authority in its first handshake, before it says anything
            builder = builder.add_extension(_own(_EMBEDDED, self._certificate.public_bytes(Encoding.DER)), critical=False)
        return builder.sign(self._private, SHA256()).public_bytes(Encoding.PEM)

    def credentials(self, name: str, identity: Identity, *, now: float | None = None) -> tuple[bytes, bytes]:
        """Certificate and private key (PEM) for a process of the host itself, as long-lived as the authority."""
        key = new_tls_key()
        hours = (self.expires - _now(now)) / 3600
        return self.issue(name, key.public, identity.public, hours=hours, now=now), key.private


def check_authority(certificate: bytes, expected_fingerprint: str, run: str, *, now: float | None = None) -> bytes:
    """The host's Ed25519 key, if the authority's certificate (PEM or DER) is the one that it vouches for in `run`.

    `expected_fingerprint` is that of the host's key, 64 hex digits. Raises NetworkError where another key vouches,
    ProtocolError where the certificate is malformed, of another run, altered or not valid now.
    """
    found = _parse(certificate)
    public, signature = _vouched(found)
    got = fingerprint(public)
    if got != expected_fingerprint:
        raise NetworkError(f"the host shows key {got}, needed is {expected_fingerprint}; a changed key is refused")
    begins, ends = found.not_valid_before_utc, found.not_valid_after_utc
    if not verify(public, signature, _statement(run, _spki(found.public_key()), begins, ends)):
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
    identity = _own_value(found, _MEMBER)
    if len(names) != 1 or not _NAME.fullmatch(str(names[0].value)) or len(identity) != KEY_BYTES:
        raise ProtocolError("the certificate is no member's: it names nobody, or no Ed25519 key")
    name = str(names[0].value)
    if _extension(found, x509.SubjectAlternativeName).get_values_for_type(x509.DNSName) != [f"{name}.{DOMAIN}"]:
        raise ProtocolError(f"the certificate of {name!r} is for other hosts too")
    return MemberKeys(name, identity, _spki(found.public_key()), found.not_valid_after_utc.timestamp())


def embedded_authority(certificate: bytes) -> bytes:
    """The authority's certificate (PEM) that a door's certificate (PEM or DER) carries, unchecked. Raises ProtocolError."""
    return _parse(_own_value(_parse(certificate), _EMBEDDED)).public_bytes(Encoding.PEM)


def _statement(run: str, public: bytes, begins: datetime.datetime, ends: datetime.datetime) -> bytes:
    """The validity is in it, so that a leaked authority cannot extend its own life."""
    return _AUTHORITY_DOMAIN + pack((run, public, int(begins.timestamp()), int(ends.timestamp())))


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _validity(now: float | None, seconds: float) -> tuple[datetime.datetime, datetime.datetime]:
    moment = int(_now(now))
    begins, ends = (datetime.datetime.fromtimestamp(moment + offset, datetime.UTC) for offset in (-int(SKEW_S), int(seconds)))
    return begins, ends


def _builder(
    subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, begins: datetime.datetime, ends: datetime.datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(public)
    return builder.serial_number(x509.random_serial_number()).not_valid_before(begins).not_valid_after(ends)


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _own(kind: x509.ObjectIdentifier, content: bytes) -> x509.UnrecognizedExtension:
    """An extension holds DER: one OCTET STRING."""
    length = len(content)
    size = bytes([length]) if length < 128 else b"\x82" + length.to_bytes(2, "big")
    return x509.UnrecognizedExtension(kind, b"\x04" + size + content)


def _own_value(certificate: x509.Certificate, kind: x509.ObjectIdentifier) -> bytes:
    try:
        extension = certificate.extensions.get_extension_for_oid(kind).value
    except x509.ExtensionNotFound:
        raise ProtocolError("the certificate is none of Holdfast's: an extension is missing") from None
    value = extension.value if isinstance(extension, x509.UnrecognizedExtension) else b""
    header = 4 if value[1:2] == b"\x82" else 2
    content = value[header:]
    if _own(kind, content).value != value:
        raise ProtocolError("the certificate is malformed: its extension is no octet string")
    return content


def _vouched(certificate: x509.Certificate) -> tuple[bytes, bytes]:
    content = _own_value(certificate, _VOUCHED)
    if len(content) != KEY_BYTES + SIGNATURE_BYTES:
        raise ProtocolError("the authority's certificate is malformed: no key and signature of a host in it")
    return content[:KEY_BYTES], content[KEY_BYTES:]


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
    moment = datetime.datetime.fromtimestamp(_now(now), datetime.UTC)
    begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if not begins <= moment <= ends:
        raise ProtocolError(
            f"{what} is valid from {begins:%Y-%m-%d %H:%M} to {ends:%Y-%m-%d %H:%M} UTC, this machine's clock says "
            f"{moment:%Y-%m-%d %H:%M}; set the clock, or ask the host to start again"
        )


def _p256(spki: bytes) -> ec.EllipticCurvePublicKey:
    try:
        public = load_der_public_key(spki)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ProtocolError(f"what should be a TLS key is none ({len(spki)} bytes)") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1) or _spki(public) != spki:
        raise ProtocolError(f"a TLS key must be ECDSA P-256 in its shortest form, got a {type(public).__name__}")
    return public


def _spki(public: object) -> bytes:
    return public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)  # type: ignore[attr-defined, no-any-return]


def _private_pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
