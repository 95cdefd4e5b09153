"""Encoders: shapes, initialisation, and a checkpoint that refuses what it cannot be sure of."""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import same
from safetensors.torch import load_file, save_file
from torch import nn

import rlpre
from rlpre import Encoder, InputSpec, RlpreError
from rlpre.encoders import ARCHITECTURES, find_architecture

SPEC = InputSpec((3, 56, 56))


@pytest.fixture(params=sorted(ARCHITECTURES))
def encoder(request: pytest.FixtureRequest) -> Encoder:
    torch.manual_seed(0)
    return Encoder(request.param, SPEC, features=32)


def test_range_mean_and_std_are_the_encoders_job() -> None:
    torch.manual_seed(0)
    plain = Encoder("cnn", SPEC)
    other = Encoder("cnn", InputSpec((3, 56, 56), dtype="float32", low=-1, high=1, mean=0.5, std=0.25))
    other.load_state_dict(plain.state_dict())
    unit = torch.rand(2, 3, 56, 56)
    torch.testing.assert_close(other(unit * 2 - 1), plain((unit - 0.5) / 0.25 * 255))


def test_mean_and_std_may_differ_by_channel(tmp_path) -> None:
    torch.manual_seed(0)
    spec = InputSpec((3, 56, 56), mean=[0.5, 0.4, 0.3], std=(0.1, 0.2, 0.4))
    encoder, plain = Encoder("cnn", spec), Encoder("cnn", SPEC)
    plain.load_state_dict(encoder.state_dict())
    frames = torch.randint(0, 256, (2, 3, 56, 56), dtype=torch.uint8)
    red, green, blue = (frames / 255).unbind(1)
    by_hand = torch.stack([(red - 0.5) / 0.1, (green - 0.4) / 0.2, (blue - 0.3) / 0.4], dim=1)
    torch.testing.assert_close(encoder(frames), plain(by_hand * 255), rtol=1e-4, atol=1e-4)
    loaded = Encoder.load(encoder.save(tmp_path))
    assert loaded.input == encoder.input
    assert torch.equal(loaded(frames), encoder(frames))
    assert encoder.input.mean == (0.5, 0.4, 0.3), "lists become tuples, so that specifications can be compared"


def test_a_configuration_written_with_one_mean_still_loads(tmp_path) -> None:
    path = Encoder("cnn", InputSpec((3, 56, 56), mean=0.4, std=0.25)).save(tmp_path)
    config = json.loads((path / "config.json").read_text())
    assert (config["format"], config["input"]["mean"], config["input"]["std"]) == (1, 0.4, 0.25)
    assert Encoder.load(path).input == InputSpec((3, 56, 56), mean=0.4, std=0.25)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"std": 0}, "std is 0: it must be finite, and positive"),
        ({"std": (0.1, -0.2, 0.3)}, "must be finite, and positive"),
        ({"std": float("nan")}, "must be finite, and positive"),
        ({"mean": float("inf")}, "mean is inf: it must be finite"),
        ({"mean": (0.1, 0.2)}, r"mean has shape \(2,\): give one number, or 3, one per channel"),
        ({"std": [[0.1, 0.2, 0.3]]}, "std has shape"),
    ],
)
def test_bad_means_and_deviations_are_one_sentence(arguments: dict, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        InputSpec((3, 56, 56), **arguments)


def test_fresh_weights_are_the_ones_they_always_were() -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", SPEC)
    torch.manual_seed(0)
    by_hand = [nn.Conv2d(3, 32, 8), nn.Conv2d(32, 64, 4), nn.Conv2d(64, 64, 3), nn.Linear(576, 128)]
    for layer in by_hand:
        nn.init.orthogonal_(layer.weight, gain=2**0.5)
    found = [module for module in encoder.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert all(torch.equal(one.weight, other.weight) for one, other in zip(found, by_hand, strict=True))


def test_weights_start_orthogonal_as_in_sb3(encoder: Encoder) -> None:
    for module in encoder.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            rows = module.weight.flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-4, rtol=0)
            assert not module.bias.any()


def test_a_checkpoint_is_two_files_and_remembers_the_pretraining(encoder: Encoder, tmp_path) -> None:
    encoder.pretraining = {"objective": "none", "seed": 3}
    loaded = Encoder.load(encoder.save(tmp_path / "a"))
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", "model.safetensors"]
    assert loaded.config == encoder.config


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
    with pytest.raises(RlpreError, match="known: cnn, impala, torchvision:NAME, vit"):
        find_architecture("nothing like it")
    with pytest.raises(RlpreError, match=r"does not fit .*widht"):
        Encoder("cnn", SPEC, widht=3)
    with pytest.raises(RlpreError, match="does not fit frames"):
        Encoder("cnn", InputSpec((3, 16, 16)))


@pytest.mark.parametrize(
    ("side", "patches"), [((56, 56), 49), ((64, 48), 48), ((84, 84), 144), ((36, 36), 16), ((210, 160), 336)]
)
def test_vit_tiles_any_frame_and_grid_worlds_by_the_cell(side: tuple[int, int], patches: int) -> None:
    encoder = Encoder("vit", InputSpec((3, *side)), dim=16, depth=1, heads=2)
    assert encoder.stages[0].positions.shape == (patches, 16)


def test_vit_refuses_what_it_cannot_tile() -> None:
    with pytest.raises(RlpreError, match="patches of 8 pixels do not tile frames of 97 x 89: pad or resize"):
        Encoder("vit", InputSpec((3, 97, 89)))
    with pytest.raises(RlpreError, match="patches of 9 pixels do not tile"):
        Encoder("vit", SPEC, patch=9)
    with pytest.raises(RlpreError, match="3 heads do not divide dim=128"):
        Encoder("vit", SPEC, heads=3)


class Mine(nn.Sequential):
    """A network that starts its own way, and holds what it was told."""

    def __init__(self, channels: int, height: int, width: int, layers: list[int], start: float = 0.25) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, layers[-1]))
        nn.init.constant_(self[1].weight, start)


@pytest.fixture
def empty_registry() -> Iterator[None]:
    """Forgets the names that a test registers."""
    known = dict(ARCHITECTURES)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


@pytest.mark.usefixtures("empty_registry")
def test_a_module_of_ones_own_takes_one_line(tmp_path) -> None:
    rlpre.register_encoder("mine", Mine)
    encoder = Encoder("mine", InputSpec((1, 4, 4)), layers=(3, 5))
    assert encoder.num_features == 5
    assert (encoder.stages[0][1].weight == 0.25).all(), "its own start was overwritten"
    assert encoder.arguments == {"layers": [3, 5]}, "built from what a checkpoint can give back"
    path = encoder.save(tmp_path)
    assert "Mine" not in (path / "config.json").read_text()
    assert same(Encoder.load(path), encoder)
    del ARCHITECTURES["mine"]
    with pytest.raises(RlpreError, match=r"unknown encoder 'mine'.*rlpre.register_encoder\('mine', ...\) first"):
        Encoder.load(path)


@pytest.mark.usefixtures("empty_registry")
def test_a_name_belongs_to_one_definition() -> None:
    def define(width: int) -> type[nn.Module]:
        class Net(Mine):
            size = width

        return Net

    rlpre.register_encoder("mine", define(1))
    rlpre.register_encoder("mine", define(2))  # as when a notebook's cell runs again
    assert ARCHITECTURES["mine"].size == 2
    for name, build in (("mine", Mine), ("cnn", Mine), ("torchvision:mine", Mine)):
        with pytest.raises(RlpreError, match=f"the encoder name '{name}' is taken"):
            rlpre.register_encoder(name, build)
    with pytest.raises(RlpreError, match="give a class or a function, not what it built"):
        rlpre.register_encoder("theirs", [nn.Flatten()])


@pytest.mark.usefixtures("empty_registry")
@pytest.mark.parametrize(
    ("built", "arguments", "sentence"),
    [
        (3, {}, "'mine' gave int: return an nn.Module or a list of them"),
        ([nn.Flatten(), "linear"], {}, "'mine' gave str: return"),
        ([], {}, r"gives \(1, 4, 4\) per frame, not a vector"),
        (nn.Conv2d(1, 2, 3), {}, r"gives \(2, 2, 2\) per frame, not a vector"),
        (nn.LSTM(4, 4), {}, "does not fit frames"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(16, 4)), {}, "gives a tuple per frame, not a vector"),
        (nn.Flatten(), {"act": nn.ReLU}, "arguments that are not JSON"),
        (nn.Flatten(), {"weights": "mine.pt"}, "published for 'torchvision:NAME' encoders alone"),
    ],
)
def test_modules_that_are_no_encoders_are_refused(built: object, arguments: dict, sentence: str) -> None:
    rlpre.register_encoder("mine", lambda channels, height, width, **_: built)
    with pytest.raises(RlpreError, match=sentence) as caught:
        Encoder("mine", InputSpec((1, 4, 4)), **arguments)
    assert "\n" not in str(caught.value)


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
