"""The backbones of a `SequenceEncoder`, which mix each token with those before it: a GRU and a transformer.

Both mix whole sequences of tokens (batch, steps, width) of which some are ``present`` (``forward``), only the last step
(``last``), or one token (batch, width) at a time (``begin``, ``step``), with the same result. ``step`` resets the state
where ``starts`` (batch,) is True. `rlpre.SequenceEncoder` describes the arguments.

[0] Cho et al. 2014, "Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine Translation".
[1] Press, Smith, Lewis 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation".
"""

from typing import Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from rlpre.encoders.networks import transformer_layer
from rlpre.errors import RlpreError

State = tuple[Tensor, ...]  # what a backbone keeps of the steps so far


class GRU(nn.Module):
    """torch's GRU [0] and a layer norm. Its state reaches back to the start of the episode; a window cuts that off.

    If it is not causal, each direction has half the width; there are no ``heads``, and any ``window`` fits.
    """

    def __init__(self, width: int, layers: int, heads: int, window: int, causal: bool) -> None:
        super().__init__()
        if width % 2 and not causal:
            raise RlpreError(f"a bidirectional GRU of width={width} cannot halve it: choose an even width")
        self.gru = nn.GRU(width, width if causal else width // 2, layers, batch_first=True, bidirectional=not causal)
        self.norm = nn.LayerNorm(width)

    def train(self, mode: bool = True) -> Self:
        """Like torch's, but the GRU stays in training mode (it has no dropout): else cuDNN has no backward pass."""
        super().train(mode)
        self.gru.train()
        return self

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Skips tokens that are not present."""
        order = torch.argsort(present.byte(), dim=1, descending=True, stable=True)  # padding last, the rest in order
        tokens = tokens.gather(1, order[..., None].expand_as(tokens))
        if self.gru.bidirectional:  # a causal one needs no packing, which costs as much as the GRU itself
            lengths = present.sum(1).clamp_min(1).cpu()
            packed = pack_padded_sequence(tokens, lengths, batch_first=True, enforce_sorted=False)
            mixed, _ = pad_packed_sequence(self.gru(packed)[0], batch_first=True, total_length=tokens.shape[1])
        else:
            mixed, _ = self.gru(tokens)
        features: Tensor = self.norm(mixed.gather(1, order.argsort(1)[..., None].expand_as(mixed)))
        return features

    def last(self, tokens: Tensor, present: Tensor) -> Tensor:
        """The last step of ``forward``."""
        features: Tensor = self(tokens, present)[:, -1]
        return features

    def begin(self, batch: int) -> State:
        """The hidden state (layers, batch, width) before the first token."""
        return (self.norm.weight.new_zeros(self.gru.num_layers, batch, self.gru.hidden_size),)

    def step(self, token: Tensor, state: State, starts: Tensor | None) -> tuple[Tensor, State]:
        """Mixes one more token into the state."""
        (hidden,) = state
        if starts is not None:
            hidden = hidden.masked_fill(starts[:, None], 0)
        mixed, hidden = self.gru(token[:, None], hidden)
        return self.norm(mixed[:, 0]), (hidden,)


class Transformer(nn.Module):
    """torch's transformer layers, norm first, without dropout. Each attends ``span`` = (window - 1) // layers back.

    Positions are relative: a bias on the attention that decreases with the distance (ALiBi [1]). So the same features
    come from a window of tokens, from a whole episode, and from one token at a time with the keys and values of the
    last ``span`` tokens kept. If it is not causal, each attends as far ahead too; there the bias decreases faster in
    every second head and slower in the others, so that left and right differ.
    """

    slopes: Tensor
    slopes_ahead: Tensor

    def __init__(self, width: int, layers: int, heads: int, window: int, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise RlpreError(f"{heads} heads do not divide width={width}: choose a multiple")
        if 1 < window <= layers:
            raise RlpreError(f"a window of {window} is too short for {layers} layers: give {layers + 1} or more, or 1")
        self.span, self.causal = (window - 1) // layers, causal
        self.layers = nn.ModuleList(transformer_layer(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        head = torch.arange(1, heads + 1)
        ahead = head + torch.where(head % 2 == 1, -0.5, 0.5)  # between the slopes of two heads
        for name, exponent in (("slopes", head), ("slopes_ahead", ahead)):
            self.register_buffer(name, 2.0 ** (-8 * exponent / heads)[:, None, None], persistent=False)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Attends to tokens that are present."""
        empty = tokens.new_zeros(len(self.layers), len(tokens), 0, 2 * tokens.shape[-1])
        return self._mix(tokens, empty, present)[0]

    def last(self, tokens: Tensor, present: Tensor) -> Tensor:
        """The last step of ``forward``; each layer mixes only the steps that the last one depends on."""
        x, depth = tokens, len(self.layers)
        empty = tokens.new_zeros(len(tokens), 0, 2 * tokens.shape[-1])
        for above, layer in zip(reversed(range(depth)), self.layers, strict=True):
            x = x[:, -(1 + self.span * (above + 1)) :]
            bias = self._bias(min(1 + self.span * above, x.shape[1]), present[:, -x.shape[1] :])
            x, _ = _block(cast(nn.TransformerEncoderLayer, layer), x, empty, bias)
        return cast(Tensor, self.norm(x[:, -1]))

    def begin(self, batch: int) -> State:
        """Keys and values of the last ``span`` tokens in each layer, and which of them exist: none yet."""
        width = self.norm.normalized_shape[0]
        past = self.norm.weight.new_zeros(len(self.layers), batch, self.span, 2 * width)
        return past, torch.zeros(batch, self.span, dtype=torch.bool, device=past.device)

    def step(self, token: Tensor, state: State, starts: Tensor | None) -> tuple[Tensor, State]:
        """Mixes one more token into the state."""
        past, present = state
        if starts is not None:
            present = present & ~starts[:, None]
        present = F.pad(present, (0, 1), value=True)
        mixed, kept = self._mix(token[:, None], past, present)
        return mixed[:, 0], (torch.stack([keys_values[:, 1:] for keys_values in kept]), present[:, 1:])

    def _mix(self, x: Tensor, past: Tensor, present: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Runs the layers on the tokens after those in ``past``; ``present`` covers both."""
        bias = self._bias(x.shape[1], present)
        kept = []
        for layer, layer_past in zip(self.layers, past, strict=True):
            x, keys_values = _block(cast(nn.TransformerEncoderLayer, layer), x, layer_past, bias)
            kept.append(keys_values)
        return self.norm(x), kept

    def _bias(self, steps: int, present: Tensor) -> Tensor:
        """The bias on the attention of the last ``steps`` of the keys, (batch, heads, steps, keys)."""
        place = torch.arange(present.shape[1], device=present.device)
        distance = place[-steps:, None] - place
        seen = (distance.abs() <= self.span) & ((distance >= 0) | (not self.causal))
        seen = seen & (present[:, None] | (distance == 0))  # padding attends to itself, else softmax gives NaN
        slopes = torch.where(distance < 0, self.slopes_ahead, self.slopes)
        return torch.where(seen[:, None], -slopes * distance.abs(), -torch.inf)


def _block(layer: nn.TransformerEncoderLayer, x: Tensor, past: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's own forward pass, with the keys and values (batch, keys, 2 * width) of the past before its own.

    Only the last steps are mixed, as many as ``bias`` (batch, heads, steps, keys) has.
    """
    attention = layer.self_attn
    width, heads, steps = attention.embed_dim, attention.num_heads, bias.shape[2]
    projected = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys_values = torch.split_with_sizes(projected, [width, 2 * width], dim=-1)
    keys_values = torch.cat([past, keys_values], dim=1)
    parts = (queries[:, -steps:], *keys_values.chunk(2, dim=-1))
    q, k, v = (part.reshape(*part.shape[:2], heads, -1).transpose(1, 2) for part in parts)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    x = x[:, -steps:] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x)))), keys_values
