"""Compare defences over seeds: one row a run, then means with 95 % intervals, then: are the weights those of the clean run?"""

from holdfast.sweep import summary, sweep

SMALL = {"model": "gpt2:layers=5,width=32,heads=2", "stages": 5, "micro_batches": 2, "steps": 6, "seq_length": 32}


def main() -> None:
    runs = sweep(
        SMALL,
        cases=[
            {"name": "clean", "defence": "none"},
            {"name": "attacked", "defence": "none", "attack": "sign-flip,rate=0.7"},
            {"name": "skip", "on_alert": "skip", "attack": "sign-flip,rate=0.7"},
            {"name": "replace", "on_alert": "replace", "attack": "sign-flip,rate=0.7"},
        ],
        seeds=3,
    )
    table = summary(runs, by="case", values=["validation_perplexity", "virtual_seconds"])
    print(table[["case", "validation_perplexity", "validation_perplexity_low", "validation_perplexity_high"]].to_string())

    digests = runs.pivot(index="seed", columns="case", values="weights_digest")
    for case in ("attacked", "skip", "replace"):
        print(f"{case:<8} weights equal the clean run's in {(digests[case] == digests['clean']).sum()} of {len(digests)} seeds")


if __name__ == "__main__":
    main()
