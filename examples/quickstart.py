"""Twenty lines: train a small model in six stages, let one of them lie in most steps, and end with the clean weights."""

from holdfast import Experiment


def main() -> None:
    small = {"steps": 12, "stages": 6, "seq_length": 32, "seed": 1}

    clean = Experiment(**small).run()
    attacked = Experiment(**small, attack="sign-flip,rate=0.7", defence="none").run()
    defended = Experiment(**small, attack="sign-flip,rate=0.7", on_alert="replace").run()

    for name, result in (("clean", clean), ("attacked", attacked), ("defended", defended)):
        print(f"{name:<9} perplexity {result.validation_perplexity:8.1f}   weights {result.weights_digest[:12]}")
    print(f"{defended.detected} of {defended.attacked_claims} forged claims detected; liars: {defended.blamed_workers}")
    print("same weights as the clean run:", defended.weights_digest == clean.weights_digest)


if __name__ == "__main__":
    main()
