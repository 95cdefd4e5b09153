"""Published networks: their own features and weights, stages that compose to them, and no download when loading."""

import sys
from pathlib import Path

import pytest
import timm
import torch
from pixel_world import same
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms import functional as transforms

from rlpre import Encoder, InputSpec, RlpreError, policy_kwargs

SPEC = InputSpec((3, 56, 56))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch keeps weights, empty; whoever wants to download them is refused at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    return tmp_path


def publish(home: Path, name: str, spoil: float = 1.0) -> Path:
    """Writes a network that nobody trained as if it were torchvision's default one."""
    torch.manual_seed(0)
    network = models.get_model(name, weights=None, **({"init_weights": False} if name == "googlenet" else {}))
    for module in network.eval().modules():
        if isinstance(module, nn.BatchNorm2d):  # it is to have seen something, or all frames look alike
            module.train().momentum = 1.0
    with torch.no_grad():
        network(transforms.resize(torch.randn(4, 3, 28, 28), [112, 112]))
    next(network.parameters()).data.mul_(spoil)
    path = home / "hub" / "checkpoints" / Path(models.get_model_weights(name).DEFAULT.url).name
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), path)
    return path


def without_classifier(network: nn.Module) -> nn.Module:
    """What a torchvision user does by hand."""
    last = [name for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    parent, _, name = last.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network.eval()


def frames(channels: int = 3) -> Tensor:
    """Two random frames."""
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(0, 256, (2, channels, 56, 56), dtype=torch.uint8, generator=generator)


STAGES = {"resnet18": 9, "squeezenet1_1": 9, "densenet121": 8, "googlenet": 12, "shufflenet_v2_x0_5": 18}
STAGES |= {"mobilenet_v3_small": 14, "efficientnet_b0": 18, "regnet_y_400mf": 5, "convnext_tiny": 22, "vit_b_32": 13}


@torch.no_grad()
@pytest.mark.parametrize("name", STAGES)
def test_stages_are_torchvisions_network_without_its_classifier(name: str) -> None:
    side = 64 if name == "vit_b_32" else 56
    encoder = Encoder(f"torchvision:{name}", InputSpec((3, side, side))).eval()
    arguments = {"vit_b_32": {"image_size": side}, "googlenet": {"init_weights": False}}.get(name, {})
    network = models.get_model(name, weights=None, **arguments)
    tensors = {key: tensor for stage in encoder.stages for key, tensor in stage.state_dict().items()}
    missing = network.load_state_dict(tensors, strict=False)
    assert not missing.unexpected_keys
    assert {key.split(".")[0] for key in missing.missing_keys} <= {"fc", "classifier", "heads", "head", "aux1", "aux2"}
    pixels = torch.rand(2, 3, side, side)
    assert torch.equal(encoder(pixels * 255), without_classifier(network)(pixels * 255 * encoder.scale))
    assert len(encoder.stages) == STAGES[name]


@torch.no_grad()
@pytest.mark.parametrize("name", ["resnet18", "googlenet", "efficientnet_b0"])
def test_published_weights_give_torchvisions_features(name: str, home: Path) -> None:
    publish(home, name)
    encoder = Encoder(f"torchvision:{name}", SPEC, weights="DEFAULT").eval()
    preset, network = models.get_model_weights(name).DEFAULT.transforms(), models.get_model(name, weights="DEFAULT")
    assert encoder.arguments == {"size": 224, "interpolation": preset.interpolation.value}
    resized = transforms.resize(frames() / 255, preset.crop_size * 2, preset.interpolation, antialias=preset.antialias)
    prepared = transforms.normalize(resized, preset.mean, preset.std)  # as torchvision does, but for its crop
    if name == "efficientnet_b0":  # bicubic; deeper, untrained weights magnify rounding
        features = encoder.stages[0](frames() * encoder.scale + encoder.shift)
        expected = network.eval().features[0](prepared)
    else:
        features, expected = encoder(frames()), without_classifier(network)(prepared)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())
    assert expected.std(0).max() > 0.1


@torch.no_grad()
def test_a_checkpoint_needs_neither_the_file_nor_the_network(home: Path, tmp_path: Path) -> None:
    file = publish(home, "shufflenet_v2_x0_5")
    encoder = Encoder("torchvision:shufflenet_v2_x0_5", SPEC, weights="IMAGENET1K_V1", size=64).eval()
    assert encoder.pretraining["weights"] == "ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1"
    assert encoder.input.mean == (0.485, 0.456, 0.406)
    assert encoder.arguments == {"size": 64, "interpolation": "bilinear"}
    encoder.save(tmp_path / "encoder")
    file.unlink()
    loaded = Encoder.load(tmp_path / "encoder").eval()
    assert loaded.config == encoder.config
    assert torch.equal(loaded(frames()), encoder(frames()))
    fresh = policy_kwargs(encoder, "scratch")["features_extractor_kwargs"]["encoder"].build()
    assert fresh.input == encoder.input
    assert not same(fresh, encoder)
    assert not fresh.pretraining


@torch.no_grad()
def test_stacks_and_gray_frames_read_the_kernels_for_colours(home: Path) -> None:
    publish(home, "shufflenet_v2_x0_5")

    def make(channels: int) -> Encoder:
        spec = InputSpec((channels, 56, 56))
        return Encoder("torchvision:shufflenet_v2_x0_5", spec, weights="DEFAULT", size=56).eval()

    gray, colours = make(1), make(3)
    for channels, single in ((12, colours), (4, gray)):
        stacked = frames(single.input.shape[0]).repeat(1, 4, 1, 1)
        alone = single(frames(single.input.shape[0]))
        torch.testing.assert_close(make(channels)(stacked), alone, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(make(4)(frames(4)), gray(frames(1)), rtol=1e-2)
    assert gray.input.mean == pytest.approx((0.485 + 0.456 + 0.406) / 3)
    assert gray.input.std == pytest.approx((0.229 + 0.224 + 0.225) / 3)
    alike = {**colours.config["input"], "mean": gray.input.mean, "std": gray.input.std}
    copied = Encoder.from_config({**colours.config, "input": alike}).eval()
    copied.load_state_dict(colours.state_dict())
    torch.testing.assert_close(gray(frames(1)), copied(frames(1).repeat(1, 3, 1, 1)), rtol=1e-4, atol=1e-4)


def test_weights_that_cannot_be_loaded_are_one_sentence(home: Path) -> None:
    def refused(sentence: str) -> str:
        with pytest.raises(RlpreError, match=sentence) as caught:
            Encoder("torchvision:shufflenet_v2_x0_5", SPEC, weights="DEFAULT")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert str(home / "hub" / "checkpoints") in refused(r"shufflenetv2_x0.5-\w+\.pth in .* put an intact copy there")
    assert not list(home.rglob("*.pth"))
    for size in (0, 1000, 200_000):
        file = publish(home, "shufflenet_v2_x0_5")
        file.write_bytes(file.read_bytes()[:size])
        refused("put an intact copy there")
    publish(home, "squeezenet1_1").rename(file)
    refused("put an intact copy there")
    publish(home, "shufflenet_v2_x0_5", spoil=torch.nan)
    refused(r"NaN or infinity in 'conv1.0.weight'")


@pytest.mark.parametrize(
    ("name", "spec", "arguments", "sentence"),
    [
        ("torchvision:resnet81", SPEC, {}, "unknown torchvision network 'resnet81': did you mean 'resnet"),
        ("torchvision:", SPEC, {}, "unknown encoder 'torchvision:': did you mean 'torchvision:NAME'"),
        ("torchvision:resnet18", SPEC, {"weights": "IMAGENET1K_V2"}, "unknown weights of resnet18 'IMAGENET1K_V2'"),
        ("cnn", SPEC, {"weights": "DEFAULT"}, "only 'torchvision:NAME' and 'timm:NAME' have some"),
        ("torchvision:resnet18", InputSpec((3, 56, 56), mean=0.3), {"weights": "DEFAULT"}, "bring their own mean"),
        ("torchvision:alexnet", InputSpec((3, 36, 36)), {}, r"does not fit frames \(3, 36, 36\)"),
        ("torchvision:vit_b_32", SPEC, {}, "does not fit frames .* indivisible by patch size"),
        ("torchvision:squeezenet1_1", SPEC, {"size": [64, 64, 64]}, "does not fit frames"),
        ("torchvision:squeezenet1_1", SPEC, {"size": 64, "interpolation": "cubic"}, "does not fit frames"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    name: str, spec: InputSpec, arguments: dict, sentence: str, home: Path
) -> None:
    with pytest.raises(RlpreError, match=sentence) as caught:
        Encoder(name, spec, **arguments)
    assert "\n" not in str(caught.value)


def test_a_configuration_cannot_ask_for_a_download(home: Path) -> None:
    publish(home, "shufflenet_v2_x0_5")
    config = Encoder("torchvision:shufflenet_v2_x0_5", SPEC).config
    with pytest.raises(RlpreError, match="'weights': it was not written by rlpre"):
        Encoder.from_config({**config, "arguments": {"weights": "DEFAULT"}})


TIMM = ["test_vit", "test_resnet", "test_convnext", "test_efficientnet"]  # small networks for tests, with their weights


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """Untrained weights by the names of networks, instead of those that timm downloads; all others fail."""
    published: dict[str, dict[str, Tensor]] = {}

    def download(location: str, *_: object, **__: object) -> dict[str, Tensor]:
        if location not in published:
            raise ConnectionError("no network\nhere")
        return published[location]

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    for name in TIMM:
        torch.manual_seed(0)
        published[f"timm/{name}.r160_in1k"] = timm.create_model(name, pretrained=False).state_dict()
    return published


@torch.no_grad()
@pytest.mark.parametrize("name", TIMM)
def test_timm_networks_with_published_weights_give_timms_features(name: str, hub: dict, tmp_path: Path) -> None:
    encoder = Encoder(f"timm:{name}", SPEC, weights="DEFAULT").eval()
    network = timm.create_model(name, pretrained=True, num_classes=0).eval()
    config = timm.get_pretrained_cfg(name)
    resized = transforms.resize(frames() / 255, [160, 160], transforms.InterpolationMode(config.interpolation))
    expected = network(transforms.normalize(resized, config.mean, config.std))
    torch.testing.assert_close(encoder(frames()), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert encoder.input.mean == config.mean
    assert encoder.arguments == {"size": 160, "interpolation": config.interpolation}
    assert encoder.pretraining["weights"] == f"{name}.r160_in1k"
    assert len(encoder.stages) > 2
    encoder.save(tmp_path)
    hub.clear()
    assert torch.equal(Encoder.load(tmp_path).eval()(frames()), encoder(frames()))
    with pytest.raises(RlpreError, match=r"r160_in1k cannot be loaded \(no network\): timm reads it from the cache"):
        Encoder(f"timm:{name}", SPEC, weights="r160_in1k")


@torch.no_grad()
def test_timm_networks_of_other_sizes_and_channels(hub: dict) -> None:
    encoder = Encoder("timm:test_vit", InputSpec((4, 56, 56)), weights="DEFAULT", size=48).eval()
    assert encoder.stages[0].patch_embed.proj.weight.shape[1:] == (4, 16, 16)
    assert encoder.stages[0].pos_embed.shape[1] == 1 + 3 * 3, "positions are interpolated"
    assert encoder(frames(4)).std(0).max() > 0
    fresh = Encoder("timm:test_resnet", InputSpec((1, 56, 56)), global_pool="max").eval()
    assert fresh(frames(1)).shape == (2, fresh.num_features)


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("timm:resnet81", {}, "unknown timm network 'resnet81': did you mean 'resnet"),
        ("timm:test_vit", {}, "patches of 16 pixels do not tile frames of 56 x 56: give size=, a multiple of 16"),
        ("timm:test_vit", {"weights": "mine"}, "unknown weights of test_vit 'mine'"),
        ("timm:test_resnet", {"depth": 3}, "does not fit frames"),
    ],
)
def test_timm_networks_that_do_not_fit_are_refused(name: str, arguments: dict, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence) as caught:
        Encoder(name, SPEC, **arguments)
    assert "\n" not in str(caught.value)


def test_timm_is_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(RlpreError, match=r"'timm:resnet18' needs timm, which is not here: pip install 'rlpre\[timm\]'"):
        Encoder("timm:resnet18", SPEC)
