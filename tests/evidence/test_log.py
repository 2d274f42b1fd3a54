"""The log as bytes: whatever is changed, moved, doubled or cut off is found; nothing that is not a log makes the audit fail."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from holdfast.errors import ProtocolError, SetupError
from holdfast.evidence.identity import derived, generate
from holdfast.evidence.log import FIRST, EvidenceLog, read_line, signed_line
from holdfast.evidence.record import KINDS, Closing, Opening, Sealed, canonical, from_body, to_body
from holdfast.evidence.story import page

MANY = settings(max_examples=300, deadline=None)
SEAL = Sealed(1, 0, 0, (b"d" * 32,))


def test_the_log_is_whole_to_begin_with(told: bytes, examine: Any) -> None:
    found = examine(told)
    assert (found.status, found.fault, found.records) == ("intact", "", told.count(b"\n"))
    assert {worker: sum(kinds.values()) for worker, kinds in found.guilty.items()} == {"w1": 1, "w2": 1, "w3": 1}


@MANY
@given(data=st.data())
def test_a_flipped_bit_is_found(told: bytes, examine: Any, data: Any) -> None:
    place, bit = data.draw(st.integers(0, len(told) - 1)), data.draw(st.integers(0, 7))
    changed = bytearray(told)
    changed[place] ^= 1 << bit
    found = examine(bytes(changed))
    assert found.status in (("altered",) if place < len(told) - 1 else ("incomplete", "altered"))
    assert found.records <= told[:place].count(b"\n"), "nothing behind the change counts"


@MANY
@given(data=st.data())
def test_a_truncation_is_found(told: bytes, examine: Any, data: Any) -> None:
    end = data.draw(st.integers(0, len(told) - 1))
    found = examine(told[:end])
    assert found.status == "incomplete"
    assert found.records == told[:end].count(b"\n")
    where = f"after record {found.records - 1}" if found.records else "in its first record"
    assert f"truncated {where}" in found.fault


def lines(told: bytes) -> list[bytes]:
    return told.splitlines(keepends=True)


def test_two_swapped_lines_are_found(told: bytes, examine: Any) -> None:
    whole = lines(told)
    for i, j in itertools.combinations(range(len(whole)), 2):
        swapped = [*whole]
        swapped[i], swapped[j] = whole[j], whole[i]
        found = examine(b"".join(swapped))
        assert (found.status, found.records) == ("altered", i)


def test_a_removed_line_is_found(told: bytes, examine: Any) -> None:
    whole = lines(told)
    for i in range(len(whole)):
        last = i == len(whole) - 1
        assert examine(b"".join(whole[:i] + whole[i + 1 :])).status == ("incomplete" if last else "altered")


def test_a_repeated_line_is_found(told: bytes, examine: Any) -> None:
    whole = lines(told)
    for i, j in itertools.product(range(len(whole)), range(len(whole) + 1)):
        assert examine(b"".join([*whole[:j], whole[i], *whole[j:]])).status == "altered"


def test_a_line_in_another_form_is_found(told: bytes, examine: Any) -> None:
    """The same JSON with other spaces, order or escapes is another line."""
    for i, line in enumerate(lines(told)):
        content = json.loads(line)
        signature = content["signature"]
        for other in (
            json.dumps(content).encode(),
            line.rstrip() + b"\r",
            line.replace(signature.encode(), signature.upper().encode()).rstrip(),
            line.replace(b'"seq"', b'"s\\u0065q"').rstrip(),
        ):
            assert examine(b"".join([*lines(told)[:i], other, b"\n", *lines(told)[i + 1 :]])).status == "altered"


def test_a_log_signed_anew_with_another_key_has_another_fingerprint(told: bytes, examine: Any) -> None:
    """Nothing in it is wrong but whose it is: that is what `pinned` is for."""
    forger, previous, forged = generate(), FIRST, b""
    for line in lines(told):
        entry = read_line(line.rstrip())
        record = entry.record
        if isinstance(record, Opening):
            record = replace(record, keys={**record.keys, "coordinator": forger.public})
        if isinstance(record, Closing):
            record = replace(record, last=previous)
        made = signed_line(entry.seq, previous, record, forger)
        previous, forged = read_line(made).digest, forged + made + b"\n"
    true = examine(told).signer
    found = examine(forged)
    assert (found.status, found.pinned, found.signer) == ("intact", None, forger.fingerprint)
    refused = examine(forged, pinned=true)
    assert (refused.status, refused.pinned, refused.records, refused.clean) == ("other-key", False, 0, False)
    first, *rest = page(refused)
    assert first.startswith("NOT SIGNED BY THIS KEY")
    assert rest[:2] == [f"signed by  {forger.fingerprint}", f"given      {true}"]
    assert not any("ALTERED" in line or "tampered" in line for line in rest)
    assert (examine(told, pinned=true).status, examine(told, pinned=true[:32]).pinned) == ("intact", True)


def test_one_line_signed_with_another_key_is_found(told: bytes, examine: Any) -> None:
    whole = lines(told)
    entry = read_line(whole[5].rstrip())
    whole[5] = signed_line(entry.seq, entry.previous, entry.record, generate()) + b"\n"
    found = examine(b"".join(whole))
    assert (found.status, found.records) == ("altered", 5)
    assert "another key" in found.fault


def test_a_line_of_another_log_of_the_same_signer_is_found(desk: Any, reopened: Any, examine: Any, tmp_path: Path) -> None:
    """Number and signature are right; it is the chain that tells: a seal of one run cannot stand in another."""
    desk.seal().seal().close()
    other = type(desk)(tmp_path / "other").deploy()
    other.notary.sealed(1, 0, 3, dict.fromkeys(range(5), b"x" * 32))
    other.version = 1
    other.seal().close()
    one, two = desk.path.read_bytes(), other.path.read_bytes()
    assert examine(one).clean
    assert examine(two).clean
    for i in range(1, 4):
        spliced = lines(one)[:i] + lines(two)[i : i + 1] + lines(one)[i + 1 :]
        found = examine(b"".join(spliced))
        assert found.status == "altered"
        assert found.records <= i + 1


@settings(max_examples=1000, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_the_audit_fail(examine: Any, data: bytes) -> None:
    assert examine(data).status in ("incomplete", "altered")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["opening", "seal", "ab", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=1000, deadline=None)
@given(st.fixed_dictionaries(dict.fromkeys(("seq", "previous", "kind", "body", "signature"), JSON)))
def test_no_json_passes_for_a_record(examine: Any, content: dict[str, Any]) -> None:
    line = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(ProtocolError):
        read_line(line)
    assert examine(line + b"\n").status == "altered"


@settings(max_examples=1000, deadline=None)
@given(st.sampled_from([*KINDS.values()]), JSON)
def test_no_json_passes_for_a_body(kind: type, body: Any) -> None:
    with pytest.raises(ProtocolError):
        from_body(kind, body)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_body_with_one_value_changed_is_refused_or_changed(told: bytes, data: Any) -> None:
    """A decoded record stands for one body only."""
    content = json.loads(data.draw(st.sampled_from(lines(told))))
    body = content["body"]
    body[data.draw(st.sampled_from(sorted(body)))] = data.draw(JSON)
    try:
        record = from_body(KINDS[content["kind"]], body)
    except ProtocolError:
        return
    assert canonical(to_body(record)) == canonical(body)


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000, b"1" * 5000, b'"\\ud800"', b"\xff\xfe", b"null", b"{}"])
def test_hostile_lines(deep: bytes, examine: Any) -> None:
    assert examine(deep + b"\n").status == "altered"


# -- the writing end -----------------------------------------------------------------------------------------------------


def test_every_record_is_in_the_file_as_soon_as_it_is_written(tmp_path: Path) -> None:
    log = EvidenceLog(tmp_path / "log", derived(0, "coordinator"))
    for number in range(3):
        assert log.append(SEAL) == number
        assert (tmp_path / "log").read_bytes().count(b"\n") == number + 1
    log.close()


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_line_is_cut_off_when_the_log_goes_on(desk: Any, reopened: Any, cut: int) -> None:
    desk.seal().seal().close()
    whole = desk.path.read_bytes()
    desk.path.write_bytes(whole[:-cut])
    assert "record 2: the last line is torn" in desk.audit().fault
    again = reopened(desk).deploy(version=2).seal().close()
    found = again.audit()
    assert (found.status, found.book.interruptions, found.book.version) == ("intact", [3], 3)
    assert again.path.read_bytes().startswith(whole[: whole.rfind(b"\n", 0, -1) + 1])


def test_an_altered_log_is_not_gone_on_with(desk: Any, reopened: Any) -> None:
    desk.seal().close()
    desk.path.write_bytes(desk.path.read_bytes().replace(b'"kind":"closing"', b'"kind":"clasing"'))
    with pytest.raises(SetupError, match="its last line was altered"):
        reopened(desk)


def test_a_log_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot write the evidence log"):
        EvidenceLog(tmp_path / "absent" / "log", generate())
