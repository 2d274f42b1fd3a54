"""Signed headers: only who holds the key has signed, and only these very words; nothing that is shown instead raises."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from hypothesis import strategies as st

from holdfast.claim import Header
from holdfast.evidence.envelope import conflict, header_message, is_signed, pack, sign_header
from holdfast.evidence.identity import derived, verify

NAMES = ("w1", "w2", "w3")
IDENTITIES = {name: derived(7, name) for name in NAMES}
KEYS = {name: identity.public for name, identity in IDENTITIES.items()}
ORDER = 2**252 + 27742317777372353535851937790883648493
"""Of the group's base point: a signature is (R, s) with s below it."""

P = 2**255 - 19
SMALL = [0, 1, P - 1, P, P + 1]
"""The y of points whose order divides 4, in every encoding; those of order 8 follow."""
SMALL += [int.from_bytes(bytes.fromhex(y), "little") for y in (
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
)]  # fmt: skip
WEAK = [(y | sign << 255).to_bytes(32, "little") for y in SMALL for sign in (0, 1)]

octets = st.binary(max_size=70)
weak = st.sampled_from(WEAK)


def headers(speech: Callable[..., Any]) -> st.SearchStrategy[Header]:
    """Of w1, about anything."""
    return speech(Header, {"worker": st.just("w1"), "signature": st.none()})


def bits(value: Any) -> Any:
    """A value in which NaN equals itself and -0.0 differs from 0.0."""
    if isinstance(value, float):
        return struct.pack(">d", value)
    if hasattr(value, "__dataclass_fields__"):
        return tuple(bits(getattr(value, field.name)) for field in fields(value))
    return tuple(bits(item) for item in value) if isinstance(value, tuple) else value


def test_another_header_is_not_signed(hammer: Any, speech: Callable[..., Any]) -> None:
    """One field of another one in the place of its own, or one of the key's."""

    def check(one: Header, other: Header, name: str) -> str:
        signed = sign_header(one, IDENTITIES["w1"])
        assert is_signed(signed, KEYS)
        if name in one.key.__dataclass_fields__:
            changed = replace(signed, key=replace(one.key, **{name: getattr(other.key, name)}))
        else:
            changed = replace(signed, **{name: getattr(other, name)})
        same = bits(changed) == bits(signed)
        assert is_signed(changed, KEYS) == same
        return "the same" if same else "refused"

    of_header = [field.name for field in fields(Header) if field.name not in ("signature", "worker")]
    names = st.sampled_from([*of_header, "step", "attempt", "direction", "stage", "micro_batch"])
    hammer(check, headers(speech), headers(speech), names)


def test_a_header_in_the_name_of_another(hammer: Any, speech: Callable[..., Any]) -> None:
    def check(header: Header, name: str) -> str:
        stolen = replace(sign_header(header, IDENTITIES["w1"]), worker=name)
        assert is_signed(stolen, KEYS) == (name == "w1")
        return "refused"

    hammer(check, headers(speech), st.sampled_from([*NAMES[1:], "", "w9", "W1", "w1 ", "w1\0"]) | st.text(max_size=3))


def test_norms_differ_in_every_bit(hammer: Any, speech: Callable[..., Any]) -> None:
    def check(header: Header, norms: list[float], place: int, bit: int) -> str:
        signed = sign_header(replace(header, norms=tuple(norms)), IDENTITIES["w1"])
        octets = bytearray(struct.pack(f">{len(norms)}d", *norms))
        octets[place % len(octets)] ^= 1 << bit
        changed = replace(signed, norms=struct.unpack(f">{len(norms)}d", octets))
        assert is_signed(signed, KEYS)
        assert not is_signed(changed, KEYS)
        assert not is_signed(replace(signed, norms=signed.norms[:-1]), KEYS)
        assert not is_signed(replace(signed, norms=(*signed.norms, 0.0)), KEYS)
        assert conflict(signed, changed)
        return "refused"

    hammer(check, headers(speech), st.lists(st.floats(), min_size=1, max_size=5), st.integers(0, 39), st.integers(0, 7))


def malleable(signature: bytes, how: str, more: bytes, bit: int) -> bytes | None:
    """The same signature in words that a careless verifier takes for it, or another one."""
    first, s = signature[:32], int.from_bytes(signature[32:], "little")
    match how:
        case "none":
            return None
        case "flip":
            number = int.from_bytes(signature, "little") ^ (1 << bit)
            return number.to_bytes(64, "little")
        case "s + L":
            return first + (s + ORDER).to_bytes(32, "little")
        case "L - s":
            return first + ((ORDER - s) % ORDER).to_bytes(32, "little")
        case "-R":
            return bytes([*first[:31], first[31] ^ 0x80]) + signature[32:]
        case "swapped":
            return signature[32:] + first
        case "cut":
            return signature[: bit % 64]
        case "longer":
            return signature + (more or b"\0")
        case "small R":
            return WEAK[bit % len(WEAK)] + signature[32:]
        case "nothing":
            return WEAK[bit % len(WEAK)] + bytes(32)
    return more


HOW = ("none", "flip", "s + L", "L - s", "-R", "swapped", "cut", "longer", "small R", "nothing", "other")


def test_other_signatures_are_none(hammer: Any, speech: Callable[..., Any]) -> None:
    def check(header: Header, how: str, more: bytes, bit: int) -> str:
        signed = sign_header(header, IDENTITIES["w1"])
        assert signed.signature is not None
        other = malleable(signed.signature, how, more, bit)
        assert other != signed.signature
        assert not is_signed(replace(signed, signature=other), KEYS)
        by_another = IDENTITIES["w2"].sign(header_message(header))
        assert not is_signed(replace(signed, signature=by_another), KEYS)
        return "refused"

    hammer(check, headers(speech), st.sampled_from(HOW), octets, st.integers(0, 511))


def test_a_key_that_is_none_signs_nothing(hammer: Any) -> None:
    """A registered key may be any bytes: of small order, one would verify what nobody signed."""

    def check(public: bytes, first: bytes, s: int, message: bytes) -> str:
        assert not verify(public, first + (s % 2**256).to_bytes(32, "little"), message)
        return "refused"

    keys = st.binary(max_size=40) | st.binary(min_size=32, max_size=32) | weak
    firsts = weak | st.binary(min_size=32, max_size=32)
    hammer(check, keys | weak, firsts, st.sampled_from([0, 1, ORDER - 1, ORDER]) | st.integers(0, 2**256 - 1), octets)


values = st.recursive(
    st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=8,
)


def test_no_two_values_have_one_encoding(hammer: Any) -> None:
    """Pairs that are alike: one value, and the same with another in one of its places, or cut differently."""

    def check(one: Any, other: Any, place: int, how: str) -> str:
        items = one if isinstance(one, tuple) else (one,)
        changed = {
            "put": (*items[: place % (len(items) + 1)], other, *items[place % (len(items) + 1) + 1 :]),
            "nest": (items,),
            "flat": tuple(each for item in items for each in (item if isinstance(item, tuple) else (item,))),
            "join": tuple(item + item if isinstance(item, (str, bytes)) else item for item in items),
            "text": tuple(item.encode() if isinstance(item, str) else item for item in items),
            "number": tuple(float(item) if isinstance(item, int) else item for item in items),
        }[how]
        same = shape(items) == shape(changed)
        assert (pack(items) == pack(changed)) == same
        return "equal" if same else "different"

    hammer(check, values, values, st.integers(0, 5), st.sampled_from(["put", "nest", "flat", "join", "text", "number"]))


def shape(value: Any) -> Any:
    """A value with its types and its bits."""
    if isinstance(value, tuple):
        return tuple(shape(item) for item in value)
    if isinstance(value, float):
        return "float", struct.pack(">d", value)
    return type(value).__name__, value


def test_conflicts_are_between_two_words_of_one_worker(hammer: Any, speech: Callable[..., Any]) -> None:
    """Never between a header and itself in another role or epoch; never across workers, claims and runs."""

    def check(one: Header, other: Header) -> str:
        assert not conflict(one, replace(one, role=other.role, epoch=other.epoch, signature=other.signature))
        found = conflict(one, other)
        assert found == conflict(other, one)
        if found:
            assert (one.run, one.worker, one.key) == (other.run, other.worker, other.key)
        apart = replace(one, output=one.output + b"x")
        assert conflict(one, apart)
        assert not conflict(one, replace(apart, worker="w2"))
        assert not conflict(one, replace(apart, run=one.run + "x"))
        return "conflict" if found else "none"

    hammer(check, headers(speech), headers(speech))
