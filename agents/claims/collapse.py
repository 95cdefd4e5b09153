"""Claim 24: a collapsed encoder has a falling loss and useless features, and the alarm sees it.

The fixture attracts two shifts of a frame and repels nothing, so a constant solves it.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import collect
from rlpre import pretrain
from rlpre.objectives import Objective, register_objective
from rlpre.objectives.batches import FrameViews

LEVEL = "BabyAI-GoToObj-v0"


class Attraction(Objective):
    """Mean squared distance of two shifts of a frame, without negatives."""

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        return (views.anchor - views.second_view).square().mean(), {}


register_objective("attraction", Attraction)


def measure(directory: Path, seeds: int, steps: int = 250, fixture: str = "attraction") -> Verdict:
    """The probe's score of healthy features above that of the fixture's, and how often the alarm rang on each."""
    frames = collect(directory / "frames", LEVEL, 6000)
    settings = {"features": 64, "batch": 64, "steps": steps}
    runs = {
        name: [
            pretrain(frames, out=directory / f"{name}-{seed}", objective=name, seed=seed, **settings)
            for seed in range(seeds)
        ]
        for name in dict.fromkeys(("contrastive", fixture))
    }
    scores = {name: [np.mean([*each.probes.values()]) for each in found] for name, found in runs.items()}
    rang = {name: sum(each.collapse is not None for each in found) for name, found in runs.items()}
    loss = np.mean([each.metrics[f"{fixture}/loss"] for each in runs[fixture]])
    measured = (
        f"mean score of probes, contrastive above attraction alone, whose loss falls to {loss:.0e}; the alarm rang on "
        f"{rang[fixture]} of {seeds} collapsed and {rang['contrastive']} of {seeds} healthy runs"
    )
    return judge(scores["contrastive"], scores[fixture], 0.03, measured, "attraction alone")


CLAIM = Claim(
    24,
    "A loss that falls while probes do not rise is a collapse, and an alarm on features sees it.",
    measure,
    "the same objective without what repels",
)
