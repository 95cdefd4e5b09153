"""The actions of a frame store: numbers, vectors, or none; their column and their place in the manifest."""

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlpre.errors import RlpreError

ActionSpace = spaces.Discrete | spaces.Box | None  # None: frames of which nobody knows what was done


def check(space: object) -> None:
    """Refuses spaces whose actions a frame store cannot hold.

    Raises:
        RlpreError: unless it is ``Discrete`` from 0, a ``Box`` of floats with at least one axis, or None.
    """
    discrete = isinstance(space, spaces.Discrete) and space.start == 0
    vector = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and bool(space.shape)
    if not (discrete or vector or space is None):
        raise RlpreError(
            f"a frame store holds discrete actions 0..n-1, vectors of floats (Box) or no actions, not {space}: wrap "
            "the environment or convert the actions"
        )


def describe(space: ActionSpace) -> dict[str, Any] | None:
    """The space as JSON."""
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n)}
    if space is None:
        return None
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"shape": list(space.shape), "dtype": str(space.dtype), **bounds}


def restore(content: dict[str, Any] | None) -> ActionSpace:
    """The space that `describe` wrote."""
    if content is None:
        return None
    if "n" in content:
        return spaces.Discrete(content["n"])
    dtype = np.dtype(content["dtype"])
    low, high = (np.array(content[name], dtype) for name in ("low", "high"))
    return spaces.Box(low, high, tuple(content["shape"]), dtype.type)


def column_type(space: ActionSpace) -> np.dtype[Any]:
    """The dtype of one row's action, a sub-array for vectors."""
    return np.dtype((space.dtype, space.shape)) if isinstance(space, spaces.Box) else np.dtype(np.int64)


def missing(space: ActionSpace) -> float:
    """What stands in the column where no action was taken: -1, or NaN for vectors."""
    return float("nan") if isinstance(space, spaces.Box) else -1


def taken(action: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N,): whether an action was taken in the rows of an action column, (N,) numbers or (N, ...) vectors."""
    known = action >= 0 if action.dtype.kind == "i" else ~np.isnan(action)
    return np.asarray(known.reshape(len(action), -1).all(axis=1))
