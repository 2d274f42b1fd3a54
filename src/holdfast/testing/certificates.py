"""A throwaway authority for tests and benchmarks of the real wire; a run has its own."""

from __future__ import annotations

import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from holdfast.transport.endpoint import Credentials


class Authority:
    """Issues certificates that are valid for an hour."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named("holdfast test authority")
        builder = self._builder("holdfast test authority", self._key)
        self._certificate = builder.add_extension(x509.BasicConstraints(True, 0), critical=True).sign(
            self._key, hashes.SHA256()
        )

    def issue(self, process: str, *, host: str | None = None) -> Credentials:
        """Credentials of `process`; `host` in its certificate is what an honest authority writes, unless given."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host or f"{process}.holdfast")])
        certificate = self._builder(process, key).add_extension(names, critical=False).sign(self._key, hashes.SHA256())
        return Credentials(
            self._certificate.public_bytes(serialization.Encoding.PEM),
            certificate.public_bytes(serialization.Encoding.PEM),
            key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
        )

    def _builder(self, subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        hour = datetime.timedelta(hours=1)
        return (
            x509.CertificateBuilder()
            .subject_name(_named(subject))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - hour)
            .not_valid_after(now + hour)
        )


def _named(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])
