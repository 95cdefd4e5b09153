"""Sequence encoders as features extractors of SB3."""

from collections.abc import Mapping
from typing import Any

from gymnasium import spaces
from torch import Tensor

from rlpre.encoders import SequenceEncoder
from rlpre.sb3.distinct import encode_distinct
from rlpre.sb3.extractor import Blueprint, ProtectedExtractor, has_nan
from rlpre.sb3.window import check_window


class SequenceExtractor(ProtectedExtractor):
    """Gives a policy what a `SequenceEncoder` says of the last step of a window.

    Args:
        observation_space: windows as `HistoryVecEnv` gives them, of features or, in a fused policy, of pixels.
        blueprint: the encoder.
        frozen: so many of its first stages never train, away from every optimiser; its encoder of frames never does.
        lr_scale: learning rate of the other stages relative to the heads'.
        warmup_updates: gradient steps for which those stages wait.

    Raises:
        RlpreError: if the observations are not windows of what the encoder reads.
    """

    encoder: SequenceEncoder

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        blueprint: Blueprint,
        frozen: int,
        lr_scale: float = 1.0,
        warmup_updates: int = 0,
    ) -> None:
        encoder = blueprint.build()
        assert isinstance(encoder, SequenceEncoder)
        if not has_nan(encoder):  # else a saved model is being loaded, and its weights, which mark features, come later
            check_window(observation_space, encoder)
        super().__init__(observation_space, encoder.num_features, encoder, frozen, lr_scale, warmup_updates)

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Gives (batch, width) of windows (batch, window, ...).

        Raises:
            RlpreError: if the pretrained weights have not been loaded.
        """
        self.check_ready()
        features = observations["features"] if "features" in observations else self._encode(observations["frames"])
        mission = observations["mission"].long() if self.encoder.vocabulary else None
        return self.encoder.last(features, observations["actions"].long(), mission, observations["present"] > 0)

    def _encode(self, frames: Tensor) -> Tensor:
        return encode_distinct(self.encoder.encode_frames, frames.flatten(0, 1)).reshape(*frames.shape[:2], -1)
