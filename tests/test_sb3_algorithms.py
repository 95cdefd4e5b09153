"""Every algorithm in every mode: learns, keeps what is frozen, saves and loads."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import FRAME, TINY, WAYS, Algorithm, Quadrant, build, encoders_in, odd_encoder, same, worlds_for
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor
from torch.optim import Optimizer

from rlpre.encoders import Encoder
from rlpre.sb3 import EncodedVecEnv, fuse, policy_kwargs

FROZEN_STAGES = {"random": {0, 1, 2, 3}, "frozen": {0, 1, 2, 3}, "partial": {0, 1}}


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def groups(model: BaseAlgorithm) -> list[dict[str, Any]]:
    """Those of the optimisers of a policy's networks; SAC has two."""
    found = (getattr(module, "optimizer", None) for module in model.policy.modules())
    return [group for optimizer in found if isinstance(optimizer, Optimizer) for group in optimizer.param_groups]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("algorithm", TINY)
def test_learns_saves_and_loads_in_every_mode(algorithm: Algorithm, way: str, encoder: Encoder, tmp_path: Path) -> None:
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
    for key in ("lr_scale", "warmup_updates"):
        assert [group[key] for group in groups(again)] == [group[key] for group in groups(model)]
    again.learn(8)
    if algorithm is not RecurrentPPO:  # its policies forget the size of their LSTM when they are saved alone
        model.policy.save(str(tmp_path / "policy"))
        assert same(type(model.policy).load(str(tmp_path / "policy"), device="cpu"), model.policy)


@pytest.mark.parametrize("algorithm", TINY)
def test_every_algorithm_reads_a_dict(algorithm: Algorithm, encoder: Encoder, tmp_path: Path) -> None:
    venv = worlds_for(algorithm, parts=True)
    model = build(algorithm, policy_kwargs(encoder, "finetuned"), venv=venv, policy="MultiInput").learn(16)
    model.save(tmp_path / "model")
    assert same(algorithm.load(tmp_path / "model", env=venv, device="cpu").policy, model.policy)


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
    assert all(group["lr"] == 1e-3 for group in groups(model))


def test_a_target_network_follows_only_what_trains(encoder: Encoder) -> None:
    model = build(SAC, policy_kwargs(encoder, "partial", stages=2), tau=1.0).learn(16)
    assert same(model.critic.features_extractor, model.critic_target.features_extractor)
    assert not same(model.critic.features_extractor, model.actor.features_extractor)
    assert same(model.critic_target.features_extractor.encoder.stages[:2], encoder.stages[:2])


class Strict(Quadrant):
    """Fails on a masked action."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action]
        return super().step(action)


def test_action_masks_reach_the_policy(encoder: Encoder) -> None:
    build(MaskablePPO, policy_kwargs(encoder), venv=DummyVecEnv([Strict] * 2)).learn(32)
    venv = EncodedVecEnv(DummyVecEnv([Strict] * 2), encoder, "cpu")
    assert is_masking_supported(venv)
    model = build(MaskablePPO, {}, venv=venv, policy="Mlp").learn(32)
    venv.reset()
    assert np.array_equal(get_action_masks(venv), np.arange(4) != (np.array([[e.quadrant] for e in venv.envs]) + 1) % 4)
    only = np.eye(4, dtype=bool)[[2, 1]]
    assert fuse(model, encoder).predict(venv.frames, action_masks=only)[0].tolist() == [2, 1]


# The plug must let an agent learn.

OFTEN = {"learning_starts": 64, "train_freq": 1, "gradient_steps": 1, "batch_size": 32, "gamma": 0.2}
LEARNS: dict[Algorithm, dict[str, Any]] = {
    PPO: {"n_steps": 16, "batch_size": 64, "n_epochs": 6, "gamma": 0.5},
    DQN: {**OFTEN, "buffer_size": 2000, "target_update_interval": 50, "exploration_fraction": 0.3},
    SAC: {**OFTEN, "buffer_size": 2000, "ent_coef": 0.02},
}


@pytest.mark.parametrize("encoded", [False, True], ids=["pixels", "features"])
@pytest.mark.parametrize("algorithm", LEARNS)
def test_learns(algorithm: Algorithm, encoded: bool) -> None:
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
