"""Issuing: the run's certificate authority, its file, and the certificates that it gives to members."""

from __future__ import annotations

import datetime
import os
import stat
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from holdfast import atomic
from holdfast.errors import ProtocolError, SetupError
from holdfast.evidence.certificates import DOMAIN, check_authority, seconds
from holdfast.evidence.extensions import EMBEDDED, MEMBER, VOUCHED, own, statement, vouched
from holdfast.evidence.identity import KEY_BYTES, Identity, fingerprint
from holdfast.evidence.request import DOOR, check_name, check_run
from holdfast.evidence.tls_key import new_tls_key, p256, private_pem, spki

SKEW_S = 3600.0
"""How far the clocks of two machines may disagree."""

AUTHORITY_DAYS = 90.0
MEMBER_HOURS = 24.0


class Authority:
    """The certificate of a run's authority (PEM), and its private key, which never leaves the host."""

    def __init__(self, private: ec.EllipticCurvePrivateKey, certificate: x509.Certificate, run: str) -> None:
        self._private = private
        self._certificate = certificate
        self.run = run
        self.certificate = certificate.public_bytes(Encoding.PEM)
        self.host_public = vouched(certificate)[0]
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
        signature = identity.sign(statement(run, spki(public), begins, ends))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"holdfast run {fingerprint(run.encode())[:16]}")])
        builder = _builder(subject, subject, public, begins, ends)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_usage(authority=True), critical=True)
        builder = builder.add_extension(x509.NameConstraints([x509.DNSName(DOMAIN)], None), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        builder = builder.add_extension(own(VOUCHED, identity.public + signature), critical=False)
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
            if found.expires - seconds(now) > AUTHORITY_DAYS * 86400 / 2:
                return found
        made = cls.generate(identity, run, now=now)
        made.save(path)
        return made

    def save(self, path: Path) -> None:
        """Write key and certificate to one file that only its owner may read. Raises SetupError."""
        try:
            atomic.write_file(path, private_pem(self._private) + self.certificate)
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
            host = fingerprint(vouched(certificate)[0])
            check_authority(content, host, run, now=certificate.not_valid_before_utc.timestamp() + SKEW_S)
        except OSError as error:
            raise SetupError(f"cannot read the authority's file {path}: {error.strerror or error}") from None
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SetupError(
                f"{path} holds no authority's key and certificate in PEM form; move it away to begin anew"
            ) from None
        except ProtocolError as error:
            raise SetupError(f"{path}: {error}") from None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or spki(private.public_key()) != spki(certificate.public_key()):
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
        public = p256(public_key)
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
        builder = builder.add_extension(own(MEMBER, identity_public), critical=False)
        if name == DOOR:  # so that a joiner sees the authority in its first handshake, before it says anything
            builder = builder.add_extension(own(EMBEDDED, self._certificate.public_bytes(Encoding.DER)), critical=False)
        return builder.sign(self._private, SHA256()).public_bytes(Encoding.PEM)

    def credentials(self, name: str, identity: Identity, *, now: float | None = None) -> tuple[bytes, bytes]:
        """Certificate and private key (PEM) for a process of the host itself, as long-lived as the authority."""
        key = new_tls_key()
        hours = (self.expires - seconds(now)) / 3600
        return self.issue(name, key.public, identity.public, hours=hours, now=now), key.private


def _validity(now: float | None, lasts_s: float) -> tuple[datetime.datetime, datetime.datetime]:
    moment = int(seconds(now))
    begins, ends = (datetime.datetime.fromtimestamp(moment + offset, datetime.UTC) for offset in (-int(SKEW_S), int(lasts_s)))
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
