"""The extractor: each trap is first shown on plain SB3, then absent with rlpre."""

import copy
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import CORE, FRAME, TINY, Quadrant, build, encoders_in, odd_encoder, plain, same, worlds
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import is_image_space_channels_first
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from rlpre.encoders import ARCHITECTURES, Encoder, InputSpec
from rlpre.errors import RlpreError
from rlpre.sb3 import EncodedVecEnv, policy_kwargs
from rlpre.sb3.extractor import EncoderExtractor


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """An encoder with batch norm and dropout, whose running statistics are not those of the task."""

    def layers(channels: int, height: int, width: int) -> list[nn.Module]:
        convolution = nn.Conv2d(channels, 4, kernel_size=12, stride=12)
        return [nn.Sequential(convolution, nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())]

    monkeypatch.setitem(ARCHITECTURES, "normed", layers)
    encoder = Encoder("normed", FRAME)
    encoder.train()(torch.randint(0, 256, (8, *FRAME.shape)))
    return encoder


# Trap 1: orthogonal initialisation erases pretrained weights.


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_plain_sb3_erases_the_weights(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    assert not same(encoders_in(build(algorithm, plain(encoder)))[0], encoder)


@pytest.mark.parametrize("algorithm", CORE)
@pytest.mark.parametrize("mode", ["frozen", "finetuned"])
def test_weights_are_bit_identical_after_construction(
    algorithm: type[BaseAlgorithm], mode: str, encoder: Encoder
) -> None:
    inside = encoders_in(build(algorithm, policy_kwargs(encoder, mode)))
    assert inside
    assert all(same(one, encoder) for one in inside)


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_heads_keep_their_orthogonal_start(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    policy = build(algorithm, policy_kwargs(encoder, "frozen")).policy
    for layer, gain in [
        (policy.action_net, 0.01),
        (policy.value_net, 1.0),
        (policy.mlp_extractor.policy_net[2], 2**0.5),
    ]:
        assert torch.linalg.svdvals(layer.weight.detach()).numpy() == pytest.approx(gain, rel=1e-4)
        assert not layer.bias.any()


# Trap 2: batch norm and dropout drift while SB3 trains, and play another policy than they update.


@pytest.mark.parametrize("algorithm", CORE)
def test_plain_sb3_moves_a_frozen_batch_norm(algorithm: type[BaseAlgorithm], normed: Encoder) -> None:
    model = build(algorithm, plain(normed))
    before = copy.deepcopy(encoders_in(model)[0])
    assert not same(encoders_in(model.learn(32))[0], before)


@pytest.mark.parametrize("ours", [True, False])
def test_the_policy_that_is_updated_is_the_one_that_acted(ours: bool, normed: Encoder) -> None:
    arguments = policy_kwargs(normed, "finetuned") if ours else plain(normed)
    model = build(PPO, arguments, learning_rate=0.0, n_steps=64).learn(128)
    moved = model.logger.name_to_value["train/approx_kl"]
    assert moved < 1e-6 if ours else moved > 1e-6


@pytest.mark.parametrize("algorithm", CORE)
def test_a_frozen_encoder_is_bit_identical_after_learn(algorithm: type[BaseAlgorithm], normed: Encoder) -> None:
    model = build(algorithm, policy_kwargs(normed, "frozen"))
    head = copy.deepcopy(model.policy.state_dict())
    model.learn(48)
    model.policy.set_training_mode(True)
    assert all(same(inside, normed) and not inside.training for inside in encoders_in(model))
    assert any(not head[name].equal(tensor) for name, tensor in model.policy.state_dict().items()), "nothing learned"


def test_a_trained_encoder_does_train(encoder: Encoder) -> None:
    model = build(PPO, policy_kwargs(encoder, "finetuned")).learn(32)
    assert not same(encoders_in(model)[0], encoder)


def test_plain_sb3_blends_a_frozen_encoder_into_the_target_network(encoder: Encoder) -> None:
    assert not same(encoders_in(build(DQN, plain(encoder)).learn(200))[1], encoder)
    assert same(encoders_in(build(DQN, policy_kwargs(encoder, "frozen")).learn(200))[1], encoder)


# Trap 6: a zip that holds a path to the encoder does not load where the path is gone.


def test_plain_sb3_cannot_load_without_the_encoders_directory(encoder: Encoder, tmp_path: Path) -> None:
    build(PPO, plain(encoder.save(tmp_path / "encoder"))).save(tmp_path / "model")
    shutil.rmtree(tmp_path / "encoder")
    with pytest.raises(RlpreError, match="missing"):
        PPO.load(tmp_path / "model")


@pytest.mark.parametrize("mode", ["frozen", "finetuned"])
def test_ours_loads_without_the_encoders_directory(mode: str, encoder: Encoder, tmp_path: Path) -> None:
    pretrained = Encoder.load(encoder.save(tmp_path / "encoder"))
    model = build(PPO, policy_kwargs(pretrained, mode)).learn(16)
    model.save(tmp_path / "model")
    shutil.rmtree(tmp_path / "encoder")
    assert same(PPO.load(tmp_path / "model", device="cpu").policy, model.policy)


@pytest.mark.parametrize("algorithm", CORE)
def test_arguments_that_lost_their_weights_refuse_to_act(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "frozen")
    model = build(algorithm, pickle.loads(pickle.dumps(arguments)))
    frames = worlds().reset()
    for net in (model.policy, getattr(model, "q_net_target", model.policy)):
        with pytest.raises(RlpreError, match="left behind"):
            net.predict(frames)
    model.set_parameters(build(algorithm, copy.deepcopy(arguments)).get_parameters())
    model.predict(frames, deterministic=True)
    assert all(same(inside, encoder) for inside in encoders_in(model))


# Trap 7: two extractors, and a state that names the weights three times.


def test_separate_extractors_are_both_protected(encoder: Encoder) -> None:
    erased = encoders_in(build(PPO, plain(encoder, share_features_extractor=False)))
    assert len(erased) == 2
    assert not any(same(inside, encoder) for inside in erased)
    model = build(PPO, policy_kwargs(encoder, "frozen", share_features_extractor=False)).learn(32)
    assert len(encoders_in(model)) == 2
    assert all(same(inside, encoder) for inside in encoders_in(model))


def test_the_zip_holds_the_weights_once(encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder, "frozen", net_arch=[]))
    model.save(tmp_path / "model")
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert sum("stages.0.0.weight" in name for name in model.policy.state_dict()) == 3
    assert weights < sizes["policy.pth"] < 1.2 * weights
    assert sizes["policy.optimizer.pth"] + sizes["data"] < 0.3 * weights


# Trap 8: SB3 guesses the scaling and the channel order.


def test_the_encoder_alone_scales_the_frames() -> None:
    encoder = Encoder("cnn", InputSpec(FRAME.shape, mean=0.4, std=0.25), features=16)
    frames = torch.from_numpy(worlds().reset())
    twice = build(DQN, plain(encoder, normalize_images=True)).policy.q_net
    once = build(DQN, policy_kwargs(encoder)).policy.q_net
    with torch.no_grad():
        assert not twice.extract_features(frames, twice.features_extractor).equal(encoder(frames))
        assert once.extract_features(frames, once.features_extractor).equal(encoder(frames))


MISMATCHES = [
    (spaces.Box(0, 255, (3, 40, 40), np.uint8), r"shape is \(3, 40, 40\)"),
    (spaces.Box(0, 255, (36, 36, 3), np.uint8), "channels are last"),
    (spaces.Box(0, 255, FRAME.shape, np.float32), "float32"),
    (spaces.Box(0, 1, FRAME.shape, np.uint8), r"\[0, 1\]"),
    (spaces.Tuple([FRAME.space]), "Tuple"),
]


@pytest.mark.parametrize(("space", "named"), MISMATCHES, ids=["shape", "channels", "dtype", "range", "tuple"])
def test_another_observation_space_is_refused_by_name(space: spaces.Space[Any], named: str, encoder: Encoder) -> None:
    with pytest.raises(RlpreError, match=named):
        EncoderExtractor(space, **policy_kwargs(encoder)["features_extractor_kwargs"])
    world = Quadrant()
    world.observation_space = space
    with pytest.raises(RlpreError, match=named):
        EncodedVecEnv(DummyVecEnv([lambda: world]), encoder)


def test_a_stack_of_symbols_is_not_taken_for_channels_first() -> None:
    stacked = spaces.Box(0, 255, (7, 7, 9), np.uint8)
    assert is_image_space_channels_first(stacked), "plain SB3 guesses wrong"
    with pytest.raises(RlpreError, match="channels are last"):
        InputSpec((9, 7, 7)).check(stacked)


def test_sb3_transposes_channels_last_worlds_for_the_policy(encoder: Encoder) -> None:
    class Last(Quadrant):
        def __init__(self) -> None:
            super().__init__()
            self.observation_space = spaces.Box(0, 255, (36, 36, 3), np.uint8)

        def _frame(self) -> np.ndarray:
            return super()._frame().transpose(1, 2, 0)

    PPO("CnnPolicy", Last(), policy_kwargs=policy_kwargs(encoder), **TINY[PPO]).learn(16)


# Trap 9: an SB3 zip runs code when it is loaded; an encoder's checkpoint must not.


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_zip_runs_code_and_an_encoder_does_not(file: str, encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder))
    model.extra = _Code(tmp_path / "ran")
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model")
    assert (tmp_path / "ran").exists(), "plain SB3 no longer runs code: tell the users"
    path = encoder.save(tmp_path / "encoder")
    (path / file).write_bytes(pickle.dumps(_Code(tmp_path / "ran too")))
    with pytest.raises(RlpreError):
        Encoder.load(path)
    assert not (tmp_path / "ran too").exists()
