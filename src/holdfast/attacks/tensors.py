"""The attacks on tensors: `x` is the honest output of a stage, hidden states forward or input gradients backward, [B, S, D].

    name          says instead of x                       after
    sign-flip     -factor * x                             Lu et al. 2024, section 5 (forward); Li et al. 2019 (RSA)
    gaussian      N(0, sigma^2), or x + N(0, sigma^2)     Lu et al. 2024, section 5 (backward); Blanchard et al. 2017
    zeros         0                                       a stage that does no work (free rider)
    uniform       U(-bound, bound)                        Blanchard et al. 2017: an arbitrary vector
    scale         factor * x                              Bagdasaryan et al. 2020 (model replacement, boosting)
    perturb       x + epsilon * |x| * n/|n|, n ~ N(0, 1)  Fang et al. 2020: a lie kept inside honest variation
    other-input   f(another input), computed honestly     Lu et al. 2024: the more knowledgeable attacker
    replay        x of an earlier strike                  a valid value, once
    permute       rows of x (one row: positions) rolled   honest numbers for the wrong samples
    moment-noise  mean(x) + std(x) * n, exactly           Baruch et al. 2019, section 3: nothing for statistics to see

Recomputation (the shadow, the referee) catches every one of them: a digest differs or it does not.
Where the paper names a stage's direction it is the default here: sign-flip forward, gaussian backward.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from holdfast.attacks.attack import Attack, Scene


def scene_for_doctest() -> Scene:
    """A scene of stage 1 with nothing to see, for the examples below."""
    from holdfast.claim import ClaimKey, Direction

    return Scene(ClaimKey(0, 0, Direction.FORWARD, 1, 0), "w1", (), torch.Generator().manual_seed(0))


@dataclass(kw_only=True)
class SignFlip(Attack):
    """Turn the output around: -factor * x.

    >>> SignFlip(factor=2.0).forge(torch.tensor([1.0, -3.0]), scene_for_doctest())
    tensor([-2.,  6.])
    """

    factor: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor <= 0:
            self.refuse(f"factor must be greater than 0, got {self.factor}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return honest * -self.factor


@dataclass(kw_only=True)
class Gaussian(Attack):
    """Send noise: N(0, sigma^2), in place of the output or (`add=true`) on top of it.

    The paper replaces the gradient by Gaussian noise; its published code adds noise of variance 1, which beside a gradient
    of norm 1e-3 is the same. sigma = 1 is theirs; `relative=true` gives the noise the root mean square of x times sigma.

    >>> Gaussian(sigma=0.5).forge(torch.zeros(1000), scene_for_doctest()).std().round(decimals=1)
    tensor(0.5000)
    """

    direction: str = "backward"
    sigma: float = 1.0
    relative: bool = False
    add: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sigma <= 0 or math.isinf(self.sigma):
            self.refuse(f"sigma must be greater than 0 and finite, got {self.sigma}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        size = self.sigma * _root_mean_square(honest) if self.relative else self.sigma
        noise = scene.normal_like(honest) * size
        return honest + noise if self.add else noise


@dataclass(kw_only=True)
class Zeros(Attack):
    """Do no work and send zeros.

    >>> Zeros().forge(torch.tensor([1.0, -3.0]), scene_for_doctest())
    tensor([0., 0.])
    """

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return torch.zeros_like(honest)


@dataclass(kw_only=True)
class Uniform(Attack):
    """Send an arbitrary tensor: U(-bound, bound).

    >>> bool(Uniform(bound=0.1).forge(torch.ones(9), scene_for_doctest()).abs().max() <= 0.1)
    True
    """

    bound: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bound <= 0 or math.isinf(self.bound):
            self.refuse(f"bound must be greater than 0 and finite, got {self.bound}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return (scene.uniform_like(honest) * 2 - 1) * self.bound


@dataclass(kw_only=True)
class Scale(Attack):
    """Shout: factor * x.

    >>> Scale(factor=10).forge(torch.tensor([1.0, -3.0]), scene_for_doctest())
    tensor([ 10., -30.])
    """

    factor: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.factor == 1:
            self.refuse("factor 1 would be the honest output; use another one")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return honest * self.factor


@dataclass(kw_only=True)
class Perturb(Attack):
    """Whisper: a random direction of relative length epsilon, inside what statistics of traffic take for normal.

    >>> x = torch.full((4,), 3.0)
    >>> (Perturb(epsilon=0.5).forge(x, scene_for_doctest()) - x).norm() / x.norm()
    tensor(0.5000)
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.epsilon < math.inf:
            self.refuse(f"epsilon must be greater than 0 and finite, got {self.epsilon}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        noise = scene.normal_like(honest).float()
        length = self.epsilon * float(torch.linalg.vector_norm(honest.float()) / torch.linalg.vector_norm(noise))
        return (honest.float() + noise * length).to(honest.dtype)


@dataclass(kw_only=True)
class OtherInput(Attack):
    """Run the stage honestly, on another input: the rows of the batch rolled by one, or one sequence reversed.

    Every statistic of the output is that of an honest one, and a verifier who must take the liar's word for the input is shown
    the other input: what the jumping connection is for. Where the input never crossed a wire it has nothing to run on and stays
    honest.

    >>> OtherInput.disguise(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])).flatten()
    tensor([3., 4., 1., 2.])
    """

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        return scene.recompute(self.disguise(scene.inputs[0])) if scene.inputs else honest.clone()

    def pretend(self, origin: Tensor, scene: Scene) -> Tensor:
        return self.disguise(origin) if scene.inputs else origin

    @staticmethod
    def disguise(tensor: Tensor) -> Tensor:
        """Another input of the same kind, [B, S, D]."""
        return tensor.roll(1, dims=0) if tensor.shape[0] > 1 else tensor.flip(1)


@dataclass(kw_only=True)
class Replay(Attack):
    """Say what was true at an earlier strike of the same micro-batch; the first one says its input, or zeros, instead.

    >>> scene, attack = scene_for_doctest(), Replay()
    >>> [attack.forge(torch.tensor([x]), scene).item() for x in (1.0, 2.0, 3.0)]
    [0.0, 1.0, 2.0]
    """

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        slot = f"{scene.key.direction}/{scene.key.micro_batch}"
        old: Tensor | None = scene.memory.get(slot)
        scene.memory[slot] = honest.clone()
        if old is None or old.shape != honest.shape:
            old = scene.inputs[0] if scene.inputs else torch.zeros_like(honest)
        return old.clone()


@dataclass(kw_only=True)
class Permute(Attack):
    """Give each sample its neighbour's output: rows rolled by `shift`, or positions where there is one row.

    >>> Permute().forge(torch.tensor([[[1.0]], [[2.0]], [[3.0]]]), scene_for_doctest()).flatten()
    tensor([3., 1., 2.])
    """

    shift: int = 1

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        axis = 0 if honest.shape[0] > 1 else 1
        return honest.roll(self.shift, dims=axis)


@dataclass(kw_only=True)
class MomentNoise(Attack):
    """Send noise with the mean and the variance of x: of the whole tensor, or (`per="feature"`) of each of its D features.

    m + s * (n - mean(n)) / std(n), computed in double precision: whoever compares means, variances or norms with those of
    the honest tensor finds no difference but rounding. Baruch et al. 2019 ("A Little Is Enough", section 3) stay within such
    statistics of others; this one has the very own. With a single row per feature, the whole tensor's moments are taken.

    >>> x = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [5.0, 20.0]]])
    >>> MomentNoise(per="feature").forge(x, scene_for_doctest()).mean(dim=(0, 1)).round(decimals=3)
    tensor([ 3., 20.])
    """

    per: str = "tensor"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.per not in ("tensor", "feature"):
            self.refuse(f"per must be tensor or feature, got {self.per!r}")

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        rows = honest.shape[:-1].numel()
        over = tuple(range(honest.ndim - (self.per == "feature" and rows > 1)))
        noise, exact = scene.normal_like(honest).double(), honest.double()
        deviation, mean = torch.std_mean(exact, over, correction=0, keepdim=True)
        of_noise, centre = torch.std_mean(noise, over, correction=0, keepdim=True)
        return (mean + deviation * (noise - centre) / of_noise).to(honest.dtype)


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.float().square().mean().sqrt())
