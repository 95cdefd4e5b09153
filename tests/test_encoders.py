"""Encoders: what every one promises whoever wrote it, input specifications, checkpoints and the registry."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, TINY, build, encoders_in, same, worlds
from safetensors.torch import load_file, save_file
from stable_baselines3 import PPO
from torch import Tensor, nn

from rlpre import EncodedVecEnv, Encoder, InputSpec, RlpreError, fuse, policy_kwargs, register_encoder
from rlpre.encoders import ARCHITECTURES
from rlpre.encoders.encoder import find_architecture
from rlpre.sb3 import MODES

SPEC = InputSpec((3, 56, 56))
TINIEST: dict[str, dict[str, Any]] = {
    "cnn": {"features": 8},
    "impala": {"features": 8, "depths": [4, 8]},
    "vit": {"features": 8, "dim": 16, "depth": 2, "heads": 2},
    "whitened:cnn": {"features": 8},
    "map:cnn": {"map_stage": 2, "map_size": 8},
    "torchvision:resnet18": {},
    "theirs": {"width": 4},
}


def theirs(channels: int, height: int, width_: int, width: int) -> list[nn.Module]:
    """A user's network with batch norm and dropout."""
    convolution = nn.Conv2d(channels, width, kernel_size=6, stride=6)
    first = nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
    return [first, nn.Linear(width * (height // 6) * (width_ // 6), 8)]


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    """Registers "theirs", and forgets the names that a test registers."""
    known = dict(ARCHITECTURES)
    register_encoder("theirs", theirs)
    yield
    ARCHITECTURES.clear()
    ARCHITECTURES.update(known)


def make(name: str, channels: int = 3) -> Encoder:
    """An encoder; batch norm, if it has any, has seen other frames than the task's."""
    torch.manual_seed(7)
    encoder = Encoder(name, InputSpec((channels, *FRAME.shape[1:])), **TINIEST[name])
    encoder(pixels(8, channels))
    return encoder.eval()


@pytest.fixture(params=TINIEST)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    return make(request.param)


def pixels(count: int = 4, channels: int = 3) -> Tensor:
    """Random frames, always the same."""
    shape = (count, channels, *FRAME.shape[1:])
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_features_are_vectors_of_single_frames(encoder: Encoder) -> None:
    frames = pixels()
    kept = frames.float()
    features = encoder(frames)
    assert (features.shape, features.dtype) == ((4, encoder.num_features), torch.float32)
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
    encoder.pretraining = {"objective": "none", "seed": 3}
    loaded = Encoder.load(encoder.save(tmp_path)).eval()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert same(loaded, encoder)
    assert torch.equal(loaded(pixels()), encoder(pixels()))
    assert (loaded.config, loaded.fingerprint()) == (encoder.config, encoder.fingerprint())
    fresh = Encoder.from_config(json.loads((tmp_path / "config.json").read_text()))
    assert fresh.config == encoder.config
    assert not same(fresh, encoder)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_and_plugged(dtype: torch.dtype, tmp_path: Path) -> None:
    encoder, frames = make("cnn"), pixels()
    half = copy.deepcopy(encoder).to(dtype)
    loaded = Encoder.load(half.save(tmp_path)).eval()
    assert (loaded.dtype, loaded.scale.dtype) == (dtype, dtype)
    assert loaded.fingerprint() == half.fingerprint() != encoder.fingerprint()
    with torch.no_grad():
        assert torch.equal(loaded(frames), half(frames))
        torch.testing.assert_close(loaded(frames).float(), encoder(frames), rtol=0, atol=0.1)
    assert EncodedVecEnv(worlds(), loaded).reset().dtype == np.float32
    build(PPO, policy_kwargs(loaded, "frozen")).learn(16)


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
    frames = pixels(32)
    raw = encoder(frames)
    encoder.standardise(raw)
    features, alive = Encoder.load(encoder.save(tmp_path)).eval()(frames), raw.std(0) > 1e-3
    assert alive.any()
    torch.testing.assert_close(features.mean(0), torch.zeros(encoder.num_features), rtol=0, atol=1e-3)
    torch.testing.assert_close(features.std(0)[alive], torch.ones(int(alive.sum())), rtol=1e-3, atol=0)


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("name", TINIEST)
def test_gray_frames_and_stacks_are_read_to_the_last_channel(name: str, channels: int) -> None:
    encoder, frames = make(name, channels), pixels(2, channels)
    inverted = frames.clone()
    inverted[:, -1] = 255 - inverted[:, -1]
    assert encoder(frames).shape == (2, encoder.num_features)
    assert not torch.allclose(encoder(frames), encoder(inverted), atol=1e-3)


def test_range_mean_and_std_are_the_encoders_job() -> None:
    torch.manual_seed(0)
    plain, unit = Encoder("cnn", SPEC), torch.rand(2, 3, 56, 56)
    signed = InputSpec((3, 56, 56), dtype="float32", low=-1, high=1, mean=0.5, std=0.25)
    colours = InputSpec((3, 56, 56), mean=[0.5, 0.4, 0.3], std=(0.1, 0.2, 0.4))
    red, green, blue = unit.unbind(1)
    by_hand = torch.stack([(red - 0.5) / 0.1, (green - 0.4) / 0.2, (blue - 0.3) / 0.4], dim=1)
    for spec, given, seen in ((signed, unit * 2 - 1, (unit - 0.5) / 0.25), (colours, unit * 255, by_hand)):
        other = Encoder.from_config({**Encoder("cnn", spec).config})
        other.load_state_dict(plain.state_dict())
        assert other.input == spec
        torch.testing.assert_close(other(given), plain(seen * 255), rtol=1e-4, atol=1e-4)
    assert colours.mean == (0.5, 0.4, 0.3), "lists become tuples, so that specifications can be compared"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"std": 0}, "std is 0: it must be finite, and positive"),
        ({"std": (0.1, -0.2, float("nan"))}, "must be finite, and positive"),
        ({"mean": float("inf")}, "mean is inf: it must be finite"),
        ({"mean": (0.1, 0.2)}, r"mean has shape \(2,\): give one number, or 3, one per channel"),
        ({"std": [[0.1, 0.2, 0.3]]}, "std has shape"),
        ({"layout": "HWC"}, "layout is 'HWC': encoders read 'CHW'"),
        ({"dtype": "uint7"}, "dtype is 'uint7': give the name of a numpy dtype"),
        ({"dtype": "bool"}, "dtype is bool: encoders read integers or floats"),
        ({"low": 255}, r"values range over \[255, 255.0\]: low must be below high"),
        ({"high": float("inf")}, "both be finite"),
        ({"shape": (56, 56)}, r"shape is \(56, 56\): give three positive integers"),
        ({"shape": (3, 0, 56)}, "give three positive integers"),
        ({"shape": (3, 56.0, 56)}, "give three positive integers"),
    ],
)
def test_specifications_that_no_encoder_honours_are_refused(arguments: dict, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        InputSpec(**{"shape": (3, 56, 56), **arguments})


def test_specifications_are_plain_values() -> None:
    spec = InputSpec([np.int64(3), 56, 56], dtype=np.uint8)
    assert spec == SPEC
    assert json.loads(json.dumps(Encoder("cnn", spec).config))["input"]["dtype"] == "uint8"


@pytest.mark.parametrize("name", ["cnn", "impala", "vit"])
def test_weights_start_orthogonal_as_in_sb3(name: str) -> None:
    for module in make(name).modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            rows = module.weight.flatten(1)
            rows = rows if rows.shape[0] <= rows.shape[1] else rows.T
            torch.testing.assert_close(rows @ rows.T, 2 * torch.eye(len(rows)), atol=1e-4, rtol=0)
            assert not module.bias.any()
    if name == "cnn":
        torch.manual_seed(0)
        layers = [module for module in Encoder("cnn", SPEC).modules() if isinstance(module, nn.Conv2d | nn.Linear)]
        torch.manual_seed(0)
        by_hand = [nn.Conv2d(3, 32, 8), nn.Conv2d(32, 64, 4), nn.Conv2d(64, 64, 3), nn.Linear(576, 128)]
        for layer, other in zip(layers, by_hand, strict=True):
            assert torch.equal(layer.weight, nn.init.orthogonal_(other.weight, gain=2**0.5)), "other random numbers"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"feature_mean": None}, "lacks tensor 'feature_mean'"),
        ({"surplus": torch.zeros(1)}, "extra tensor 'surplus'"),
        ({"feature_std": torch.ones(3)}, r"'feature_std' has shape \(3,\), expected \(128,\)"),
    ],
)
def test_wrong_tensors_are_refused(change: dict, sentence: str, tmp_path: Path) -> None:
    path = Encoder("cnn", SPEC).save(tmp_path) / "model.safetensors"
    tensors = {**load_file(path), **change}
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)
    with pytest.raises(RlpreError, match=sentence):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("model.safetensors", b"half", r"model.safetensors cannot be read"),
        ("config.json", b'{"format": 99}', "format 99"),
        ("config.json", b"{", "damaged"),
        ("config.json", None, r"config.json is missing"),
    ],
)
def test_damaged_or_missing_files_are_refused(file: str, content: bytes | None, sentence: str, tmp_path: Path) -> None:
    path = Encoder("cnn", SPEC).save(tmp_path) / file
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(RlpreError, match=sentence):
        Encoder.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "spec", "arguments", "sentence"),
    [
        ("impla", SPEC, {}, "unknown encoder 'impla': did you mean 'impala'"),
        ("cnn", SPEC, {"widht": 3}, r"does not fit .*widht"),
        ("cnn", InputSpec((3, 16, 16)), {}, "does not fit frames"),
        ("vit", InputSpec((3, 97, 89)), {}, "patches of 8 pixels do not tile frames of 97 x 89: pad or resize"),
        ("vit", SPEC, {"patch": 9}, "patches of 9 pixels do not tile"),
        ("vit", SPEC, {"heads": 3}, "3 heads do not divide dim=128"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(name: str, spec: InputSpec, arguments: dict, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        Encoder(name, spec, **arguments)
    with pytest.raises(
        RlpreError, match="known: cnn, impala, map:NAME, symbols, theirs, timm:NAME, torchvision:NAME, vit"
    ):
        find_architecture("nothing like it")


@pytest.mark.parametrize(
    ("side", "patches"), [((56, 56), 49), ((64, 48), 48), ((84, 84), 144), ((36, 36), 16), ((210, 160), 336)]
)
def test_vit_tiles_any_frame_and_grid_worlds_by_the_cell(side: tuple[int, int], patches: int) -> None:
    encoder = Encoder("vit", InputSpec((3, *side)), dim=16, depth=1, heads=2)
    assert encoder.stages[0].positions.shape == (patches, 16)


class Mine(nn.Sequential):
    """A network that initialises its own weights."""

    def __init__(self, channels: int, height: int, width: int, layers: list[int], start: float = 0.25) -> None:
        super().__init__(nn.Flatten(), nn.Linear(channels * height * width, layers[-1]))
        nn.init.constant_(self[1].weight, start)


def test_a_module_of_ones_own_takes_one_line(tmp_path: Path) -> None:
    register_encoder("mine", Mine)
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


def test_a_name_belongs_to_one_definition() -> None:
    def define(width: int) -> type[nn.Module]:
        class Net(Mine):
            size = width

        return Net

    register_encoder("mine", define(1))
    register_encoder("mine", define(2))  # as when a notebook's cell runs again
    assert ARCHITECTURES["mine"].size == 2
    for name in ("mine", "cnn", "torchvision:mine"):
        with pytest.raises(RlpreError, match=f"the encoder name '{name}' is taken"):
            register_encoder(name, Mine)
    with pytest.raises(RlpreError, match="give a class or function, not what it built"):
        register_encoder("theirs", [nn.Flatten()])


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
        (nn.Flatten(), {"weights": "mine.pt"}, "only 'torchvision:NAME' and 'timm:NAME' have some"),
    ],
)
def test_modules_that_are_no_encoders_are_refused(built: object, arguments: dict, sentence: str) -> None:
    register_encoder("mine", lambda channels, height, width, **_: built)
    with pytest.raises(RlpreError, match=sentence) as caught:
        Encoder("mine", InputSpec((1, 4, 4)), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("space", "sentence"),
    [
        (spaces.Discrete(3), "gives Discrete"),
        (spaces.Box(0, 255, (56, 56, 3), np.uint8), "channels are last"),
        (spaces.Box(0, 255, (3, 64, 64), np.uint8), r"shape is \(3, 64, 64\)"),
        (spaces.Box(0, 255, (3, 56, 56), np.float32), "dtype is float32"),
        (spaces.Box(0, 1, (3, 56, 56), np.uint8), r"range is \(0.0, 1.0\)"),
    ],
)
def test_spaces_that_differ_are_refused_by_name(space: spaces.Space, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        SPEC.check(space)
    SPEC.check(SPEC.space)
