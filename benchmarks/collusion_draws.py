"""Does the lottery of spot checks keep its word? The draws alone, over many seeds, against 1-(1-p)^n.

    python benchmarks/collusion_draws.py --seeds 5000

The claims are those that two colluders forge in `holdfast bench detection --suite collusion` (8 steps, rate 0.5, stages 1 to 3,
two micro-batches); nothing is trained. Every forged claim that is drawn is found, so a run is caught if its draw falls on one.
"""

from __future__ import annotations

import argparse

from measure import show
from scipy.stats import binomtest

from holdfast.attacks.campaign import Campaign
from holdfast.claim import ClaimKey, Direction
from holdfast.seeds import derive
from holdfast.verify.spotcheck import Sampling, escape

STEPS, MICRO_BATCHES, STAGES = 8, 2, (1, 2, 3, 4)
ALONE = 4
"""The shadow of the last middle stage is the initiator's: nobody is there to agree with."""


def forged(seed: int) -> list[ClaimKey]:
    campaign = Campaign(STAGES, 0.5, derive(seed, "campaign", 0))
    struck = [(step, campaign.strike(step)) for step in range(STEPS)]
    return [
        ClaimKey(step, 0, Direction.FORWARD, stage, m)
        for step, stage in struck
        if stage is not None and stage != ALONE
        for m in range(MICRO_BATCHES)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5000)
    parser.add_argument("--first-seed", type=int, default=0)
    options = parser.parse_args()
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    rows = []
    for p in (0.01, 0.02, 0.05, 0.1):
        claims = {seed: keys for seed in seeds if (keys := forged(seed))}
        draws = {seed: Sampling(derive(derive(seed, "spot checks"), "deployment", 0), p) for seed in claims}
        caught = sum(any(draws[seed].draws_claim(key) for key in keys) for seed, keys in claims.items())
        expected = sum(1 - escape(len(keys), p) for keys in claims.values()) / len(claims)
        interval = binomtest(caught, len(claims)).proportion_ci()
        figures = f"{caught}/{len(claims)} = {caught / len(claims):.2%} [{interval.low:.2%}, {interval.high:.2%}]"
        rows.append([f"{p:g}", figures, f"{expected:.2%}"])
    show(f"Draws of {options.seeds} seeds", ["p", "runs in which a forged claim is drawn (95 %)", "1-(1-p)^n"], rows)


if __name__ == "__main__":
    main()
