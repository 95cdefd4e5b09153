"""Claim 5: a few hundred labels suffice to find promoters, if the language of DNA is known before.

A promoter is a pair of motifs at a distance; decoys hold one of the two (`agents.claims.life`).
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn
from torch.nn import functional as F

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.curves import draw_curves
from agents.claims.life import DNA, SIZES, dna, shuffled
from rlpre import SequenceEncoder
from rlpre.evaluation.page import show_ratio
from rlpre.evaluation.probes import LabelEfficiency
from rlpre.objectives.text import masked_text, mixed_symbols, text_encoder

COUNTS = (10, 30, 100, 300)
TEXTS, TEST, TUNING = 3000, 500, 80  # sequences without labels, sequences to test on, gradient steps of fine-tuning


def measure(directory: Path, seeds: int, grammar: bool = True, steps: int = 400) -> Verdict:
    """The AUROC after pretraining, above scratch, mean over numbers of labels; without ``grammar`` on shuffled DNA."""
    curves = np.array([_curves(seed, grammar, steps) for seed in range(seeds)])  # (seeds, arms, counts)
    scores = {"scratch": curves[:, 0], "pretrained": curves[:, 1]}
    efficiency = LabelEfficiency(np.array(COUNTS), 0.5, "scratch", 0.8, scores)
    measured = (
        f"AUROC of promoters among decoys, mean over {', '.join(map(str, COUNTS))} labels, above the same network from "
        f"scratch; labels to an AUROC of 0.8, scratch / pretrained: {show_ratio(efficiency.ratio('pretrained'))}"
    )
    picture = draw_curves(COUNTS, scores, "labels", "AUROC", "x")
    return judge(scores["pretrained"].mean(1), scores["scratch"].mean(1), 0.03, measured, "scratch", picture)


def _curves(seed: int, grammar: bool, steps: int) -> list[list[float]]:
    """AUROC by number of labels, from scratch and pretrained."""
    rng = np.random.default_rng(seed)
    numbers, promoter, _ = dna(TEXTS + TEST + max(COUNTS), rng)
    labels, raw = torch.from_numpy(promoter).float(), numbers[:TEXTS]
    torch.manual_seed(seed)
    start = text_encoder(DNA, **SIZES)
    pretrained = masked_text(start, raw if grammar else shuffled(raw, rng), steps=steps, batch=32, seed=seed)
    test, known = slice(TEXTS, TEXTS + TEST), TEXTS + TEST
    found = []
    for encoder in (start, pretrained):
        tuned = (_tuned(encoder, numbers[known : known + n], labels[known : known + n], seed) for n in COUNTS)
        found.append([float(roc_auc_score(promoter[test], score(numbers[test]))) for score in tuned])
    return found


def _tuned(encoder: SequenceEncoder, numbers: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
    """Fine-tunes a copy with a linear head on the mean and the maximum over letters; returns what scores sequences."""
    torch.manual_seed(seed)
    encoder, head = copy.deepcopy(encoder).train(), nn.Linear(2 * encoder.num_features, 1)

    def score(numbers: Tensor) -> Tensor:
        mixed = mixed_symbols(encoder, numbers, numbers > 0)
        return head(torch.cat([mixed.mean(1), mixed.amax(1)], 1))[:, 0]

    optimizer = torch.optim.AdamW([*encoder.parameters(), *head.parameters()], lr=3e-3)
    for _ in range(TUNING):
        rows = torch.randint(len(numbers), (32,))
        loss = F.binary_cross_entropy_with_logits(score(numbers[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    encoder.eval()
    return torch.no_grad()(score)


CLAIM = Claim(
    5,
    "Pretrained on raw DNA, a network finds promoters from a few hundred labels.",
    measure,
    "the same network from scratch",
    needs="raw sequences and updates enough for the motifs, and fewer labels than teach them directly",
)
