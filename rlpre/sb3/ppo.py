"""PPO and A2C: values that start at zero, floored advantages, a KL penalty, and a value head that learns first.

*Values that start at zero.* SB3 draws the last layer of the value head at random. The values of the first states then
differ by more than the rewards of a sparse task, and the policy follows their errors. On 256 whitened features this
costs PPO twice the steps and ruins some runs (results, `make study`).

*Floored advantages.* PPO divides the advantages of every minibatch by their standard deviation. Before the first
reward of a sparse task they are only noise of the value head. Scaled up, the noise can drive the policy to one action
for good; on DoorKey-5x5 this ruined whole runs. Here advantages are normalised once per rollout, and never divided by
less than a floor, as DreamerV3 does with its return scale [0].

*KL penalty.* As in learning from human feedback [1], each step's reward loses
``beta * (log pi(a|s) - log pi_ref(a|s))``; the mean over actions is the Kullback-Leibler divergence from the reference.
Returns contain this cost, so the policy also avoids states where it cannot act like the reference. ``beta`` halves
every ``half_life`` environment steps, whatever the size of a rollout, so in the end only the task counts [2]; with
``least`` some of it stays, against forgetting what the policy meets again only later [3].

*Value head first.* After cloning, the value head is untrained; its wrong advantages would destroy the policy.

References:
    [0] Hafner et al. 2023, "Mastering Diverse Domains through World Models", section on critic and actor learning.
    [1] Ziegler et al. 2019, "Fine-Tuning Language Models from Human Preferences", equation 2.
    [2] Baker et al. 2022, "Video PreTraining (VPT)", section on RL fine-tuning: its weight halves 2.9 times in a run.
    [3] Wolczyk et al. 2024, "Fine-tuning Reinforcement Learning Models is Secretly a Forgetting Mitigation Problem".
"""

import copy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.distributions import StateDependentNoiseDistribution, make_proba_distribution
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.utils import obs_as_tensor
from torch import Tensor, nn

from rlpre.errors import RlpreError
from rlpre.sb3.optim import EncoderOptimizer

FLOOR = 0.05  # in units of return; no other value was compared
KL = 0.05  # cost of a nat, in units of reward; 0.2 holds clones back, 0 may lose them (results, MultiRoom-N4-S5)
HALF_LIFE = 100_000  # environment steps; a run of 300,000 has VPT's three halvings


class FlooredRolloutBuffer(RolloutBuffer):
    """SB3's rollout buffer with advantages of mean 0, divided by max(their SD over the rollout, ``floor``)."""

    def __init__(self, *args: Any, floor: float = FLOOR, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.floor = floor

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As in SB3, then normalises the advantages; the returns, which the value head learns, stay."""
        super().compute_returns_and_advantage(last_values, dones)
        self.advantages -= self.advantages.mean()
        self.advantages /= max(float(self.advantages.std()), self.floor)


def zero_value(model: OnPolicyAlgorithm) -> None:
    """Sets the last layer of a model's value head to zero: every value starts at 0, and is learned from there.

    Args:
        model: PPO, A2C or another algorithm with a value head, before it learns.

    Raises:
        RlpreError: if the model has learned, or its policy has no layer ``value_net``.
    """
    layer = getattr(getattr(model, "policy", None), "value_net", None)
    if not isinstance(layer, nn.Linear):
        raise RlpreError(
            f"the {type(model).__name__} has no layer policy.value_net: give zero_value a model such as PPO, and "
            "compare zero_value=False"
        )
    if model.num_timesteps:
        raise RlpreError("the model has learned already, and would forget its values: give zero_value a new one")
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def floored_advantages(floor: float = FLOOR) -> dict[str, Any]:
    """Arguments for ``PPO`` or ``A2C`` that replace their normalisation: ``PPO(..., **floored_advantages())``.

    Args:
        floor: the least divisor, in units of return: the SD of advantages when a few episodes of a rollout succeed.

    Raises:
        RlpreError: if the floor is not positive.
    """
    if not 0 < floor < float("inf"):
        raise RlpreError(f"floor is {floor}: it must be a positive number of units of return, such as {FLOOR}")
    return {
        "normalize_advantage": False,  # or minibatches would be normalised again
        "rollout_buffer_class": partial(_make_buffer, FlooredRolloutBuffer),
        "rollout_buffer_kwargs": {"floor": floor},
    }


@dataclass
class KLPenalty:
    """The penalty's reference and weight; SB3 saves it in the model's zip."""

    policy: ActorCriticPolicy = field(repr=False)  # the reference, on the CPU so that every machine can load it
    beta: float  # of the next rollout
    half_life: float  # environment steps after which beta has halved
    least: float = 0.0  # beta falls no further

    def decay(self, steps: int) -> None:
        """Lowers beta after a rollout of so many environment steps."""
        self.beta = max(min(self.least, self.beta), self.beta * 0.5 ** (steps / self.half_life))


class KLRolloutBuffer(FlooredRolloutBuffer):
    """A `FlooredRolloutBuffer` whose rewards contain the KL penalty.

    Attributes:
        kl: (n_steps, n_envs) log-ratio of each action, without beta; its mean estimates the divergence in nats.
    """

    kl: np.ndarray

    def __init__(self, *args: Any, penalty: KLPenalty, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._penalty, reference = penalty, penalty.policy
        for space in ("observation_space", "action_space"):
            ours, theirs = getattr(self, space), getattr(reference, space)
            if ours != theirs:
                raise RlpreError(f"the reference policy is for {theirs}, the environment has {ours}: give it the same")
        self._reference = frozen_copy(reference).to(self.device)

    @property
    def beta(self) -> float:
        """The cost of a nat in the next rollout."""
        return self._penalty.beta

    def reset(self) -> None:
        """As in SB3."""
        super().reset()
        self.kl = np.zeros((self.buffer_size, self.n_envs), np.float32)

    def add(
        self, obs: Any, action: np.ndarray, reward: np.ndarray, start: np.ndarray, value: Tensor, log_prob: Tensor
    ) -> None:
        """As in SB3, with the penalty subtracted from the reward."""
        actions = torch.as_tensor(action, device=self.device)
        if isinstance(self.action_space, spaces.Discrete):
            actions = actions.flatten()
        elif isinstance(self.action_space, spaces.Box):  # SB3's Gaussian is over flat vectors
            actions = actions.flatten(1)
        with torch.no_grad():
            expected = self._reference.get_distribution(obs_as_tensor(obs, self.device)).log_prob(actions)
        kl = self.kl[self.pos] = (log_prob.flatten() - expected).cpu().numpy()
        super().add(obs, action, reward - self.beta * kl, start, value, log_prob)

    def compute_returns_and_advantage(self, last_values: Tensor, dones: np.ndarray) -> None:
        """As in `FlooredRolloutBuffer`; then beta decays."""
        super().compute_returns_and_advantage(last_values, dones)
        self._penalty.decay(self.buffer_size * self.n_envs)


def kl_penalty(
    policy: ActorCriticPolicy,
    beta: float = KL,
    half_life: float = HALF_LIFE,
    least: float = 0.0,
    floor: float = FLOOR,
) -> dict[str, Any]:
    """Arguments that keep ``PPO`` or ``A2C`` near a reference policy: ``PPO(..., **kl_penalty(clone.policy))``.

    Advantages are floored as by `floored_advantages`. Episode rewards in the logs are those of the environment.
    ``model.rollout_buffer.kl.mean()`` is the divergence over the last rollout. The reference and the current beta are
    saved with the model.

    Args:
        policy: the reference, copied now; for the same observations and actions.
        beta: the weight in the first rollout, in units of reward.
        half_life: environment steps after which beta has halved.
        least: beta falls no further.
        floor: of the advantages.

    Returns:
        Arguments for one model; its beta decays in them.

    Raises:
        RlpreError: if a number is out of range.
    """
    if not 0 <= beta < float("inf"):
        raise RlpreError(f"beta is {beta}: give the cost of a nat in units of reward, 0 or more, such as {KL}")
    if not half_life > 0:
        raise RlpreError(f"half_life is {half_life}: give environment steps, such as {HALF_LIFE:,}, or inf: no decay")
    if not 0 <= least <= beta:
        raise RlpreError(f"least is {least}: beta starts at {beta} and falls, give a number from 0 to that")
    penalty = KLPenalty(frozen_copy(policy).cpu(), beta, half_life, least)
    return {
        **floored_advantages(floor),
        "rollout_buffer_class": partial(_make_buffer, KLRolloutBuffer),
        "rollout_buffer_kwargs": {"floor": floor, "penalty": penalty},
    }


def value_first(policy: ActorCriticPolicy, updates: int) -> None:
    """Lets only the value head learn for the first ``updates`` gradient steps; the policy acts as before.

    Encoder, action head and exploration noise wait, also in a model that is saved and loaded meanwhile.

    Args:
        policy: of PPO or A2C, before it learns, with an optimiser of `rlpre.policy_kwargs`.
        updates: gradient steps, not rollouts.

    Raises:
        RlpreError: for another optimiser, or a negative number.
    """
    if not isinstance(policy.optimizer, EncoderOptimizer):
        raise RlpreError(
            f"optimizer {type(policy.optimizer).__name__!r} cannot let parameters wait: give PPO the policy_kwargs of "
            "rlpre.policy_kwargs, or optimizer_class=rlpre.sb3.encoder_optimizer(Adam)"
        )
    if updates < 0:
        raise RlpreError(f"updates is {updates}: give the gradient steps in which the value head learns alone")
    learning = [policy.value_net, policy.mlp_extractor.value_net]
    if not policy.share_features_extractor:
        learning.append(policy.vf_features_extractor)
    free = {id(parameter) for part in learning for parameter in part.parameters()}
    policy.optimizer.wait([parameter for parameter in policy.parameters() if id(parameter) not in free], updates)


def value_first_left(policy: BasePolicy) -> int:
    """The gradient steps in which the value head still learns alone, see `value_first`."""
    if not isinstance(policy, ActorCriticPolicy) or not isinstance(policy.optimizer, EncoderOptimizer):
        return 0
    return policy.optimizer.waiting(next(policy.action_net.parameters()))


def continue_value_first(policy: BasePolicy, earlier: BasePolicy) -> None:
    """Lets the value head of ``policy`` learn alone as long as that of ``earlier`` still would."""
    if (left := value_first_left(earlier)) and isinstance(policy, ActorCriticPolicy):
        value_first(policy, left)


def frozen_copy(policy: ActorCriticPolicy) -> ActorCriticPolicy:
    """A copy of ``policy`` that never trains, without its optimiser and without the graph of its last update."""
    distribution = make_proba_distribution(policy.action_space, policy.use_sde, policy.dist_kwargs)
    if isinstance(distribution, StateDependentNoiseDistribution):
        distribution.latent_sde_dim = cast(StateDependentNoiseDistribution, policy.action_dist).latent_sde_dim
    copied = copy.deepcopy(policy, {id(policy.optimizer): None, id(policy.action_dist): distribution})
    copied.set_training_mode(False)
    return copied.requires_grad_(False)


def _make_buffer(
    kind: type[RolloutBuffer], size: int, space: spaces.Space[Any], *args: Any, **kwargs: Any
) -> RolloutBuffer:
    """A rollout buffer for the observation space, which is known only now."""
    if isinstance(space, spaces.Dict):
        kind = type(f"Dict{kind.__name__}", (kind, DictRolloutBuffer), {})
    return kind(size, space, *args, **kwargs)
