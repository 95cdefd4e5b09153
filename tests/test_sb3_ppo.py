"""Values that start at zero, floored advantages, the KL penalty, and the value head that learns first."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import TINY, Algorithm, build, encoders_in, odd_encoder, refuse, same, worlds
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnv, VecEnvStepReturn, VecEnvWrapper

from rlpre.sb3 import (
    EncodedVecEnv,
    encoder_optimizer,
    floored_advantages,
    kl_penalty,
    policy_kwargs,
    value_first,
    zero_value,
)
from rlpre.sb3.ppo import FlooredRolloutBuffer

LINE, TWO = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)


class Constant(gym.Env[Any, Any]):
    """The same observation for ever, no reward, in spaces of any kind."""

    def __init__(self, observations: spaces.Space[Any] = LINE, actions: spaces.Space[Any] = TWO) -> None:
        self.observation_space, self.action_space = observations, actions

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.observation_space.seed(0)
        self.observation = self.observation_space.sample()
        return self.observation, {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observation, 0.0, False, False, {}


class NoReward(VecEnvWrapper):
    """A task whose reward nobody has found yet."""

    def reset(self) -> np.ndarray:
        return self.venv.reset()

    def step_wait(self) -> VecEnvStepReturn:
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, np.zeros_like(rewards), dones, infos


@pytest.fixture
def features() -> VecEnv:
    return EncodedVecEnv(worlds(), odd_encoder())


# Values that start at zero.


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_values_start_at_zero_and_are_learned(algorithm: type[Any], features: VecEnv) -> None:
    model = algorithm("MlpPolicy", features, n_steps=32, device="cpu", seed=0)
    frames = torch.as_tensor(features.reset())
    actor = actor_of(model)
    assert model.policy.predict_values(frames).abs().max() > 0.01
    zero_value(model)
    assert not model.policy.predict_values(frames).any()
    assert actor_of(model) == actor
    assert model.learn(512).policy.predict_values(frames).abs().max() > 0.01


# Floored advantages.


def filled(kind: type[RolloutBuffer], rewards: list[float], **arguments: float) -> RolloutBuffer:
    """One environment, values 0, no episode ends, gamma 0: advantages are the normalised rewards."""
    made = {"device": "cpu", "gamma": 0.0, "gae_lambda": 1.0, "n_envs": 1, **arguments}
    buffer = kind(len(rewards), LINE, TWO, **made)
    for reward in rewards:
        zero, one = np.zeros(1, np.float32), np.ones(1, np.float32)
        buffer.add(zero[None], zero[None], np.full(1, reward), one, torch.zeros(1), torch.zeros(1))
    buffer.compute_returns_and_advantage(torch.zeros(1), np.zeros(1))
    return buffer


@pytest.mark.parametrize(
    ("rewards", "advantages"),
    [
        ([1.0, 3.0], [-1.0, 1.0]),  # mean 2, SD 1: as SB3 normalises
        ([0.01, 0.03], [-0.2, 0.2]),  # mean .02, SD .01: divided by the floor
        ([0.0, 0.0], [0.0, 0.0]),
    ],
)
def test_small_advantages_are_divided_by_the_floor(rewards: list[float], advantages: list[float]) -> None:
    buffer = filled(FlooredRolloutBuffer, rewards, floor=0.05)
    np.testing.assert_allclose(buffer.advantages[:, 0], advantages, rtol=1e-5, atol=1e-7)
    assert np.array_equal(buffer.returns, filled(RolloutBuffer, rewards).returns)


def test_before_the_first_reward_the_policy_stays_random(tmp_path: Path) -> None:
    """SB3's normalisation lets it drift from uniform; with a floor the entropy bonus holds it."""
    nats = []
    for arguments in ({}, floored_advantages()):
        settings = {"n_steps": 32, "batch_size": 32, "ent_coef": 0.01, "learning_rate": 1e-3, "seed": 0}
        venv = NoReward(EncodedVecEnv(worlds(), odd_encoder()))
        model = PPO("MlpPolicy", venv, device="cpu", **settings, **arguments).learn(2048)
        entropy = model.policy.get_distribution(torch.as_tensor(model.env.reset())).entropy()
        nats.append(math.log(4) - float(entropy.mean().detach()))
    assert nats[1] < 0.2 * nats[0]
    model.save(tmp_path / "model")
    assert PPO.load(tmp_path / "model", env=model.env).rollout_buffer.floor == 0.05


# The KL penalty.


def coin(probability: float) -> ActorCriticPolicy:
    """A policy that takes action 1 with that probability in every state, and values every state at 0."""
    policy = ActorCriticPolicy(LINE, TWO, lambda _: 1e-3, net_arch=[])
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        policy.action_net.bias[1] = math.log(probability / (1 - probability))
    return policy


def play(buffer: Any, policy: ActorCriticPolicy, actions: list[int], rewards: list[float]) -> None:
    """A rollout of one environment; its episode goes on."""
    for step, (action, reward) in enumerate(zip(actions, rewards, strict=True)):
        chosen = torch.tensor([action])
        _, log_prob, _ = policy.evaluate_actions(torch.zeros(1, 1), chosen)
        start, seen = np.full(1, step == 0), np.zeros((1, 1), np.float32)
        buffer.add(seen, chosen.numpy()[:, None], np.array([reward]), start, torch.zeros(1), log_prob.detach())
    buffer.compute_returns_and_advantage(torch.zeros(1), np.zeros(1))


def test_rewards_and_advantages_by_hand() -> None:
    """The policy takes action 1 three times in four, its reference every second time."""
    arguments = kl_penalty(coin(0.5), beta=0.2, half_life=3, floor=1e-6)
    model = PPO("MlpPolicy", DummyVecEnv([Constant]), n_steps=3, batch_size=3, gamma=0.5, gae_lambda=1.0, **arguments)
    buffer = model.rollout_buffer
    play(buffer, coin(0.75), [1, 0, 1], [0.0, 1.0, 2.0])
    more, less = math.log(0.75 / 0.5), math.log(0.25 / 0.5)
    np.testing.assert_allclose(buffer.kl[:, 0], [more, less, more], rtol=1e-5)
    rewards = [0 - 0.2 * more, 1 - 0.2 * less, 2 - 0.2 * more]
    np.testing.assert_allclose(buffer.rewards[:, 0], rewards, rtol=1e-5)
    returns = [rewards[0] + rewards[1] / 2 + rewards[2] / 4, rewards[1] + rewards[2] / 2, rewards[2]]
    np.testing.assert_allclose(buffer.returns[:, 0], returns, rtol=1e-5)
    advantages = (np.array(returns) - np.mean(returns)) / np.std(returns)
    np.testing.assert_allclose(buffer.advantages[:, 0], advantages, rtol=1e-4)
    assert buffer.beta == 0.1, "halved after the rollout"
    buffer.reset()
    play(buffer, coin(0.75), [0, 0, 1], [0.0, 0.0, 0.0])
    np.testing.assert_allclose(buffer.rewards[:, 0], [-0.1 * less, -0.1 * less, -0.1 * more], rtol=1e-5)


def test_the_penalty_estimates_the_divergence() -> None:
    """Over actions as the policy takes them."""
    model = PPO("MlpPolicy", DummyVecEnv([Constant]), n_steps=4, batch_size=4, **kl_penalty(coin(0.5)))
    play(model.rollout_buffer, coin(0.75), [1, 1, 1, 0], [0.0] * 4)
    exact = torch.distributions.kl_divergence(*(torch.distributions.Bernoulli(p) for p in (0.75, 0.5)))
    assert model.rollout_buffer.kl.mean() == pytest.approx(float(exact), rel=1e-5)


SPACES: dict[str, tuple[str, spaces.Space[Any], spaces.Space[Any], dict[str, Any]]] = {
    "discrete": ("MlpPolicy", LINE, TWO, {}),
    "continuous": ("MlpPolicy", LINE, spaces.Box(-1, 1, (2,)), {}),
    "several": ("MlpPolicy", LINE, spaces.MultiDiscrete([2, 3]), {}),
    "dict": ("MultiInputPolicy", spaces.Dict({"a": LINE, "b": TWO}), TWO, {}),
    "state-dependent noise": ("MlpPolicy", LINE, spaces.Box(-1, 1, (2,)), {"use_sde": True}),
    "noise of states alone": (
        "MlpPolicy",
        LINE,
        spaces.Box(-1, 1, (2,)),
        {"use_sde": True, "policy_kwargs": {"full_std": False}},
    ),
}


@pytest.mark.parametrize("case", SPACES)
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_the_reference_itself_pays_nothing_and_who_leaves_it_pays(algorithm: Algorithm, case: str) -> None:
    policy, observations, actions, options = SPACES[case]
    venv = DummyVecEnv([lambda: Constant(observations, actions)] * 2)
    settings = {**TINY[algorithm], "seed": 0, "device": "cpu", "learning_rate": 0.01, **options}
    start = algorithm(policy, venv, **settings)
    start.learn(8)  # leaves a graph behind
    model = algorithm(policy, venv, **settings, **kl_penalty(start.policy))
    model.policy.load_state_dict(start.policy.state_dict())
    costs: list[float] = []
    model.learn(48, callback=lambda local, _: costs.append(float(np.abs(local["rollout_buffer"].kl).max())) or True)
    assert costs[model.n_steps - 1] == 0, "the first rollout, but for its last step"
    assert costs[-1] > 0


def test_the_penalty_keeps_the_policy_near() -> None:
    def divergence(beta: float) -> float:
        venv = EncodedVecEnv(worlds(8), odd_encoder())
        settings = {"n_steps": 16, "batch_size": 128, "n_epochs": 4, "learning_rate": 0.01, "gamma": 0.0, "seed": 0}
        start = PPO("MlpPolicy", venv, device="cpu", **settings)
        model = PPO("MlpPolicy", venv, device="cpu", **settings, **kl_penalty(start.policy, beta, half_life=math.inf))
        return float(model.learn(1024).rollout_buffer.kl.mean())

    assert divergence(1.0) < divergence(0.0) / 5


def test_the_reference_stays_is_saved_and_loaded(features: VecEnv, tmp_path: Path) -> None:
    start = PPO("MlpPolicy", features, seed=3, device="cpu")
    arguments = kl_penalty(start.policy, beta=0.2, half_life=16)
    reference = arguments["rollout_buffer_kwargs"]["penalty"].policy
    before = copy.deepcopy(reference)
    assert reference.optimizer is None
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    model = PPO("MlpPolicy", features, seed=0, device="cpu", **TINY[PPO], **arguments).learn(32)
    assert model.rollout_buffer.beta == 0.2 * 0.5**2
    assert same(reference, before), "training moved it"
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=features, device="cpu")
    assert again.rollout_buffer.beta == model.rollout_buffer.beta
    assert same(again.rollout_buffer_kwargs["penalty"].policy, before)
    again.learn(16)
    assert again.rollout_buffer.beta == 0.2 * 0.5**3
    assert np.abs(again.rollout_buffer.kl).max() > 0


@pytest.mark.parametrize("mode", ["frozen", "anchored"])
def test_a_reference_with_an_encoder_needs_no_path(mode: str, tmp_path: Path) -> None:
    start = build(PPO, policy_kwargs(odd_encoder(), mode)).learn(16)
    model = build(PPO, policy_kwargs(odd_encoder(), mode), **kl_penalty(start.policy)).learn(16)
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=worlds(), device="cpu")
    assert same(again.rollout_buffer_kwargs["penalty"].policy, start.policy)
    again.learn(16)


# The value head first.


def actor_of(model: BaseAlgorithm) -> bytes:
    """Everything that decides actions."""
    state = model.policy.state_dict()
    return b"".join(state[name].numpy().tobytes() for name in state if "value_net" not in name and "vf_" not in name)


@pytest.mark.parametrize("shared", [True, False])
def test_the_value_head_learns_alone_first(shared: bool, tmp_path: Path) -> None:
    arguments = policy_kwargs(odd_encoder(), "finetuned", share_features_extractor=shared)
    reference = build(PPO, policy_kwargs(odd_encoder()), seed=1).policy
    model = build(PPO, arguments, **kl_penalty(reference))
    value_first(model.policy, 6)  # a rollout has 4 updates
    actor, value = actor_of(model), model.policy.value_net.weight.detach().clone()
    model.learn(16)
    assert actor == actor_of(model)
    assert not model.policy.value_net.weight.equal(value)
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=worlds(), device="cpu")
    moved: dict[int, bool] = {}
    optimizer, weight = again.policy.optimizer, again.policy.value_net.weight
    optimizer.register_step_post_hook(
        lambda *_: moved.update({int(optimizer.state[weight]["step"]): actor != actor_of(again)})
    )
    again.learn(16)
    assert moved == {5: False, 6: False, 7: True, 8: True}
    assert all(parameter.requires_grad for parameter in again.policy.parameters())
    assert not encoders_in(model)[0].stages[0][0].weight.equal(encoders_in(again)[0].stages[0][0].weight)


def test_the_longer_wait_counts(features: VecEnv) -> None:
    policy = build(PPO, policy_kwargs(odd_encoder(), "finetuned", warmup_updates=9)).policy
    value_first(policy, 5)
    slow, fast = sorted(policy.optimizer.param_groups, key=lambda group: group["lr_scale"])
    assert set(slow["warmup_updates"]) == {9}
    assert set(fast["warmup_updates"]) == {0, 5}
    arguments = {"optimizer_class": encoder_optimizer(torch.optim.Adam)}
    plain = PPO("MlpPolicy", features, policy_kwargs=arguments, device="cpu")
    value_first(plain.policy, 5)
    assert sum(parameter.requires_grad for parameter in plain.policy.parameters()) == 6, "value layers alone"


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (lambda: floored_advantages(0), "floor is 0: it must be a positive number"),
        (lambda: zero_value(build(DQN, policy_kwargs(odd_encoder()))), "the DQN has no layer policy.value_net"),
        (lambda: zero_value(coin(0.5)), "the ActorCriticPolicy has no layer policy.value_net: give zero_value a model"),
        (
            lambda: zero_value(PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8).learn(8)),
            "the model has learned",
        ),
        (lambda: kl_penalty(coin(0.5), beta=-1), "beta is -1: give the cost of a nat"),
        (lambda: kl_penalty(coin(0.5), half_life=0), "half_life is 0: give environment steps"),
        (lambda: kl_penalty(coin(0.5), least=0.3), "least is 0.3: beta starts at 0.05"),
        (lambda: kl_penalty(coin(0.5), floor=0), "floor is 0"),
        (lambda: PPO("MlpPolicy", worlds(), **kl_penalty(coin(0.5))), "the reference policy is for Box"),
        (lambda: value_first(coin(0.5), 3), "optimizer 'Adam' cannot let parameters wait"),
        (lambda: value_first(build(PPO, policy_kwargs(odd_encoder())).policy, -1), "updates is -1"),
    ],
)
def test_bad_arguments_are_one_sentence(wrong: Callable[[], object], sentence: str) -> None:
    refuse(sentence, wrong)
