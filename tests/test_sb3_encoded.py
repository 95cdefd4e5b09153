"""Frames encoded once in front of the policy, and the way back to pixels."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, TINY, build, encoders_in, worlds
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize
from torch import nn

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.sb3 import EncodedVecEnv, features, fuse, policy_kwargs


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", FRAME, features=16)


def trained(algorithm: type[BaseAlgorithm], encoder: Encoder, **arguments: Any) -> BaseAlgorithm:
    """A small model, trained behind `EncodedVecEnv`."""
    venv = EncodedVecEnv(worlds(), encoder, "cpu")
    return algorithm("MlpPolicy", venv, seed=0, device="cpu", **TINY[algorithm], **arguments).learn(48)


def counted(encoder: nn.Module) -> list[int]:
    """A list that grows by the batch size of every call of ``encoder``."""
    sizes: list[int] = []
    encoder.register_forward_hook(lambda _module, frames, _features: sizes.append(len(frames[0])))
    return sizes


# Trap 5: a frozen encoder runs 1 + n_epochs times per frame, and terminal observations need it too.


def test_a_frame_is_encoded_once_instead_of_once_per_epoch(encoder: Encoder) -> None:
    steps, epochs = 8 * 2, TINY[PPO]["n_epochs"]
    inside = build(PPO, policy_kwargs(encoder, "frozen"))
    in_policy = counted(encoders_in(inside)[0])
    inside.learn(steps)
    assert sum(in_policy) >= (1 + epochs) * steps, "plain SB3 no longer encodes per epoch"
    venv = EncodedVecEnv(worlds(), encoder, "cpu")
    outside = counted(venv.encoder)
    PPO("MlpPolicy", venv, device="cpu", **TINY[PPO]).learn(steps)
    first, terminals = 2, 2
    assert sum(outside) == first + steps + terminals


def test_a_frame_seen_before_is_not_encoded_again(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = EncodedVecEnv(worlds(noise=0), encoder, "cpu")
    calls = counted(venv.encoder)
    venv.reset()
    for _ in range(40):
        given, *_ = venv.step(np.zeros(2, int))
        with torch.no_grad():
            assert given == pytest.approx(encoder(torch.from_numpy(venv.frames)).numpy(), abs=1e-5)
    assert sum(calls) == 4, "one per quadrant"
    monkeypatch.setattr(features, "REMEMBERED", 2)
    for _ in range(40):
        given, *_ = venv.step(np.zeros(2, int))
        with torch.no_grad():
            assert given == pytest.approx(encoder(torch.from_numpy(venv.frames)).numpy(), abs=1e-5)
    assert sum(calls) > 4, "the memory is bounded"


class OnlyCurrent(VecEnvWrapper):
    """What one writes without rlpre: encodes observations and forgets the terminal ones."""

    def __init__(self, encoder: Encoder) -> None:
        space = spaces.Box(-np.inf, np.inf, (encoder.num_features,), np.float32)
        super().__init__(worlds(), observation_space=space)
        self.encode = lambda frames: encoder(torch.from_numpy(frames)).detach().numpy()

    def reset(self) -> np.ndarray:
        return self.encode(self.venv.reset())

    def step_wait(self) -> tuple[Any, ...]:
        frames, *rest = self.venv.step_wait()
        return self.encode(frames), *rest


def test_plain_wrapper_leaves_pixels_in_terminal_observations(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="shape"):
        PPO("MlpPolicy", OnlyCurrent(encoder), device="cpu", **TINY[PPO]).learn(16)


def test_every_observation_is_encoded_the_terminal_ones_too(encoder: Encoder) -> None:
    pixels, venv = worlds(count=3, length=4), EncodedVecEnv(worlds(count=3, length=4), encoder, "cpu")
    encode = copy.deepcopy(encoder).requires_grad_(False)
    assert venv.reset() == pytest.approx(encode(torch.from_numpy(pixels.reset())).numpy(), abs=1e-5)
    ended = 0
    for _ in range(9):
        frames, rewards, dones, infos = pixels.step(np.zeros(3, int))
        features, same_rewards, same_dones, features_infos = venv.step(np.zeros(3, int))
        assert features.dtype == np.float32
        assert venv.observation_space.contains(features[0])
        assert features == pytest.approx(encode(torch.from_numpy(frames)).numpy(), abs=1e-5)
        assert np.array_equal(venv.frames, frames)
        assert np.array_equal(rewards, same_rewards)
        assert np.array_equal(dones, same_dones)
        for info, ours in zip(infos, features_infos, strict=True):
            assert info.keys() == ours.keys()
            if "terminal_observation" in info:
                wanted = encode(torch.from_numpy(info["terminal_observation"][None])).numpy()[0]
                assert ours["terminal_observation"] == pytest.approx(wanted, abs=1e-5)
                ended += 1
    assert ended == 6


def test_training_the_encoder_later_does_not_change_the_features(encoder: Encoder) -> None:
    mine = copy.deepcopy(encoder)
    venv, twin = EncodedVecEnv(worlds(), mine, "cpu"), EncodedVecEnv(worlds(), encoder, "cpu")
    with torch.no_grad():
        mine.stages[0][0].weight.zero_()
    assert np.array_equal(venv.reset(), twin.reset())
    assert not list(venv.encoder.parameters())


def test_an_unknown_device_is_refused(encoder: Encoder) -> None:
    with pytest.raises(RlpreError, match="device 'abacus'"):
        EncodedVecEnv(worlds(), encoder, "abacus")


# Fuse.


def agree(features: BasePolicy, pixels: BasePolicy, encoder: Encoder) -> None:
    """Actions of both policies are equal on the same observations, greedy and, with the same seed, sampled."""
    venv = EncodedVecEnv(worlds(count=16, seed=7), encoder, "cpu")
    observations = venv.reset()
    for step in range(20):
        for deterministic in (True, False):
            torch.manual_seed(step)
            wanted, _ = features.predict(observations, deterministic=deterministic)
            torch.manual_seed(step)
            given, _ = pixels.predict(venv.frames, deterministic=deterministic)
            assert np.array_equal(given, wanted)
        observations, *_ = venv.step(np.zeros(16, int))


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_reloaded_model_fuses_and_refuses_another_encoder(
    algorithm: type[BaseAlgorithm], encoder: Encoder, tmp_path: Path
) -> None:
    model, other = trained(algorithm, encoder), Encoder("cnn", FRAME, features=16)
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=EncodedVecEnv(worlds(), encoder, "cpu"), device="cpu")
    agree(model.policy, fuse(again, encoder), encoder)
    again.learn(16)
    with pytest.raises(RlpreError, match="this encoder gives FeatureSpace"):
        fuse(again, other)
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        algorithm.load(tmp_path / "model", env=EncodedVecEnv(worlds(), other, "cpu"))


def test_normalised_features_are_not_fused(encoder: Encoder) -> None:
    venv = VecNormalize(EncodedVecEnv(worlds(), encoder, "cpu"))
    model = PPO("MlpPolicy", venv, device="cpu", **TINY[PPO]).learn(16)
    with pytest.raises(RlpreError, match="norm_obs=False"):
        fuse(model, encoder)


def test_a_model_trained_on_pixels_is_not_fused(encoder: Encoder) -> None:
    with pytest.raises(RlpreError, match="trained on Box"):
        fuse(build(PPO, policy_kwargs(encoder)), encoder)
