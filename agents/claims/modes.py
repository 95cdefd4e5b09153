"""Claim 22: a linear probe, partial and full fine-tuning all adapt a pretrained encoder to few labels."""

from pathlib import Path

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import Tuning

MODES = {"probe": 4, "partial": 2, "full": 0}  # stages that are frozen


def measure(directory: Path, seeds: int, steps: int = 250, labels: int = 60) -> Verdict:
    """The score of the worst mode above that of the same network from scratch."""
    task = Tuning(directory, steps)
    scratch = [task.score(seed, labels, pretrained=False) for seed in range(seeds)]
    scores = {
        name: [task.score(seed, labels, frozen=frozen) for seed in range(seeds)] for name, frozen in MODES.items()
    }
    means = ", ".join(f"{name} {sum(values) / seeds:.2f}" for name, values in scores.items())
    measured = f"accuracy of the expert's action from {labels} labels, worst mode above scratch; {means}"
    return judge([min(each) for each in zip(*scores.values(), strict=True)], scratch, 0.03, measured, "scratch")


CLAIM = Claim(
    22,
    "A linear probe, partial and full fine-tuning all adapt a pretrained encoder to few labels.",
    measure,
    "the same network from scratch",
    answer_of("ablation", "temporal+inverse-finetuned"),
    "features that tell more of the label than fresh ones; otherwise the linear probe loses to training all weights",
)
