"""Stacks of frames: each frame is encoded by itself, in the policy and in front of it."""

from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import build, encoders_in, odd_encoder, worlds, worlds_for
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecFrameStack

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.sb3 import EncodedVecEnv, fuse, policy_kwargs


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def sliced(encoder: Encoder, stacks: np.ndarray) -> np.ndarray:
    """Features of stacks (n, k * 3, 36, 36), one slice at a time."""
    with torch.no_grad():
        slices = [encoder(torch.from_numpy(stacks[:, i : i + 3])) for i in range(0, stacks.shape[1], 3)]
    return torch.cat(slices, dim=1).numpy()


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_features_are_those_of_sb3s_stack_slice_by_slice(stack: int, encoder: Encoder) -> None:
    pixels = VecFrameStack(worlds(3, length=3), stack, "first")
    venv = EncodedVecEnv(worlds(3, length=3), encoder, "cpu", stack=stack)
    ended = 0
    for _ in range(2):
        frames, features = pixels.reset(), venv.reset()
        assert features == pytest.approx(sliced(encoder, frames), abs=1e-4)
        for _ in range(7):
            frames, _, _, infos = pixels.step(np.zeros(3, int))
            features, _, _, ours = venv.step(np.zeros(3, int))
            assert venv.observation_space.contains(features[0])
            assert features == pytest.approx(sliced(encoder, frames), abs=1e-4)
            assert np.array_equal(venv.frames, frames)
            for theirs, mine in zip(infos, ours, strict=True):
                if "terminal_observation" in theirs:
                    wanted = sliced(encoder, theirs["terminal_observation"][None])[0]
                    assert mine["terminal_observation"] == pytest.approx(wanted, abs=1e-4)
                    ended += 1
    assert ended == 12


def test_a_frame_is_encoded_once_for_all_its_stacks(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds(2, length=100), encoder, "cpu", stack=4)
    sizes: list[int] = []
    venv.encoder.register_forward_hook(lambda _module, frames, _features: sizes.append(len(frames[0])))
    venv.reset()
    for _ in range(9):
        venv.step(np.zeros(2, int))
    assert sizes == [2] * 10


def test_the_other_keys_of_a_dict_are_not_stacked(encoder: Encoder) -> None:
    one, venv = (EncodedVecEnv(worlds(2, parts=True), encoder, "cpu", stack=stack) for stack in (1, 3))
    one.reset(), venv.reset()
    for _ in range(8):
        given, *_ = one.step(np.zeros(2, int))
        stacked, *_ = venv.step(np.zeros(2, int))
        assert stacked["image"].shape == (2, 3 * 16)
        assert np.array_equal(stacked["image"][:, -16:], given["image"])
        assert all(np.array_equal(stacked[key], given[key]) for key in given if key != "image")
    model = build(PPO, {}, venv=venv, policy="MultiInput").learn(32)
    observations = venv.reset()
    fused = fuse(model, encoder)
    assert fused.observation_space["image"].shape == (9, 36, 36)
    assert np.array_equal(
        fused.predict(venv.frames, deterministic=True)[0], model.predict(observations, deterministic=True)[0]
    )


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_the_policy_encodes_each_distinct_frame_of_the_stacks_once(
    algorithm: type[BaseAlgorithm], encoder: Encoder
) -> None:
    venv = VecFrameStack(worlds_for(algorithm), 3, "first")
    model = build(algorithm, policy_kwargs(encoder, "finetuned", stack=3), venv=venv).learn(16)
    extractor = next(module for module in model.policy.modules() if hasattr(module, "encoder"))
    inside = encoders_in(model)[0]
    sizes: list[int] = []
    inside.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    stacks = venv.reset()
    features = extractor(torch.from_numpy(stacks).float())
    assert sizes == [3], "two frames, and the black one that stands before both"
    assert features.detach().numpy() == pytest.approx(sliced(inside, stacks), abs=1e-4)


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_a_fused_policy_reads_sb3s_stacks(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(algorithm, seed=3), encoder, "cpu", stack=4)
    model = build(algorithm, {}, venv=venv, policy="Mlp").learn(32)
    fused, pixels = fuse(model, encoder), VecFrameStack(worlds_for(algorithm, seed=5), 4, "first")
    venv = EncodedVecEnv(worlds_for(algorithm, seed=5), encoder, "cpu", stack=4)
    assert fused.observation_space == pixels.observation_space
    frames, features = pixels.reset(), venv.reset()
    for _ in range(8):
        wanted, _ = model.predict(features, deterministic=True)
        assert fused.predict(frames, deterministic=True)[0] == pytest.approx(wanted, abs=1e-4)
        frames, features = pixels.step(wanted)[0], venv.step(wanted)[0]


def test_frames_of_a_stack_shift_together(encoder: Encoder) -> None:
    venv = VecFrameStack(worlds(), 2, "first")
    policy = build(PPO, policy_kwargs(encoder, "finetuned", stack=2, augment=True), venv=venv).policy
    policy.set_training_mode(True)
    twice = torch.randint(256, (64, 3, 36, 36)).float().repeat(1, 2, 1, 1)
    older, newer = policy.features_extractor(twice).split(16, dim=1)
    torch.testing.assert_close(older, newer)
    assert not older.allclose(policy.features_extractor.encoder(twice[:, :3]))


REFUSED: list[tuple[int, dict[str, Any], str]] = [
    (4, {}, "holds 4 frames of 3 channels, not 1: pass stack=4"),
    (1, {"stack": 4}, "holds 1 frames of 3 channels, not 4: pass stack=1"),
]


@pytest.mark.parametrize(("given", "arguments", "named"), REFUSED)
def test_another_number_of_frames_is_refused(
    given: int, arguments: dict[str, Any], named: str, encoder: Encoder
) -> None:
    with pytest.raises(RlpreError, match=named):
        build(PPO, policy_kwargs(encoder, **arguments), venv=VecFrameStack(worlds(), given, "first"))


def test_the_wrapper_stacks_by_itself(encoder: Encoder) -> None:
    with pytest.raises(RlpreError, match="leave out VecFrameStack"):
        EncodedVecEnv(VecFrameStack(worlds(), 4, "first"), encoder, "cpu", stack=4)
    with pytest.raises(RlpreError, match="stack is 0"):
        EncodedVecEnv(worlds(), encoder, "cpu", stack=0)
