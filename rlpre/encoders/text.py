"""Missions as numbers, and a small learned embedding of them.

[0] Kim 2014, "Convolutional Neural Networks for Sentence Classification".
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.errors import RlpreError

ADVICE = "demonstrations of another vocabulary or mission grammar need an encoder of their own"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a mission grammar.

    Args:
        words: each once; word i becomes the number i + 1, and 0 is padding.
        length: most words of a mission.

    Raises:
        RlpreError: if there are no words, one comes twice, or the length is not positive.
    """

    words: Sequence[str]
    length: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))  # as a checkpoint's list, so that vocabularies compare
        if not self.words or self.length < 1:
            raise RlpreError(f"{len(self.words)} words and missions of {self.length} at most: give missions with words")
        if len(set(self.words)) < len(self.words):
            twice = max(self.words, key=self.words.count)
            raise RlpreError(f"the vocabulary has {twice!r} twice: give each word once")

    @classmethod
    def of(cls, missions: Iterable[str]) -> Self:
        """The vocabulary of these missions, in alphabetical order."""
        split = [_words(mission) for mission in missions]
        return cls(sorted({word for words in split for word in words}), max(map(len, split), default=0))

    def encode(self, missions: Sequence[str]) -> np.ndarray:
        """Turns missions into numbers (missions, length) int64, padded with 0 on the right.

        Raises:
            RlpreError: naming the first word that the vocabulary lacks, or the first mission that is too long.
        """
        number = {word: index for index, word in enumerate(self.words, start=1)}
        encoded = np.zeros((len(missions), self.length), np.int64)
        for row, mission in zip(encoded, missions, strict=True):
            words = _words(mission)
            if unknown := [word for word in words if word not in number]:
                raise RlpreError(f"the vocabulary lacks {unknown[0]!r} of the mission {mission!r}: {ADVICE}")
            if len(words) > self.length:
                raise RlpreError(
                    f"the mission {mission!r} has {len(words)} words, the vocabulary's longest {self.length}: {ADVICE}"
                )
            row[: len(words)] = [number[word] for word in words]
        return encoded


class MissionEmbedding(nn.Module):
    """Encoded missions (batch, length) to vectors (batch, width): words with their places, looked at three at a time.

    Args:
        vocabulary: of the missions.
        width: length of the vector.
    """

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(vocabulary.words) + 1, width)
        self.places = nn.Parameter(torch.randn(vocabulary.length, width))
        self.triples = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(self, mission: Tensor) -> Tensor:
        """Sums over the words of each mission, and over none of the padding."""
        word = (mission > 0)[..., None]
        x = (self.words(mission) + self.places) * word
        return (F.relu(self.triples(x.mT).mT) * word).sum(1)


def _words(mission: str) -> list[str]:
    return mission.lower().replace(",", " ").split()
