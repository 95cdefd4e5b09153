"""A transformer over tokens whose output depends on the last ``window`` tokens alone.

[0] Press, Smith, Lewis 2022, "Train Short, Test Long: Attention with Linear Biases Enables Input Length Extrapolation".
[1] Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture": norm first trains without warm-up.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.errors import RlpreError


class Transformer(nn.Module):
    """Layers of torch's own, norm first, without dropout; each sees ``span`` = (window - 1) // layers steps away.

    Positions are relative, a bias on the attention that falls with the distance (ALiBi). So a window of tokens, a
    whole episode, and one token at a time with the keys and values of the last ``span`` kept give the same features.

    Args:
        width: length of a token.
        layers: number of blocks.
        heads: of each block's attention.
        window: tokens that reach the output, its own among them; in a bidirectional one, on either side.
        causal: whether no token sees what comes after it.

    Raises:
        RlpreError: if heads do not divide ``width``, or the window is too short for a step per layer.
    """

    slopes: Tensor

    def __init__(self, width: int, layers: int, heads: int, window: int, causal: bool) -> None:
        super().__init__()
        if width % heads:
            raise RlpreError(f"{heads} heads do not divide width={width}: choose a multiple")
        if 1 < window <= layers:
            raise RlpreError(f"a window of {window} is too short for {layers} layers: give {layers + 1} or more, or 1")
        self.span, self.causal = (window - 1) // layers, causal
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, heads, 4 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        slopes = 2.0 ** (-8 * torch.arange(1, heads + 1) / heads)
        self.register_buffer("slopes", slopes[:, None, None], persistent=False)

    def forward(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Mixes ``tokens`` (batch, steps, width) of which those ``present`` (batch, steps) are attended to."""
        nothing = tokens.new_zeros(len(self.layers), len(tokens), 0, 2 * tokens.shape[-1])
        return self._mix(tokens, nothing, present)[0]

    def last(self, tokens: Tensor, present: Tensor) -> Tensor:
        """The last step (batch, width) of ``forward``; each layer mixes only the steps that reach it."""
        x, depth = tokens, len(self.layers)
        nothing = tokens.new_zeros(len(tokens), 0, 2 * tokens.shape[-1])
        for above, layer in zip(reversed(range(depth)), self.layers, strict=True):
            x = x[:, -(1 + self.span * (above + 1)) :]
            bias = self._bias(min(1 + self.span * above, x.shape[1]), present[:, -x.shape[1] :])
            x, _ = _block(cast(nn.TransformerEncoderLayer, layer), x, nothing, bias)
        return cast(Tensor, self.norm(x[:, -1]))

    def begin(self, batch: int) -> tuple[Tensor, ...]:
        """Keys and values of the last ``span`` tokens in each layer, and which of them there were: none."""
        width = self.norm.normalized_shape[0]
        memory = self.norm.weight.new_zeros(len(self.layers), batch, self.span, 2 * width)
        return memory, torch.zeros(batch, self.span, dtype=torch.bool, device=memory.device)

    def step(
        self, token: Tensor, state: tuple[Tensor, ...], starts: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Mixes one more token (batch, width) into ``state``; ``starts`` (batch,) forgets what came before."""
        memory, present = state
        if starts is not None:
            present = present & ~starts[:, None]
        present = F.pad(present, (0, 1), value=True)
        mixed, kept = self._mix(token[:, None], memory, present)
        return mixed[:, 0], (torch.stack([keys_values[:, 1:] for keys_values in kept]), present[:, 1:])

    def _mix(self, x: Tensor, memory: Tensor, present: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Runs the layers on tokens that follow those in ``memory``; ``present`` tells of both."""
        bias = self._bias(x.shape[1], present)
        kept = []
        for layer, past in zip(self.layers, memory, strict=True):
            x, keys_values = _block(cast(nn.TransformerEncoderLayer, layer), x, past, bias)
            kept.append(keys_values)
        return self.norm(x), kept

    def _bias(self, steps: int, present: Tensor) -> Tensor:
        """What is added to the attention (batch, heads, steps, keys) of the last ``steps`` of the keys."""
        place = torch.arange(present.shape[1], device=present.device)
        back = place[-steps:, None] - place
        seen = (back.abs() <= self.span) & ((back >= 0) | (not self.causal))
        seen = seen & (present[:, None] | (back == 0))  # padding sees itself, else softmax gives NaN
        return torch.where(seen[:, None], -self.slopes * back.abs(), -torch.inf)


def _block(layer: nn.TransformerEncoderLayer, x: Tensor, past: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The layer's own forward pass, but keys and values (batch, keys, 2 * width) of the past come before its own.

    Only the last steps, as many as ``bias`` (batch, heads, steps, keys) tells of, are mixed.
    """
    attention = layer.self_attn
    width, heads, steps = attention.embed_dim, attention.num_heads, bias.shape[2]
    projected = F.linear(layer.norm1(x), attention.in_proj_weight, attention.in_proj_bias)
    queries, keys_values = torch.split_with_sizes(projected, [width, 2 * width], dim=-1)
    keys_values = torch.cat([past, keys_values], dim=1)
    q, k, v = (_by_head(part, heads) for part in (queries[:, -steps:], *keys_values.chunk(2, dim=-1)))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
    x = x[:, -steps:] + attention.out_proj(mixed.transpose(1, 2).flatten(2))
    return x + layer.linear2(F.gelu(layer.linear1(layer.norm2(x)))), keys_values


def _by_head(x: Tensor, heads: int) -> Tensor:
    """(batch, steps, width) to (batch, heads, steps, width / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)
