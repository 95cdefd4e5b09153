"""Atari through SB3's wrappers, and ViZDoom's own environments: collect, pretrain, plug and fuse them unchanged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ale_py
import gymnasium as gym
import numpy as np
import pytest
import torch
import vizdoom.gymnasium_wrapper
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_atari_env, make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecTransposeImage

import rlpre
from rlpre.encoders import Encoder

gym.register_envs(ale_py)
gym.register_envs(vizdoom.gymnasium_wrapper)
PPO_SETTINGS = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "device": "cpu"}


def atari(count: int = 1) -> VecEnv:
    return make_atari_env("ALE/Pong-v5", count, seed=0)


def doom() -> VecEnv:
    return make_vec_env("VizdoomBasic-v1", 1, seed=0)


@pytest.mark.parametrize(
    ("make", "policy", "shape"),
    [
        (lambda: VecFrameStack(atari(), 4), "CnnPolicy", (4, 84, 84)),
        (doom, "MultiInputPolicy", (3, 240, 320)),
    ],
    ids=["atari", "doom"],
)
def test_from_frames_to_a_fused_policy(
    make: Callable[[], VecEnv], policy: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    store = rlpre.collect(make(), tmp_path / "frames", 10)
    pretraining: dict[str, Any] = {"objective": "contrastive", "steps": 1, "batch": 4, "features": 16, "device": "cpu"}
    encoder = rlpre.pretrain(store, out=tmp_path / "encoder", **pretraining).encoder
    assert store.space.shape == encoder.input.shape == shape
    venv = rlpre.EncodedVecEnv(make(), encoder)
    model = PPO(policy.replace("Cnn", "Mlp"), venv, **PPO_SETTINGS).learn(8)
    fused, observed = rlpre.fuse(model, encoder), venv.reset()
    for _ in range(8):
        action, _ = model.predict(observed, deterministic=True)
        assert np.array_equal(action, fused.predict(venv.frames, deterministic=True)[0])
        observed, *_ = venv.step(action)
    venv.close()


def test_stacks_of_atari_are_those_of_sb3() -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", rlpre.InputSpec((1, 84, 84)), features=16)
    ours = rlpre.EncodedVecEnv(VecTransposeImage(atari(2)), encoder, stack=4, device="cpu")
    theirs = VecTransposeImage(VecFrameStack(atari(2), 4))
    rng, ends = np.random.default_rng(0), 0

    def features(stack: np.ndarray) -> np.ndarray:
        return encoder(torch.as_tensor(stack.reshape(4, 1, 84, 84))).detach().numpy().reshape(-1)

    for venv in (ours, theirs):
        venv.seed(1)
        venv.reset()
    for _ in range(250):
        actions = rng.integers(0, 6, 2)
        encoded, rewards, dones, infos = ours.step(actions)
        stacks, expected, over, others = theirs.step(actions)
        assert np.array_equal(ours.frames, stacks)
        assert np.array_equal(rewards, expected)
        assert np.array_equal(dones, over)
        assert encoded[0] == pytest.approx(features(stacks[0]), abs=1e-4)
        for env in np.flatnonzero(dones):
            ends += 1
            last = infos[env]["terminal_observation"]
            assert last == pytest.approx(features(others[env]["terminal_observation"]), abs=1e-4)
    assert ends
    model = PPO(
        "CnnPolicy", VecFrameStack(atari(), 4), policy_kwargs=rlpre.policy_kwargs(encoder, stack=4), **PPO_SETTINGS
    )
    assert model.learn(8).num_timesteps == 8


def test_stacks_of_dicts() -> None:
    encoder = Encoder("cnn", rlpre.InputSpec((3, 240, 320)), features=16)
    arguments = rlpre.policy_kwargs(encoder, stack=4)
    model = PPO("MultiInputPolicy", VecFrameStack(doom(), 4), policy_kwargs=arguments, **PPO_SETTINGS).learn(8)
    assert model.policy.features_extractor.features_dim == 4 * 16 + 4, "and the ammunition of each frame"


def test_memory_of_atari_as_labels(tmp_path: Path) -> None:
    def ball(venv: VecEnv) -> dict[str, list[int]]:
        return {"ball": [int(env.unwrapped.ale.getRAM()[49]) for env in venv.unwrapped.envs]}

    store = rlpre.collect(atari(2), tmp_path, 200, labels=ball)
    assert len(np.unique(store.column("ball")[store.acted])) > 5, "the ball moves"
