"""Whitening: an encoder whose features vary alike in every direction.

[0] Kessy, Lewin and Strimmer 2018, "Optimal whitening and decorrelation" (ZCA: of all whitenings the one that moves
    the features least).
"""

from typing import TypeVar, cast

import numpy as np
import torch

from rlpre.encoders import AnyEncoder
from rlpre.encoders.encoder import WHITENED as PREFIX
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.measure.conditioning import covariance
from rlpre.measure.probe import finite
from rlpre.objectives import READERS

ROWS = 2048  # frames, or windows that end at them, whose covariance is taken
FLOOR = 1e-4  # share of the mean variance: a direction that varies less is not blown up to noise
E = TypeVar("E", bound=AnyEncoder)


@torch.no_grad()
def whiten(encoder: E, frames: FrameStore, seed: int = 0) -> E:
    """A copy of an encoder, of frames or of sequences, with uncorrelated features of mean 0 and SD 1 over the frames.

    It has one stage more, a linear map (ZCA), and the architecture (or backbone) "whitened:NAME"; it is saved, loaded,
    plugged and fused like any other. A linear head can say no more and no less than before, but learns all of it at one
    pace: what a sequence encoder keeps of the past may move its features least of all. The map is estimated: few
    distinct frames leave directions that only other frames need, magnified up to 100 times.

    Args:
        encoder: copied, never changed; its mode and device are kept.
        frames: drawn as `FrameStore.sample` does; a sequence encoder reads the windows that end there.
        seed: of the draw.

    Raises:
        RlpreError: for frames that the encoder does not read, features that are not finite, or that do not vary.
    """
    reader = READERS[encoder.kind](frames, encoder, None, encoder.device)  # type: ignore[arg-type]
    drawn = frames.sample(ROWS, np.random.default_rng(seed))
    features = reader.encode(encoder, drawn)  # type: ignore[arg-type]
    finite(features.numpy(), "the features to whiten")
    variances, directions = torch.linalg.eigh(covariance(features))
    if not variances.sum() > 0:
        raise RlpreError(
            "the features to whiten are the same for every frame: the encoder has collapsed, pretrain anew"
        )
    shrink = directions * variances.clamp_min(FLOOR * variances.mean()).rsqrt() @ directions.T
    mean, std = encoder.feature_mean.cpu().double(), encoder.feature_std.cpu().double()
    turn = {"weight": shrink / std, "bias": -shrink @ (mean / std + features.double().mean(0))}
    state = {f"stages.{len(encoder.stages)}.{name}": tensor for name, tensor in turn.items()}
    state |= {"feature_mean": torch.zeros_like(mean), "feature_std": torch.ones_like(std)}
    config = encoder.config
    white = type(encoder).from_config({**config, encoder.design: PREFIX + config[encoder.design]})
    white.load_state_dict({**encoder.state_dict(), **state})
    return cast(E, white.to(encoder.device).train(encoder.training))
