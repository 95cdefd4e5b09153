"""Features of stored rows."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.sampling import Indices

Floats = npt.NDArray[np.floating[Any]]
CHUNK = 512  # frames that are encoded at a time


def encode(
    encoder: Encoder, store: FrameStore, rows: Indices, show: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features (len(rows), num_features) of stored frames, in evaluation mode, on the CPU.

    Args:
        encoder: its mode is restored.
        store: the frames.
        rows: which of them, (n,).
        show: turns raw rows of ``store.read`` into the frames to encode; default ``store.decode``.

    Raises:
        RlpreError: if the encoder was built for other frames.
    """
    try:
        encoder.input.check(store.space)
    except RlpreError as error:
        raise RlpreError(f"the encoder does not fit {store.path}: {error}") from error
    show = show or store.decode
    was_training = encoder.training
    encoder.eval()
    with torch.inference_mode():
        chunks = [rows[at : at + CHUNK] for at in range(0, len(rows), CHUNK)]
        features = [encoder(show(store.read(chunk).to(encoder.device))).float().cpu() for chunk in chunks]
    encoder.train(was_training)
    return torch.cat(features)


def finite(features: Floats, what: str) -> Floats:
    """Returns ``features`` (n, dim) unchanged.

    Args:
        features: to check.
        what: their name for the message ("the encoder's features").

    Raises:
        RlpreError: if one of them is not a finite number.
    """
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise RlpreError(
            f"{what} hold NaN or infinity in {len(bad)} of {len(features)} rows (first: row {bad[0]}): the weights are "
            "broken, load an earlier checkpoint"
        )
    return features


def covariance(features: Tensor) -> Tensor:
    """(d, d) float64, of features (n, d) around their mean."""
    centred = features.double() - features.double().mean(0)
    return centred.T @ centred / len(centred)
