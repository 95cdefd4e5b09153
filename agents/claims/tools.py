"""What several claims share: small frames, small encoders, and clones that are linear in an encoder's features."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

import envs
from envs.minigrid.trials import EpisodeRandom, layout_seeds, play
from rlpre import Encoder, FrameStore, InputSpec, pretrain
from rlpre.encoders import AnyEncoder
from rlpre.evaluation.probes import Factor, linear_probe
from rlpre.features import encode
from rlpre.objectives import make_reader
from rlpre.sb3.optim import EncoderAdam, set_anchors, set_learning_rate

TILE = 6  # pixels of a cell: the smallest frames that "cnn" reads, three times as fast as with 8
MIXED = "0.5*random + 0.5*expert:0.3"
TUNING = 100  # gradient steps of fine-tuning
Show = Callable[[Tensor], Tensor] | None  # frames of raw rows of a store; None: as they were


def collect(path: Path, level: str | Sequence[str], steps: int, seed: int = 0, **look: str) -> FrameStore:
    """Frames of a random policy and of a noisy expert; equal seeds give the same states in every view."""
    return envs.collect(level, path, steps, seed, MIXED, tile_size=TILE, **look)


def distinct(store: FrameStore) -> np.ndarray:
    """The first row of each different frame that has an advised action."""
    known = np.flatnonzero(store.column("expert") >= 0)
    return known[np.sort(np.unique(store.ids[known], return_index=True)[1])]


def fresh_cnn(frames: Tensor, seed: int, features: int = 64) -> Encoder:
    """A small encoder with fresh weights, whose features have mean 0 and SD 1 over ``frames`` (n, C, H, W)."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        encoder = Encoder("cnn", InputSpec(tuple(frames.shape[1:])), features=features).eval()
        encoder.standardise(encoder(frames[:1024]))
    return encoder


def mean_probe(encoder: AnyEncoder, frames: FrameStore) -> float:
    """The mean score of linear probes of all labels."""
    return float(np.mean([*linear_probe(encoder, make_reader(frames, encoder)).values()]))


class Clone:
    """The expert's action by a softmax regression on an encoder's features; an actor for `envs.minigrid.trials.play`.

    Args:
        encoder: of frames.
        store: with the label "expert".
        rows: of the store, to learn from.
        seed: of the actions.
        show: see `encode`.
    """

    def __init__(self, encoder: nn.Module, store: FrameStore, rows: np.ndarray, seed: int, show: Show = None) -> None:
        self.encoder, self.random = encoder, EpisodeRandom(np.random.default_rng(seed))
        self.head = LogisticRegression(C=0.1, max_iter=1000)
        self.head.fit(encode(encoder, store, rows, show).numpy(), store.column("expert")[rows])

    @torch.inference_mode()
    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Samples actions (n,) for frames (n, C, H, W) uint8."""
        chances = self.head.predict_proba(self.encoder(torch.from_numpy(frames)).numpy())
        uniform = self.random.draw(starts, 1)
        return self.head.classes_[(chances.cumsum(1) < uniform).sum(1).clip(max=chances.shape[1] - 1)]

    def agreement(self, frames: np.ndarray, advice: np.ndarray) -> float:
        """The mean probability of the advised actions (n,) in frames (n, C, H, W) uint8."""
        with torch.inference_mode():
            chances = self.head.predict_proba(self.encoder(torch.from_numpy(frames)).numpy())
        known = self.head.classes_ == advice[:, None]
        return float((chances * known).sum(1).mean())


def mean_return(clone: Clone, level: str, episodes: int = 32, **look: str) -> float:
    """The mean return of a clone in new layouts."""
    trials = play(level, layout_seeds(level, "test", episodes), clone, tile_size=TILE, **look)
    return float(np.mean([trial.reward.sum() for trial in trials]))


def tuned_score(
    encoder: Encoder, frames: Tensor, factor: Factor, labels: int, seed: int, frozen: int = 0, anchor: float = 0.0
) -> float:
    """Trains a linear head and a copy of an encoder on few labels; returns the score at held-out inputs.

    Args:
        encoder: of ``frames`` (n, C, H, W), one for each value of ``factor``.
        frames: its inputs.
        factor: the classes to learn.
        labels: how many.
        seed: draws labels, test inputs and batches.
        frozen: number of stages that do not change.
        anchor: strength of the pull to the encoder's first weights.
    """
    train, test = factor.folds(seed)[0]
    train = np.random.default_rng(seed).permutation(train)[:labels]
    target = torch.from_numpy(np.searchsorted(factor.classes, factor.values))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(copy.deepcopy(encoder), nn.Linear(encoder.num_features, len(factor.classes)))
        model[0].stages[:frozen].requires_grad_(False)
        set_learning_rate(model[0], 0.1, 0)
        set_anchors(model[0], anchor, {name: weight.detach().clone() for name, weight in encoder.named_parameters()})
        optimizer = EncoderAdam([weight for weight in model.parameters() if weight.requires_grad], lr=1e-2)
        for _ in range(TUNING):
            rows = train[torch.randint(len(train), (min(32, labels),))]
            loss = F.cross_entropy(model(frames[rows]), target[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        answers = model.eval()(frames[test]).argmax(1).numpy()
    return factor.score(factor.classes[answers], test)


class Tuning:
    """The expert's action in DoorKey-6x6 from few labels, by an encoder that was pretrained there.

    Args:
        directory: for frames and encoders.
        steps: of pretraining.
    """

    def __init__(self, directory: Path, steps: int) -> None:
        self.directory, self.steps = directory, steps
        self.store = collect(directory / "frames", "MiniGrid-DoorKey-6x6-v0", 6000)
        rows = distinct(self.store)
        factor = Factor.from_labels("expert", self.store.column("expert")[rows])
        self.frames, self.factor = self.store.decode(self.store.read(rows[factor.places])), factor

    def score(self, seed: int, labels: int, pretrained: bool = True, **mode: float) -> float:
        """The score of `tuned_score`; an encoder is pretrained once for each seed."""
        encoder = fresh_cnn(self.frames, seed)
        if pretrained:
            settings = {"objective": "temporal+inverse", "steps": self.steps, "batch": 64, "seed": seed}
            encoder = pretrain(self.store, out=self.directory / f"{seed}", encoder=encoder, **settings).encoder
        return tuned_score(encoder, self.frames, self.factor, labels, seed, **mode)
