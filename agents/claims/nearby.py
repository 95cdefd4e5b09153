"""Claim 13: fine-tuning that stays near the pretrained weights generalises better from few labels (L2-SP)."""

from pathlib import Path

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import Tuning

STRENGTH = 1.0


def measure(directory: Path, seeds: int, steps: int = 250, labels: int = 30, strength: float = STRENGTH) -> Verdict:
    """The score of anchored fine-tuning above that of free fine-tuning from the same weights."""
    task = Tuning(directory, steps)
    free, anchored = ([task.score(s, labels, anchor=pull) for s in range(seeds)] for pull in (0.0, strength))
    measured = f"accuracy of the expert's action from {labels} labels, anchored above free fine-tuning"
    return judge(anchored, free, 0.03, measured, "free")


CLAIM = Claim(
    13,
    "Fine-tuning that stays near the prior learns more from few labels.",
    measure,
    "free fine-tuning from the same weights",
    answer_of("ablation", "temporal+inverse-anchored"),
    "a pretrained start that is nearer to the solution than few labels lead",
)
