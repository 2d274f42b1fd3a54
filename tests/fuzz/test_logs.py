"""Evidence logs: an audit raises nothing whatever the bytes, and calls nothing intact but what the coordinator wrote."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import strategies as st

from holdfast.evidence.audit_log import Audit, Status
from holdfast.evidence.envelope import RECORD_DOMAIN
from holdfast.evidence.identity import Identity
from holdfast.evidence.record import KINDS, canonical
from holdfast.evidence.story import explain, page

Lines = list[bytes]
Examine = Callable[..., Audit]


@pytest.fixture(scope="module")
def written(suite: Any, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A log as a coordinator writes it: lies of each kind, a takeover, a kill, a second process, a rollback, an end."""
    desks, path = suite("evidence"), tmp_path_factory.mktemp("log") / "evidence.jsonl"
    true, false, given = desks.TRUE, desks.FALSE, desks.INPUT
    desk = desks.Desk(path, secret=7).deploy()
    desk.dispute(desk.account("w1", output=false), desk.account("w2"), ("w1",)).seal()
    desk.dispute(desk.account("w1"), desk.account("w2", output=false), ("w2",))
    desk.notary.equivocated(desk.account("w3", output=true), desk.account("w3", output=false), "board")
    desk.notary.misdelivered(desk.key(micro_batch=1), "w1", false, true)
    desk.seal().notary.took_over(1, "w1", "w2", 2)
    desk.log.close()
    again = desks.Desk(path, desk.deployments, 2, secret=7).deploy(2)
    again.notary.quarantined(again.account("w2", output=false, inputs=(given,)), true)
    again.notary.accuse(again.key(), "withheld", ("w1",), "deadline")
    again.seal().deploy(2).seal()
    again.notary.collected(again.version, {stage: bytes([stage]) * 32 for stage in range(5)})
    again.close()
    return path.read_bytes()


@pytest.fixture(scope="module")
def coordinator(suite: Any) -> Identity:
    return suite("evidence").IDENTITIES["coordinator"]


@pytest.fixture(scope="module")
def examine(suite: Any, written: bytes) -> Examine:
    """The audit, and everything that is printed of it."""
    from holdfast.evidence.audit_log import audit

    law = suite("evidence").LAW

    def run(data: bytes, **more: Any) -> Audit:
        found = audit(data, law, **more)
        json.dumps(found.to_json())
        told = [*page(found), *(line for dispute in found.disputes for line in explain(found, dispute))]
        assert all(line.isprintable() or not line for line in told), "an auditor's terminal could be written on"
        return found

    assert run(written).status is Status.INTACT
    return run


@pytest.fixture
def refuse(examine: Examine, written: bytes) -> Callable[[bytes], str]:
    """Neither raises nor is intact, unless nothing was changed."""

    def check(data: bytes) -> str:
        found = examine(data)
        assert found.status is not Status.INTACT or data == written
        assert found.records <= data.count(b"\n")
        return found.status.value

    return check


ratio = st.floats(0, 1, exclude_max=True)


def split(data: bytes) -> Lines:
    return data.split(b"\n")[:-1]


def joined(lines: Lines) -> bytes:
    return b"".join(line + b"\n" for line in lines)


# -- bytes and lines -----------------------------------------------------------------------------------------------------


def test_bytes_changed(hammer: Any, refuse: Any, written: bytes) -> None:
    def check(where: float, how: str, octets: bytes, length: int) -> str:
        place = int(where * len(written))
        match how:
            case "put":
                return refuse(written[:place] + octets + written[place + len(octets) :])
            case "insert":
                return refuse(written[:place] + octets + written[place:])
            case "drop":
                return refuse(written[:place] + written[place + length :])
            case _:
                return refuse(written[:place])

    octets = st.binary(max_size=3) | st.sampled_from([b"\n", b"\n\n", b" ", b"}", b'"', b"\xff", b"\0", b"\r", b"\xed\xa0\x80"])
    hammer(check, ratio, st.sampled_from(["put", "put", "insert", "drop", "cut"]), octets, st.integers(1, 200))


def test_lines_moved(hammer: Any, refuse: Any, written: bytes) -> None:
    def check(todo: list[tuple[str, float, float]]) -> str:
        lines = split(written)
        for how, where, there in todo:
            one, other = int(where * len(lines)), int(there * len(lines))
            match how:
                case "swap":
                    lines[one], lines[other] = lines[other], lines[one]
                case "repeat":
                    lines.insert(other, lines[one])
                case "drop" if len(lines) > 1:
                    del lines[one]
                case "merge" if one + 1 < len(lines):
                    lines[one : one + 2] = [lines[one] + lines[one + 1]]
                case "break":
                    cut = int(there * len(lines[one]))
                    lines[one : one + 1] = [lines[one][:cut], lines[one][cut:]]
                case "cross":
                    lines[one] = lines[one][:100] + lines[other][100:]
        return refuse(joined(lines))

    how = st.sampled_from(["swap", "repeat", "drop", "merge", "break", "cross"])
    hammer(check, st.lists(st.tuples(how, ratio, ratio), min_size=1, max_size=4))


def test_random_bytes_and_lines(hammer: Any, refuse: Any, written: bytes) -> None:
    lines = (
        st.sampled_from(split(written)) | st.binary(max_size=60) | st.sampled_from([b"", b"{}", b"null", b"[]", b"0", b'""'])
    )
    hammer(lambda found, end: refuse(b"\n".join(found) + end), st.lists(lines, max_size=6), st.sampled_from([b"", b"\n"]))


# -- other JSON ----------------------------------------------------------------------------------------------------------

WILD = [
    *("NaN", "Infinity", "-Infinity", "1e400", "-0", "-0.0", "1.0", "1e2", "00", "9" * 4000, "9" * 5000, "-" + "9" * 4299),
    *(
        '"\\ud800"',
        '"\\ud800\\udc00"',
        '"\\u0000"',
        '"\\n"',
        '"\\u001b[2J"',
        '"A"',
        '""',
        '"x"',
        "null",
        "true",
        "[]",
        "{}",
        "[[]]",
    ),
    *("[" * depth + "]" * depth for depth in (100, 330, 480, 900, 990, 1000, 20_000)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (100, 330, 480, 900, 990, 20_000)),
    *("[" * 100_000, '{"":' * 50_000, "[" + "0," * 5000 + "0]", '{"a":1,"a":2}'),
]


def spots(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path to every value inside another one."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, each in inside:
        yield (*path, name)
        yield from spots(each, (*path, name))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = put(copy[path[0]], path[1:], new)
    return copy


MARK = "\N{PILCROW SIGN}"
MARKED = b'"\\u00b6"'
"""What `MARK` looks like in a line; the junk is put in its place as text."""


def test_other_json(hammer: Any, refuse: Any, written: bytes) -> None:
    """Junk as a value somewhere in a line, a key twice, other spaces, other escapes, another order."""

    def check(which: float, where: float, junk: str, form: str) -> str:
        lines = split(written)
        index = int(which * len(lines))
        content = json.loads(lines[index])
        paths = list(spots(content))
        path = paths[int(where * len(paths))]
        match form:
            case "junk":
                lines[index] = canonical(put(content, path, MARK)).replace(MARKED, junk.encode())
            case "spaces":
                lines[index] = json.dumps(content, sort_keys=True).encode()
            case "order":
                lines[index] = json.dumps(dict(reversed(content.items())), separators=(",", ":")).encode()
            case "escapes":
                lines[index] = lines[index].replace(b"a", b"\\u0061", 1 + int(where * 5))
            case "twice":
                lines[index] = lines[index][:-1] + f',"{path[0]}":{junk}'.encode() + b"}"
            case _:
                lines[index] = f'{{"{path[0]}":{junk},'.encode() + lines[index][1:]
        return refuse(joined(lines))

    forms = st.sampled_from(["junk", "junk", "junk", "spaces", "order", "escapes", "twice", "before"])
    hammer(check, ratio, ratio, st.sampled_from(WILD), forms)


# -- hashes and keys -----------------------------------------------------------------------------------------------------


def content_of(line: bytes) -> dict[str, Any]:
    return dict(json.loads(line))


def signed(content: dict[str, Any], signer: Identity | None) -> bytes:
    """A line with the signature of `signer`, or with the one that it had."""
    if signer is not None:
        rest = {name: value for name, value in content.items() if name != "signature"}
        content = {**rest, "signature": signer.sign(RECORD_DOMAIN + canonical(rest)).hex()}
    return canonical(content)


def chained(contents: list[dict[str, Any]], signer: Identity | None, *, renumber: bool) -> bytes:
    """Lines whose hashes follow from one another again, and whose closing record counts right."""
    lines: Lines = []
    for seq, content in enumerate(contents):
        previous = hashlib.sha256(lines[-1]).hexdigest() if lines else "0" * 64
        now = {**content, "previous": previous}
        if renumber:
            now["seq"] = seq
        if renumber and now["kind"] == "closing" and isinstance(now["body"], dict):
            now["body"] = {**now["body"], "records": seq, "last": previous}
        lines.append(signed(now, signer))
    return joined(lines)


NAMES = ["initiator", "w1", "w2", "w3", "coordinator", "nobody", ""]
VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2,
    7,
    2**64,
    1.5,
    "",
    "zz",
    "0" * 64,
    "ff" * 32,
    "74" * 32,
    "66" * 32,
    [],
    {},
    [1],
    [[]],
    *NAMES,
]
VALUES += ["forward", "backward", "gradient", "update", "primary", "shadow", "output", "norms", "parent", "finding", "\ud800"]
VALUES += ["equivocation", "delivery", "quarantine", "\x1b[2J", "7ff8000000000000", "run/1", "run/2", {"w1": "00"}, *KINDS]

edits = st.lists(
    st.tuples(st.sampled_from(["put", "put", "put", "take", "drop", "repeat", "swap"]), ratio, ratio, st.sampled_from(VALUES)),
    min_size=1,
    max_size=3,
)


def edited(data: bytes, todo: list[tuple[str, float, float, Any]]) -> list[dict[str, Any]]:
    """The records with values put elsewhere, taken from other records, records left out, repeated and exchanged."""
    contents = [content_of(line) for line in split(data)]
    for how, which, where, value in todo:
        index, other = int(which * len(contents)), int(where * len(contents))
        content = contents[index]
        paths = list(spots(content["body"])) or [()]
        path = paths[int(where * len(paths))]
        match how:
            case "put":
                contents[index] = {**content, "body": put(content["body"], path, value)}
            case "take":
                contents[index] = {**content, "kind": contents[other]["kind"], "body": contents[other]["body"]}
            case "drop" if len(contents) > 1:
                del contents[index]
            case "repeat":
                contents.insert(other, content)
            case "swap":
                contents[index], contents[other] = contents[other], contents[index]
    return contents


def test_hashes_chained_anew_without_the_key(hammer: Any, refuse: Any, written: bytes, suite: Any) -> None:
    """Who can write the file but not sign; with the old signatures, or with a worker's."""
    identities = suite("evidence").IDENTITIES

    def check(todo: Any, who: str | None, renumber: bool) -> str:
        return refuse(chained(edited(written, todo), identities.get(who), renumber=renumber))

    hammer(check, edits, st.sampled_from([None, "w1"]), st.booleans())


def test_all_of_it_signed_with_another_key(hammer: Any, examine: Examine, written: bytes, suite: Any, coordinator: Any) -> None:
    """A log written anew: the audit cannot know whose key it should be, unless it is told."""
    forger = suite("evidence").IDENTITIES["w1"]

    def check(todo: Any) -> str:
        contents = edited(written, todo)
        if isinstance(contents[0]["body"], dict) and isinstance(contents[0]["body"].get("keys"), dict):
            body = contents[0]["body"]
            contents[0] = {**contents[0], "body": {**body, "keys": {**body["keys"], "coordinator": forger.public.hex()}}}
        data = chained(contents, forger, renumber=True)
        examine(data)
        found = examine(data, pinned=coordinator.fingerprint)
        assert (found.status, found.pinned, found.records) in tuple(
            (wrong, False, 0) for wrong in (Status.ALTERED, Status.OTHER_KEY)
        )
        return found.status.value

    hammer(check, edits)


def test_a_coordinator_that_lies_convicts_nobody_by_their_own_word(
    hammer: Any, examine: Examine, written: bytes, coordinator: Any
) -> None:
    """With the right key anything can be written, but not what a worker signed: only w3 has ever said two things."""

    def check(todo: Any, renumber: bool) -> str:
        found = examine(chained(edited(written, todo), coordinator, renumber=renumber))
        twice = {worker for worker, kinds in found.guilty.items() if "equivocation" in kinds}
        assert twice <= {"w3"}
        claims = ("false activation", "another input than the accepted one", "false account as a verifier (framing)")
        accused = {worker for worker, kinds in found.guilty.items() if any(kind in kinds for kind in claims)}
        assert accused <= {"w1", "w2"}, "convicted of a claim that it never signed"
        return found.status.value

    hammer(check, edits, st.booleans())


def test_any_record_at_all_well_signed(hammer: Any, examine: Examine, written: bytes, coordinator: Any, speech: Any) -> None:
    """Records of every kind with anything in them, after the opening of a real log."""
    from holdfast.evidence.log import signed_line

    first = split(written)[0]
    words = {
        "dispute": st.integers(0, 3),
        "cites": st.lists(st.integers(-1, 6), max_size=3).map(tuple),
        "worker": st.sampled_from(NAMES),
        "reason": st.sampled_from(["output", "norms", "parent", "delivery", "\x1b"]),
        "basis": st.sampled_from(["finding", "equivocation", "delivery", "quarantine", ""]),
        "culprits": st.lists(st.sampled_from(NAMES), max_size=2).map(tuple),
        "keys": st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=33), max_size=3),
        "refused": st.dictionaries(st.text(max_size=4), st.integers(), max_size=3),
    }
    kinds = st.sampled_from(sorted(KINDS)).flatmap(lambda kind: speech(KINDS[kind], words))

    def check(records: list[Any]) -> str:
        lines, previous = [first], hashlib.sha256(first).digest()
        for seq, record in enumerate(records, start=1):
            lines.append(signed_line(seq, previous, record, coordinator))
            previous = hashlib.sha256(lines[-1]).digest()
        return examine(joined(lines)).status.value

    hammer(check, st.lists(kinds, min_size=1, max_size=4), inputs=2)
