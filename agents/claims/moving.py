"""Claim 7: new vocabulary, learning on the new domain, and new modules carry an encoder to another world.

From two small rooms with one kind of goal to rooms with objects of all colours, other actions and other words. The
ablation switches three steps on or off: known words and actions keep their embeddings; the objective goes on in the new
world; a new layer is added. What is left without all three is an encoder of the old world with fresh embeddings.
"""

from itertools import product
from pathlib import Path

import numpy as np
import torch

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.tools import collect, fresh_cnn, mean_probe
from rlpre import FrameStore, SequenceEncoder, Vocabulary, pretrain, whiten

OLD, NEW = ("MiniGrid-Empty-Random-6x6-v0", "MiniGrid-LavaGapS5-v0"), "BabyAI-PickupDist-v0"
STEPS = ("embeddings", "objective", "module")
SIZES = {"width": 48, "layers": 1, "window": 8}


def measure(directory: Path, seeds: int, steps: int = 150) -> Verdict:
    """The probe's score in the new world with all three steps, above none."""
    old = collect(directory / "old", OLD, 6000)
    new = collect(directory / "new", NEW, 6000)
    cells = list(product((False, True), repeat=3))
    scores = np.array([_scores(directory / f"{seed}", old, new, seed, steps) for seed in range(seeds)])
    effects = scores @ np.array([np.where(cell, 0.25, -0.25) for cell in cells])  # of each step, mean of its pairs
    shown = ", ".join(f"{name} {effect:+.3f}" for name, effect in zip(STEPS, effects.mean(0), strict=True))
    measured = f"mean score of probes in the new world, all three steps above none; effect of each: {shown}"
    return judge(scores[:, -1], scores[:, 0], 0.03, measured, "none")


def _scores(out: Path, old: FrameStore, new: FrameStore, seed: int, steps: int) -> list[float]:
    """Of the eight cells, in the order of `itertools.product`."""
    settings = {"objective": "autoregressive", "batch": 64, "seed": seed}
    vision = whiten(fresh_cnn(old.decode(old.read(range(512))), seed), old)
    torch.manual_seed(seed)
    start = SequenceEncoder("gru", vision, 7, Vocabulary.from_missions(old.missions), **SIZES)
    small = pretrain(old, out=out / "old", encoder=start, steps=steps, **settings).encoder
    words = Vocabulary.from_missions([*old.missions, *new.missions])
    found = []
    for number, (embeddings, objective, module) in enumerate(product((False, True), repeat=3)):
        torch.manual_seed(seed)
        encoder = small.grown(words, layers=SIZES["layers"] + module)
        if not embeddings:
            for part in (encoder.stages[0].action, encoder.stages[0].mission.words):
                part.reset_parameters()
        if objective:
            encoder = pretrain(new, out=out / f"{number}", encoder=encoder, steps=steps, **settings).encoder
        found.append(mean_probe(encoder, new))
    return found


CLAIM = Claim(
    7,
    "New vocabulary, learning on the new domain and new modules carry an encoder to another world.",
    measure,
    "the old encoder with fresh embeddings",
    needs="more updates in the new world, or an old world that shares more with it",
)
