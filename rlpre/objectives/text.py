"""Texts of any alphabet: a `SequenceEncoder` of symbols, and masked modelling of them.

[0] Devlin et al. 2019, "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding".
[1] Rives et al. 2021, "Biological structure and function emerge from scaling unsupervised learning to 250 million
    protein sequences": the same on the alphabet of proteins.

Example:
    >>> vocabulary = Vocabulary("ACGT", 32, characters=True)
    >>> numbers = torch.from_numpy(vocabulary.encode(["GATTACA" * 4, "ACGT" * 8]))
    >>> encoder = masked_text(text_encoder(vocabulary, width=16), numbers, steps=2, batch=2)
    >>> text_features(encoder, numbers).shape
    torch.Size([2, 32, 16])
"""

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.encoders import Encoder, InputSpec, SequenceEncoder, Vocabulary
from rlpre.errors import RlpreError

HIDDEN = 0.15  # share of the symbols to predict, as in BERT
HIDE = 0  # the number of a hidden symbol, which is that of padding: `present` tells them apart
CHUNK = 256  # texts encoded at a time


def text_encoder(vocabulary: Vocabulary, **arguments: Any) -> SequenceEncoder:
    """A sequence encoder with fresh weights whose steps are the symbols of ``vocabulary`` instead of frames.

    ``arguments`` are those of `rlpre.SequenceEncoder`; by default it is a GRU that sees both sides.
    """
    count = len(vocabulary.words)
    one_hot = Encoder("symbols", InputSpec((1, 1, 1), high=count), count=count)
    defaults: dict[str, Any] = {"backbone": "gru", "window": vocabulary.length, "causal": False}
    return SequenceEncoder(frames=one_hot, actions=1, previous_action=False, **defaults | arguments)


def text_features(encoder: SequenceEncoder, numbers: Tensor) -> Tensor:
    """Features (n, length, width) float32 of texts (n, length) int64, as ``Vocabulary.encode`` makes them.

    Features of padding are 0. The encoder is put into evaluation mode.
    """
    encoder.eval()
    with torch.no_grad():
        return torch.cat([mixed_symbols(encoder, part, part > 0).float() for part in torch.split(numbers, CHUNK)])


def mixed_symbols(encoder: SequenceEncoder, numbers: Tensor, present: Tensor) -> Tensor:
    """As `text_features`, with gradients; where ``present`` (n, length) bool holds, the number 0 is a hidden symbol."""
    one_hot = F.one_hot(numbers, encoder.frames.num_features).to(encoder.dtype)
    return cast(Tensor, encoder(one_hot, torch.full_like(numbers, -1), None, present))


def masked_text(
    encoder: SequenceEncoder, numbers: Tensor, *, steps: int = 500, batch: int = 64, lr: float = 1e-2, seed: int = 0
) -> SequenceEncoder:
    """Trains a copy of an encoder to fill in hidden symbols from both sides [0, 1].

    Args:
        encoder: from `text_encoder`, not causal.
        numbers: texts (n, length) int64, as ``Vocabulary.encode`` makes them.
        steps: of the optimiser, AdamW.
        batch: texts for each step.
        lr: learning rate, which falls to 0 along a cosine.
        seed: of the batches and of what is hidden.

    Returns:
        The copy, in evaluation mode; its features have mean 0 and SD 1 over the texts.

    Raises:
        RlpreError: for a causal encoder, too small numbers, or a loss that is not finite.
    """
    if encoder.causal:
        raise RlpreError("a causal encoder does not see what follows a hidden symbol: build it with causal=False")
    if steps < 1 or not 1 <= batch <= len(numbers):
        raise RlpreError(f"{steps} steps with {batch} of {len(numbers)} texts: give 1 step or more, 1 text to all")
    encoder, rng = copy.deepcopy(encoder).train(), np.random.default_rng(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        output = nn.Linear(encoder.num_features, encoder.frames.num_features).to(encoder.device)
        optimizer = torch.optim.AdamW([*encoder.parameters(), *output.parameters()], lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            shown = numbers[torch.from_numpy(rng.integers(len(numbers), size=batch))].to(encoder.device)
            hidden = (torch.rand(shown.shape, device=shown.device) < HIDDEN) & (shown > 0)
            logits = output(mixed_symbols(encoder, shown.masked_fill(hidden, HIDE), shown > 0)[hidden])
            loss = F.cross_entropy(logits, shown[hidden])
            if not torch.isfinite(loss):
                raise RlpreError(f"the loss is not finite: lower lr={lr:g}, or give longer texts")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seen = numbers[:CHUNK]
    encoder.standardise(text_features(encoder, seen)[seen > 0])
    return encoder.eval()
