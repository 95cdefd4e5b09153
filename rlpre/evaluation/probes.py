"""Linear probes: which labels can a linear model predict from frozen features [0, 1]?

A probe is scikit-learn's ridge regression for a quantity (scored by R2) or ridge classifier for classes (scored by
balanced accuracy), on standardised features and at held-out inputs. Besides the plain score there are label curves (the
score by number of labels), sparse probes (the score by number of features) and the separation of classes (in units of
the noise). All are functions of features (n, dim) and a `Factor`:

    reader = rlpre.objectives.make_reader(frames, encoder)
    for name, (features, factor) in labelled_features(encoder, reader).items():
        print(name, cross_score(features, factor), sparsity(features, factor).smallest)

References:
    [0] Alain and Bengio 2016, "Understanding intermediate layers using linear classifier probes".
    [1] Zhang et al. 2022, "Light-weight probing of unsupervised representations for reinforcement learning".
    [2] Gurnee et al. 2023, "Finding Neurons in a Haystack: Case Studies with Sparse Probing".
    [3] Meinshausen 2007, "Relaxed Lasso".
    [4] Green and Swets 1966, "Signal Detection Theory and Psychophysics".
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch

from rlpre.data.store import FrameStore, Indices
from rlpre.encoders import AnyEncoder, SequenceEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.features import finite
from rlpre.objectives.batches import AnyReader

if TYPE_CHECKING:
    from rlpre.evaluation.stats import Interval, StepsRatio  # imports scipy, which `import rlpre` does without

Floats = npt.NDArray[np.floating[Any]]
E = TypeVar("E", bound=AnyEncoder)

QUANTITIES = ("distance", "return")  # labels that are numbers, scored by R2; the others are classes
OUTCOMES = ("action", "reward", "return")  # what every store of trajectories can be asked for, see `outcome`
DISCOUNT = 0.99  # of the return
IDENTIFIERS = ("layout",)  # labels that identify the episode instead of describing the frame
ROWS = 3000  # most distinct inputs that a probe reads
MIN_ROWS = 40  # fewest labelled inputs that give a meaningful score
FOLDS = 5  # of the cross-validation
RIDGE = 1.0  # scikit-learn's default penalty

COUNTS = (10, 20, 30, 50, 100, 200, 300, 500, 1000, 2000)  # numbers of labels of a label curve
SEEDS = 5  # draws of labels per curve
NEARLY = 0.9  # default threshold, as a share of what the baseline scores above chance with most labels
PENALTIES = np.logspace(0, 5, 11)  # of label curves, chosen by leave-one-out: with few labels the penalty matters most

ENOUGH = 0.95  # a sparse probe suffices with this share of the full probe's score above chance
NOTHING = 0.05  # a full probe that scores less above chance finds nothing
LASSO_PATH = np.logspace(0, -2, 40)  # L1 penalties, relative to the smallest that selects no feature
TINY = 1e-5  # principal components below this share of the largest singular value are rounding errors


def read(encoder: AnyEncoder, reader: AnyReader, rows: Indices) -> Floats:
    """Features (n, num_features) of ``rows`` (n,) of the reader's store; refuses those that are not finite."""
    features = reader.encode(encoder, rows)  # type: ignore[arg-type]  # readers come with encoders of their kind
    return finite(features.numpy(), f"the features of {type(encoder).__name__}")


def fresh(encoder: E, seed: int = 0) -> E:
    """A control: the same architecture with fresh weights, in evaluation mode.

    Of a sequence encoder only the sequence model is fresh; its vision encoder is copied.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        control = type(encoder).from_config({**encoder.config, "pretraining": {}})
    if isinstance(control, SequenceEncoder) and isinstance(encoder, SequenceEncoder):
        control.frames.load_state_dict(encoder.frames.state_dict())
    return cast(E, control.to(encoder.device).eval())


@dataclass(frozen=True)
class Factor:
    """A label to predict at n inputs; made by `from_labels`."""

    name: str
    places: Indices  # (n,), of these inputs among all that were given
    values: npt.NDArray[Any]  # (n,) of the label
    groups: Indices  # (n,); inputs with the same number are on the same side of every split
    quantity: bool  # values are numbers, not classes

    @classmethod
    def from_labels(
        cls, name: str, labels: npt.NDArray[Any], groups: npt.NDArray[Any] | None = None, quantity: bool = False
    ) -> "Factor":
        """Selects the inputs whose label is known (not negative; of floats, not NaN) and not too rare.

        Without ``groups`` every input is its own group. Classes in fewer than ``FOLDS`` groups are left out, because
        some training parts would miss them.

        Raises:
            RlpreError: if fewer than ``MIN_ROWS`` inputs, fewer than ``FOLDS`` groups or only one value is left.
        """
        groups = np.arange(len(labels)) if groups is None else groups
        kept = ~np.isnan(labels) if labels.dtype.kind == "f" else labels >= 0
        if not quantity:
            pairs = np.unique(np.stack([labels[kept], groups[kept]]), axis=1)
            classes, counts = np.unique(pairs[0], return_counts=True)
            kept &= np.isin(labels, classes[counts >= FOLDS])
        values, groups = labels[kept], groups[kept]
        for what, number, least in (
            ("different inputs", len(values), MIN_ROWS),
            ("episodes", len(np.unique(groups)), FOLDS),
            ("different values", len(np.unique(values)), 2),
        ):
            if number < least:
                raise RlpreError(
                    f"label {name!r}, where it is known and not rare, has too few {what} ({number}): a probe needs "
                    f"{least}, collect more frames"
                )
        return cls(name, np.flatnonzero(kept), values, groups, quantity)

    @property
    def classes(self) -> npt.NDArray[Any]:
        """The different values, sorted."""
        return np.unique(self.values)

    @property
    def chance(self) -> float:
        """The score of a constant prediction."""
        return 0.0 if self.quantity else 1 / len(self.classes)

    def score(self, predicted: npt.NDArray[Any], at: Indices | slice = slice(None)) -> float:
        """R2 (at most 1) of a quantity, else balanced accuracy in [0, 1], of predictions (m,) for the inputs ``at``."""
        from sklearn.metrics import r2_score, recall_score  # scikit-learn takes more than a second to import

        values = self.values[at]
        if self.quantity:
            return float(r2_score(values, predicted))
        return float(recall_score(values, predicted, labels=np.unique(values), average="macro"))

    def folds(self, seed: int = 0) -> list[tuple[Indices, Indices]]:
        """``FOLDS`` pairs of indices (train, test); groups stay together and each fold gets a share of each value."""
        _, first, group = np.unique(self.groups, return_index=True, return_inverse=True)
        order = np.lexsort((np.random.default_rng(seed).random(len(first)), self.values[first]))
        dealt = np.empty(len(first), np.int64)
        dealt[order] = np.arange(len(first)) % FOLDS
        fold = dealt[group]
        return [(np.flatnonzero(fold != each), np.flatnonzero(fold == each)) for each in range(FOLDS)]


def distinct_rows(reader: AnyReader, most: int, seed: int) -> Indices:
    """At most ``most`` rows with different inputs, in random order."""
    rng = np.random.default_rng(seed)
    return rng.permutation(reader.distinct(rng.permutation(len(reader.frames))))[:most]


def factors(reader: AnyReader, names: Sequence[str] | None = None, seed: int = 0) -> tuple[Indices, list[Factor]]:
    """Draws distinct inputs of a store and the labels that can be probed on them.

    Args:
        reader: of frames with label columns, see `rlpre.objectives.make_reader`.
        names: of the labels, or of ``OUTCOMES``; None: all labels that can be probed, except those that only identify
            the episode. In a store without labels these are the reward and the return.
        seed: of the draw.

    Returns:
        At most ``ROWS`` rows, in random order, and the factors; ``places`` are indices into the rows.

    Raises:
        RlpreError: if one of ``names`` is unknown or cannot be probed, or, without names, no label can.
    """
    store = reader.frames
    if names is None:
        outcomes = ["reward", "return"] if store.acted.any() else []
        names, asked = (), [name for name in store.labels if name not in IDENTIFIERS] or outcomes
    else:
        asked = list(names)
    for name in asked:
        lookup("label", name, dict.fromkeys([*store.labels, *OUTCOMES]))
    rows = distinct_rows(reader, ROWS, seed)
    groups = None if reader.groups is None else reader.groups[rows]
    found, why = [], "it has no labels"
    for name in asked:
        own = name in store.labels
        try:
            values = store.column(name) if own else outcome(store, name)
            together = groups if own else store.episode[rows]  # frames of an episode share its outcome
            found.append(Factor.from_labels(name, values[rows], together, quantity=name in QUANTITIES))
        except RlpreError as error:
            why = str(error)
    if not found or (names and len(found) < len(names)):
        raise RlpreError(f"{store.path} cannot be probed: {why}")
    return rows, found


def outcome(store: FrameStore, name: str) -> npt.NDArray[Any]:
    """What followed each frame, (N,).

    "action" is the action that was taken, "reward" the sign of its reward (0, 1 or 2: negative, none, positive), and
    "return" the sum of rewards to the end of the episode, discounted by ``DISCOUNT``. Actions and rewards are -1 in the
    last row of an episode. Returns are NaN there, and in episodes that the end of the collection cut.

    Raises:
        RlpreError: if actions are asked for and the store holds no discrete ones.
    """
    if name == "action":
        _ = store.num_actions  # refuses vectors
        return store.column("action")
    reward = store.column("reward")
    if name == "reward":
        return np.where(store.acted, np.sign(reward) + 1, -1).astype(np.int64)
    ended = store.column("terminated") | store.column("truncated")
    returns = np.full(len(store), np.nan)
    for row in reversed(np.flatnonzero(store.acted).tolist()):
        after = 0.0 if ended[row] else returns[row + 1]  # the row after a cut is NaN
        returns[row] = reward[row] + DISCOUNT * after
    return returns


def labelled_features(
    encoder: AnyEncoder, reader: AnyReader, names: Sequence[str] | None = None, seed: int = 0
) -> dict[str, tuple[Floats, Factor]]:
    """By label the features (n, num_features) of the inputs where it is known, and the label.

    Arguments and errors are those of `factors`; equal ones give the same inputs for different encoders.
    """
    rows, found = factors(reader, names, seed)
    features = read(encoder, reader, rows)
    return {each.name: (features[each.places], each) for each in found}


def ridge(quantity: bool) -> Any:
    """An unfitted probe: standardisation, then `ridge_model`."""
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), ridge_model(quantity))


def ridge_model(quantity: bool) -> Any:
    """A regression for a quantity, otherwise a classifier in which all classes weigh the same."""
    from sklearn.linear_model import Ridge, RidgeClassifier

    return Ridge(RIDGE) if quantity else RidgeClassifier(RIDGE, class_weight="balanced")


def cross_score(features: Floats, factor: Factor, seed: int = 0) -> float:
    """The cross-validated score of a probe on features (n, dim); ``seed`` draws the folds."""
    from sklearn.model_selection import cross_val_predict

    return factor.score(cross_val_predict(ridge(factor.quantity), features, factor.values, cv=factor.folds(seed)))


def linear_probe(encoder: AnyEncoder, reader: AnyReader, seed: int = 0) -> dict[str, float]:
    """`cross_score` for every label of the store that can be probed; empty if there is none.

    Raises:
        RlpreError: if the encoder was built for other frames, or its features are not finite.
    """
    try:
        rows, found = factors(reader, None, seed)
    except RlpreError:
        return {}
    features = read(encoder, reader, rows)
    return {each.name: cross_score(features[each.places], each, seed) for each in found}


@dataclass(frozen=True)
class LabelEfficiency:
    """The held-out scores of several sources of features by number of labels.

    Intervals are over draws of labels and test inputs, not over encoders.
    """

    counts: Indices  # (points,) numbers of labels
    chance: float  # the score of a constant prediction
    baseline: str  # the source that the others are compared with
    threshold: float  # the score at which they are compared
    scores: dict[str, npt.NDArray[np.float64]]  # by source (seeds, points)

    def curve(self, source: str) -> "list[Interval]":
        """The mean score at each number of labels."""
        from rlpre.evaluation.stats import mean_interval

        return [mean_interval(column) for column in self.scores[source].T]

    def ratio(self, source: str) -> "StepsRatio":
        """Labels that the baseline needs to reach the threshold / labels that ``source`` needs."""
        from rlpre.evaluation.stats import steps_ratio, steps_to_threshold

        baseline, own = (
            steps_to_threshold(self.counts, self.scores[name], self.threshold) for name in (self.baseline, source)
        )
        return steps_ratio([(baseline, own, float(self.counts[-1]))])


def label_efficiency(
    features: Mapping[str, Floats],
    factor: Factor,
    threshold: float | None = None,
    counts: Sequence[int] = COUNTS,
    seeds: int = SEEDS,
) -> LabelEfficiency:
    """Scores several sources of features by number of labels.

    Every seed draws the test inputs and an order of the labels, the same for all sources. The order takes classes in
    turn, so that few labels show all classes.

    Args:
        features: by source, such as "fresh" and "contrastive": (n, dim). The first is the baseline.
        factor: the label to predict.
        threshold: the score to reach; None: ``NEARLY`` of what the baseline scores above chance with most
            labels; if that is nothing, infinity, so that no ratio is known.
        counts: increasing numbers of labels; those above the size of the training part are left out.
        seeds: number of draws.

    Raises:
        RlpreError: if ``counts`` or ``seeds`` is invalid, or there are fewer labels than the first of ``counts``.
    """
    if seeds < 1 or min(counts) < 2 or np.any(np.diff(counts) <= 0):
        raise RlpreError(
            f"labels are counted at {list(counts)} with {seeds} seeds: use increasing counts from 2 and at least 1 seed"
        )
    draws = [_draw_labels(factor, seed) for seed in range(seeds)]
    most = min(len(pool) for pool, _ in draws)
    kept = np.array([count for count in counts if count <= most])
    if not len(kept):
        raise RlpreError(f"label {factor.name!r} leaves {most} labels to learn from: {counts[0]} are the fewest needed")
    scores = {name: np.array([_scores(x, factor, kept, *draw) for draw in draws]) for name, x in features.items()}
    baseline = next(iter(scores))
    if threshold is None:
        gained = float(scores[baseline][:, -1].mean()) - factor.chance
        threshold = factor.chance + NEARLY * gained if gained > NOTHING else np.inf  # which nobody reaches
    return LabelEfficiency(kept, factor.chance, baseline, threshold, scores)


def _draw_labels(factor: Factor, seed: int) -> tuple[Indices, Indices]:
    """Training inputs, in the order in which their labels are shown, and test inputs."""
    train, test = factor.folds(seed)[0]
    train = np.random.default_rng(seed).permutation(train)
    turn = np.zeros(len(train), np.int64)
    for each in [] if factor.quantity else factor.classes:
        same = factor.values[train] == each
        turn[same] = np.arange(same.sum())
    return train[np.argsort(turn, kind="stable")], test


def _scores(features: Floats, factor: Factor, counts: Indices, pool: Indices, test: Indices) -> list[float]:
    """The score after each number of labels."""
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV
    from sklearn.preprocessing import StandardScaler

    known = StandardScaler().fit(features[pool]).transform(features)  # needs no labels
    probe = RidgeCV(PENALTIES) if factor.quantity else RidgeClassifierCV(PENALTIES, class_weight="balanced")
    shown = [pool[:count] for count in counts]
    return [factor.score(probe.fit(known[rows], factor.values[rows]).predict(known[test]), test) for rows in shown]


@dataclass(frozen=True)
class Sparsity:
    """The held-out score of a factor's probe by number of features."""

    dim: int  # number of all features
    chance: float  # the score of a constant prediction
    dense: float  # the score with all features
    sizes: tuple[int, ...]  # numbers of features that were tried; the last is `dim`
    scores: dict[str, tuple[float, ...]]  # by basis ("features", "rotated", "pca") the score at each of the sizes
    # by basis the smallest size whose score above chance is `ENOUGH` of the dense one; None if there is none, or if the
    # dense probe is no better than chance
    smallest: dict[str, int | None]


def sparsity(features: Floats, factor: Factor, seed: int = 0) -> Sparsity:
    """Finds how few features a probe needs for one factor [2].

    A group lasso, for all classes together, ranks the features by the order in which it selects them. Ridge probes are
    then fitted to the first k, so that the shrinkage of the L1 penalty does not count against small k [3]. Ranking and
    fit see only the training part of a fold. The same is done for randomly rotated features and for principal
    components: the axes of the encoder matter only if those need more.
    """
    dim = features.shape[1]
    sizes = np.unique(np.append(np.round(2 ** np.arange(0, np.log2(dim), 1 / 3)), dim)).astype(int).tolist()
    dense = cross_score(features, factor, seed)
    predicted: dict[str, Floats] = {}
    for number, (train, test) in enumerate(factor.folds(seed)):
        for name, x in _bases(features, train, np.random.default_rng((seed, number))).items():
            order = _selection_order(x[train], factor, train)
            rows = predicted.setdefault(name, np.empty((len(sizes), len(features))))
            for row, size in zip(rows, sizes, strict=True):
                chosen, probe = x[:, order[:size]], ridge_model(factor.quantity)
                row[test] = probe.fit(chosen[train], factor.values[train]).predict(chosen[test])
    scores = {name: tuple(map(factor.score, rows)) for name, rows in predicted.items()}
    enough = factor.chance + ENOUGH * (dense - factor.chance) if dense > factor.chance + NOTHING else np.inf
    smallest = {
        name: next((size for size, score in zip(sizes, found, strict=True) if score >= enough), None)
        for name, found in scores.items()
    }
    return Sparsity(dim, factor.chance, dense, tuple(sizes), scores, smallest)


def _bases(features: Floats, train: Indices, rng: np.random.Generator) -> dict[str, Floats]:
    """The features in each basis, (n, at most dim), standardised; estimated from the training part alone."""
    from sklearn.preprocessing import StandardScaler

    plain = StandardScaler().fit(features[train]).transform(features)
    rotation = np.linalg.qr(rng.standard_normal((plain.shape[1],) * 2))[0]
    _, singular, components = np.linalg.svd(plain[train], full_matrices=False)
    bases = {"rotated": plain @ rotation, "pca": plain @ components[singular >= TINY * singular[0]].T}
    return {"features": plain} | {name: StandardScaler().fit(x[train]).transform(x) for name, x in bases.items()}


def _selection_order(x: Floats, factor: Factor, train: Indices) -> Indices:
    """The columns of ``x`` (rows, dim) in the order in which a group lasso selects them."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import enet_path

    values = factor.values[train]
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    targets = values[:, None].astype(float) if factor.quantity else np.eye(len(counts))[place]
    share = np.full(len(x), 1 / len(x)) if factor.quantity else 1 / (len(counts) * counts[place])  # classes weigh alike
    root = np.sqrt(share)[:, None]
    q, r = np.linalg.qr(root * (x - share @ x))  # dim rows with the same solution as all rows
    asked = q.T @ (root * (targets - share @ targets))
    largest = np.linalg.norm(r.T @ asked, axis=1).max() / len(r)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the order settles long before the coefficients
        _, path, _ = enet_path(r, asked, l1_ratio=1.0, alphas=largest * LASSO_PATH, max_iter=100, tol=1e-3)
    weights = np.linalg.norm(path, axis=0)  # (dim, penalties)
    selected_at = np.where(weights.any(axis=1), (weights > 0).argmax(axis=1), len(LASSO_PATH))
    at_entry = weights[np.arange(len(weights)), np.minimum(selected_at, len(LASSO_PATH) - 1)]
    return np.lexsort((-at_entry, selected_at))


def separation(features: Floats, factor: Factor, seed: int = 0) -> dict[int, float]:
    """The distance d' of each class from all others (of two classes only of the second) in units of the noise [4].

    It is measured at held-out inputs along the direction of a ridge probe: the distance of the two means over the root
    of the mean of the two variances. If features along it are Gaussian, a probe is right with probability Phi(d' / 2).

    Raises:
        RlpreError: if the factor is a quantity.
    """
    from sklearn.model_selection import cross_val_predict

    if factor.quantity:
        raise RlpreError(f"label {factor.name!r} is a quantity, but separation is that of classes: bin it first")
    found = {}
    for each in factor.classes[1:] if len(factor.classes) == 2 else factor.classes:
        positive = factor.values == each
        folds = factor.folds(seed)
        along = cross_val_predict(ridge(False), features, positive, cv=folds, method="decision_function")
        own, others = along[positive], along[~positive]
        with np.errstate(divide="ignore"):  # infinite without noise
            found[int(each)] = float((own.mean() - others.mean()) / np.sqrt((own.var() + others.var()) / 2))
    return found
