"""A gated recurrent network over tokens.

[0] Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rlpre.errors import RlpreError


class GRU(nn.Module):
    """torch's GRU and a layer norm; its state reaches back to the episode's start, and a window cuts that off.

    Args:
        width: length of a token.
        layers: number of layers.
        causal: whether no token sees what comes after it; else each direction has half the width.

    Raises:
        RlpreError: if a bidirectional one cannot halve ``width``.
    """

    def __init__(self, width: int, layers: int, causal: bool) -> None:
        super().__init__()
        if width % 2 and not causal:
            raise RlpreError(f"a bidirectional GRU of width={width} cannot halve it: choose an even width")
        self.gru = nn.GRU(width, width if causal else width // 2, layers, batch_first=True, bidirectional=not causal)
        self.norm = nn.LayerNorm(width)

    def train(self, mode: bool = True) -> Self:
        """As in torch, but the GRU, which has no dropout, stays in training mode: cuDNN has no other backward pass."""
        super().train(mode)
        self.gru.train()
        return self

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Mixes ``tokens`` (batch, steps, width), skipping those that are not ``present`` (batch, steps)."""
        order = torch.argsort(
            present.byte(), dim=1, descending=True, stable=True
        )  # what is present comes first, in order
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        if self.gru.bidirectional:  # packing costs as much as the GRU itself, and causally nothing needs it
            lengths = present.sum(1).clamp_min(1).cpu()
            packed = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
            mixed, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1])
        else:
            mixed, _ = self.gru(tokens)
        return self.norm(mixed.gather(1, order.argsort(1)[..., None].expand_as(mixed)))  # type: ignore[no-any-return]

    def last(self, tokens: Tensor, present: Tensor) -> Tensor:
        """The last step (batch, width) of ``forward``."""
        return self(tokens, present)[:, -1]  # type: ignore[no-any-return]

    def begin(self, batch: int) -> tuple[Tensor, ...]:
        """The hidden state (layers, batch, width) before the first token."""
        return (self.norm.weight.new_zeros(self.gru.num_layers, batch, self.gru.hidden_size),)

    def step(
        self, token: Tensor, state: tuple[Tensor, ...], starts: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixes one more token (batch, width) into ``state``; ``starts`` (batch,) forgets what came before."""
        (hidden,) = state
        if starts is not None:
            hidden = hidden.masked_fill(starts[:, None], 0)
        mixed, hidden = self.gru(token[:, None], hidden)
        return self.norm(mixed[:, 0]), (hidden,)
