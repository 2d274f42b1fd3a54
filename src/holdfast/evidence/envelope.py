"""The exact bytes that are signed: one encoding for each value, so that no two claims can share a signature.

    domain, version \\0  then fields in a fixed order, each as   tag  length  content

    i decimal digits    s UTF-8    b bytes    f 8 bytes, big-endian IEEE 754    t count, then its items

A domain keeps a signature from being read as one of another kind: that of a header is none of a record.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import replace

from holdfast.claim import Header, Role
from holdfast.evidence.identity import Identity, verify

HEADER_DOMAIN = b"holdfast/header/1\0"
RECORD_DOMAIN = b"holdfast/record/1\0"

_length = struct.Struct(">I").pack

Packable = int | float | str | bytes | tuple["Packable", ...]


def pack(value: Packable) -> bytes:
    """The one encoding of a value; no encoding is the beginning of another.

    >>> pack(("a", b"a", 1)) == pack(("a", "a", 1))
    False
    >>> pack(0.0) == pack(-0.0)
    False
    """
    parts: list[bytes] = []
    _pack_into(value, parts.append)
    return b"".join(parts)


def header_message(header: Header) -> bytes:
    """What the signature of a header covers: all of it but the signature."""
    key = header.key
    where: Packable = (key.step, key.attempt, key.direction.value, key.stage, key.micro_batch)
    who: Packable = (header.version, header.epoch, header.worker, header.role.value)
    return HEADER_DOMAIN + pack((header.run, where, who, header.inputs, header.output, header.norms))


def sign_header(header: Header, identity: Identity) -> Header:
    """The header with the signature of `identity`, in place of any that it had."""
    return replace(header, signature=identity.sign(header_message(header)))


def verify_header(header: Header, public: bytes) -> bool:
    """Whether the holder of `public` signed just this."""
    return verify(public, header.signature, header_message(header))


def is_signed(header: Header, keys: Mapping[str, bytes]) -> bool:
    """Whether the worker that the header names signed it; a worker without a key signs nothing."""
    public = keys.get(header.worker)
    return public is not None and verify_header(header, public)


def conflict(first: Header, second: Header) -> bool:
    """Whether two signed headers convict their signer: one claim of one run, told in two ways.

    The role does not count (a shadow may have become primary in between; but a comparer speaks of others' claims), nor does the
    epoch. A NaN norm equals itself.
    """
    about = [(header.run, header.worker, header.key, header.role is Role.COMPARER) for header in (first, second)]
    told = [pack((header.version, header.inputs, header.output, header.norms)) for header in (first, second)]
    return about[0] == about[1] and told[0] != told[1]


def _pack_into(value: Packable, add: Callable[[bytes], None]) -> None:
    if isinstance(value, str):
        content = value.encode("utf-8", "surrogatepass")
        add(b"s" + _length(len(content)) + content)
    elif isinstance(value, bytes):
        add(b"b" + _length(len(value)) + value)
    elif isinstance(value, int):
        content = b"%d" % value
        add(b"i" + _length(len(content)) + content)
    elif isinstance(value, float):
        add(b"f" + struct.pack(">d", value))
    else:
        add(b"t" + _length(len(value)))
        for item in value:
            _pack_into(item, add)
