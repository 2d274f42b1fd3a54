import pytest
import torch

from holdfast.attacks import Scene
from holdfast.attacks.adaptive import Creep, Drift, stepped
from holdfast.claim import ClaimKey, Direction
from holdfast.digest import same_bytes

HIDDEN = torch.arange(1.0, 25.0).reshape(2, 3, 4)
GRADIENT = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1))


def scene(step=0, attempt=0, direction=Direction.FORWARD, micro_batch=0, **more):
    return Scene(ClaimKey(step, attempt, direction, 2, micro_batch), "w2", (), torch.Generator().manual_seed(step), **more)


def length(forged):
    return float((forged - HIDDEN).norm() / HIDDEN.norm())


def cosine(one, other):
    return float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def test_drift_follows_what_the_samples_of_another_step_have_in_common():
    forged = Drift(epsilon=0.1).forge(HIDDEN, scene(gradient=GRADIENT))
    assert length(forged) == pytest.approx(0.1, rel=1e-4)
    assert cosine(forged - HIDDEN, GRADIENT.mean((0, 1)).expand_as(HIDDEN)) == pytest.approx(1.0, abs=1e-5)


def test_drift_follows_the_gradient_itself_where_the_step_starts_again():
    forged = Drift(epsilon=0.1).forge(HIDDEN, scene(attempt=1, gradient=GRADIENT))
    assert length(forged) == pytest.approx(0.1, rel=1e-4)
    assert cosine(forged - HIDDEN, GRADIENT) == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize("known", [None, GRADIENT[:1]])
def test_drift_is_random_before_it_has_seen_a_gradient(known):
    forged = Drift(epsilon=0.1).forge(HIDDEN, scene(gradient=known))
    assert length(forged) == pytest.approx(0.1, rel=1e-4)
    assert same_bytes(forged, Drift(epsilon=0.1).forge(HIDDEN, scene()))


def test_drift_takes_from_a_gradient():
    forged = Drift(epsilon=0.25, direction="backward").forge(HIDDEN, scene(direction=Direction.BACKWARD, gradient=GRADIENT))
    assert torch.allclose(forged, HIDDEN * 0.75)


def test_creep_grows_by_the_strike_until_its_limit():
    attack, memory = Creep(start=0.01, growth=3.0, limit=0.2), {}
    found = [length(attack.forge(HIDDEN, scene(step, memory=memory))) for step in (0, 4, 5, 9)]
    assert found == pytest.approx([0.01, 0.03, 0.09, 0.2], rel=1e-3)


def test_creep_counts_attempts_and_not_claims():
    attack, memory = Creep(start=0.01, growth=3.0), {}
    found = [
        length(attack.forge(HIDDEN, scene(step, attempt, micro_batch=m, memory=memory)))
        for step, attempt, m in [(0, 0, 1), (0, 0, 0), (0, 1, 0), (1, 0, 2), (0, 0, 2)]
    ]
    assert found == pytest.approx([0.01, 0.01, 0.03, 0.09, 0.01], rel=1e-3)


def test_creep_keeps_to_its_limit_however_long_it_lives():
    assert Creep(limit=0.5).length(10**9) == 0.5


def test_a_step_from_nothing_is_none():
    assert same_bytes(stepped(HIDDEN, torch.zeros_like(HIDDEN), 0.5), HIDDEN)
    assert same_bytes(stepped(torch.zeros_like(HIDDEN), HIDDEN, 0.5), torch.zeros_like(HIDDEN))
