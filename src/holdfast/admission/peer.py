"""What is at an address, as far as a stranger can see: can it be dialled, is it Holdfast, and if not, why not.

    TCP connect --> TLS handshake, unverified, nothing sent --> its certificate: a door, a wire, or something else
                                                                   a door: greeting --> the version that it speaks

Nothing secret is said, and nothing that is shown is believed: this is for finding out what stands in the way.
"""

from __future__ import annotations

import errno
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Literal

from holdfast.admission import wording
from holdfast.admission.address import Address
from holdfast.admission.knock import greet, shown_certificate
from holdfast.errors import NetworkError, ProtocolError
from holdfast.evidence.certificates import embedded_authority, member_keys
from holdfast.evidence.request import DOOR

PATIENCE_S = 5.0

What = Literal["door", "wire", "tls", "tcp", "nothing"]


@dataclass(frozen=True, slots=True)
class Sight:
    """`what` is there, `fit` says whether this version of Holdfast could deal with it, `detail` why, or what it is.

    `round_trip_s` is the time of the TCP handshake (None: there was none); `process` is whose certificate it shows.
    """

    what: What
    fit: bool
    detail: str
    round_trip_s: float | None = None
    process: str | None = None


def look(address: Address, *, timeout_s: float = PATIENCE_S) -> Sight:
    """Dial `address` and see, in three times `timeout_s` seconds at most. What goes wrong is in the answer, not raised."""
    began = time.perf_counter()
    try:
        raw = socket.create_connection((address.host, address.port), timeout=timeout_s)
    except OSError as error:
        return Sight("nothing", False, _why_not(error, timeout_s))
    round_trip_s = time.perf_counter() - began
    with raw:
        try:
            certificate = shown_certificate(raw, timeout_s)
        except (OSError, ValueError) as error:
            return Sight("tcp", False, _why_no_tls(error, timeout_s), round_trip_s)
    try:
        name = member_keys(certificate).name
    except ProtocolError:
        detail = "something else answers there with TLS, not Holdfast; is the port right?"
        return Sight("tls", False, detail, round_trip_s)
    if name != DOOR:
        detail = f"the wire of {name!r}; members of its run connect there, newcomers knock at the door"
        return Sight("wire", True, detail, round_trip_s, name)
    fit, detail = _version(address, certificate, timeout_s)
    return Sight("door", fit, detail, round_trip_s, name)


def _version(address: Address, certificate: bytes, timeout_s: float) -> tuple[bool, str]:
    """Whether the door speaks our version, and a word about it."""
    try:
        answer = greet(address, embedded_authority(certificate), timeout_s=timeout_s)
    except wording.OtherVersion as error:
        return False, f"a door of Holdfast, but {error}; install the same version on both sides"
    except (ProtocolError, NetworkError) as error:
        return False, f"it shows the certificate of a door, but does not speak as one ({error}); is it another version?"
    if isinstance(answer, wording.Refused):
        return True, f"a door of Holdfast, which is busy or does not want us now ({answer.code})"
    return True, f"a door of Holdfast that speaks version {wording.PROTOCOL} of the admission protocol; knock with an invite"


def _why_not(error: OSError, timeout_s: float) -> str:
    if isinstance(error, socket.gaierror):
        return f"no such host ({error.strerror}); check the name, or give the IP address"
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return f"no answer within {timeout_s:g} s: the machine is off, or a firewall drops what is sent to this port"
    if isinstance(error, ConnectionRefusedError):
        return "refused: the machine is there, but nothing listens on this port; is the host running, is the port right?"
    if error.errno in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.ENETDOWN, errno.EADDRNOTAVAIL):
        return "no route: this machine's network does not lead there; is it connected, is a VPN missing?"
    return f"cannot be dialled ({error.strerror or type(error).__name__})"


def _why_no_tls(error: OSError | ValueError, timeout_s: float) -> str:
    if isinstance(error, ssl.SSLEOFError) or (isinstance(error, OSError) and error.errno == errno.ECONNRESET):
        return "it hung up on a TLS handshake: not Holdfast, or a proxy between that lets nothing through"
    if isinstance(error, TimeoutError):
        return f"it takes connections, and says nothing to a TLS handshake within {timeout_s:g} s: not Holdfast, or stuck"
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or type(error).__name__
    return f"it does not speak TLS ({reason}): something else than Holdfast listens there; is the port right?"
