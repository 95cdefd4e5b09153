"""`start_from`: a cloned policy becomes the start of PPO or A2C, which does not destroy it.

Three dangers, and what is done. The value head knows nothing, and its advantages would undo the clone: it learns first
and alone [0]. Later updates can forget what the clone knew of states that the policy does not visit yet: a penalty on
the divergence from the clone [1], which fades. And a run without successes drives the policy by noise: with a penalty,
advantages are floored (see `rlpre.sb3.ppo`).

References:
    [0] Ramrakhya et al. 2023, "PIRLNav: Pretraining with Imitation and RL Finetuning": the critic first.
    [1] Schmitt et al. 2018, "Kickstarting Deep Reinforcement Learning"; VPT and Wolczyk et al., see `rlpre.sb3.ppo`.
"""

import math
from functools import partial
from os import PathLike
from typing import Any

from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor

from rlpre.encoders import Encoder
from rlpre.encoders.encoder import check_tensors
from rlpre.errors import RlpreError
from rlpre.sb3 import ppo
from rlpre.sb3.clone import load_clone
from rlpre.sb3.optim import EncoderOptimizer, encoder_optimizer
from rlpre.sb3.policy import EncoderExtractor, SequenceExtractor
from rlpre.sb3.ppo import FLOOR, HALF_LIFE, KL, kl_penalty
from rlpre.sb3.vecenv import FeatureSpace, learned_normalizations, normalizations

VALUE_FIRST = 10_000  # environment steps
ACTOR = ("mlp_extractor.policy_net.", "action_net.", "log_std")


def start_from(
    model: BaseAlgorithm,
    policy: ActorCriticPolicy | str | PathLike[str],
    *,
    value_first: int = VALUE_FIRST,
    kl: float = KL,
    kl_decay: float = HALF_LIFE,
    kl_least: float = 0.0,
) -> None:
    """Makes a cloned policy the start of a model; call it before ``model.learn``.

    Copies the actor's weights (of a `SequenceEncoder` in the policy, also the layers that mix the steps). The model's
    optimiser begins anew. All is saved with the model.

    Args:
        model: PPO or A2C, on features of the clone's encoder (`EncodedVecEnv`, `HistoryVecEnv`), or with that encoder
            in its policy (`policy_kwargs`, mode ``"frozen"``, ``"finetuned"``, ...); its ``net_arch`` as the clone's.
        policy: what `rlpre.clone` returned, or its directory.
        value_first: environment steps in which only the value head learns, rounded up to whole rollouts; the policy
            acts as the clone meanwhile.
        kl: weight of the KL penalty: the reward of each step loses ``kl * (log pi(a|s) - log pi_clone(a|s))``; 0: none.
            See `kl_penalty`.
        kl_decay: environment steps after which this weight has halved, whatever the size of a rollout.
        kl_least: the weight falls no further.

    Raises:
        RlpreError: for another algorithm, a model that has learned or started already, a policy of another
            architecture, encoder or action space, or a number out of range.
    """
    if not isinstance(model, PPO | A2C):
        raise RlpreError(f"start_from is for PPO and A2C, whose actor a clone can be, not for {type(model).__name__}")
    if model.num_timesteps:
        raise RlpreError(
            f"the model has learned for {model.num_timesteps:,} steps, which start_from would overwrite: make a new one"
        )
    earlier = model.rollout_buffer_kwargs or {}
    if "penalty" in earlier or ppo.value_first_left(model.policy):
        raise RlpreError(
            "the model has a KL penalty or waiting parameters already, by kl_penalty or start_from: make a new one and "
            "give start_from the numbers"
        )
    if not math.isfinite(value_first) or value_first != int(value_first) or value_first < 0:
        raise RlpreError(f"value_first is {value_first}: give environment steps, 0 or more, such as {VALUE_FIRST:,}")
    clone = policy if isinstance(policy, ActorCriticPolicy) else load_clone(policy)
    penalty = partial(kl_penalty, beta=kl, half_life=kl_decay, least=kl_least, floor=earlier.get("floor", FLOOR))
    penalty(clone)  # refuses numbers out of range before anything changes
    _check_same(model, clone)
    _let_parameters_wait(model)
    _copy_actor(clone, model.policy)
    if kl:
        _penalise(model, penalty(model.policy))
    rollout = model.n_steps * model.n_envs
    updates = model.n_epochs * -(-rollout // model.batch_size) if isinstance(model, PPO) else 1
    ppo.value_first(model.policy, -(-int(value_first) // rollout) * updates)


def _check_same(model: PPO | A2C, clone: ActorCriticPolicy) -> None:
    """Refuses a model whose policy would not act as the clone."""
    policy = model.policy
    if clone.action_space != model.action_space:
        raise RlpreError(
            f"the clone's actions are {clone.action_space}, the environment's {model.action_space}: clone frames of "
            "that environment; those made by from_arrays need action_space=venv.action_space"
        )
    encoder, reads = getattr(policy.features_extractor, "encoder", None), model.observation_space
    if isinstance(policy.features_extractor, EncoderExtractor) and isinstance(encoder, Encoder):
        reads = FeatureSpace(encoder, (policy.features_extractor.features_dim,))
    if clone.observation_space != reads:
        raise RlpreError(
            f"the clone acts on {clone.observation_space}, the model on {reads}: give it the encoder of the clone, by "
            "EncodedVecEnv (of sequences HistoryVecEnv, with the clone's window) or policy_kwargs; without stack, and "
            "without other parts of a Dict, which the clone has not seen"
        )
    if type(policy.features_extractor) not in (FlattenExtractor, EncoderExtractor, SequenceExtractor):
        name = type(policy.features_extractor).__name__
        raise RlpreError(f"the model's policy changes the features by {name}: leave out features_extractor_class")
    if normalizations(model.get_env()):
        raise RlpreError("VecNormalize changes the features that the clone has learned from: give it norm_obs=False")
    if learned_normalizations(clone.observation_space):
        raise RlpreError("the policy has learned behind VecNormalize: give one that rlpre.clone returned")
    ours, theirs = (
        {name: tuple(tensor.shape) for name, tensor in each.state_dict().items() if name.startswith(ACTOR)}
        for each in (policy, clone)
    )
    if ours != theirs or policy.activation_fn != clone.activation_fn:
        raise RlpreError(
            f"the clone's policy has net_arch={clone.net_arch} and {clone.activation_fn.__name__}, the model's "
            f"{policy.net_arch} and {policy.activation_fn.__name__}: give both the same (rlpre.clone takes net_arch "
            "and activation), and the model no gSDE"
        )


def _copy_actor(clone: ActorCriticPolicy, policy: ActorCriticPolicy) -> None:
    memory = isinstance(clone.features_extractor, SequenceExtractor)
    copied = (*ACTOR, "features_extractor.", "pi_features_extractor.") if memory else ACTOR
    state = policy.state_dict()
    new = {name: tensor for name, tensor in clone.state_dict().items() if name.startswith(copied)}
    check_tensors({**state, **new}, state, "the clone")
    policy.load_state_dict({**state, **new})


def _let_parameters_wait(model: PPO | A2C) -> None:
    """Gives a model of plain SB3 an optimiser in which parameters can wait."""
    policy = model.policy
    if not isinstance(policy.optimizer, EncoderOptimizer):
        policy.optimizer_class = encoder_optimizer(policy.optimizer_class)
        policy.optimizer = policy.optimizer_class(
            policy.parameters(), lr=model.lr_schedule(1), **policy.optimizer_kwargs
        )
        chosen = {"optimizer_class": policy.optimizer_class, "optimizer_kwargs": policy.optimizer_kwargs}
        model.policy_kwargs = {**model.policy_kwargs, **chosen}  # with which the model is loaded


def _penalise(model: PPO | A2C, arguments: dict[str, Any]) -> None:
    """Does to a model what ``PPO(..., **arguments)`` would have done."""
    vars(model).update(arguments)
    assert model.rollout_buffer_class is not None
    model.rollout_buffer = model.rollout_buffer_class(
        model.n_steps,
        model.observation_space,
        model.action_space,
        device=model.device,
        gamma=model.gamma,
        gae_lambda=model.gae_lambda,
        n_envs=model.n_envs,
        **model.rollout_buffer_kwargs,
    )
