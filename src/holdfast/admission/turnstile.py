"""What keeps a door usable while strangers lean on it: so many visits a peer and second, and challenges that are good once."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import secrets
import struct
import time
import urllib.parse
from collections import OrderedDict
from collections.abc import Callable

MOST_PEERS = 4096
MOST_SPENT = 65536
CHALLENGE_TTL_S = 120.0
_EXPIRES = struct.Struct(">d")
_RANDOM_BYTES = 16
_MAC_BYTES = 32


class Turnstile:
    """A bucket of visits for each peer: `burst` at once, then `per_second`. The least recent peers are forgotten first."""

    def __init__(self, burst: int, per_second: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._rate = per_second
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_s(self, peer: str) -> float:
        """0 and one visit less for `peer`, or how many seconds until it has one."""
        now = self._clock()
        left, then = self._buckets.pop(peer, (float(self._burst), now))
        left = min(float(self._burst), left + max(0.0, now - then) * self._rate)
        allowed = left >= 1.0
        self._buckets[peer] = (left - 1.0 if allowed else left, now)
        while len(self._buckets) > MOST_PEERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._rate


class Challenges:
    """Random bytes that a joiner must sign, so that a recorded request opens nothing.

    They carry their own proof of origin: giving one away costs no memory here. `clock` gives seconds.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic, ttl_s: float = CHALLENGE_TTL_S) -> None:
        self._key = secrets.token_bytes(32)
        self._clock = clock
        self._ttl_s = ttl_s
        self._spent: OrderedDict[bytes, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._spent)

    def make(self) -> bytes:
        body = _EXPIRES.pack(self._clock() + self._ttl_s) + secrets.token_bytes(_RANDOM_BYTES)
        return body + self._mac(body)

    def spend(self, challenge: bytes) -> bool:
        """Whether it was made here, lately, and never spent before."""
        body, mac = challenge[:-_MAC_BYTES], challenge[-_MAC_BYTES:]
        if len(body) != _EXPIRES.size + _RANDOM_BYTES or not hmac.compare_digest(self._mac(body), mac):
            return False
        now = self._clock()
        while self._spent and next(iter(self._spent.values())) <= now:
            self._spent.popitem(last=False)
        (expires,) = _EXPIRES.unpack(body[: _EXPIRES.size])
        if expires <= now or body in self._spent or len(self._spent) >= MOST_SPENT:
            return False
        self._spent[body] = now + self._ttl_s  # not before its own end, and in the order of spending
        return True

    def _mac(self, body: bytes) -> bytes:
        return hmac.new(self._key, body, hashlib.sha256).digest()


def peer_host(peer: str) -> str:
    """The host in what gRPC calls a peer; what it cannot read is a host of its own.

    >>> peer_host("ipv4:203.0.113.5:4321"), peer_host("ipv6:%5B2001:db8::1%5D:4321")
    ('203.0.113.5', '2001:db8::1')
    """
    host = urllib.parse.unquote(peer).partition(":")[2].rpartition(":")[0].strip("[]")
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return peer
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return str(mapped or found)


def peer_group(host: str) -> str:
    """Whose visits count together: an IPv4 address, or an IPv6 network of 64 bits, which is what one household gets."""
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return host
    return host if found.version == 4 else str(ipaddress.ip_network((found, 64), strict=False))
