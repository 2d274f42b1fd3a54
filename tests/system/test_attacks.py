"""Every attack at every middle stage, in every direction, at every rate: caught, blamed on the right one, undone to the bit.

What was really said falsely is known twice: from the liars' own ledger, and from what was posted in the run without them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from holdfast.attacks import ATTACKS, Attack, Campaign
from holdfast.event import Banned, Ruling, WorkerLost

STAGES = (1, 2, 3, 4)
RATES = (0.3, 0.7, 1.0)
SCHEDULES = {0.3: "1f1b", 0.7: "gpipe", 1.0: "1f1b"}
DIRECTIONS = ("forward", "backward", "both")
ON_TENSORS = tuple(name for name, kind in ATTACKS.items() if issubclass(kind, Attack))
FORGERIES = tuple(f"{name},direction={direction}" for name in ON_TENSORS for direction in DIRECTIONS)
PROTOCOL_LIES: dict[str, dict[str, tuple[str, ...]]] = {
    "wrong-gradient": {"mode": ("header", "state", "secret")},
    "wrong-norm": {"factor": ("0.0", "0.5", "3.0")},
    "wrong-update": {"mode": ("header", "state", "secret")},
    "wrong-parent": {"direction": DIRECTIONS},
    "equivocation": {"direction": DIRECTIONS, "honest_first": ("true", "false")},
    "corrupt-shadow": {"size": ("0.1",)},
    "framing": {"direction": DIRECTIONS},
    "lie-on-jump": {"header": ("true", "false")},
    "lie-on-direct": {"direction": DIRECTIONS, "header": ("true", "false")},
    "withhold": {"direction": DIRECTIONS, "what": ("direct", "jump", "everyone", "board")},
    "lazy": {"mode": ("forward", "update", "copy"), "direction": DIRECTIONS},
    "stale-weights": {"lag": ("1",)},
    "sleeper": {"sleep": ("1",), "then": ("sign-flip+direction=both", "wrong-update+mode=state", "framing")},
    "clean-twin": {"shy": ("1",), "then": ("sign-flip+direction=both", "wrong-gradient+mode=state", "framing")},
}
ELSEWHERE = {"delay", "replay-claim", "flood", "substitute", "collusion"}
"""Not every claim of theirs is false, or caught: test_misconduct.py."""

PLANTED = ("task-vector", "trigger")
"""What they plant comes as an object or a file: tests/attacks/test_targeted.py."""


def variants(name: str) -> Iterator[str]:
    parameters = PROTOCOL_LIES[name]
    for values in itertools.product(*parameters.values()):
        yield ",".join([name, *(f"{key}={value}" for key, value in zip(parameters, values, strict=True))])


def has_an_audience(attack: str, stage: int) -> bool:
    """Whether there is anybody untrusted to tell the lie, or to tell it to."""
    if attack.startswith("lazy,mode=copy,direction=forward"):
        return False  # a copy of the truth is none: test_misconduct.py
    if attack.startswith(("corrupt-shadow", "framing", "lie-on-jump", "lazy,mode=copy")) or "then=framing" in attack:
        return stage < STAGES[-1]  # the shadow of K-2 and the only holder of K-1 are the initiator's
    if "what=jump" in attack:
        return stage < STAGES[-1] and "direction=backward" not in attack  # backward, the shadow is the sender itself
    # Silent about both directions, the heir (who lies for the stage too) follows the liar in one step: two neighbours at once.
    return not ("direction=both" in attack and "what=board" in attack)


PROTOCOL = [
    (attack, stage) for name in PROTOCOL_LIES for attack in variants(name) for stage in STAGES if has_an_audience(attack, stage)
]


SPOILT_IN_SECRET = "wrong-update,mode=secret"


def steps_of(attack: str) -> int:
    """An update that is spoilt in secret shows in the next step, which makes it known and heals it: an even number."""
    return 4 if attack == SPOILT_IN_SECRET else 3


def comes_to_pass(attack: str, struck: list[bool]) -> bool:
    """Whether these strikes make a lie that somebody can see: a secret needs another step, a sleeper wakes at the second."""
    if attack == SPOILT_IN_SECRET:
        return not struck[-1] and any(struck)
    if attack.startswith("stale-weights"):
        return any(struck[1:])  # there are no older weights in the first step
    return sum(struck) > attack.startswith("sleeper")


def campaign(attack: str, stage: int, rate: float, steps: int, **more: Any) -> str:
    """The attack on one stage, with the first seed whose draws come to anything."""
    for seed in itertools.count():
        drawn = Campaign((stage,), rate, seed)
        if rate == 1 or comes_to_pass(attack, [drawn.strike(step) is not None for step in range(steps)]):
            break
    words = {"stages": stage, "rate": rate, "seed": seed, **more}
    return ",".join([attack, *(f"{key}={value}" for key, value in words.items())])


def check_caught(lab: Any, result: Any) -> None:
    """Every tampered claim detected, nobody alarmed for nothing, each conviction of the one real liar, the clean weights."""
    clean = lab.clean(result)
    assert result.attacked > 0, "nobody lied; the test shows nothing"
    assert (result.missed, result.false_alarms) == (0, 0)
    assert all(len(ruling.culprits) == 1 for ruling in result.of(Ruling)), "not exactly one is blamed"
    assert result.convictions <= result.false_accounts(clean), "somebody is blamed for what an honest worker says"
    assert result.blamed <= set(result.ledger.by_worker)
    assert result.digest == clean.digest
    assert result.counts.rollbacks == 0


def check_replaced(lab: Any, result: Any) -> None:
    """Besides, with `replace`: whoever said something false is convicted of just that, and no step is lost."""
    check_caught(lab, result)
    assert result.convictions == result.false_accounts(lab.clean(result))
    assert result.detected == result.attacked
    assert result.restarted == 0


def test_every_attack_is_in_a_matrix() -> None:
    assert {*ON_TENSORS, *PROTOCOL_LIES, *ELSEWHERE, *PLANTED} == set(ATTACKS)


# -- replace -------------------------------------------------------------------------------------------------------------


QUICK_FORGERIES = [(f"{name},direction={DIRECTIONS[i % 3]}", STAGES[i % 4]) for i, name in enumerate(ON_TENSORS)]
QUICK_LIES = [
    ("wrong-gradient,mode=state", 4),
    ("wrong-gradient,mode=secret", 2),
    ("wrong-norm,factor=0.5", 3),
    ("wrong-update,mode=state", 1),
    ("wrong-parent,direction=both", 4),
    ("equivocation,direction=backward,honest_first=false", 3),
    ("corrupt-shadow,size=0.1", 2),
    ("framing,direction=both", 3),
    ("lie-on-jump,header=false", 2),
    ("lie-on-direct,direction=both,header=true", 4),
    ("withhold,direction=forward,what=direct", 2),
    ("withhold,direction=forward,what=direct", 4),
    ("withhold,direction=both,what=everyone", 3),
    ("withhold,direction=forward,what=board", 2),
    ("withhold,direction=forward,what=board", 4),
    ("lazy,mode=forward,direction=both", 3),
    ("lazy,mode=update,direction=forward", 4),
    ("lazy,mode=copy,direction=both", 2),
    ("lazy,mode=copy,direction=all", 3),
    ("stale-weights,lag=1", 1),
    ("stale-weights,lag=1", 4),
    ("sleeper,sleep=1,then=wrong-update+mode=state", 2),
    ("clean-twin,shy=1,then=framing", 3),
]


@pytest.mark.parametrize(("attack", "stage"), [*QUICK_FORGERIES, *QUICK_LIES])
def test_a_lie_is_replaced(lab: Any, attack: str, stage: int) -> None:
    check_replaced(lab, lab.run(attack=campaign(attack, stage, 1.0, 2)))


def test_an_update_spoilt_in_secret_after_the_last_seal(lab: Any) -> None:
    """Nothing false is ever said; but what the run ends with, or a checkpoint holds, must be what was sealed."""
    result = lab.run(attack=f"{SPOILT_IN_SECRET},stages=2", steps=1)
    assert result.digest == lab.clean(result).digest


BOTH_WAYS = [attack for attack in FORGERIES if attack.endswith("direction=both")]
EVERYTHING = [(attack, stage, rate) for attack, stage in [*itertools.product(FORGERIES, STAGES), *PROTOCOL] for rate in RATES]


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "stage", "rate"), EVERYTHING)
def test_everything_is_replaced(lab: Any, attack: str, stage: int, rate: float) -> None:
    check_replaced(
        lab, lab.run(attack=campaign(attack, stage, rate, steps_of(attack)), steps=steps_of(attack), schedule=SCHEDULES[rate])
    )


# -- restart and relay ---------------------------------------------------------------------------------------------------


QUICK_RETRIES = [
    ("restart", "sign-flip,direction=forward", 1),
    ("restart", "gaussian,direction=backward", 4),
    ("restart", "wrong-gradient,mode=state", 2),
    ("relay", "sign-flip,direction=both", 3),
    ("relay", "wrong-update,mode=header", 1),
    ("relay", "lie-on-direct,direction=forward,header=false", 2),
]


@pytest.mark.parametrize(("remedy", "attack", "stage"), QUICK_RETRIES)
def test_a_step_that_was_lied_in_starts_again(lab: Any, remedy: str, attack: str, stage: int) -> None:
    result = lab.run(attack=campaign(attack, stage, 1.0, 2), on_alert=remedy)
    check_caught(lab, result)
    assert result.restarted == (0 if "lie-on" in attack else 2), "a lie on one link alone is not worth a restart"


@pytest.mark.parametrize(("remedy", "attack", "stage"), QUICK_RETRIES[::2])
def test_a_liar_who_never_stops_is_replaced_after_two_retries(lab: Any, remedy: str, attack: str, stage: int) -> None:
    result = lab.run(attack=campaign(attack, stage, 1.0, 1, persistent="true"), on_alert=remedy, steps=1)
    check_caught(lab, result)
    assert result.restarted == (0 if "lie-on" in attack else 2)


@pytest.mark.slow
@pytest.mark.parametrize(("attack", "stage", "rate"), EVERYTHING)
def test_everything_is_restarted(lab: Any, attack: str, stage: int, rate: float) -> None:
    check_caught(
        lab,
        lab.run(
            attack=campaign(attack, stage, rate, steps_of(attack)),
            steps=steps_of(attack),
            schedule=SCHEDULES[rate],
            on_alert="restart",
        ),
    )


@pytest.mark.slow
@pytest.mark.parametrize("remedy", ["restart", "relay"])
@pytest.mark.parametrize(("attack", "stage"), [*itertools.product(BOTH_WAYS, STAGES), *PROTOCOL])
def test_everything_persistent_is_replaced_in_the_end(lab: Any, attack: str, stage: int, remedy: str) -> None:
    check_caught(lab, lab.run(attack=campaign(attack, stage, 1.0, 2, persistent="true"), on_alert=remedy))


# -- quarantine and ban --------------------------------------------------------------------------------------------------


POLICIES = {"quarantine": {"ban_policy": "quarantine"}, "ban": {"ban_policy": "ban", "ban_after": 1}}
QUICK_POLICIES = [
    ("quarantine", "sign-flip,direction=both", 2),
    ("quarantine", "wrong-update,mode=state", 4),
    ("quarantine", "wrong-norm,factor=0.5", 3),
    ("ban", "sign-flip,direction=both", 4),
    ("ban", "corrupt-shadow,size=0.1", 1),
    ("ban", "wrong-gradient,mode=secret", 2),
]


@pytest.mark.parametrize(("policy", "attack", "stage"), QUICK_POLICIES)
def test_who_is_put_out_changes_no_bit(lab: Any, policy: str, attack: str, stage: int) -> None:
    check_put_out(lab, policy, attack, stage)


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("attack", "stage"), [*itertools.product(BOTH_WAYS, STAGES), *PROTOCOL])
def test_whoever_is_put_out_changes_no_bit(lab: Any, policy: str, attack: str, stage: int) -> None:
    check_put_out(lab, policy, attack, stage)


def check_put_out(lab: Any, policy: str, attack: str, stage: int) -> None:
    result = lab.run(attack=campaign(attack, stage, 1.0, steps_of(attack)), steps=steps_of(attack), defence=POLICIES[policy])
    check_caught(lab, result)
    gone = {event.worker for event in result.of(Banned)}
    assert gone <= result.blamed
    assert bool(gone) == (policy == "ban" and bool(result.blamed)), "who is convicted in the first step is banned after it"
    assert not {event.worker for event in result.of(WorkerLost)} - set(result.ledger.by_worker)


@pytest.mark.parametrize("second", ["sign-flip,stages=2,first_step=1", "framing,stages=3,first_step=1"])
def test_a_quarantined_worker_gives_its_neighbour_no_licence_to_lie(lab: Any, second: str) -> None:
    """w3 lied in the first step; in the second, w2, whom w3 checks, or w4, who checks w3, does."""
    first = lab.only("X.", "zeros", 3)
    check_caught(lab, lab.run(attack=[first, second], defence=POLICIES["quarantine"]))
