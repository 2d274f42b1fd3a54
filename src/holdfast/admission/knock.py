"""Knocking at a door: look at whose it is, and only then say anything.

1  TLS handshake, unverified, nothing sent --> the door's certificate, with the authority's inside
2  does the key in the invite vouch for that authority, in this run?   if not: loud refusal, and nothing was said
3  gRPC that trusts this authority alone --> challenge
4  signed request with the secret --> certificate, checked again before it is used
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc

from holdfast import __version__
from holdfast.admission import wording
from holdfast.admission.address import Address, parse_address
from holdfast.admission.invite import Invite
from holdfast.admission.known_hosts import KnownHosts
from holdfast.admission.roster import Offer
from holdfast.admission.wording import Admitted, Challenge, Hello, OtherVersion, Refused, Request, Waiting
from holdfast.errors import ConfigError, NetworkError, ProtocolError
from holdfast.evidence.certificates import DOMAIN, check_authority, check_certificate, embedded_authority
from holdfast.evidence.identity import Identity
from holdfast.evidence.request import DOOR, AdmissionRequest, sign_request
from holdfast.evidence.tls_key import TlsKey, new_tls_key

PATIENCE_S = 60.0
WAIT_S = 3600.0
CALL_S = 10.0
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 10.0
_AGAIN = frozenset({"slow", "challenge", "trouble"})
_PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED"})


@dataclass(frozen=True, slots=True)
class Admission:
    """What a member needs to speak on the wire: PEM for TLS, addresses of the host, its Ed25519 key, and the host's terms.

    The certificate expires at `expires` (Unix seconds): open connections live on, a new one needs another knock.
    """

    name: str
    authority: bytes
    certificate: bytes
    private_key: bytes = field(repr=False)
    wire: tuple[Address, ...]
    host_public: bytes
    heartbeat_s: float
    expires: float
    quarantined: bool
    terms: dict[str, str]


class _Later(Exception):
    """This attempt came to nothing, the next may not."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


def knock(
    invite: Invite,
    identity: Identity,
    offer: Offer,
    *,
    wish: str = "",
    known_hosts: KnownHosts | None = None,
    with_secret: bool = True,
    patience_s: float = PATIENCE_S,
    wait_s: float = WAIT_S,
    tell: Callable[[str], None] = lambda line: None,
    sleep: Callable[[float], None] = time.sleep,
    pace: Callable[[], float] = time.monotonic,
) -> Admission:
    """Come into the run of `invite`, under the name `wish` if it may be had. Blocks; call it in a thread beside an event loop.

    Knocks for `patience_s` at a door that does not answer, and waits `wait_s` for the operator where one must accept.
    A member comes back by its key alone: `with_secret=False` sends no secret, as when a certificate is renewed.

    Raises NetworkError for whatever went wrong, and says what to do; a host with another key gets nothing from us.
    """
    if known_hosts is not None:
        known_hosts.check(invite)
    visitor = _Visitor(invite, identity, offer, wish, with_secret, new_tls_key())
    began = reached = pace()
    pause_s, told = FIRST_PAUSE_S, ""
    while True:
        try:
            answer, at, authority, host_public = visitor.visit()
        except _Later as later:
            if pace() - reached >= patience_s:
                raise NetworkError(
                    f"no entry after {patience_s:g} s at {', '.join(invite.doors)}: {later}; {_ADVICE}"
                ) from None
            sleep(max(later.pause_s, pause_s))
            pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
            continue
        if known_hosts is not None:
            known_hosts.remember(invite)
        if isinstance(answer, Admitted):
            return visitor.admission(answer, at, authority, host_public)
        if pace() - began >= wait_s:
            raise NetworkError(
                f"enrolled as {answer.name}, but the host's operator did not accept it within {wait_s:g} s; ask for "
                f"`holdfast nodes RUN_DIR accept {answer.name}`, then join again"
            )
        if told != answer.name:
            told = answer.name
            tell(f"enrolled as {told}; waiting for the host's operator: holdfast nodes RUN_DIR accept {told}")
        sleep(min(max(answer.retry_s, FIRST_PAUSE_S), 60.0))
        reached, pause_s = pace(), FIRST_PAUSE_S


_ADVICE = "is the host running, is its port open, is the address still right?"


def fetch_door(address: Address, *, timeout_s: float = CALL_S) -> bytes:
    """The certificate (DER) that whoever listens there shows, unverified; nothing is sent. Raises OSError."""
    with socket.create_connection((address.host, address.port), timeout=timeout_s) as raw:
        return shown_certificate(raw, timeout_s)


def shown_certificate(raw: socket.socket, timeout_s: float) -> bytes:
    """The certificate (DER) that the other end of a connection shows in a TLS handshake. Raises OSError.

    Without `SSLContext.wrap_socket`, which leaves the socket to the garbage collector where the other end has hung up before.
    """
    heard, said = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls, over = tls_of_a_stranger().wrap_bio(heard, said, server_hostname=f"{DOOR}.{DOMAIN}"), False
    with cut_off(raw, timeout_s):
        while True:
            with contextlib.suppress(ssl.SSLWantReadError):
                tls.do_handshake()
                over = True
            raw.sendall(said.read())
            if over:
                return tls.getpeercert(binary_form=True) or b""
            if octets := raw.recv(1 << 14):
                heard.write(octets)
            else:
                heard.write_eof()


def tls_of_a_stranger() -> ssl.SSLContext:
    """TLS as gRPC speaks it, to see the certificate that somebody shows."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # who it is follows from what it shows, see check_authority
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    return context


def greet(address: Address, authority: bytes, *, timeout_s: float = CALL_S) -> wording.Answer:
    """What the door there, of `authority` (PEM), answers to a greeting, which says our version and nothing else.

    Raises OtherVersion, ProtocolError for what is no answer, and NetworkError where none came.
    """
    with _channel(address, authority) as channel:
        try:
            content = channel.unary_unary(wording.GREET)(wording.encode(Hello(holdfast=__version__)), timeout=timeout_s)
        except grpc.RpcError as error:
            raise NetworkError(f"{address} answered a greeting with {error.code().name}") from None
    answer: wording.Answer = wording.decode(content, wording.Answer, wording.MOST_ANSWER_BYTES)
    return answer


def _channel(address: Address, authority: bytes) -> Any:
    """To the door there, which must show a certificate of `authority` (PEM)."""
    options: list[tuple[str, Any]] = [
        ("grpc.ssl_target_name_override", f"{DOOR}.{DOMAIN}"),
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_receive_message_length", wording.MOST_ANSWER_BYTES),
        ("grpc.max_metadata_size", 8 << 10),
    ]
    credentials = grpc.ssl_channel_credentials(root_certificates=authority)
    return grpc.secure_channel(str(address), credentials, options=options)


@contextlib.contextmanager
def cut_off(raw: socket.socket, seconds: float) -> Iterator[None]:
    """A time for all of it: a socket's own is for each byte, and a hostile peer has many."""
    duplicate = raw.dup()

    def hang_up() -> None:
        with contextlib.suppress(OSError):  # the other end was quicker
            duplicate.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, hang_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        duplicate.close()


@dataclass(frozen=True, slots=True)
class _Visitor:
    invite: Invite
    identity: Identity
    offer: Offer
    wish: str
    with_secret: bool
    tls_key: TlsKey

    def visit(self) -> tuple[Admitted | Waiting, Address, bytes, bytes]:
        """Each address in turn. Raises _Later where none let us speak, NetworkError where one refused for good."""
        failures: list[_Later] = []
        for address in self.invite.addresses:
            try:
                authority, host_public = self._look(address)
                return self._speak(address, authority), address, authority, host_public
            except _Later as later:
                failures.append(later)
        raise _Later("; ".join(dict.fromkeys(str(later) for later in failures)), max(later.pause_s for later in failures))

    def _look(self, address: Address) -> tuple[bytes, bytes]:
        """The authority (PEM) and key of the host at `address`, if they are what the invite says."""
        try:
            authority = embedded_authority(fetch_door(address))
        except (OSError, ValueError) as error:
            raise _Later(f"{address} does not answer with TLS ({_reason(error)})") from None
        except ProtocolError:
            raise _Later(f"{address} is no door of Holdfast") from None
        try:
            return authority, check_authority(authority, self.invite.fingerprint, self.invite.run)
        except (ProtocolError, NetworkError) as error:
            raise NetworkError(
                f"{address} is not the host of this invite: {error}. Somebody may stand between, or the invite is of another "
                "host; nothing was sent. Ask the host's operator for the fingerprint of its key"
            ) from None

    def _speak(self, address: Address, authority: bytes) -> Admitted | Waiting:
        with _channel(address, authority) as channel:
            challenge = self._call(channel, address, wording.GREET, Hello(holdfast=__version__))
            if not isinstance(challenge, Challenge):
                raise NetworkError(f"{address} answered a greeting with something else; is it another version of Holdfast?")
            answer = self._call(channel, address, wording.ADMIT, self._request(challenge.challenge))
        if isinstance(answer, Challenge):
            raise NetworkError(f"{address} answered a request with something else; is it another version of Holdfast?")
        return answer

    def _request(self, challenge: bytes) -> Request:
        details = wording.encode(self.offer)
        signed = AdmissionRequest(self.invite.fingerprint, self.invite.run, self.wish, self.tls_key.public, challenge, details)
        return Request(
            run=self.invite.run,
            secret=self.invite.secret if self.with_secret else b"",
            public=self.identity.public,
            wish=self.wish,
            tls_public=self.tls_key.public,
            challenge=challenge,
            details=details,
            signature=sign_request(signed, self.identity),
        )

    def _call(self, channel: Any, address: Address, method: str, message: Hello | Request) -> Challenge | Admitted | Waiting:
        try:
            content = channel.unary_unary(method)(wording.encode(message), timeout=CALL_S)
        except grpc.RpcError as error:
            code = error.code().name
            if code in _PASSING:
                raise _Later(f"{address} broke off ({code})") from None
            raise NetworkError(f"{address} does not speak as a door of Holdfast does ({code}); update both sides") from None
        try:
            answer: wording.Answer = wording.decode(content, wording.Answer, wording.MOST_ANSWER_BYTES)
        except OtherVersion as error:
            raise NetworkError(
                f"the host at {address} is of another version: {error}; use the same one on both sides"
            ) from None
        except ProtocolError as error:
            raise NetworkError(f"the host at {address} answered nonsense: {error}") from None
        if isinstance(answer, Refused):
            if answer.code in _AGAIN:
                raise _Later(f"{address} says: {_printable(answer.reason)}", min(max(answer.retry_s, 0.0), 60.0))
            raise NetworkError(f"the host at {address} refused: {_printable(answer.reason)}")
        return answer

    def admission(self, answer: Admitted, at: Address, authority: bytes, host_public: bytes) -> Admission:
        """The answer, if it is what a host may give us. Raises NetworkError."""
        try:
            if answer.authority != authority:
                raise ProtocolError("the authority that it sent is not the one that it showed")
            keys = check_certificate(answer.certificate, authority, name=answer.name, tls_public=self.tls_key.public)
            if keys.identity != self.identity.public or (self.wish and keys.name != self.wish):
                raise ProtocolError("its certificate is for another key or name than ours")
            wire = tuple(parse_address(f"{_bracketed(at)}{text}" if text.startswith(":") else text) for text in answer.wire)
            if not wire or not 0 < answer.heartbeat_s < 3600:
                raise ProtocolError("it names no address for members, or no heartbeat")
        except (ProtocolError, ConfigError) as error:
            raise NetworkError(f"the host at {at} answered, but {error}") from None
        return Admission(
            keys.name,
            authority,
            answer.certificate,
            self.tls_key.private,
            wire,
            host_public,
            answer.heartbeat_s,
            keys.expires,
            answer.quarantined,
            dict(answer.terms),
        )


def _bracketed(address: Address) -> str:
    return f"[{address.host}]" if ":" in address.host else address.host


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or type(error).__name__


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:500])
