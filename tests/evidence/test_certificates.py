"""The run's authority: who vouches for it, what it issues, and what is refused of both."""

from __future__ import annotations

import contextlib
import datetime
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from holdfast.errors import ConfigError, NetworkError, ProtocolError, SetupError
from holdfast.evidence.authority import Authority
from holdfast.evidence.certificates import check_authority, check_certificate, embedded_authority, member_keys
from holdfast.evidence.extensions import VOUCHED
from holdfast.evidence.identity import derived
from holdfast.evidence.request import AdmissionRequest, sign_request, verify_request
from holdfast.evidence.tls_key import new_tls_key

HOST = derived(0, "host")
MEMBER = derived(0, "w1")
RUN = "run/1"
NOW = 1_800_000_000.0
HOUR = 3600.0


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority.generate(HOST, RUN, now=NOW)


def test_who_knows_the_fingerprint_can_check_the_authority(authority: Authority) -> None:
    assert check_authority(authority.certificate, HOST.fingerprint, RUN, now=NOW) == HOST.public
    assert authority.fingerprint == HOST.fingerprint


def test_another_host_is_refused_with_both_keys_named(authority: Authority) -> None:
    with pytest.raises(NetworkError) as refused:
        check_authority(authority.certificate, MEMBER.fingerprint, RUN, now=NOW)
    assert HOST.fingerprint in str(refused.value)
    assert MEMBER.fingerprint in str(refused.value)


def test_an_authority_serves_one_run(authority: Authority) -> None:
    with pytest.raises(ProtocolError, match="altered or of another run"):
        check_authority(authority.certificate, HOST.fingerprint, "run/2", now=NOW)


@pytest.mark.parametrize("hours", [-1.1, 24 * 90 + 0.1])
def test_an_authority_has_its_time(authority: Authority, hours: float) -> None:
    with pytest.raises(ProtocolError, match="set the clock"):
        check_authority(authority.certificate, HOST.fingerprint, RUN, now=NOW + hours * HOUR)
    check_authority(authority.certificate, HOST.fingerprint, RUN, now=NOW - 0.9 * HOUR)


def forged(
    extensions: list[x509.UnrecognizedExtension],
    *,
    private: ec.EllipticCurvePrivateKey | None = None,
    begins: float = NOW,
    days: int = 90,
) -> bytes:
    """A certificate that signs itself, with the extensions of somebody else."""
    private = private or ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    start = datetime.datetime.fromtimestamp(begins, datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(private.public_key())
    builder = builder.serial_number(1).not_valid_before(start).not_valid_after(start + datetime.timedelta(days=days))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return builder.sign(private, SHA256()).public_bytes(Encoding.PEM)


def test_the_word_of_the_host_cannot_be_moved_to_another_key(authority: Authority) -> None:
    """A man in the middle has the authority's certificate, which is public; its extension under his own key is nothing."""
    real = x509.load_pem_x509_certificate(authority.certificate)
    copied = real.extensions.get_extension_for_oid(VOUCHED).value
    assert isinstance(copied, x509.UnrecognizedExtension)
    with pytest.raises(ProtocolError, match="altered"):
        check_authority(forged([copied]), HOST.fingerprint, RUN, now=NOW)


def test_a_leaked_authority_cannot_extend_its_own_life(authority: Authority) -> None:
    """The thief has its private key; the host vouched for it until a certain day."""
    real = x509.load_pem_x509_certificate(authority.certificate)
    copied = real.extensions.get_extension_for_oid(VOUCHED).value
    assert isinstance(copied, x509.UnrecognizedExtension)
    begins = real.not_valid_before_utc.timestamp()
    with pytest.raises(ProtocolError, match="altered"):
        check_authority(forged([copied], private=authority._private, begins=begins, days=365), HOST.fingerprint, RUN, now=NOW)


def test_a_certificate_that_vouches_for_nothing_is_refused() -> None:
    for extensions in ([], [x509.UnrecognizedExtension(VOUCHED, b"\x04\x01x")]):
        with pytest.raises(ProtocolError):
            check_authority(forged(extensions), HOST.fingerprint, RUN, now=NOW)
    with pytest.raises(ProtocolError, match="octet string"):
        check_authority(forged([x509.UnrecognizedExtension(VOUCHED, b"\x05\x00")]), HOST.fingerprint, RUN, now=NOW)


def test_a_member_is_bound_to_its_key(authority: Authority) -> None:
    key = new_tls_key()
    issued = authority.issue("w1", key.public, MEMBER.public, now=NOW)
    keys = check_certificate(issued, authority.certificate, name="w1", tls_public=key.public, now=NOW)
    assert (keys.name, keys.identity, keys.tls_public) == ("w1", MEMBER.public, key.public)
    assert keys.expires == NOW + 24 * HOUR
    found = x509.load_pem_x509_certificate(issued)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["w1.holdfast"]
    with pytest.raises(ProtocolError, match="needed is 'w2'"):
        check_certificate(issued, authority.certificate, name="w2", now=NOW)
    with pytest.raises(ProtocolError, match="another TLS key"):
        check_certificate(issued, authority.certificate, tls_public=new_tls_key().public, now=NOW)
    with pytest.raises(ProtocolError, match="set the clock"):
        check_certificate(issued, authority.certificate, now=NOW + 25 * HOUR)


def test_another_authority_of_the_same_host_and_run_issued_nothing_of_this_one(authority: Authority) -> None:
    other = Authority.generate(HOST, RUN, now=NOW)
    issued = other.issue("w1", new_tls_key().public, MEMBER.public, now=NOW)
    with pytest.raises(ProtocolError, match="not issued by the authority"):
        check_certificate(issued, authority.certificate, now=NOW)


def test_a_member_cannot_issue(authority: Authority) -> None:
    """A leaf is no authority, even where its holder signs with its key."""
    issued = authority.issue("w1", new_tls_key().public, MEMBER.public, now=NOW)
    with pytest.raises(ProtocolError):
        check_authority(issued, HOST.fingerprint, RUN, now=NOW)


def test_no_certificate_outlives_the_authority(authority: Authority) -> None:
    late = authority.issue("w1", new_tls_key().public, MEMBER.public, hours=24 * 365, now=NOW)
    assert member_keys(late).expires == authority.expires


@pytest.mark.parametrize("name", ["", "W1", "w 1", "-w1", "w1-", "w1.holdfast", "w" * 33, "w1\n", "é"])
def test_names_that_cannot_be_one(authority: Authority, name: str) -> None:
    with pytest.raises(ConfigError, match="needed are 1 to 32"):
        authority.issue(name, new_tls_key().public, MEMBER.public)


def test_other_keys_than_p256_are_refused(authority: Authority) -> None:
    spki = [
        kind.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        for kind in (Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP384R1()))
    ]
    for public in (*spki, b"", b"x" * 91, new_tls_key().public + b"\0"):
        with pytest.raises(ProtocolError):
            authority.issue("w1", public, MEMBER.public)
    with pytest.raises(ProtocolError, match="32 bytes, got 3"):
        authority.issue("w1", new_tls_key().public, b"abc")


def test_the_door_shows_the_authority_in_its_own_certificate(authority: Authority) -> None:
    certificate, private = authority.credentials("door", HOST, now=NOW)
    assert embedded_authority(certificate) == authority.certificate
    assert b"PRIVATE KEY" in private
    assert member_keys(certificate).expires == authority.expires
    with pytest.raises(ProtocolError):
        embedded_authority(authority.credentials("host", HOST, now=NOW)[0])


def test_the_file_is_the_owners_alone(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "authority.pem"
    authority.save(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [entry.name for entry in tmp_path.iterdir()] == ["authority.pem"]
    assert Authority.load(path, RUN).certificate == authority.certificate
    path.chmod(0o644)
    with pytest.raises(SetupError, match="chmod 600"):
        Authority.load(path, RUN)


def test_a_file_of_another_run_or_of_nothing_is_refused(tmp_path: Path, authority: Authority) -> None:
    path = tmp_path / "authority.pem"
    with pytest.raises(SetupError, match="cannot read"):
        Authority.load(path, RUN)
    authority.save(path)
    with pytest.raises(SetupError, match="another run"):
        Authority.load(path, "run/2")
    other = Authority.generate(HOST, RUN, now=NOW)
    other.save(tmp_path / "other.pem")
    key, certificate = path.read_bytes().split(b"-----BEGIN CERT")[0], other.certificate
    for content in (b"", b"nothing", authority.certificate, key, key + certificate):
        path.write_bytes(content)
        with pytest.raises(SetupError):
            Authority.load(path, RUN)


def test_an_authority_is_made_once_and_anew_when_half_its_time_is_over(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    first = Authority.open(path, HOST, RUN, now=NOW)
    assert Authority.open(path, HOST, RUN, now=NOW + 24 * HOUR).certificate == first.certificate
    second = Authority.open(path, HOST, RUN, now=NOW + 46 * 24 * HOUR)
    assert second.certificate != first.certificate
    with pytest.raises(SetupError, match=r"another key.*HOLDFAST_HOME"):
        Authority.open(path, MEMBER, RUN, now=NOW)


REQUEST = AdmissionRequest(HOST.fingerprint, RUN, "", b"spki", b"challenge", b"details")


def test_a_request_is_that_of_its_signer_and_of_nothing_else() -> None:
    signature = sign_request(REQUEST, MEMBER)
    assert verify_request(REQUEST, MEMBER.public, signature)
    assert not verify_request(REQUEST, HOST.public, signature)
    for field in ("host", "run", "name"):
        changed = AdmissionRequest(**{**fields(REQUEST), field: "other"})
        assert not verify_request(changed, MEMBER.public, signature), field
    for field in ("tls_public", "challenge", "details"):
        changed = AdmissionRequest(**{**fields(REQUEST), field: b"other"})
        assert not verify_request(changed, MEMBER.public, signature), field


def fields(request: AdmissionRequest) -> dict:
    return {name: getattr(request, name) for name in AdmissionRequest.__slots__}


def test_private_keys_do_not_show(authority: Authority) -> None:
    key = new_tls_key()
    shown = repr(key) + str(key) + repr(authority) + str(authority)
    assert "PRIVATE" not in shown
    assert key.private.decode().splitlines()[1] not in shown


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
def test_a_negative_serial_number_is_refused(authority: Authority) -> None:
    """The library warns of it today and raises tomorrow; whoever makes warnings errors gets the same refusal."""
    found = x509.load_pem_x509_certificate(authority.certificate)
    content = found.public_bytes(Encoding.DER)
    length = (found.serial_number.bit_length() + 8) // 8
    serial = found.serial_number.to_bytes(length, "big")
    negative = content.replace(serial, b"\x80" + serial[1:], 1)
    assert negative != content
    with pytest.raises(ProtocolError, match="is none"):
        check_authority(negative, HOST.fingerprint, RUN, now=NOW)


@given(st.binary(max_size=200), st.integers(0, 4000))
def test_bytes_from_the_wire_raise_only_protocol_errors(noise: bytes, at: int) -> None:
    base = x509.load_pem_x509_certificate(SAMPLE.certificate).public_bytes(Encoding.DER)
    for content in (noise, b"-----BEGIN CERTIFICATE-----\n" + noise, base[:at] + noise + base[at + len(noise) :]):
        for read in (member_keys, embedded_authority, lambda c: check_authority(c, HOST.fingerprint, RUN, now=NOW)):
            with contextlib.suppress(ProtocolError, NetworkError):
                read(content)


SAMPLE = Authority.generate(HOST, RUN, now=NOW)
