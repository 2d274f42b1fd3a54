"""A story of faults: a machine dies in the middle of a step, another stands still; the weights are those of a quiet run."""

from holdfast import Experiment, Faults
from holdfast.event import Event, Reshadowed, TakenOver, WorkerLost


def tell(event: Event, seconds: float) -> None:
    match event:
        case WorkerLost():
            print(f"virtual second {seconds:5.2f}: step {event.step}: {event.worker} is lost ({event.reason})")
        case TakenOver():
            print(f"virtual second {seconds:5.2f}: step {event.step}: {event.heir} takes stage {event.stage} over")
        case Reshadowed():
            print(f"virtual second {seconds:5.2f}: {event.worker} now shadows stage {event.stage}")


def main() -> None:
    story = Faults().crash(stage=2, step=3, at="backward").stall(stage=4, step=5, seconds=2.0)
    for fault in story:
        print("to come:", fault)
    quiet = Experiment(steps=8, stages=6).run()
    result = Experiment(steps=8, stages=6, faults=story, observers=[tell]).run()
    late = result.virtual_seconds - quiet.virtual_seconds
    print(f"{result.steps} steps, {result.steps_restarted} of them begun again, {late:.2f} virtual seconds later")
    print("same weights as the quiet run:", result.weights_digest == quiet.weights_digest)


if __name__ == "__main__":
    main()
