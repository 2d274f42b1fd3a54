"""What is signed: one encoding for each header, and no two headers with the same."""

from __future__ import annotations

import struct
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.evidence.envelope import conflict, header_message, is_signed, pack, sign_header, verify_header
from holdfast.evidence.identity import derived
from holdfast.evidence.record import Account, from_body, to_body

ONE, OTHER = derived(0, "w1"), derived(0, "w2")
KEY = ClaimKey(3, 1, Direction.BACKWARD, 2, 4)
HEADER = Header("run", KEY, 3, 7, "w1", Role.PRIMARY, (b"a" * 32, b"b" * 32), b"c" * 32, (0.5, -0.0))
CHANGES = {
    "run": "other",
    "key": replace(KEY, micro_batch=5),
    "version": 4,
    "epoch": 8,
    "worker": "w2",
    "role": Role.SHADOW,
    "inputs": (b"a" * 32,),
    "output": b"d" * 32,
    "norms": (0.5, 0.0),
}
KEYS = st.builds(ClaimKey, st.integers(), st.integers(), st.sampled_from(Direction), st.integers(), st.integers())
HEADERS = st.builds(
    Header,
    st.text(),
    KEYS,
    st.integers(),
    st.integers(),
    st.text(),
    st.sampled_from(Role),
    st.lists(st.binary(max_size=40), max_size=3).map(tuple),
    st.binary(max_size=40),
    st.lists(st.floats(), max_size=4).map(tuple),
)
VALUES = st.recursive(
    st.integers() | st.text() | st.binary() | st.floats(), lambda inner: st.lists(inner, max_size=4).map(tuple), max_leaves=8
)


def same(a: object, b: object) -> bool:
    """Equality of type and bits."""
    if isinstance(a, float) and isinstance(b, float):
        return struct.pack(">d", a) == struct.pack(">d", b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@given(VALUES, VALUES)
def test_equal_encodings_have_equal_values(a: object, b: object) -> None:
    assert (pack(a) == pack(b)) == same(a, b)  # type: ignore[arg-type]


@given(st.lists(VALUES, min_size=1, max_size=3))
def test_no_encoding_begins_another(values: list[object]) -> None:
    whole = pack(tuple(values))  # type: ignore[arg-type]
    assert not any(pack(tuple(values[:n])) == whole[: len(pack(tuple(values[:n])))] for n in range(len(values)))  # type: ignore[arg-type]


def test_every_field_is_signed() -> None:
    assert {*CHANGES, "signature"} == {field.name for field in fields(Header)}
    signed = sign_header(HEADER, ONE)
    assert verify_header(signed, ONE.public)
    for name, value in CHANGES.items():
        assert not verify_header(replace(signed, **{name: value}), ONE.public), name
    for field in fields(ClaimKey):
        other = Direction.UPDATE if field.name == "direction" else 99
        assert not verify_header(replace(signed, key=replace(KEY, **{field.name: other})), ONE.public), field.name


def test_the_encoding_of_a_header_is_fixed() -> None:
    """Signatures of old logs must verify for ever."""
    small = Header("r", ClaimKey(1, 0, Direction.UPDATE, 2), 1, 0, "w", Role.SHADOW, (b"\1",), b"\2", (1.0,))
    assert header_message(small).hex() == GOLDEN


GOLDEN = (
    "686f6c64666173742f6865616465722f31007400000006730000000172740000000569000000013169000000013073000000"
    "0675706461746569000000013269000000022d31740000000469000000013169000000013073000000017773000000067368"
    "61646f7774000000016200000001016200000001027400000001663ff0000000000000"
)


@given(HEADERS)
def test_any_header_can_be_signed_and_logged(header: Header) -> None:
    signed = sign_header(header, ONE)
    assert verify_header(signed, ONE.public)
    assert not verify_header(signed, OTHER.public)
    back = from_body(Account, to_body(Account(1, signed))).header
    assert verify_header(back, ONE.public)


@given(HEADERS, st.binary(max_size=70) | st.none())
def test_no_made_up_signature_is_accepted(header: Header, signature: bytes | None) -> None:
    assert not verify_header(replace(header, signature=signature), ONE.public)


def test_a_worker_signs_for_itself_only() -> None:
    keys = {"w1": ONE.public, "w2": OTHER.public}
    assert is_signed(sign_header(HEADER, ONE), keys)
    assert not is_signed(sign_header(HEADER, OTHER), keys)
    assert not is_signed(HEADER, keys)
    assert not is_signed(sign_header(replace(HEADER, worker="w9"), ONE), keys)


@pytest.mark.parametrize(
    ("change", "convicts"),
    [
        ({}, False),
        ({"role": Role.SHADOW}, False),
        ({"epoch": 9}, False),
        ({"output": b"d" * 32}, True),
        ({"inputs": ()}, True),
        ({"norms": (0.5, 0.0)}, True),
        ({"version": 4}, True),
        ({"run": "other", "output": b"d" * 32}, False),
        ({"worker": "w2", "output": b"d" * 32}, False),
        ({"key": replace(KEY, attempt=2), "output": b"d" * 32}, False),
    ],
)
def test_what_convicts_its_signer(change: dict[str, object], convicts: bool) -> None:
    assert conflict(HEADER, replace(HEADER, **change)) is convicts  # type: ignore[arg-type]


def test_nan_does_not_contradict_itself() -> None:
    header = replace(HEADER, norms=(float("nan"),))
    assert not conflict(header, replace(header, signature=b"x"))
