"""Sequences with a planted grammar, for the claims about the language of life.

DNA: a promoter is the motif TTGACA, a gap of 16 to 18 letters, and TATAAT, each letter mutated with probability .1; it
stands anywhere in a random sequence. A decoy holds one of the two motifs. Proteins: helices repeat hydrophobic letters
every 3 or 4 positions, strands every 2, loops at random.
"""

import numpy as np
import torch
from torch import Tensor

from rlpre import Vocabulary

LENGTH, MUTATED = 48, 0.1
SIZES = {"width": 48, "layers": 1}  # of the encoders
DNA = Vocabulary("ACGT", LENGTH, characters=True)
PROTEIN = Vocabulary("ACDEFGHIKLMNPQRSTVWY", LENGTH, characters=True)
GREASY, POLAR = (np.array([PROTEIN.words.index(x) + 1 for x in part]) for part in ("AVILMFWC", "DEKRNQSTGHPY"))
BOXES = tuple(DNA.encode([box])[0, :6] for box in ("TTGACA", "TATAAT"))
PERIODS = {0: None, 1: (3, 4), 2: (2,)}  # loop, helix, strand


def dna(count: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray, np.ndarray]:
    """Sequences (count, LENGTH) of numbers, which hold a promoter (count,) bool, and which letters are in a motif.

    Half of the sequences hold a promoter, the others a decoy.
    """
    numbers, promoter = rng.integers(1, 5, (count, LENGTH)), rng.random(count) < 0.5
    motif = np.zeros((count, LENGTH), np.int64)
    for row, real, inside in zip(numbers, promoter, motif, strict=True):
        gap = rng.integers(16, 19)
        first, alone = rng.integers(LENGTH - gap - 11), rng.integers(2)
        for number, (at, box) in enumerate(zip((first, first + 6 + gap), BOXES, strict=True)):
            if real or number == alone:
                row[at : at + 6] = np.where(rng.random(6) < MUTATED, rng.integers(1, 5, 6), box)
                inside[at : at + 6] = 1
    return torch.from_numpy(numbers), promoter, motif


def proteins(count: int, rng: np.random.Generator) -> tuple[Tensor, np.ndarray]:
    """Sequences (count, LENGTH) of numbers, and the structure of each letter, (count, LENGTH): loop, helix, strand."""
    numbers, structure = np.empty((2, count, LENGTH), np.int64)
    for row, kinds in zip(numbers, structure, strict=True):
        greasy, at = np.empty(LENGTH, bool), 0
        while at < LENGTH:
            kind, end = rng.integers(3), min(at + rng.integers(8, 17), LENGTH)
            steps = PERIODS[kind]
            greasy[at:end] = rng.random(end - at) < 0.4
            if steps:
                peaks = at + rng.integers(steps[0]) + np.cumsum(rng.choice(steps, LENGTH))
                greasy[at:end] = np.isin(np.arange(at, end), peaks)
            kinds[at:end], at = kind, end
        row[:] = np.where(greasy, rng.choice(GREASY, LENGTH), rng.choice(POLAR, LENGTH))
    return torch.from_numpy(numbers), structure


def shuffled(numbers: Tensor, rng: np.random.Generator) -> Tensor:
    """The same letters of each sequence in random order: the control that has no grammar."""
    return torch.from_numpy(rng.permuted(numbers.numpy(), axis=1))
