"""Invariances: which changes of a frame do features ignore, and what does that cost [0]?

For each change of the frames three numbers are measured.

- How far features move: 0 is invariant, 1 is as far as to another frame. Fresh weights ignore some changes too, so an
  invariance counts as learned only if features move less than theirs.
- The score on changed frames of a probe that learned from plain ones: a policy that meets changed frames would lose as
  much.
- The score on changed frames of a probe that learned from changed ones: what is missing here is lost from the features.

The scores of fresh weights on plain frames show what pretraining removed. An objective that teaches invariance to hue,
for instance, removes the colour of keys and doors. A change can also change the meaning of a label: a flip swaps left
and right.

[0] Ericsson et al. 2022, "Why Do Self-Supervised Models Transfer? Investigating the Impact of Invariance on Downstream
    Tasks".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.data.backgrounds import DistractingAtlas
from rlpre.data.store import FrameStore
from rlpre.data.tiles import PALETTES
from rlpre.encoders import AnyEncoder, Encoder
from rlpre.errors import RlpreError, lookup
from rlpre.evaluation.probes import Factor, Floats, cross_score, factors, fresh, ridge
from rlpre.features import encode, finite
from rlpre.objectives.batches import AnyReader
from rlpre.objectives.losses import random_shift

CROP = 0.75  # of a side is kept, then enlarged to the whole
NOISE = 16.0  # standard deviation, of 255
LEARNED = 0.5  # of the distance that fresh features move
COLOUR = ("gray", "hue")  # changes that need red, green and blue
PALETTE, BACKGROUND, PLAIN = "palette", "background", "plain"

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Invariance:
    """The effect of one change of frames on features.

    The distance moved is the mean squared distance of features before and after the change, each feature in units of
    its standard deviation over frames, divided by that of two different frames.
    """

    moved: float  # distance moved, 0 or more
    fresh: float  # the same with fresh weights
    asked: dict[str, float]  # by label the held-out score on changed frames after learning from plain ones
    relearnt: dict[str, float]  # by label the held-out score on changed frames after learning from changed ones

    @property
    def learnt(self) -> bool:
        """Whether features ignore the change because of pretraining."""
        return self.moved < LEARNED * self.fresh


@dataclass(frozen=True)
class Invariances:
    """The effects of several changes of frames."""

    plain: dict[str, float]  # by label the held-out score on plain frames
    fresh: dict[str, float]  # the same with fresh weights
    changes: dict[str, Invariance]


def crop(frames: Tensor) -> Tensor:
    """Crops each frame to ``CROP`` of its height and width, at its own random place, and enlarges it to full size."""
    slack = 1 - CROP
    theta = torch.zeros(len(frames), 2, 3, device=frames.device)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP
    theta[:, :, 2] = torch.empty(len(frames), 2, device=frames.device).uniform_(-slack, slack)
    places = F.affine_grid(theta, list(frames.shape), align_corners=False)
    return F.grid_sample(frames.float(), places, "nearest", "border", align_corners=False).to(frames.dtype)


def gray(frames: Tensor) -> Tensor:
    """Sets all three channels to their mean."""
    return frames.float().mean(1, keepdim=True).round().to(frames.dtype).expand_as(frames)


def noise(frames: Tensor) -> Tensor:
    """Adds Gaussian noise to every pixel."""
    noisy = frames + NOISE * torch.randn(frames.shape, device=frames.device)
    return noisy.round().clamp(0, 255).to(frames.dtype)


CHANGES: dict[str, Change] = {
    "shift": random_shift,  # the augmentation of objectives and DrQ
    "crop": crop,
    "flip": lambda frames: frames.flip(-1),  # swaps left and right
    "hue": lambda frames: frames.roll(1, 1),  # red becomes green, green blue, blue red
    "gray": gray,
    "noise": noise,
}


def changed_frames(store: FrameStore, names: Sequence[str] | None = None) -> dict[str, Change]:
    """By change, a function from raw rows of a store (see ``FrameStore.read``) to frames (batch, C, H, W) uint8.

    Args:
        store: of frames.
        names: of changes; None: all that fit its frames. "palette" draws grid worlds in other colours. With pictures
            behind the cells, "background" draws another one and "plain" none.

    Raises:
        RlpreError: if a change is unknown or does not fit the frames.
    """

    def decode_then(change: Change) -> Change:
        return lambda raw: change(store.decode(raw))

    fitting = [name for name in CHANGES if name not in COLOUR or store.space.shape[0] == 3]
    known = {name: decode_then(CHANGES[name]) for name in fitting}
    if store.atlas:
        atlas, others = store.atlas, [name for name in PALETTES if name != store.palette]
        known[PALETTE] = lambda raw: atlas.decode_torch(raw, others[0])
        if isinstance(atlas, DistractingAtlas):
            known[BACKGROUND] = lambda raw: store.decode(atlas.replaced(raw))
            known[PLAIN] = lambda raw: atlas.plain.decode_torch(store.grid(raw), store.palette)
    return known if names is None else {name: lookup(f"change of {store.path}", name, known) for name in names}


def invariances(
    encoder: AnyEncoder,
    reader: AnyReader,
    names: Sequence[str] | None = None,
    changes: Sequence[str] | None = None,
    seed: int = 0,
) -> Invariances:
    """Measures which changes of frames an encoder ignores, and the cost.

    Args:
        encoder: of frames.
        reader: of frames with label columns.
        names: of the labels to probe; None: all that can be probed.
        changes: see `changed_frames`.
        seed: draws the inputs, the folds, the changes and the fresh weights.

    Raises:
        RlpreError: if the encoder reads sequences or other frames, a label cannot be probed, a change is unknown, or
            features are not finite.
    """
    if not isinstance(encoder, Encoder):
        raise RlpreError(f"changes are of single frames, which {type(encoder).__name__} does not read: give its vision")
    store = reader.frames
    rows, labels = factors(reader, names, seed)
    shown, control = changed_frames(store, changes), fresh(encoder, seed)

    def features(encoder: Encoder, show: Change) -> Floats:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # the same changes for both encoders
            return finite(encode(encoder, store, rows, show).numpy(), "the features of Encoder")

    def scores(x: Floats) -> dict[str, float]:
        return {each.name: cross_score(x[each.places], each, seed) for each in labels}

    plain, fresh_plain = features(encoder, store.decode), features(control, store.decode)
    effects = {}
    for name, show in shown.items():
        changed = features(encoder, show)
        asked = {each.name: _transfer_score(plain[each.places], changed[each.places], each, seed) for each in labels}
        fresh_moved = _moved(fresh_plain, features(control, show))
        effects[name] = Invariance(_moved(plain, changed), fresh_moved, asked, scores(changed))
    return Invariances(scores(plain), scores(fresh_plain), effects)


def _moved(plain: Floats, changed: Floats) -> float:
    spread = plain.std(0)
    varies = spread > 0
    return float(np.mean(((changed - plain)[:, varies] / spread[varies]) ** 2) / 2) if varies.any() else 0.0


def _transfer_score(plain: Floats, changed: Floats, factor: Factor, seed: int) -> float:
    """The score on changed features at held-out inputs, after learning from plain ones."""
    predicted = np.empty(len(factor.values))
    for train, test in factor.folds(seed):
        predicted[test] = ridge(factor.quantity).fit(plain[train], factor.values[train]).predict(changed[test])
    return factor.score(predicted)
