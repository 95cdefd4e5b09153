"""Features of stored rows, and `whiten`: an encoder whose features are uncorrelated and of one scale.

[0] Kessy, Lewin and Strimmer 2018, "Optimal whitening and decorrelation" (ZCA: the whitening that changes the features
    least).
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rlpre.data.store import FrameStore, Indices
from rlpre.data.windows import Trajectories, Windows
from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder, as_encoder
from rlpre.encoders.encoder import MAP, WHITENED
from rlpre.errors import RlpreError, lookup

Floats = npt.NDArray[np.floating[Any]]
E = TypeVar("E", bound=AnyEncoder)

FRAMES, WINDOWS = 512, 256  # encoded at a time
ROWS = 2048  # frames, or windows that end at them, whose covariance `whiten` takes
FLOOR = 1e-4  # share of the mean variance; directions that vary less are not scaled up to noise
MAP_SIZE = 256  # most features of a map by default


def encode(
    encoder: AnyEncoder, store: FrameStore, rows: Indices, show: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """Features (n, num_features) float32 of stored rows, in evaluation mode, on the CPU.

    Args:
        encoder: of frames, or of sequences: it reads the windows that end at the rows.
        store: what the rows are from.
        rows: (n,).
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
    try:
        yield
    finally:
        encoder.train(was_training)


def finite(features: Floats, what: str) -> Floats:
    """Returns ``features`` (n, dim) unchanged; RlpreError if one is not finite, which names them as ``what``."""
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        where = f"{len(bad)} of {len(features)} rows (first: row {bad[0]})"
        raise RlpreError(f"{what} hold NaN or infinity in {where}: the weights are broken, load an earlier checkpoint")
    return features


def covariance(features: Tensor) -> Tensor:
    """Covariance (d, d) float64 of features (n, d)."""
    centred = features.double() - features.double().mean(0)
    return centred.T @ centred / len(centred)


@torch.no_grad()
def whiten(
    encoder: E | str | PathLike[str],
    frames: FrameStore | str | Path,
    seed: int = 0,
    *,
    features: str = "output",
    stage: int | None = None,
    size: int | None = None,
    power: float = 1.0,
) -> E:
    """Returns a copy of an encoder whose features over the frames are uncorrelated, with mean 0 and SD 1.

    Whitening does not change what a linear head can represent, but gradient descent learns all directions at the same
    rate. The map is estimated: directions that only other frames vary in are magnified up to 100 times. An encoder that
    was pretrained well has few directions that matter, and many that hold next to nothing. Read those softly, with
    ``power=0.5``: every principal direction is divided by that power of its SD, so that strong ones stay stronger.

    ``features="output"`` appends one stage to the encoder, a linear map (ZCA [0]); the copy has the architecture (or
    backbone) "whitened:NAME". ``features="map"`` keeps only the first stages of an encoder of frames, and takes the
    leading principal components of their flattened feature map, which keeps more of where things are; the copy has the
    architecture "map:NAME". Both copies are saved, loaded, plugged and fused like any other encoder.

    Args:
        encoder: of frames or of sequences, its directory, or the result of `rlpre.pretrain`; it is copied with its mode
            and device.
        frames: a store or its directory, drawn as `FrameStore.sample` does; a sequence encoder reads the windows that
            end there.
        seed: of the draw.
        features: "output" or "map".
        stage: number of stages before the map; default all but the last two (for ``cnn``, the second convolution).
        size: length of the features of a map; default 256, or fewer if the map varies in fewer directions.
        power: of the SD, 0 to 1. Below 1 the features are as large as whitened ones on average: their mean variance
            is 1.

    Raises:
        RlpreError: for frames that the encoder does not read, features that are not finite, or that do not vary; for
            "map", if the encoder is one of sequences or of a map already, or has no such stage or size.
    """
    frames = FrameStore.given(frames)
    if not 0 <= power <= 1:
        raise RlpreError(f"power is {power}: give 0 (features are only centred and scaled) to 1 (they become white)")
    source, rows = as_encoder(encoder), frames.sample(ROWS, np.random.default_rng(seed))
    if lookup("features to whiten", features, {"output": False, "map": True}):
        return cast(E, _white_map(source, frames, rows, stage, size, power))
    if (stage, size) != (None, None):
        raise RlpreError("stage and size are those of a map: give features='map' too, or leave them out")
    return cast(E, _white_output(source, frames, rows, power))


def _divisors(variances: Tensor, power: float) -> Tensor:
    """What principal directions of these variances (n,) are divided by."""
    return variances ** (power / 2) * (variances ** (1 - power)).mean().sqrt()


def _white_output(encoder: AnyEncoder, frames: FrameStore, rows: Indices, power: float) -> AnyEncoder:
    features = encode(encoder, frames, rows)
    _check_varying(features, frames)
    if (different := len(np.unique(frames.ids[rows]))) <= features.shape[1]:
        warnings.warn(
            f"{different} different frames cannot whiten {features.shape[1]} features: directions in which they do not "
            "vary stay small there and may be large elsewhere; use more frames, or features='map'",
            stacklevel=4,  # past the decorator
        )
    variances, directions = torch.linalg.eigh(covariance(features))
    whitening = directions / _divisors(variances.clamp_min(FLOOR * variances.mean()), power) @ directions.T
    mean, std = encoder.feature_mean.cpu().double(), encoder.feature_std.cpu().double()
    linear = {"weight": whitening / std, "bias": -whitening @ (mean / std + features.double().mean(0))}
    state = {f"stages.{len(encoder.stages)}.{name}": tensor for name, tensor in linear.items()}
    state |= {"feature_mean": torch.zeros_like(mean), "feature_std": torch.ones_like(std)}
    white = type(encoder).from_config({**encoder.config, encoder.design: WHITENED + encoder.name})
    white.load_state_dict({**encoder.state_dict(), **state})
    return white.to(encoder.device, encoder.dtype).train(encoder.training)


def map_stage(encoder: AnyEncoder, stage: int | None = None) -> int:
    """The number of stages before the feature map that `whiten` takes of an encoder.

    Raises:
        RlpreError: if the encoder has no feature map, or none there.
    """
    last = len(encoder.stages) - 1 - encoder.name.count(WHITENED)
    if isinstance(encoder, SequenceEncoder) or encoder.name.startswith(MAP) or last < 1:
        why = "give a plain encoder of frames, built as a list of modules, between which the maps are"
        raise RlpreError(f"encoder {encoder.name!r} has no feature map to whiten: {why}")
    stage = max(last - 1, 1) if stage is None else stage
    if not 0 < stage <= last:
        raise RlpreError(f"stage is {stage}: encoder {encoder.name!r} has maps after stage 1 to {last}")
    return stage


def _white_map(
    encoder: AnyEncoder, frames: FrameStore, rows: Indices, stage: int | None, size: int | None, power: float
) -> Encoder:
    name, stage = encoder.name.replace(WHITENED, ""), map_stage(encoder, stage)
    assert isinstance(encoder, Encoder)
    _, first, counts = np.unique(frames.ids[rows], return_index=True, return_counts=True)
    maps: list[Tensor] = []
    with encoder.stages[stage - 1].register_forward_hook(lambda *io: maps.append(io[2].flatten(1).float().cpu())):
        encode(encoder, frames, rows[first])
    _check_varying(features := torch.cat(maps), frames)
    mean, weight = _principal_components(features, torch.from_numpy(counts / len(rows)), size, power)
    arguments = {**encoder.arguments, "map_stage": stage, "map_size": len(weight)}
    white = Encoder(MAP + name, encoder.input, encoder.pretraining, **arguments).to(encoder.device, encoder.dtype)
    for own, given in zip(white.stages[:-1], encoder.stages, strict=False):
        own.load_state_dict(given.state_dict())
    cast(nn.Sequential, white.stages[-1])[1].load_state_dict({"weight": weight, "bias": -weight @ mean})
    return white.train(encoder.training)


def _principal_components(features: Tensor, weights: Tensor, size: int | None, power: float) -> tuple[Tensor, Tensor]:
    """The mean (d,) of features (n, d), and the linear map (size, d) to their leading components, as `whiten` says.

    ``weights`` (n,) float64 are the shares of the features, with sum 1.
    """
    mean = weights @ features.double()
    scaled = weights.sqrt()[:, None] * (features.double() - mean)
    variances, left = torch.linalg.eigh(scaled @ scaled.T)  # n is smaller than d for most maps
    varying = int((variances > FLOOR * variances.sum() / features.shape[1]).sum())
    size = min(varying, MAP_SIZE) if size is None else size
    if not 0 < size <= varying:
        raise RlpreError(f"size is {size}: the map varies in {varying} directions over the frames, give 1 to {varying}")
    left, variances = left[:, -size:].flip(1), variances[-size:].flip(0)
    return mean, (left / variances.sqrt() / _divisors(variances, power)).T @ scaled


def _check_varying(features: Tensor, frames: FrameStore) -> None:
    finite(features.numpy(), "the features to whiten")
    if len(np.unique(frames.ids)) < 2:
        raise RlpreError(f"all frames of {frames.path} are the same, which tells no features apart: collect others")
    if not (features != features[0]).any():
        raise RlpreError(
            "the features to whiten are the same for every frame: the encoder collapsed, pretrain it again"
        )
