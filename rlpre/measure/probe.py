"""Linear probes: what can be read linearly from frozen features?

What every measure of features shares is here too: which inputs of a store are read, what is asked about them, what is
held out.

[0] Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
[1] Zhang et al. 2022, "Light-weight probing of unsupervised representations for reinforcement learning".
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.frames import FrameStore

Floats = npt.NDArray[np.floating[Any]]
Indices = npt.NDArray[np.int64]
E = TypeVar("E", bound=AnyEncoder)

NUMBERS = ("distance",)  # labels that are quantities, scored by R²; the others are classes
NAMES = ("layout",)  # labels that say which episode a frame is from, not what is in it
ROWS = 3000  # distinct inputs a probe reads
MIN_ROWS = 40  # fewer labelled ones say nothing
FOLDS = 5  # of the cross-validation
RIDGE = 1.0  # scikit-learn's default strength, on standardised features
CHUNK = 512


class Reader(Protocol):
    """How a kind of encoder reads a store.

    Attributes:
        frames: the store.
        groups: (N,) int64, the same number for rows that a probe must not be trained and tested on; None: any may.
    """

    frames: FrameStore
    groups: Indices | None

    def distinct(self, rows: Indices) -> Indices:
        """Some of ``rows``, between any two of which the encoder could tell."""

    def encode(self, encoder: Any, rows: Indices) -> torch.Tensor:
        """Features (len(rows), num_features) in evaluation mode, on the CPU."""


def encode(
    encoder: Encoder,
    store: FrameStore,
    rows: Indices,
    show: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> torch.Tensor:
    """Features (len(rows), num_features) of stored frames, in evaluation mode, on the CPU.

    Args:
        encoder: its mode is restored.
        store: of frames that it reads.
        rows: which, (n,).
        show: what becomes of the raw rows of ``store.read``; default ``store.decode``, the frames as they are.

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
    """Returns features (n, dim).

    Args:
        features: to check.
        what: whose they are, for the message ("the encoder's features").

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


def read(encoder: AnyEncoder, reader: Reader, rows: Indices) -> Floats:
    """Features (n, num_features) of ``rows`` (n,) of the reader's store.

    Raises:
        RlpreError: if the encoder was built for other frames or its features are not finite.
    """
    return finite(reader.encode(encoder, rows).numpy(), f"the features of {type(encoder).__name__}")


def fresh(encoder: E, seed: int = 0) -> E:
    """The control: an encoder alike with fresh weights, in evaluation mode; a sequence encoder keeps its vision."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        control = type(encoder).from_config({**encoder.config, "pretraining": {}})
    if isinstance(control, SequenceEncoder) and isinstance(encoder, SequenceEncoder):
        control.frames.load_state_dict(encoder.frames.state_dict())
    return cast(E, control.to(encoder.device).eval())


@dataclass(frozen=True)
class Factor:
    """A label, at the inputs at which it is known; made by `factor`.

    Attributes:
        name: of the label.
        places: (n,) int64, which of the inputs these are.
        values: (n,) the label.
        groups: (n,) int64, the same number for inputs that must not be trained and tested on.
        quantity: whether values are quantities and not classes.
    """

    name: str
    places: Indices
    values: npt.NDArray[Any]
    groups: Indices
    quantity: bool

    @property
    def classes(self) -> npt.NDArray[Any]:
        """The different values, sorted."""
        return np.unique(self.values)

    @property
    def chance(self) -> float:
        """The score of an answer that knows nothing."""
        return 0.0 if self.quantity else 1 / len(self.classes)

    def score(self, answers: npt.NDArray[Any], at: Indices | slice = slice(None)) -> float:
        """Balanced accuracy in [0, 1] of answers (n,), or R² (at most 1) of a quantity; ``at``: of some of the n."""
        values = self.values[at]
        if self.quantity:
            return float(1 - np.sum((values - answers) ** 2) / np.sum((values - values.mean()) ** 2))
        right = values == answers
        return float(np.mean([right[values == each].mean() for each in np.unique(values)]))

    def folds(self, seed: int = 0) -> list[tuple[Indices, Indices]]:
        """``FOLDS`` pairs (train, test) of indices into the n; whole groups, dealt out by their first value."""
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        order = np.lexsort((np.random.default_rng(seed).random(len(first)), self.values[first]))
        dealt = np.empty(len(first), np.int64)
        dealt[order] = np.arange(len(first)) % FOLDS
        fold = dealt[group]
        return [(np.flatnonzero(fold != each), np.flatnonzero(fold == each)) for each in range(FOLDS)]


def factor(
    name: str, labels: npt.NDArray[Any], groups: npt.NDArray[Any] | None = None, quantity: bool = False
) -> Factor:
    """What a probe can be asked about inputs.

    Args:
        name: of the label.
        labels: (n,), below 0 where it is unknown.
        groups: (n,), the same number for inputs that must not be trained and tested on; None: any may.
        quantity: labels are quantities and not classes. Classes that occur in fewer than ``FOLDS`` groups are left
            out: they would miss from the training part.

    Raises:
        RlpreError: if fewer than ``MIN_ROWS`` inputs or ``FOLDS`` groups are left, or only one value.
    """
    apart = np.arange(len(labels)) if groups is None else groups
    kept = labels >= 0
    if not quantity:
        pairs = np.unique(np.stack([labels[kept], apart[kept]]), axis=1)
        classes, counts = np.unique(pairs[0], return_counts=True)
        kept &= np.isin(labels, classes[counts >= FOLDS])
    values, apart = labels[kept], apart[kept]
    if len(values) < MIN_ROWS:
        raise RlpreError(
            f"label {name!r} is known, in classes that are not rare, for {len(values)} different inputs: a probe needs "
            f"{MIN_ROWS}, collect more frames"
        )
    if len(np.unique(apart)) < FOLDS:
        raise RlpreError(
            f"label {name!r} is known in {len(np.unique(apart))} episodes: a probe needs {FOLDS} to hold some out"
        )
    if len(np.unique(values)) < 2:
        raise RlpreError(
            f"label {name!r} is {values[0]} wherever it is known and common: there is nothing to tell apart"
        )
    return Factor(name, np.flatnonzero(kept), values, apart, quantity)


def factors(reader: Reader, names: Sequence[str] | None = None, seed: int = 0) -> tuple[Indices, list[Factor]]:
    """What can be asked about different inputs of a store.

    Args:
        reader: of frames with label columns.
        names: of the labels to ask about; None: all that can be, but those that only name the episode.
        seed: draws the inputs and their order.

    Returns:
        Rows of at most ``ROWS`` distinct inputs, and the factors, whose ``places`` are indices into them.

    Raises:
        RlpreError: if one of ``names`` is no label or a probe cannot be asked about it, or without names about none.
    """
    rows, found, refused = _ask(reader, names, seed)
    if (names and refused) or not found:
        why = refused[0] if refused else "it has no labels"
        raise RlpreError(f"{reader.frames.path} cannot be probed: {why}")
    return rows, found


def _ask(reader: Reader, names: Sequence[str] | None, seed: int) -> tuple[Indices, list[Factor], list[RlpreError]]:
    """Rows, factors, and why others are none."""
    rng, store = np.random.default_rng(seed), reader.frames
    known = {name: name for name in store.labels}
    asked = (
        [name for name in known if name not in NAMES]
        if names is None
        else [lookup("label", name, known) for name in names]
    )
    rows = rng.permutation(reader.distinct(rng.permutation(len(store))))[:ROWS]
    apart = None if reader.groups is None else reader.groups[rows]
    found, refused = [], []
    for name in asked:
        try:
            found.append(factor(name, store.column(name)[rows], apart, quantity=name in NUMBERS))
        except RlpreError as error:
            refused.append(error)
    return rows, found, refused


def standardised(features: Floats, rows: Indices | slice = slice(None)) -> Floats:
    """Features (n, dim) as those of ``rows`` get mean 0 and standard deviation 1; one that is constant gets 0 there."""
    mean, spread = features[rows].mean(0), features[rows].std(0)
    return np.asarray((features - mean) / np.where(spread > 0, spread, 1))


def ridge(quantity: bool) -> Any:
    """An unfitted probe: ridge on standardised features, for a quantity or for classes that count alike."""
    # here, because scikit-learn takes more than a second to import
    from sklearn.linear_model import Ridge, RidgeClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(
        StandardScaler(), Ridge(RIDGE) if quantity else RidgeClassifier(RIDGE, class_weight="balanced")
    )


def cross_score(features: Floats, of: Factor, seed: int = 0) -> float:
    """The score of ridge probes at held-out inputs; ``features`` (n, dim) of the factor's n inputs."""
    from sklearn.model_selection import cross_val_predict

    return of.score(cross_val_predict(ridge(of.quantity), features, of.values, cv=of.folds(seed)))


def linear_probe(encoder: AnyEncoder, reader: Reader, seed: int = 0) -> dict[str, float]:
    """Scores of ridge probes for every label of the store.

    Each distinct input is used at most once and cross-validated, so none is both trained on and tested.

    Args:
        encoder: frozen for the purpose; its mode is restored.
        reader: of frames with label columns.
        seed: draws the rows and what is held out.

    Returns:
        For a class label its balanced accuracy in [0, 1], for a quantity R² (at most 1). Labels that `factor` refuses,
        and those that only name the episode, are left out.

    Raises:
        RlpreError: if the features are not finite.
    """
    rows, found, _ = _ask(reader, None, seed)
    if not found:
        return {}
    features = read(encoder, reader, rows)
    return {each.name: cross_score(features[each.places], each, seed) for each in found}
