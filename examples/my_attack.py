"""An attack of one's own, passed as an object: a liar that shrinks what it sends, a little more with every strike."""

from dataclasses import dataclass

from torch import Tensor

from holdfast import Attack, Experiment
from holdfast.attacks import Scene


@dataclass(kw_only=True)
class SlowDrift(Attack):
    """The honest tensor times `factor` to the power of the strikes so far."""

    factor: float = 0.95

    def forge(self, honest: Tensor, scene: Scene) -> Tensor:
        strikes = scene.memory["strikes"] = scene.memory.get("strikes", 0) + 1
        return honest * self.factor**strikes


def main() -> None:
    result = Experiment(steps=10, attack=SlowDrift(factor=0.9)).run()
    print(f"{result.detected} of {result.attacked_claims} forged claims detected; liars: {result.blamed_workers}")


if __name__ == "__main__":
    main()
