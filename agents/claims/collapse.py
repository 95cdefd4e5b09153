"""Claim 24: a collapsed encoder has a falling loss and useless features, and the alarm sees it.

The fixture attracts two shifts of a frame and repels nothing, so a constant solves it.
"""

from pathlib import Path

import numpy as np
from torch import Tensor

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import collect
from rlpre import pretrain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives import Objective, register_objective
from rlpre.objectives.batches import FrameViews

LEVEL = "BabyAI-GoToObj-v0"


class Attraction(Objective):
    """Mean squared distance of two shifts of a frame, without negatives."""

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        """See ``Objective.forward``."""
        return (views.anchor - views.second_view).square().mean(), {}


register_objective("attraction", Attraction)


def measure(directory: Path, seeds: int, steps: int = 120, fixture: str = "attraction") -> Verdict:
    """How often the alarm rings on the fixture, above healthy runs."""
    frames = collect(directory / "frames", LEVEL, 6000)
    settings = {"features": 64, "batch": 64, "steps": steps}
    runs = {
        name: [
            pretrain(frames, out=directory / f"{name}-{seed}", objective=name, seed=seed, **settings)
            for seed in range(seeds)
        ]
        for name in dict.fromkeys(("contrastive", fixture))
    }
    rang = {name: [float(each.collapse is not None) for each in found] for name, found in runs.items()}
    gain, loss = (
        show_interval(mean_interval(values), "{:.1g}".format)
        for values in (
            [np.mean([*each.probes.values()]) - np.mean([*each.control.values()]) for each in runs[fixture]],
            [each.metrics[f"{fixture}/loss"] for each in runs[fixture]],
        )
    )
    measured = (
        "how often the alarm rings on attraction without negatives, above healthy contrastive runs; the loss of the "
        f"former falls to {loss} and its probes gain {gain}"
    )
    return judge(rang[fixture], rang["contrastive"], 0.5, measured, "healthy runs")


CLAIM = Claim(
    24,
    "A loss that falls while probes do not rise is a collapse, and an alarm on features sees it.",
    measure,
    "alarms on healthy contrastive runs",
)
