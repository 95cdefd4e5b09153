"""Every algorithm in every mode: learns, keeps what is frozen, saves, loads, and acts on pixels after fusing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import FRAME, HEADS, TINY, WAYS, Quadrant, build, encoders_in, odd_encoder, same, worlds_for
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch.optim import Optimizer

from rlpre.encoders import Encoder
from rlpre.sb3 import EncodedVecEnv, fuse, policy_kwargs

ALGORITHMS = list(TINY)
FROZEN_STAGES = {"random": {0, 1, 2, 3}, "frozen": {0, 1, 2, 3}, "partial": {0, 1}}


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def optimizers(model: BaseAlgorithm) -> list[Optimizer]:
    """Those of a policy's networks; SAC has two."""
    found = (getattr(module, "optimizer", None) for module in model.policy.modules())
    return [optimizer for optimizer in found if isinstance(optimizer, Optimizer)]


def paces(model: BaseAlgorithm) -> list[tuple[float, int]]:
    groups = [group for optimizer in optimizers(model) for group in optimizer.param_groups]
    return [(group["lr_scale"], group["warmup_updates"]) for group in groups]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_learns_saves_and_loads_in_every_mode(
    algorithm: type[BaseAlgorithm], way: str, encoder: Encoder, tmp_path: Path
) -> None:
    model = build(algorithm, policy_kwargs(encoder, **WAYS[way]))
    start = [{name: tensor.clone() for name, tensor in inside.state_dict().items()} for inside in encoders_in(model)]
    model.learn(32)
    for inside, old in zip(encoders_in(model), start, strict=True):
        assert same(inside, encoder) is (way == "frozen")
        state, trained = inside.state_dict(), {name for name, _ in inside.named_parameters()}
        for name in state:
            frozen = name.startswith("feature_") or int(name.split(".")[1]) in FROZEN_STAGES.get(way, ())
            assert (name in trained) is not frozen
            assert state[name].equal(old[name]) is frozen
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=worlds_for(algorithm), device="cpu")
    frames = worlds_for(algorithm).reset()
    assert same(again.policy, model.policy)
    assert np.array_equal(again.predict(frames, deterministic=True)[0], model.predict(frames, deterministic=True)[0])
    assert paces(again) == paces(model)
    again.learn(8)
    if algorithm is not RecurrentPPO:  # its policies forget the size of their LSTM when they are saved alone
        model.policy.save(str(tmp_path / "policy"))
        assert same(type(model.policy).load(str(tmp_path / "policy"), device="cpu"), model.policy)


# SAC has two encoders that train, in two optimisers, and a third that follows.


@pytest.mark.parametrize("shared", [False, True])
def test_sac_trains_each_encoder_at_its_own_rate(shared: bool, encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "finetuned", encoder_lr_scale=0.25, share_features_extractor=shared)
    model = build(SAC, arguments, learning_rate=1e-3)
    actor, critic = (
        {group["lr_scale"]: len(group["params"]) for group in part.optimizer.param_groups}
        for part in (model.actor, model.critic)
    )
    weights = len(list(encoder.parameters()))
    assert actor[0.25] == weights
    assert critic.get(0.25, 0) == (0 if shared else weights), "SB3 trains a shared one with the actor"
    model.learn(16)
    assert model.actor.features_extractor.encoder is not model.critic_target.features_extractor.encoder
    assert (model.actor.features_extractor is model.critic.features_extractor) is shared
    assert all(group["lr"] == 1e-3 for one in optimizers(model) for group in one.param_groups)


def test_a_target_network_follows_what_is_trained_alone(encoder: Encoder) -> None:
    model = build(SAC, policy_kwargs(encoder, "partial", stages=2), tau=1.0).learn(16)
    assert same(model.critic.features_extractor, model.critic_target.features_extractor)
    assert not same(model.critic.features_extractor, model.actor.features_extractor)
    assert same(model.critic_target.features_extractor.encoder.stages[:2], encoder.stages[:2])


# Features in front of the policy, and back to pixels.


def agree(features: BasePolicy, pixels: BasePolicy, encoder: Encoder, venv: EncodedVecEnv, **arguments: Any) -> None:
    """Actions of both policies are equal on the same observations, greedy and sampled, also with an LSTM's states."""
    observations, states, ours, starts = venv.reset(), None, None, np.ones(venv.num_envs, bool)
    for step in range(14):
        torch.manual_seed(step)
        wanted, states = features.predict(observations, states, starts, deterministic=step % 2 == 0, **arguments)
        torch.manual_seed(step)
        given, ours = pixels.predict(venv.frames, ours, starts, deterministic=step % 2 == 0, **arguments)
        assert given == pytest.approx(wanted, abs=1e-5)
        observations, _, starts, _ = venv.step(wanted)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_fused_policies_act_on_pixels_as_the_trained_ones_on_features(
    algorithm: type[BaseAlgorithm], encoder: Encoder, tmp_path: Path
) -> None:
    venv = EncodedVecEnv(worlds_for(algorithm, 8), encoder, "cpu")
    model = build(algorithm, {}, venv=venv, policy="Mlp").learn(32)
    fused = fuse(model, encoder)
    assert type(fused) is type(model.policy)
    agree(model.policy, fused, encoder, venv)
    fused.save(str(tmp_path / "fused"))
    loaded = type(fused).load(str(tmp_path / "fused"), device="cpu")
    assert same(loaded, fused)
    agree(model.policy, loaded, encoder, venv)


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, RecurrentPPO, MaskablePPO])
@pytest.mark.parametrize("shared", [False, True])
def test_heads_share_an_encoder_or_have_their_own(
    algorithm: type[BaseAlgorithm], shared: bool, encoder: Encoder
) -> None:
    share = {"share_features_extractor": shared}
    followers = 1 if algorithm is SAC else 0
    inside = encoders_in(build(algorithm, policy_kwargs(encoder, "finetuned", **share)).learn(16))
    assert len(inside) == (1 if shared else 2) + followers
    venv = EncodedVecEnv(worlds_for(algorithm), encoder, "cpu")
    model = build(algorithm, share, venv=venv, policy="Mlp").learn(16)
    fused = fuse(model, encoder)
    assert sum(isinstance(module, Encoder) for module in fused.modules()) == 1 + followers
    agree(model.policy, fused, encoder, venv)


def test_an_lstm_carries_its_state_over_pixels(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(RecurrentPPO), encoder, "cpu")
    fused = fuse(build(RecurrentPPO, {}, venv=venv, policy="Mlp").learn(32), encoder)
    venv.reset()
    _, first = fused.predict(venv.frames)
    _, second = fused.predict(venv.frames, first, np.zeros(2, bool))
    assert first[0].shape == (HEADS[RecurrentPPO]["n_lstm_layers"], 2, HEADS[RecurrentPPO]["lstm_hidden_size"])
    assert not np.array_equal(first[0], second[0])


class Strict(Quadrant):
    """Fails on a masked action."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action]
        return super().step(action)


@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "features"])
def test_action_masks_reach_the_policy(encoded: bool, encoder: Encoder) -> None:
    venv = DummyVecEnv([Strict] * 2)
    if not encoded:
        build(MaskablePPO, policy_kwargs(encoder), venv=venv).learn(32)
        return
    venv = EncodedVecEnv(venv, encoder, "cpu")
    assert is_masking_supported(venv)
    model = build(MaskablePPO, {}, venv=venv, policy="Mlp").learn(32)
    venv.reset()
    assert np.array_equal(get_action_masks(venv), np.arange(4) != (np.array([[e.quadrant] for e in venv.envs]) + 1) % 4)
    only = np.eye(4, dtype=bool)[[2, 1]]
    assert fuse(model, encoder).predict(venv.frames, action_masks=only)[0].tolist() == [2, 1]


# Buffers.


def bytes_per_transition(model: BaseAlgorithm) -> float:
    """Of observations and next observations, on average over the replay buffer."""
    buffer = model.replay_buffer
    return (buffer.observations.nbytes + buffer.next_observations.nbytes) / (buffer.buffer_size * buffer.n_envs)


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_replay_buffers_hold_features(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(algorithm), encoder, "cpu")
    assert bytes_per_transition(build(algorithm, policy_kwargs(encoder))) == 2 * 3 * 36 * 36
    assert bytes_per_transition(build(algorithm, {}, venv=venv, policy="Mlp")) == 2 * 4 * encoder.num_features


# The plug must let an agent learn.

OFTEN = {"learning_starts": 64, "train_freq": 1, "gradient_steps": 1, "batch_size": 32, "gamma": 0.2}
LEARNS: dict[type[BaseAlgorithm], dict[str, Any]] = {
    PPO: {"n_steps": 16, "batch_size": 64, "n_epochs": 6, "gamma": 0.5},
    DQN: {**OFTEN, "buffer_size": 2000, "target_update_interval": 50, "exploration_fraction": 0.3},
    SAC: {**OFTEN, "buffer_size": 2000, "ent_coef": 0.02},
}


@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("algorithm", LEARNS)
def test_learns(algorithm: type[BaseAlgorithm], encoded: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", FRAME, features=16)
    venv, test = (VecMonitor(worlds_for(algorithm, 8, seed, noise=0)) for seed in (0, 100))
    arguments: dict[str, Any] = {"net_arch": [64]}
    if encoded:
        venv = EncodedVecEnv(venv, encoder, "cpu")
    else:
        arguments |= policy_kwargs(encoder, "finetuned")
    settings = {"policy": "Mlp" if encoded else "Cnn", "learning_rate": 3e-3, **LEARNS[algorithm]}
    model = build(algorithm, arguments, venv=venv, **settings).learn(1024)
    mean, _ = evaluate_policy(fuse(model, encoder) if encoded else model, test, n_eval_episodes=24)
    assert mean > 5, "of 6; chance is 1.5, or 0 for SAC"
