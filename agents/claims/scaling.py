"""Claim 15: unlabeled data are unreasonably effective: more distinct frames, better features."""

from pathlib import Path

from agents.claims.claim import Claim, Verdict, answer_of, judge
from agents.claims.tools import collect, mean_probe
from agents.distinct import take_distinct
from rlpre import pretrain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.probes import fresh
from rlpre.evaluation.stats import mean_interval

LEVEL, FEW, MANY = "BabyAI-GoToObj-v0", 50, 1000


def measure(directory: Path, seeds: int, steps: int = 250, few: int = FEW, many: int = MANY) -> Verdict:
    """The mean score of probes after pretraining on many distinct frames, above few, at equal updates."""
    frames = collect(directory / "frames", LEVEL, 8000)
    test = collect(directory / "test", LEVEL, 4000, seed=1)
    scores: dict[int, list[float]] = {0: [], few: [], many: []}
    for seed in range(seeds):
        for count in dict.fromkeys((few, many)):
            part = take_distinct(frames, directory / f"{seed}-{count}-frames", count, seed)
            out = directory / f"{seed}-{count}"
            settings = {"objective": "temporal+inverse", "features": 64, "batch": 64, "steps": steps, "seed": seed}
            encoder = pretrain(part, out=out, **settings).encoder
            scores[count].append(mean_probe(encoder, test))
        scores[0].append(mean_probe(fresh(encoder, seed), test))
    without = show_interval(mean_interval(scores[0]))
    measured = f"mean score of probes after {many} distinct frames above {few}, in other rooms; fresh weights {without}"
    return judge(scores[many][:seeds], scores[few][:seeds], 0.03, measured, f"{few} frames")


CLAIM = Claim(
    15,
    "Unlabeled data are unreasonably effective.",
    measure,
    "the same updates on few distinct frames",
    answer_of("scaling", "100k-frozen"),
    "worlds of which few frames show little; or more updates, which only many frames can use",
)
