"""Remedies by name: the table, plug-ins and files, and retries for whoever takes them."""

from __future__ import annotations

import pytest

from holdfast.claim import ClaimKey, Direction
from holdfast.errors import ConfigError
from holdfast.recover.registry import REMEDIES, known_remedies, resolve_remedy
from holdfast.recover.remedy import Dispute, Investigate
from holdfast.recover.restart import Restart
from holdfast.route import plain_route

MINE = """
from holdfast.recover.remedy import Investigate, Remedy

class Patient(Remedy):
    name = "patient"

    def __init__(self, retries: int = 0, mood: str = "calm") -> None:
        self.retries, self.mood = retries, mood

    def answer(self, dispute):
        return Investigate()
"""


def dispute_at(attempt):
    route = plain_route(["w0", "w1", "w2", "w3", "w0"], ["w0"], shadowed=True)
    return Dispute(ClaimKey(7, attempt, Direction.FORWARD, 2, 0), "output", ("w2", "w3"), route)


def test_every_name_gives_its_remedy():
    for name, kind in REMEDIES.items():
        assert type(resolve_remedy(name, retries=2)) is kind
        assert kind.name == name
    assert set(known_remedies()) >= set(REMEDIES)
    assert all(10 < len(line) < 130 for line in known_remedies().values()), known_remedies()


def test_retries_reach_whoever_takes_them_and_a_parameter_wins():
    assert isinstance(resolve_remedy("restart", retries=0).answer(dispute_at(attempt=0)), Investigate)
    assert not isinstance(resolve_remedy("restart,retries=1", retries=0).answer(dispute_at(attempt=0)), Investigate)


def test_an_object_and_a_class_in_a_file(tmp_path):
    mine = Restart(7)
    assert resolve_remedy(mine, retries=1) is mine
    (tmp_path / "mine.py").write_text(MINE)
    found = resolve_remedy(f"{tmp_path}/mine.py:Patient,mood=stern", retries=3)
    assert (found.name, found.retries, found.mood) == ("patient", 3, "stern")


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("replac", "unknown remedy 'replac'; did you mean 'replace'"),
        ("skip,depth=2", "remedy 'skip' has no parameter depth; it accepts none"),
        ("nowhere.py:X", "there is no file nowhere.py"),
    ],
)
def test_what_is_wrong_is_named(spec, complaint):
    with pytest.raises(ConfigError, match=complaint):
        resolve_remedy(spec, retries=1)
