"""Watch a run from outside: an observer is any callable that takes an event and its virtual time."""

from collections import Counter

from holdfast import Experiment
from holdfast.event import Alert, Event, Ruling, StepSealed


class Watch:
    """Keeps who was suspected, who was convicted, and the loss of each step."""

    def __init__(self) -> None:
        self.suspected: Counter[str] = Counter()
        self.convicted: Counter[str] = Counter()
        self.losses: list[float] = []

    def __call__(self, event: Event, seconds: float) -> None:
        match event:
            case Alert():
                self.suspected.update(event.suspects)
            case Ruling():
                self.convicted.update(event.culprits)
                print(f"virtual second {seconds:6.2f}: {event.key}: {', '.join(event.culprits)} lied ({event.reason})")
            case StepSealed():
                self.losses.append(event.loss)


def main() -> None:
    watch = Watch()
    Experiment(steps=6, stages=5, attack="framing,rate=0.5,stages=2", observers=[watch]).run()
    print(f"suspected: {dict(watch.suspected)}; convicted: {dict(watch.convicted)}")
    print(f"loss from {watch.losses[0]:.3f} to {watch.losses[-1]:.3f} in {len(watch.losses)} steps")


if __name__ == "__main__":
    main()
