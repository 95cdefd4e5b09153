"""Encoders: shapes, initialisation, and a checkpoint that refuses what it cannot be sure of."""

import json

import numpy as np
import pytest
import torch
from gymnasium import spaces
from safetensors.torch import load_file, save_file

from rlpre import Encoder, InputSpec, RlpreError
from rlpre.encoders import ARCHITECTURES

SPEC = InputSpec((3, 56, 56))


@pytest.fixture(params=sorted(ARCHITECTURES))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return Encoder(request.param, SPEC, features=32)


def test_features_are_vectors_and_bytes_equal_floats(encoder: Encoder) -> None:
    frames = torch.randint(0, 256, (4, 3, 56, 56), dtype=torch.uint8)
    features = encoder(frames)
    assert features.shape == (4, 32)
    assert encoder.num_features == 32
    assert torch.equal(features, encoder(frames.float()))


def test_stages_compose_to_the_whole(encoder: Encoder) -> None:
    frames = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    x = frames.float() / 255
    for stage in encoder.stages:
        x = stage(x)
    assert len(encoder.stages) > 2
    torch.testing.assert_close(x, encoder(frames), rtol=1e-4, atol=1e-4)


def test_range_mean_and_std_are_the_encoders_job() -> None:
    torch.manual_seed(0)
    plain = Encoder("cnn", SPEC)
    other = Encoder("cnn", InputSpec((3, 56, 56), dtype="float32", low=-1, high=1, mean=0.5, std=0.25))
    other.load_state_dict(plain.state_dict())
    unit = torch.rand(2, 3, 56, 56)
    torch.testing.assert_close(other(unit * 2 - 1), plain((unit - 0.5) / 0.25 * 255))


def test_weights_start_orthogonal_as_in_sb3(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            rows = module.weight.flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-4, rtol=0)
            assert not module.bias.any()


def test_checkpoint_round_trip(encoder: Encoder, tmp_path) -> None:
    encoder.pretraining = {"objective": "none", "seed": 3}
    loaded = Encoder.load(encoder.save(tmp_path / "a"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == encoder.config
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name])


def _drop(tensors: dict) -> None:
    tensors.pop(sorted(tensors)[0])


def _add(tensors: dict) -> None:
    tensors["surplus"] = torch.zeros(1)


def _reshape(tensors: dict) -> None:
    name = sorted(tensors)[0]
    tensors[name] = tensors[name][..., :-1].contiguous()


@pytest.mark.parametrize(
    ("spoil", "sentence"), [(_drop, "lacks tensor"), (_add, "extra tensor 'surplus'"), (_reshape, "has shape")]
)
def test_wrong_tensors_are_refused(spoil, sentence: str, tmp_path) -> None:
    path = Encoder("cnn", SPEC).save(tmp_path) / "model.safetensors"
    tensors = load_file(path)
    spoil(tensors)
    save_file(tensors, path)
    with pytest.raises(RlpreError, match=sentence):
        Encoder.load(tmp_path)


def test_damaged_or_missing_files_are_refused(tmp_path) -> None:
    with pytest.raises(RlpreError, match=r"config.json is missing"):
        Encoder.load(tmp_path / "nowhere")
    path = Encoder("cnn", SPEC).save(tmp_path)
    (path / "model.safetensors").write_bytes((path / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(RlpreError, match=r"model.safetensors cannot be read"):
        Encoder.load(path)
    (path / "config.json").write_text(json.dumps({"format": 99}))
    with pytest.raises(RlpreError, match="format 99"):
        Encoder.load(path)
    (path / "config.json").write_text("{")
    with pytest.raises(RlpreError, match="damaged"):
        Encoder.load(path)


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(RlpreError, match="unknown encoder 'impla': did you mean 'impala'"):
        Encoder("impla", SPEC)
    with pytest.raises(RlpreError, match=r"does not fit .*widht"):
        Encoder("cnn", SPEC, widht=3)
    with pytest.raises(RlpreError, match="does not fit frames"):
        Encoder("cnn", InputSpec((3, 16, 16)))


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (spaces.Discrete(3), "gives Discrete"),
        (spaces.Box(0, 255, (56, 56, 3), np.uint8), "channels are last"),
        (spaces.Box(0, 255, (3, 64, 64), np.uint8), r"shape is \(3, 64, 64\)"),
        (spaces.Box(0, 255, (3, 56, 56), np.float32), "are float32"),
        (spaces.Box(0, 1, (3, 56, 56), np.uint8), r"range over \[0, 1\]"),
    ],
)
def test_spaces_that_differ_are_refused_by_name(space: spaces.Space, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        SPEC.check(space)
    SPEC.check(SPEC.space)
