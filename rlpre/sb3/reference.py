"""Staying near a reference policy: the divergence from it is a cost in the reward.

As in learning from human feedback [0], each step's reward loses ``beta * (log pi(a|s) - log pi_ref(a|s))``, whose mean
over actions is the Kullback-Leibler divergence, and the algorithm weighs it against the task's rewards by itself. The
cost does not only count at the states where the reference errs: returns carry it, so that the policy also keeps to
states in which it can act as the reference does. ``beta`` fades out, so that in the end the task alone decides [1].

References:
    [0] Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", equation 2.
    [1] Baker et al. 2022, "Video PreTraining (VPT)", section on RL fine-tuning.
"""

import copy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor

from rlpre.errors import RlpreError
from rlpre.sb3.advantages import FLOOR, FlooredRolloutBuffer, either, floored_advantages


@dataclass
class Leash:
    """What ties a policy to its reference; SB3 keeps it in the model's zip."""

    policy: ActorCriticPolicy = field(repr=False)  # the reference, on the CPU so that every machine can load it
    beta: float  # of the next rollout
    decay: float  # factor on beta after each rollout


class LeashedRolloutBuffer(FlooredRolloutBuffer):
    """A floored rollout buffer whose rewards pay for the divergence from a reference policy.

    Attributes:
        kl: (n_steps, n_envs) log-ratio of each action, before beta; its mean estimates the divergence in nats.
        beta: the cost of a nat in the next rollout.
    """

    kl: np.ndarray

    def __init__(self, *args: Any, leash: Leash, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._leash = leash
        for ours, theirs in (
            (self.observation_space, leash.policy.observation_space),
            (self.action_space, leash.policy.action_space),
        ):
            if ours != theirs:
                raise RlpreError(f"the reference policy is for {theirs}, the environment has {ours}: give it the same")
        self._reference = detached(leash.policy).to(self.device)

    @property
    def beta(self) -> float:
        """The cost of a nat in the next rollout."""
        return self._leash.beta

    def reset(self) -> None:
        """As in SB3."""
        super().reset()
        self.kl = np.zeros((self.buffer_size, self.n_envs), np.float32)

    def add(
        self,
        obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: Tensor,
        log_prob: Tensor,
    ) -> None:
        """As in SB3, at a reward that pays for the divergence."""
        kl = self.kl[self.pos] = (log_prob.flatten() - self._log_prob(obs, action)).cpu().numpy()
        super().add(obs, action, reward - self.beta * kl, episode_start, value, log_prob)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As in SB3, at the end of a rollout."""
        super().compute_returns_and_advantage(last_values, dones)
        self._leash.beta *= self._leash.decay

    @torch.no_grad()
    def _log_prob(self, obs: Any, action: np.ndarray) -> Tensor:
        actions = torch.as_tensor(action, device=self.device)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.flatten()
        distribution = self._reference.get_distribution(obs_as_tensor(obs, self.device))
        return distribution.log_prob(actions)


class LeashedDictRolloutBuffer(LeashedRolloutBuffer, DictRolloutBuffer):
    """The same for Dict observations."""


def kl_to(policy: ActorCriticPolicy, beta: float = 0.2, decay: float = 0.99, floor: float = FLOOR) -> dict[str, Any]:
    """Arguments that keep ``PPO`` or ``A2C`` near a policy: ``PPO(..., **kl_to(clone.policy))``.

    Advantages are floored as by `floored_advantages`, and episode rewards in the logs stay those of the environment.
    ``model.rollout_buffer.kl.mean()`` is the divergence over the last rollout. The reference and what beta has come
    down to are saved with the model.

    Args:
        policy: the reference, copied now; of the same observations and actions.
        beta: what a nat costs in the first rollout, in units of reward.
        decay: factor on beta after each rollout.
        floor: of the advantages.

    Returns:
        Arguments for one model: beta is counted in them.

    Raises:
        RlpreError: if a number is out of range.
    """
    if not 0 <= beta < float("inf"):
        raise RlpreError(f"beta is {beta}: give the cost of a nat in units of reward, 0 or more, such as 0.2")
    if not 0 <= decay <= 1:
        raise RlpreError(f"decay is {decay}: give the factor on beta after each rollout, from 0 to 1")
    floored = floored_advantages(floor)
    leash = Leash(detached(policy).cpu(), beta, decay)
    return {
        **floored,
        "rollout_buffer_class": either(LeashedRolloutBuffer, LeashedDictRolloutBuffer),
        "rollout_buffer_kwargs": {**floored["rollout_buffer_kwargs"], "leash": leash},
    }


def detached(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A copy of ``policy`` that never trains: without its optimiser, and without the graph of its last update."""
    distribution = make_proba_distribution(policy.action_space, policy.use_sde, policy.dist_kwargs)
    copied = copy.deepcopy(policy, {id(policy.optimizer): None, id(policy.action_dist): distribution})
    copied.set_training_mode(False)
    return copied.requires_grad_(False)
