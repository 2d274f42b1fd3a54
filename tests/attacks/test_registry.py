from importlib.metadata import EntryPoint

import pytest
import torch

from holdfast import plugins
from holdfast.attacks import ATTACKS, known_attacks, resolve_attack
from holdfast.attacks.registry import CATALOGUE
from holdfast.attacks.tensors import Scale, SignFlip
from holdfast.claim import Direction
from holdfast.errors import ConfigError
from holdfast.testing import check_attack

MINE = '''
from __future__ import annotations
from dataclasses import dataclass
from holdfast.attacks import Attack

@dataclass(kw_only=True)
class Shrink(Attack):
    """Halve it."""
    factor: float = 0.5
    def forge(self, honest, scene):
        return honest * self.factor

class Unfinished(Attack):
    pass

class Fussy(Attack):
    def __init__(self, mood="bad"):
        super().__init__()
        raise ValueError(f"I am in a {mood} mood")
    def forge(self, honest, scene):
        return honest

number = 3
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def test_objects_pass_through():
    attack = SignFlip()
    assert resolve_attack(attack) is attack


def test_names_with_parameters():
    attack = resolve_attack("scale,factor=100,direction=both")
    assert attack == Scale(factor=100, direction="both")


def test_a_class_in_a_file(mine):
    attack = resolve_attack(f"{mine}:Shrink,factor=0.25,direction=backward")
    assert attack.directions == {Direction.BACKWARD}
    assert attack.forge(torch.ones(2), None).tolist() == [0.25, 0.25]
    check_attack(lambda: resolve_attack(f"{mine}:Shrink"))


def test_a_file_that_changed_is_read_again(mine):
    before = type(resolve_attack(f"{mine}:Shrink"))
    assert type(resolve_attack(f"{mine}:Shrink")) is before
    mine.write_text(MINE.replace("0.5", "0.75"))
    assert resolve_attack(f"{mine}:Shrink").factor == 0.75


def test_two_files_of_one_name_do_not_mix(mine, tmp_path):
    other = tmp_path / "other" / "mine.py"
    other.parent.mkdir()
    other.write_text(MINE.replace("0.5", "0.9"))
    assert resolve_attack(f"{mine}:Shrink").factor == 0.5
    assert resolve_attack(f"{other}:Shrink").factor == 0.9


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sign-flop", "unknown attack 'sign-flop'; did you mean 'sign-flip'"),
        ("quantum", "unknown attack 'quantum'; known are sign-flip, gaussian"),
        (
            "sign-flip,faktor=2",
            r"no parameter faktor; did you mean 'factor'\? it accepts direction, factor; and, as every attack, rate",
        ),
        ("nowhere.py:Shrink", "there is no file nowhere.py"),
        ("{mine}:Grow", "no class 'Grow'; it defines Shrink, Fussy"),
        ("{mine}:number", "3 is not an attack, because it is not a subclass"),
        ("{mine}:dataclass", "is not an attack, because it is not a subclass"),
        ("{mine}:Unfinished", "the class Unfinished is not an attack, because it leaves forge unwritten"),
        ("{mine}:Shrink,size=2", "no parameter size; it accepts direction, factor"),
        ("{mine}:Fussy,mood=foul", "I am in a foul mood; it accepts mood"),
        ("sign-flip,factor", "expected param=value"),
    ],
)
def test_what_cannot_be_resolved_says_what_could(spec, message, mine):
    with pytest.raises(ConfigError, match=message):
        resolve_attack(spec.format(mine=mine))


def test_other_objects_are_refused():
    with pytest.raises(ConfigError, match="or a name, got 3"):
        resolve_attack(3)
    with pytest.raises(ConfigError, match="got the class SignFlip"):
        resolve_attack(SignFlip)


@pytest.mark.parametrize(
    ("text", "message"), [("def", "SyntaxError"), ("1/0", "ZeroDivisionError"), ("import nope_x", "nope_x")]
)
def test_a_file_that_does_not_load_says_why(text, message, tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text(text)
    with pytest.raises(ConfigError, match=f"does not load: .*{message}"):
        resolve_attack(f"{broken}:Shrink")


def test_a_file_that_is_not_python(tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text(MINE)
    with pytest.raises(ConfigError, match=r"must end in \.py"):
        resolve_attack(f"{text}:Shrink")


def test_plug_ins_are_found_by_name(monkeypatch):
    entries = {
        "shout": EntryPoint("shout", "holdfast.attacks.tensors:Scale", CATALOGUE.group),
        "lost": EntryPoint("lost", "holdfast.nowhere:Scale", CATALOGUE.group),
        "wrong": EntryPoint("wrong", "holdfast.errors:ConfigError", CATALOGUE.group),
    }
    monkeypatch.setattr(plugins, "entry_points", lambda group: list(entries.values()) if group == CATALOGUE.group else [])
    assert resolve_attack("shout,factor=3") == Scale(factor=3)
    assert known_attacks()["shout"] == "plug-in: holdfast.attacks.tensors:Scale"
    with pytest.raises(ConfigError, match="does not load"):
        resolve_attack("lost")
    with pytest.raises(ConfigError, match="ConfigError is not an attack"):
        resolve_attack("wrong")


def test_every_attack_has_one_line():
    known = known_attacks()
    assert set(ATTACKS) <= set(known)
    assert all(10 < len(line) < 130 for line in known.values()), known
