"""Which changes of a frame do features ignore, and what does ignoring them cost?

A change is applied to frames, and three things are seen:

- how far features move: 0 is invariant, 1 as far as another frame. Fresh weights ignore some changes as well: learnt is
  what moves less than theirs;
- how well a probe that learnt from plain frames answers on changed ones: what a policy would lose that meets them;
- how well a probe answers that learnt from changed frames: what it does not know either is no longer in the features.

Fresh weights also say what pretraining did away with: a factor that they tell better on plain frames. An objective
that teaches to ignore hue takes the colour of keys and doors with it, for instance. A change can also change what a
label means: in a flipped frame left is right.

[0] Ericsson et al. 2022, "Why Do Self-Supervised Models Transfer? Investigating the Impact of Invariance on Downstream
    Tasks".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.augment import random_shift
from rlpre.encoders import AnyEncoder, Encoder
from rlpre.errors import RlpreError, lookup
from rlpre.frames import FrameStore
from rlpre.measure.probe import (
    Factor,
    Floats,
    Indices,
    Reader,
    cross_score,
    encode,
    factors,
    finite,
    fresh,
    ridge,
)
from rlpre.tiles import PALETTES

CROP = 0.75  # of a side is kept, then enlarged to the whole
NOISE = 16.0  # standard deviation, of 255
LEARNT = 0.5  # of how far fresh features move
COLOUR = ("gray", "hue")  # need red, green and blue
PALETTE = "palette"

Change = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Invariance:
    """What one change of frames does to features.

    Attributes:
        moved: mean squared distance of features from where they were, each feature in units of its standard deviation
            over frames, relative to that of two different frames; from 0.
        fresh: the same with fresh weights.
        asked: by factor the held-out score on changed frames, after learning from plain ones.
        relearnt: by factor the held-out score on changed frames, after learning from such.
    """

    moved: float
    fresh: float
    asked: dict[str, float]
    relearnt: dict[str, float]

    @property
    def learnt(self) -> bool:
        """Whether pretraining made features ignore the change."""
        return self.moved < LEARNT * self.fresh


@dataclass(frozen=True)
class Invariances:
    """What changes of frames do to an encoder's features.

    Attributes:
        plain: by factor the held-out score on plain frames.
        fresh: the same with fresh weights.
        changes: by change.
    """

    plain: dict[str, float]
    fresh: dict[str, float]
    changes: dict[str, Invariance]


def crop(frames: Tensor) -> Tensor:
    """Enlarges a part of each frame, of ``CROP`` its height and width at its own random place, to the whole."""
    slack = 1 - CROP
    theta = torch.zeros(len(frames), 2, 3, device=frames.device)
    theta[:, 0, 0] = theta[:, 1, 1] = CROP
    theta[:, :, 2] = torch.empty(len(frames), 2, device=frames.device).uniform_(-slack, slack)
    places = F.affine_grid(theta, list(frames.shape), align_corners=False)
    return F.grid_sample(frames.float(), places, "nearest", "border", align_corners=False).to(frames.dtype)


def gray(frames: Tensor) -> Tensor:
    """The mean of red, green and blue in all three."""
    return frames.float().mean(1, keepdim=True).round().to(frames.dtype).expand_as(frames)


def noise(frames: Tensor) -> Tensor:
    """Gaussian noise on every pixel."""
    noisy = frames + NOISE * torch.randn(frames.shape, device=frames.device)
    return noisy.round().clamp(0, 255).to(frames.dtype)


CHANGES: dict[str, Change] = {
    "shift": random_shift,  # as objectives and DrQ do
    "crop": crop,
    "flip": lambda frames: frames.flip(-1),  # left is right
    "hue": lambda frames: frames.roll(1, 1),  # red is green, green blue, blue red
    "gray": gray,
    "noise": noise,
}


def shows(store: FrameStore, names: Sequence[str] | None = None) -> dict[str, Change]:
    """Maps raw rows of a store (see ``FrameStore.read``) to changed frames (batch, C, H, W) uint8, by change.

    Args:
        store: of frames.
        names: of changes; None: all that its frames can undergo. "palette" shows grid worlds as under another light.

    Raises:
        RlpreError: if a change is unknown or cannot be made.
    """
    known = {name: _after(store, change) for name, change in CHANGES.items()}
    if store.space.shape[0] != 3:
        known = {name: show for name, show in known.items() if name not in COLOUR}
    if store.atlas:
        atlas, others = store.atlas, [name for name in PALETTES if name != store.palette]
        known[PALETTE] = lambda raw: atlas.decode_torch(raw, others[0])
    return known if names is None else {name: lookup(f"change of {store.path}", name, known) for name in names}


def _after(store: FrameStore, change: Change) -> Change:
    return lambda raw: change(store.decode(raw))


def invariances(
    encoder: AnyEncoder,
    reader: Reader,
    names: Sequence[str] | None = None,
    changes: Sequence[str] | None = None,
    seed: int = 0,
) -> Invariances:
    """What an encoder's features ignore, and what that costs.

    Args:
        encoder: of frames; its mode is restored.
        reader: of frames with label columns.
        names: labels to ask about; None: all that can be.
        changes: see `shows`.
        seed: draws the inputs, what is held out, the changes, and the fresh weights.

    Raises:
        RlpreError: if the encoder reads sequences or other frames, a label cannot be asked about, a change is unknown,
            or features are not finite.
    """
    if not isinstance(encoder, Encoder):
        raise RlpreError(f"changes are of single frames, which {type(encoder).__name__} does not read: give its vision")
    store = reader.frames
    rows, asked = factors(reader, names, seed)
    shown, control = shows(store, changes), fresh(encoder, seed)
    plain, before = (_features(of, store, rows, store.decode, seed) for of in (encoder, control))
    found = {}
    for name, show in shown.items():
        changed = _features(encoder, store, rows, show, seed)
        away = _moved(before, _features(control, store, rows, show, seed))
        scores = {each.name: _transferred(plain[each.places], changed[each.places], each, seed) for each in asked}
        again = {each.name: cross_score(changed[each.places], each, seed) for each in asked}
        found[name] = Invariance(_moved(plain, changed), away, scores, again)
    known, control_known = (
        {each.name: cross_score(x[each.places], each, seed) for each in asked} for x in (plain, before)
    )
    return Invariances(known, control_known, found)


def _features(encoder: Encoder, store: FrameStore, rows: Indices, show: Change, seed: int) -> Floats:
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # the same changes for all encoders
        return finite(encode(encoder, store, rows, show).numpy(), "the features of Encoder")


def _moved(plain: Floats, changed: Floats) -> float:
    spread = plain.std(0)
    varies = spread > 0
    return float(np.mean(((changed - plain)[:, varies] / spread[varies]) ** 2) / 2)


def _transferred(plain: Floats, changed: Floats, of: Factor, seed: int) -> float:
    """The score on changed features at held-out inputs, after learning from plain ones."""
    answers = np.empty(len(of.values))
    for train, test in of.folds(seed):
        answers[test] = ridge(of.quantity).fit(plain[train], of.values[train]).predict(changed[test])
    return of.score(answers)
