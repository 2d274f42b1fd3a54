"""Two accounts against one another (compare), a delivery against the board (jump), accounts against the referee (judge)."""

from dataclasses import replace

import pytest

from holdfast.claim import ClaimKey, Direction, Header, Role
from holdfast.message import Finding, Measured
from holdfast.verify.jump import check_delivery
from holdfast.verify.recompute import compare
from holdfast.verify.referee import judge, misstates
from holdfast.verify.verdict import Accepted, Rejected, Unverifiable

KEY = ClaimKey(0, 0, Direction.GRADIENT, 2)
PRIMARY = Header("run", KEY, 5, 1, "w2", Role.PRIMARY, (b"in",), b"out", (1.0, float("nan")))
SHADOW = replace(PRIMARY, worker="w3", role=Role.SHADOW, norms=(1.0, float("nan")))  # another NaN object, the same bytes
INPUTS = (b"in",)
HONEST, PARENT, OUTPUT, NORMS = {}, {"inputs": (b"x",)}, {"output": b"x"}, {"norms": (1.0, 2.0)}
BOTH = ("w2", "w3")

COMPARED = [  # what the primary, what the shadow says otherwise than the truth --> the verdict
    (HONEST, HONEST, Accepted(b"out")),
    (OUTPUT, HONEST, Rejected("output", BOTH)),
    (HONEST, OUTPUT, Rejected("output", BOTH)),
    (OUTPUT, OUTPUT, Accepted(b"x")),  # two neighbours who lie alike: outside the fault window
    (NORMS, HONEST, Rejected("norms", BOTH)),
    (HONEST, {"norms": (1.0,)}, Rejected("norms", BOTH)),
    (HONEST, {"norms": (1.0, -float("nan"))}, Rejected("norms", BOTH)),
    (PARENT, HONEST, Rejected("parent", ("w2",))),
    (HONEST, PARENT, Rejected("parent", ("w3",))),
    (PARENT, PARENT, Rejected("parent", BOTH)),
    (PARENT | OUTPUT, HONEST, Rejected("parent", ("w2",))),
    ({"inputs": ()}, HONEST, Rejected("parent", ("w2",))),
    (OUTPUT | NORMS, HONEST, Rejected("output", BOTH)),
]


@pytest.mark.parametrize(("primary", "shadow", "verdict"), COMPARED)
def test_two_accounts_of_one_claim(primary, shadow, verdict):
    assert compare(replace(PRIMARY, **primary), replace(SHADOW, **shadow), INPUTS) == verdict


def test_one_account_alone_is_never_a_pass():
    assert isinstance(compare(PRIMARY, None, INPUTS), Unverifiable)
    assert isinstance(compare(PRIMARY, None, None), Unverifiable)
    assert compare(replace(PRIMARY, **PARENT), None, INPUTS) == Rejected("parent", ("w2",))


def test_a_claim_without_parents_must_not_name_any():
    bare = replace(PRIMARY, inputs=())
    assert compare(bare, SHADOW, ()) == Rejected("parent", ("w3",))
    assert compare(bare, replace(SHADOW, inputs=()), ()) == Accepted(b"out")


def test_without_a_chain_inputs_are_not_compared():
    assert compare(PRIMARY, replace(SHADOW, **PARENT), None) == Accepted(b"out")


@pytest.mark.parametrize(
    ("delivered", "ruling", "verdict"),
    [
        (b"a", b"a", Accepted(b"a")),
        (b"a", b"b", Rejected("delivery", ("w1",))),
        (b"", b"b", Rejected("delivery", ("w1",))),
    ],
)
def test_a_delivery_is_used_only_if_its_digest_stands(delivered, ruling, verdict):
    assert check_delivery("w1", delivered, ruling) == verdict


def test_a_delivery_before_the_ruling_is_not_a_pass():
    assert isinstance(check_delivery("w1", b"a", None), Unverifiable)


FINDING = Finding(KEY, b"out", (1.0, float("nan")))
JUDGED = [  # accounts --> culprits, and whose account stands
    (HONEST, HONEST, (), "w2"),
    (OUTPUT, HONEST, ("w2",), "w3"),
    (HONEST, OUTPUT, ("w3",), "w2"),
    (OUTPUT, OUTPUT, BOTH, None),
    (OUTPUT, {"output": b"y"}, BOTH, None),
    (NORMS, HONEST, ("w2",), "w3"),
    (HONEST, NORMS, ("w3",), "w2"),
    (PARENT, HONEST, ("w2",), "w3"),
    (HONEST, PARENT, ("w3",), "w2"),
]


@pytest.mark.parametrize(("primary", "shadow", "culprits", "innocent"), JUDGED)
def test_accounts_against_a_re_execution(primary, shadow, culprits, innocent):
    headers = (replace(PRIMARY, **primary), replace(SHADOW, **shadow))
    judgement = judge(headers, FINDING, INPUTS)
    assert judgement.culprits == culprits
    assert (judgement.innocent.worker if judgement.innocent else None) == innocent
    assert judgement.innocent is None or judgement.innocent in headers


def test_a_single_account_is_judged_too():
    assert judge((PRIMARY,), FINDING, INPUTS).culprits == ()
    assert judge((replace(PRIMARY, **OUTPUT),), FINDING, INPUTS) == judge((replace(PRIMARY, **NORMS),), FINDING, INPUTS)
    assert judge((replace(PRIMARY, **PARENT),), FINDING, None).culprits == ()


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("said", "measured", "lie"),
    [
        ((1e-7, 2e-7), (1.0000001e-7, 2e-7), False),
        ((1e-7, 2e-7), (1e-6, 2e-7), True),
        ((NAN, NAN), (NAN, NAN), False),
        ((NAN, NAN), (1e-7, 2e-7), True),
        ((0.0, 0.0), (NAN, NAN), True),
        ((INF, INF), (INF, INF), False),
        ((INF, NAN), (NAN, INF), True),
    ],
)
def test_a_comparer_is_held_to_what_the_referee_measures(said, measured, lie):
    """A model that has overflowed leaves accounts that are NaN apart: whoever says so speaks the truth."""
    accounts = tuple(Measured(worker, output, (), 1e-6, 1e-5) for worker, output in (("w2", b"one"), ("w3", b"other")))
    header = replace(PRIMARY, role=Role.COMPARER, output=b"one", inputs=(b"other",), norms=said)
    assert misstates(header, Finding(KEY, b"out", (), accounts, measured)) is lie
