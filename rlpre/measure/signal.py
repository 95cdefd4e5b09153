"""Signal strength: how far apart do features hold two classes, and how well must one then tell them apart?

The model: along a direction, features of the classes y = -1 and y = 1 are a y + noise of standard deviation sigma.
Then d' = 2 a / sigma is the distance of the classes in units of the noise, and whoever cuts in the middle is right with
probability Phi(a / sigma) = Phi(d' / 2). The direction must be known for that; learnt from few labels it is blurred
(`expected_accuracy`), which is why the stronger signal needs fewer labels.

[0] Green and Swets 1966, "Signal Detection Theory and Psychophysics".
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError
from rlpre.measure.probe import Factor, Floats, Reader, factors, read, ridge


@dataclass(frozen=True)
class Signal:
    """How strong the signal of a factor is; of more than two classes each is told from all others.

    Attributes:
        separation: d' by class (of two classes only by the second), at held-out inputs along the direction of a ridge
            probe: the distance of the two means over the root of the mean of the two variances.
        strength: a / sigma = d' / 2, averaged over classes.
        predicted: Phi(d' / 2), averaged over classes: the balanced accuracy of cutting in the middle if both classes
            are Gaussian and spread alike.
        observed: the balanced accuracy of the same probes at the same inputs, averaged over classes.
    """

    separation: dict[int, float]
    strength: float
    predicted: float
    observed: float


def signal(features: Floats, of: Factor, seed: int = 0) -> Signal:
    """The signal strength of one factor.

    Args:
        features: (n, dim) of the factor's n inputs.
        of: what is asked, in classes.
        seed: draws what is held out.

    Raises:
        RlpreError: if the factor is a quantity.
    """
    from scipy.special import ndtr

    if of.quantity:
        raise RlpreError(f"label {of.name!r} is a quantity, but signal strength is that of classes: bin it first")
    classes = of.classes[1:] if len(of.classes) == 2 else of.classes
    separations, observed = np.array([_told_apart(features, of, of.values == each, seed) for each in classes]).T
    return Signal(
        separation=dict(zip(classes.tolist(), separations.tolist(), strict=True)),
        strength=float(separations.mean() / 2),
        predicted=float(ndtr(separations / 2).mean()),
        observed=float(observed.mean()),
    )


def _told_apart(features: Floats, of: Factor, positive: npt.NDArray[np.bool_], seed: int) -> tuple[float, float]:
    """The d' and the balanced accuracy of a probe for the inputs that are ``positive`` (n,)."""
    from sklearn.model_selection import cross_val_predict

    along = cross_val_predict(ridge(False), features, positive, cv=of.folds(seed), method="decision_function")
    own, others = along[positive], along[~positive]
    with np.errstate(divide="ignore"):  # without any noise it is infinite
        separation = (own.mean() - others.mean()) / np.sqrt((own.var() + others.var()) / 2)
    return float(separation), float(((own > 0).mean() + (others <= 0).mean()) / 2)


def signals(
    encoder: AnyEncoder, reader: Reader, names: Sequence[str] | None = None, seed: int = 0
) -> dict[str, Signal]:
    """The signal strength of the classes that an encoder's features tell apart.

    Args:
        encoder: its mode is restored.
        reader: of frames with label columns.
        names: labels to ask about; None: all that can be and are no quantities.
        seed: draws the inputs and what is held out.

    Raises:
        RlpreError: if a label cannot be asked about, the encoder does not fit the frames, or features are not finite.
    """
    rows, asked = factors(reader, names, seed)
    features = read(encoder, reader, rows)
    return {each.name: signal(features[each.places], each, seed) for each in asked if names or not each.quantity}


def expected_accuracy(strength: float, labels: int, dims: int = 1) -> float:
    """How often the nearer class mean is right, if the means are estimated from few labels.

    With noise alike in all directions the estimated direction is a u + noise of variance sigma^2 / m in each of the d
    dimensions, whose cosine with the true one, u, is about 1 / sqrt(1 + (d - 1) / (m strength^2)).

    Args:
        strength: a / sigma, not negative.
        labels: m, of both classes together.
        dims: d, dimensions of the features.

    Returns:
        Phi(strength * cosine), in [0.5, 1]; Phi(strength) in one dimension or with labels without end.
    """
    from scipy.special import ndtr

    blur = (dims - 1) / labels
    return float(ndtr(strength**2 / np.sqrt(strength**2 + blur))) if strength else 0.5
