"""Addresses, `host:port`: what they may look like, and that nothing listens beyond this machine unless somebody said so."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from holdfast.errors import ConfigError

_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?")
_PORT = re.compile(r"[0-9]{1,5}")
LOCAL = "localhost"


@dataclass(frozen=True, slots=True)
class Address:
    """A host (name, IPv4 or IPv6 address) and a port; 0 lets the system choose where it listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches it; a name other than localhost is not asked, and counts as reachable."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == LOCAL


def parse_address(text: str, *, least_port: int = 1) -> Address:
    """`host:port` or `[IPv6]:port`. Raises ConfigError.

    >>> str(parse_address("[::1]:7700")), parse_address("w3.example.org:7700").port
    ('[::1]:7700', 7700)
    """
    host, colon, port = text.rpartition(":")
    if not colon or not _PORT.fullmatch(port) or not least_port <= int(port) <= 65535:
        raise ConfigError(f"address {text[:80]!r}: needed is HOST:PORT with a port of {least_port} to 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        good = ":" in host and _is_ip(host)
    else:
        good = _is_ip(host) if re.fullmatch(r"[0-9.]+", host) else bool(_HOST.fullmatch(host))
    if not good:
        raise ConfigError(f"address {text[:80]!r}: {host[:80]!r} is no host's name and no IP address (IPv6 stands in [])")
    return Address(host, int(port))


def check_listen(address: str, *, exposed: bool, option: str = "--expose") -> Address:
    """An address to listen on; one that other machines reach only with `exposed`, which `option` says. Raises ConfigError."""
    found = parse_address(address, least_port=0)
    if not exposed and not found.loopback:
        raise ConfigError(
            f"{found} can be reached by other machines; listen on 127.0.0.1, or say {option} if strangers shall reach it"
        )
    return found


def _is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host
