"""Why an address cannot be had: gRPC says only that it cannot, so the system is asked.

the wire, the door --> gRPC refuses to bind --> the same address with a plain socket --> its reason, or none
"""

from __future__ import annotations

import errno
import os
import socket

from holdfast.errors import CannotListen


def cannot_listen(address: str) -> CannotListen:
    """The error for "ip:port", at which gRPC could not listen just now."""
    host, _, port = address.rpartition(":")
    if not host:
        return CannotListen(address, "it is no ip:port")
    why = "the system refuses it"
    try:
        socket.create_server((host.strip("[]"), int(port)), family=family(host)).close()
    except OSError as error:
        number = error.errno or 0  # that of a name which nobody knows is none of these
        why = (os.strerror(number) if number in errno.errorcode else str(error.strerror)).lower()
    except (ValueError, OverflowError):
        why = "it is no ip:port"
    return CannotListen(address, why)


def family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
