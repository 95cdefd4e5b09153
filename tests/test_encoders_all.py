"""What every encoder promises, whoever wrote it: ours, torchvision's, a user's module."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pixel_world import FRAME, TINY, build, encoders_in, same, worlds
from stable_baselines3 import PPO
from torch import Tensor, nn

from rlpre import EncodedVecEnv, Encoder, InputSpec, fuse, policy_kwargs, register_encoder
from rlpre.encoders import ARCHITECTURES
from rlpre.sb3 import MODES

TINIEST: dict[str, dict[str, Any]] = {
    "cnn": {"features": 8},
    "impala": {"features": 8, "depths": [4, 8]},
    "vit": {"features": 8, "dim": 16, "depth": 2, "heads": 2},
    "torchvision:resnet18": {},
    "theirs": {"width": 4},
}


def theirs(channels: int, height: int, width_: int, width: int) -> list[nn.Module]:
    """A user's network with batch norm and dropout."""
    convolution = nn.Conv2d(channels, width, kernel_size=6, stride=6)
    first = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return [first, nn.Linear(width * (height // 6) * (width_ // 6), 8)]


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    register_encoder("theirs", theirs)
    yield
    del ARCHITECTURES["theirs"]


def make(name: str, channels: int = 3) -> Encoder:
    """An encoder whose batch norm, if it has one, knows other frames than the task's."""
    torch.manual_seed(7)
    encoder = Encoder(name, InputSpec((channels, *FRAME.shape[1:])), **TINIEST[name])
    encoder(pixels(8, channels))
    return encoder.eval()


@pytest.fixture(scope="module", params=TINIEST)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    """Shared by the tests of a name, none of which changes it."""
    return make(request.param)


def pixels(count: int = 4, channels: int = 3) -> Tensor:
    """Random frames, always the same."""
    shape = (count, channels, *FRAME.shape[1:])
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_no_name_is_left_out() -> None:
    assert set(TINIEST) - {"torchvision:resnet18"} == set(ARCHITECTURES)


@torch.no_grad()
def test_features_are_vectors_of_single_frames(encoder: Encoder) -> None:
    frames = pixels()
    kept = frames.float()
    features = encoder(frames)
    assert features.shape == (4, encoder.num_features)
    assert features.dtype == torch.float32
    assert features.std(0).max() > 1e-3, "all frames look alike"
    assert torch.equal(features, encoder(frames))
    assert torch.equal(features, encoder(kept))
    assert torch.equal(kept, frames.float()), "the caller's frames were changed"
    torch.testing.assert_close(encoder(frames[2:3]), features[2:3], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_stages_compose_to_the_whole(encoder: Encoder) -> None:
    frames = pixels(2)
    x = frames * encoder.scale
    for stage in encoder.stages:
        x = stage(x)
        assert any(parameter.ndim > 1 for parameter in stage.parameters()), "nothing to freeze"
    assert len(encoder.stages) >= 2
    assert torch.equal(x, encoder(frames))


@torch.no_grad()
def test_a_checkpoint_gives_the_same_features_bit_for_bit(encoder: Encoder, tmp_path: Path) -> None:
    loaded = Encoder.load(encoder.save(tmp_path)).eval()
    assert same(loaded, encoder)
    assert torch.equal(loaded(pixels()), encoder(pixels()))
    assert loaded.config == encoder.config


def test_a_configuration_survives_json(encoder: Encoder) -> None:
    config = json.loads(json.dumps(encoder.config))
    fresh = Encoder.from_config(config)
    assert fresh.config == encoder.config
    assert not same(fresh, encoder)
    assert {name: tensor.shape for name, tensor in fresh.state_dict().items()} == {
        name: tensor.shape for name, tensor in encoder.state_dict().items()
    }


@pytest.mark.parametrize("mode", MODES)
def test_the_plug_trains_what_the_mode_says(mode: str, encoder: Encoder) -> None:
    model = build(PPO, policy_kwargs(encoder, mode, **({"stages": 1} if mode == "partial" else {})))
    (inside,) = encoders_in(model)
    before = copy.deepcopy(inside)
    assert same(before, encoder) == MODES[mode].pretrained
    model.learn(16)
    model.policy.set_training_mode(True)
    assert same(before, inside) != MODES[mode].trainable
    if mode == "partial":
        first, *others = zip(before.stages, inside.stages, strict=True)
        assert same(*first), "batch norm moves, or weights do"
        assert not any(same(*stage) for stage in others)
    if not MODES[mode].trainable:
        assert not list(inside.parameters())
        assert torch.equal(inside(pixels()), before.eval()(pixels())), "dropout or batch norm is at work"


def test_encoded_once_and_fused_it_acts_as_inside_the_policy(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds(), encoder)
    model = PPO("MlpPolicy", venv, **TINY[PPO], seed=0, device="cpu").learn(16)
    features, frames = torch.from_numpy(venv.reset()), torch.from_numpy(venv.frames)
    inside = build(PPO, policy_kwargs(encoder, "frozen")).policy.features_extractor
    torch.testing.assert_close(inside(frames.float()), features, rtol=1e-4, atol=1e-5)
    policies = ((model.policy, features), (fuse(model, encoder), frames))
    logits = [policy.get_distribution(seen).distribution.logits for policy, seen in policies]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_standardised_features_have_mean_0_and_deviation_1(encoder: Encoder, tmp_path: Path) -> None:
    encoder, frames = copy.deepcopy(encoder), pixels(32)
    raw = encoder(frames)
    encoder.standardise(raw)
    features = Encoder.load(encoder.save(tmp_path)).eval()(frames)
    alive = raw.std(0) > 1e-3
    assert alive.any()
    torch.testing.assert_close(features.mean(0), torch.zeros(encoder.num_features), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.std(0)[alive], torch.ones(int(alive.sum())), rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", TINIEST)
def test_gray_frames_and_stacks_are_read_to_the_last_channel(name: str, channels: int) -> None:
    encoder, frames = make(name, channels), pixels(2, channels)
    assert encoder(frames).shape == (2, encoder.num_features)
    inverted = frames.clone()
    inverted[:, -1] = 255 - inverted[:, -1]
    assert not torch.allclose(encoder(frames), encoder(inverted), atol=1e-3)
