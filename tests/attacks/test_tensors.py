import pytest
import torch

from holdfast.attacks import ATTACKS, Attack, Scene, resolve_attack
from holdfast.attacks.tensors import Gaussian, MomentNoise, OtherInput, Perturb, Replay, SignFlip
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


def moments(tensor, over):
    deviation, mean = torch.std_mean(tensor.double(), over, correction=0)
    return torch.stack([deviation, mean])


@pytest.mark.parametrize(("per", "over"), [("tensor", (0, 1, 2)), ("feature", (0, 1))])
def test_noise_with_the_moments_of_what_it_replaces(per, over):
    noise = MomentNoise(per=per).forge(HIDDEN, scene())
    assert torch.allclose(moments(noise, over), moments(HIDDEN, over), rtol=1e-6)
    assert (noise - HIDDEN).norm() > HIDDEN.std()


def test_noise_per_tensor_has_other_moments_in_each_feature():
    noise = MomentNoise().forge(HIDDEN, scene())
    assert not torch.allclose(moments(noise, (0, 1)), moments(HIDDEN, (0, 1)), rtol=0.05)


def test_one_row_a_feature_has_no_variance_to_match():
    one = HIDDEN[:1, :1]
    noise = MomentNoise(per="feature").forge(one, scene())
    assert torch.allclose(moments(noise, (0, 1, 2)), moments(one, (0, 1, 2)), rtol=1e-6)
    assert not same_bytes(noise, one)


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
        ("moment-noise,per=row", "per must be tensor or feature, got 'row'"),
        ("one-row,size=0", "size must be greater than 0 and finite, got 0"),
        ("bit-flip,bits=0", "bits must be 1 to 16, got 0"),
        ("bit-flip,count=0", "count must be at least 1, got 0"),
        ("bit-flip,bits=3,highest=2", "highest must be 0 .any bit. or at least the 3 bits to flip, got 2"),
        ("drift,epsilon=inf", "epsilon must be greater than 0 and finite, got inf"),
        ("creep,start=0", "start must be greater than 0 and at most the limit of 1.0, got 0"),
        ("creep,start=0.5,limit=0.1", "start must be greater than 0 and at most the limit of 0.1, got 0.5"),
        ("creep,growth=1", "growth must be greater than 1 and finite, got 1"),
        ("sleeper,sleep=-1", "sleep must be at least 0 strikes, got -1"),
        ("sleeper,then=sign-flop", "unknown attack 'sign-flop'"),
        ("sleeper,direction=forward", "direction must be one of then, got 'forward'"),
        ("clean-twin,shy=0", "shy must be at least 1 step, got 0"),
        ("lazy,mode=asleep", "mode must be forward, update or copy, got 'asleep'"),
        ("lazy,direction=all", "direction=all is for mode=copy, got mode=forward"),
        ("stale-weights,lag=0", "lag must be at least 1, got 0"),
        ("stale-weights,direction=forward", "direction must be one of both, got 'forward'"),
        ("delay,pieces=0", "pieces must be at least 1, got 0"),
        ("replay-claim,how=loudly", "how must be beside, instead or relabelled, got 'loudly'"),
        ("flood,per_step=-1", "per_step must be at least 0 .every delivery., got -1"),
        ("substitute,size=0", "size must be greater than 0, got 0"),
        ("substitute,times=-1", "times must be at least 0 .every time., got -1"),
        ("collusion,what=everything", "what must be claims, gradient or update, got 'everything'"),
        ("collusion,then=framing", "then must name an attack on tensors, got 'framing'"),
        ("collusion,what=update,size=0", "size must be greater than 0, got 0"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(spec, message):
    with pytest.raises(ConfigError, match=message):
        resolve_attack(spec)
