"""Features of frozen encoders as observations: marked with their encoder, and computed once per frame."""

import hashlib
from collections.abc import Iterable
from typing import cast

import numpy as np
import torch
from gymnasium import spaces

from rlpre.encoders import Encoder
from rlpre.encoders.checkpoint import Checkpoint

REMEMBERED = 1 << 16  # frames; 128 features each make 40 MB


class FeatureSpace(spaces.Box):
    """Feature vectors of one particular encoder, float32.

    Spaces of different encoders differ, so SB3 refuses to run a policy on the features of an encoder that it was not
    trained on, and so does `fuse`. The mark travels in the model's zip.

    Args:
        encoder: what gives the features.
        shape: of an observation; default (num_features,).
    """

    def __init__(self, encoder: Checkpoint, shape: tuple[int, ...] | None = None) -> None:
        super().__init__(-np.inf, np.inf, (encoder.num_features,) if shape is None else shape, np.float32)
        self.encoder_hash = encoder.fingerprint()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FeatureSpace) and super().__eq__(other) and self.encoder_hash == other.encoder_hash

    def __repr__(self) -> str:
        return f"FeatureSpace({' x '.join(map(str, self.shape))}, encoder {self.encoder_hash[:12]})"


class FrameMemory:
    """Features of frames, not computed again for a frame that was seen before (nine in ten on a grid world).

    Args:
        encoder: frozen, in evaluation mode.
    """

    def __init__(self, encoder: Encoder) -> None:
        self._encoder, self._device = encoder, encoder.device
        self._seen: dict[bytes, np.ndarray] = {}

    def encode(self, frames: Iterable[np.ndarray]) -> np.ndarray:
        """Gives the features (frames, num_features) of frames (C, H, W)."""
        if len(self._seen) >= REMEMBERED:
            self._seen.clear()
        frames = [np.ascontiguousarray(frame) for frame in frames]
        keys = [hashlib.sha256(frame.data).digest() for frame in frames]
        new = {key: frame for key, frame in zip(keys, frames, strict=True) if key not in self._seen}
        if new:
            self._seen.update(zip(new, self._run(np.stack(list(new.values()))), strict=True))
        return np.stack([self._seen[key] for key in keys])

    @torch.inference_mode()
    def _run(self, frames: np.ndarray) -> np.ndarray:
        batch = torch.from_numpy(frames)
        if self._device.type == "cuda":
            batch = batch.pin_memory().to(self._device, non_blocking=True)
        return cast(np.ndarray, self._encoder(batch).float().cpu().numpy())
