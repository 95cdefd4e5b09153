"""Features of stored rows, and `whiten`: an encoder whose features are uncorrelated and of one scale.

[0] Kessy, Lewin and Strimmer 2018, "Optimal whitening and decorrelation" (ZCA: the whitening that changes the features
    least).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rlpre.data.store import FrameStore, Indices
from rlpre.data.windows import Trajectories, Windows
from rlpre.encoders import AnyEncoder, SequenceEncoder, as_encoder
from rlpre.encoders.encoder import WHITENED
from rlpre.errors import RlpreError

Floats = npt.NDArray[np.floating[Any]]
E = TypeVar("E", bound=AnyEncoder)

FRAMES, WINDOWS = 512, 256  # encoded at a time
ROWS = 2048  # frames, or windows that end at them, whose covariance `whiten` takes
FLOOR = 1e-4  # share of the mean variance; directions that vary less are not scaled up to noise


def encode(
    encoder: AnyEncoder, store: FrameStore, rows: Indices, show: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features (len(rows), num_features) float32 of stored rows, in evaluation mode, on the CPU.

    Args:
        encoder: its mode is restored. A sequence encoder reads the windows that end at the rows.
        store: frames, or trajectories for a sequence encoder.
        rows: which of them, (n,).
        show: turns raw rows of ``store.read`` into the frames that an `Encoder` reads; default ``store.decode``.

    Raises:
        RlpreError: if the encoder was built for other frames.
    """
    if isinstance(encoder, SequenceEncoder):
        return encode_windows(encoder, Trajectories(store, encoder, encoder.device), rows)
    try:
        encoder.input.check(store.space)
    except RlpreError as error:
        raise RlpreError(f"the encoder does not fit {store.path}: {error}") from error
    show = show or store.decode
    with torch.inference_mode(), _evaluating(encoder):
        chunks = [rows[at : at + FRAMES] for at in range(0, len(rows), FRAMES)]
        return torch.cat([encoder(show(store.read(chunk).to(encoder.device))).float().cpu() for chunk in chunks])


@torch.no_grad()
def encode_windows(encoder: SequenceEncoder, trajectories: Trajectories, rows: Indices) -> Tensor:
    """Features (len(rows), width) float32 of the windows that end at ``rows``, as `encode`."""
    windows = Windows(trajectories.store, encoder.window)
    with _evaluating(encoder):
        chunks = [windows.ending(rows[at : at + WINDOWS]) for at in range(0, len(rows), WINDOWS)]
        return torch.cat([encoder(*trajectories.inputs(chunk))[:, -1].float().cpu() for chunk in chunks])


@contextmanager
def _evaluating(encoder: AnyEncoder) -> Iterator[None]:
    was_training = encoder.training
    encoder.eval()
    yield
    encoder.train(was_training)


def finite(features: Floats, what: str) -> Floats:
    """Returns ``features`` (n, dim) unchanged; ``what`` is their name for the message ("the encoder's features").

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
    """Covariance (d, d) float64 of features (n, d)."""
    centred = features.double() - features.double().mean(0)
    return centred.T @ centred / len(centred)


@overload
def whiten(encoder: E, frames: FrameStore, seed: int = 0) -> E: ...
@overload
def whiten(encoder: object, frames: FrameStore, seed: int = 0) -> AnyEncoder: ...
@torch.no_grad()
def whiten(encoder: object, frames: FrameStore, seed: int = 0) -> AnyEncoder:
    """Returns a copy of an encoder whose features over the frames are uncorrelated, with mean 0 and SD 1.

    Whitening does not change what a linear head can represent, but gradient descent learns all directions at the same
    rate. The copy has one stage more, a linear map (ZCA [0]), and the architecture (or backbone) "whitened:NAME"; it is
    saved, loaded, plugged and fused like any other encoder. The map is estimated: with few distinct frames, directions
    that only other frames vary in are magnified up to 100 times.

    Args:
        encoder: of frames or of sequences, its directory, or the result of `rlpre.pretrain`; it is copied with its mode
            and device.
        frames: drawn as `FrameStore.sample` does; a sequence encoder reads the windows that end there.
        seed: of the draw.

    Raises:
        RlpreError: for frames that the encoder does not read, features that are not finite, or that do not vary.
    """
    encoder = as_encoder(encoder)
    features = encode(encoder, frames, frames.sample(ROWS, np.random.default_rng(seed)))
    finite(features.numpy(), "the features to whiten")
    variances, directions = torch.linalg.eigh(covariance(features))
    if not variances.sum() > 0:
        raise RlpreError(
            "the features to whiten are the same for every frame: the encoder has collapsed, pretrain anew"
        )
    whitening = directions * variances.clamp_min(FLOOR * variances.mean()).rsqrt() @ directions.T
    mean, std = encoder.feature_mean.cpu().double(), encoder.feature_std.cpu().double()
    linear = {"weight": whitening / std, "bias": -whitening @ (mean / std + features.double().mean(0))}
    state = {f"stages.{len(encoder.stages)}.{name}": tensor for name, tensor in linear.items()}
    state |= {"feature_mean": torch.zeros_like(mean), "feature_std": torch.ones_like(std)}
    white = type(encoder).from_config({**encoder.config, encoder.design: WHITENED + encoder.name})
    white.load_state_dict({**encoder.state_dict(), **state})
    return white.to(encoder.device, encoder.dtype).train(encoder.training)
