"""Claim 4: masked modelling of raw sequences finds structure that no label names.

DNA and proteins are generated with a planted grammar (`agents.claims.life`). A linear probe reads the structure of each
letter from its features: the kind of structure around a letter of a protein, and whether a letter of DNA is in a motif.
"""

from pathlib import Path

import numpy as np
import torch

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.life import DNA, PROTEIN, SIZES, dna, proteins, shuffled
from rlpre import Vocabulary
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.probes import Factor, cross_score
from rlpre.evaluation.stats import mean_interval
from rlpre.objectives.text import masked_text, text_encoder, text_features

TEXTS, PROBED, KINDS = 2000, 120, ("dna", "protein")


def measure(
    directory: Path, seeds: int, grammar: bool = True, steps: int = 300, kinds: tuple[str, ...] = KINDS
) -> Verdict:
    """The accuracy of a probe after pretraining, above the same on shuffled letters; without ``grammar`` both are."""
    found = np.array([[_scores(seed, kind, grammar, steps) for kind in kinds] for seed in range(seeds)])
    real, control, fresh = found.mean(1).T
    measured = (
        "balanced accuracy of a linear probe of the structure of letters (DNA motifs, protein helices and strands), "
        f"above pretraining on shuffled letters; fresh weights {show_interval(mean_interval(fresh))}"
    )
    return judge(real, control, 0.02, measured, "shuffled letters")


def _scores(seed: int, kind: str, grammar: bool, steps: int) -> tuple[float, float, float]:
    """Probe scores of encoders of real sequences, of shuffled ones, and of fresh weights."""
    rng = np.random.default_rng(seed)
    vocabulary: Vocabulary = DNA if kind == "dna" else PROTEIN
    numbers, structure = proteins(TEXTS, rng) if kind == "protein" else dna(TEXTS, rng)[::2]
    torch.manual_seed(seed)
    start = text_encoder(vocabulary, **SIZES)
    without = shuffled(numbers, rng)
    real = masked_text(start, numbers if grammar else without, steps=steps, batch=32, seed=seed)
    control = masked_text(start, without, steps=steps, batch=32, seed=seed)
    rows = slice(-PROBED, None)
    texts = np.repeat(np.arange(PROBED), structure.shape[1])  # letters of one text are on one side of a split
    factor = Factor.from_labels(kind, structure[rows].ravel(), texts)
    return tuple(
        cross_score(text_features(encoder, numbers[rows]).flatten(0, 1).numpy()[factor.places], factor)
        for encoder in (real, control, start)
    )


CLAIM = Claim(
    4,
    "Masked modelling of DNA and proteins finds structure that was never a label.",
    measure,
    "the same pretraining on sequences whose letters are shuffled",
)
