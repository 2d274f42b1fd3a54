"""A defence of one's own: forgive the first suspicion of a step and do it again by the coordinator, then find out who lied."""

from dataclasses import replace

from holdfast import Experiment
from holdfast.recover.remedy import Answer, Dispute, Investigate, Redo, Remedy


class Patient(Remedy):
    name = "patient"

    def answer(self, dispute: Dispute) -> Answer:
        if dispute.key.attempt == 0:
            return Redo(replace(dispute.route, relay=True), investigate=True)
        return Investigate()


def main() -> None:
    small = {"model": "gpt2:layers=5,width=32,heads=2", "steps": 8, "stages": 5, "seq_length": 32}
    clean = Experiment(**small).run()
    for name, remedy in (("replace", "replace"), ("patient", f"{__file__}:Patient")):
        result = Experiment(**small, attack="sign-flip,rate=0.5,persistent=true", on_alert=remedy).run()
        print(f"{name:<8} {result.steps_restarted} steps begun again, {result.claims_replaced} claims replaced")
        print(f"         same weights as the clean run: {result.weights_digest == clean.weights_digest}")


if __name__ == "__main__":
    main()
