"""Advantages that stay small until there is something to learn from.

PPO divides the advantages of every minibatch by their standard deviation. Before the first reward of a sparse task they
are the value head's noise, and that division blows the noise up to unit scale: the policy drifts, often to one action,
and then never meets the reward. On DoorKey-5x5 that cost whole runs. Without the division, on the other hand, the few
first rewards teach little. Here it is done once a rollout and never by less than a floor, as DreamerV3 floors its
return scale.

References:
    [0] Hafner et al. 2023, "Mastering Diverse Domains through World Models", section on critic and actor learning.
    [1] ``stable_baselines3.ppo.PPO.train``, ``normalize_advantage``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from torch import Tensor

from rlpre.errors import RlpreError

FLOOR = 0.05  # in units of return; no other value was compared


class FlooredRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer with advantages of mean 0, divided by max(their SD over the rollout, ``floor``)."""

    def __init__(self, *args: Any, floor: float = FLOOR, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.floor = floor

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As in SB3; returns, which the value head learns, are not touched."""
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages -= self.advantages.mean()
        self.advantages /= max(float(self.advantages.std()), self.floor)


class FlooredDictRolloutBuffer(FlooredRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""


def floored_advantages(floor: float = FLOOR) -> dict[str, Any]:
    """Arguments for ``PPO`` or ``A2C`` that replace their normalisation: ``PPO(..., **floored_advantages())``.

    Args:
        floor: least divisor, in units of return; about the SD of advantages when a few episodes of a rollout succeed.

    Raises:
        RlpreError: if the floor is not positive.
    """
    if not 0 < floor < float("inf"):
        raise RlpreError(f"floor is {floor}: it must be a positive number of units of return, such as {FLOOR}")
    return {
        "normalize_advantage": False,  # the minibatches would be normalised again
        "rollout_buffer_class": either(FlooredRolloutBuffer, FlooredDictRolloutBuffer),
        "rollout_buffer_kwargs": {"floor": floor},
    }


def either(plain: type[RolloutBuffer], of_dicts: type[DictRolloutBuffer]) -> Callable[..., RolloutBuffer]:
    """A stand-in for ``rollout_buffer_class`` that makes the buffer that suits the observations."""
    return partial(_suited, plain, of_dicts)


def _suited(
    plain: type[RolloutBuffer],
    of_dicts: type[DictRolloutBuffer],
    size: int,
    observations: spaces.Space[Any],
    *args: Any,
    **kwargs: Any,
) -> RolloutBuffer:
    return (of_dicts if isinstance(observations, spaces.Dict) else plain)(size, observations, *args, **kwargs)
