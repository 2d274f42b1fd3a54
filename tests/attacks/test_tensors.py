import pytest
import torch

from holdfast.attacks import ATTACKS, Attack, Scene, resolve_attack
from holdfast.attacks.tensors import Gaussian, NotANumber, OtherInput, Perturb, Replay, SignFlip
from holdfast.claim import ClaimKey, Direction
from holdfast.digest import same_bytes
from holdfast.errors import ConfigError
from holdfast.testing import check_attack

ON_TENSORS = [name for name, kind in ATTACKS.items() if issubclass(kind, Attack)]
HIDDEN = torch.arange(24.0).reshape(2, 3, 4)


def scene(seed=0, inputs=(), **more):
    key = ClaimKey(3, 0, Direction.FORWARD, 2, 1)
    return Scene(key, "w2", inputs, torch.Generator().manual_seed(seed), **more)


@pytest.mark.parametrize("name", ON_TENSORS)
@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
def test_every_attack_on_tensors_keeps_the_contract(name, direction):
    check_attack(lambda: resolve_attack(f"{name},direction={direction}"))


def test_directions_default_to_those_of_the_paper():
    assert SignFlip().directions == {Direction.FORWARD}
    assert Gaussian().directions == {Direction.BACKWARD}
    assert SignFlip(direction="both").directions == {Direction.FORWARD, Direction.BACKWARD}


def test_gaussian_replaces_and_add_adds():
    noise = Gaussian(sigma=2.0).forge(HIDDEN, scene())
    assert same_bytes(Gaussian(sigma=2.0).forge(torch.zeros_like(HIDDEN), scene()), noise)
    assert same_bytes(Gaussian(sigma=2.0, add=True).forge(HIDDEN, scene()), HIDDEN + noise)


def test_relative_gaussian_follows_the_size_of_what_it_replaces():
    tiny = torch.full((2, 50, 40), 1e-6)
    noise = Gaussian(relative=True).forge(tiny, scene())
    assert 0.9e-6 < noise.std() < 1.1e-6


def test_other_seeds_give_other_noise():
    assert not same_bytes(Gaussian().forge(HIDDEN, scene(1)), Gaussian().forge(HIDDEN, scene(2)))


def test_perturb_has_the_relative_length_that_was_asked_for():
    gone = (Perturb(epsilon=0.01).forge(HIDDEN, scene()) - HIDDEN).norm() / HIDDEN.norm()
    assert gone.item() == pytest.approx(0.01, rel=1e-3)


def test_other_input_runs_the_stage_on_rolled_rows():
    forged = OtherInput().forge(HIDDEN * 3, scene(inputs=(HIDDEN,), recompute=lambda other: other * 3))
    assert same_bytes(forged, HIDDEN.flip(0) * 3)


def test_other_input_reverses_the_only_sequence():
    one = HIDDEN[:1]
    forged = OtherInput().forge(one, scene(inputs=(one,), recompute=lambda other: other))
    assert same_bytes(forged, one.flip(1))


def test_other_input_stays_honest_where_it_has_no_input():
    assert same_bytes(OtherInput().forge(HIDDEN, scene()), HIDDEN)


def test_replay_remembers_by_micro_batch():
    memory = {}
    first = Replay().forge(HIDDEN, scene(memory=memory))
    second = Replay().forge(HIDDEN + 1, scene(memory=memory))
    assert same_bytes(first, torch.zeros_like(HIDDEN))
    assert same_bytes(second, HIDDEN)


def test_not_a_number_poisons_the_share_that_was_asked_for():
    assert NotANumber(share=0.25).forge(HIDDEN, scene()).isnan().sum() == 6
    assert NotANumber(share=1e-9, infinity=True).forge(HIDDEN, scene()).isinf().sum() == 1


def test_noise_is_the_same_in_every_dtype_up_to_rounding():
    narrow = Gaussian().forge(HIDDEN.bfloat16(), scene())
    assert same_bytes(narrow, Gaussian().forge(HIDDEN, scene()).bfloat16())


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("sign-flip,factor=0", "factor must be greater than 0, got 0"),
        ("sign-flip,factor=big", "factor must be a number, got 'big'"),
        ("sign-flip,factor=true", "factor must be a number, got True"),
        ("sign-flip,factor=nan", "factor must be a number, got nan"),
        ("sign-flip,direction=sideways", "direction must be one of forward, backward, both, got 'sideways'"),
        ("gaussian,sigma=-1", "sigma must be greater than 0"),
        ("gaussian,add=1", "add must be true or false, got 1"),
        ("uniform,bound=inf", "bound must be greater than 0 and finite"),
        ("scale,factor=1", "factor 1 would be the honest output"),
        ("perturb,epsilon=0", "epsilon must be greater than 0"),
        ("permute,shift=1.5", "shift must be a whole number, got 1.5"),
        ("nan,share=2", "share must be greater than 0 and at most 1"),
        ("wrong-norm,factor=1", "factor must be at least 0 and not 1"),
        ("wrong-update,mode=loud", "mode must be header, state or secret"),
        ("wrong-gradient,size=0", "size must be greater than 0"),
        ("corrupt-shadow,size=0", "size must be greater than 0"),
        ("corrupt-shadow,direction=backward", "direction must be one of forward, got 'backward'"),
        ("withhold,what=nothing", "what must be direct, jump, everyone or board"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        resolve_attack(spec)
