"""Whitening: uncorrelated features over the frames, the same to a linear head, and an encoder like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from pixel_world import TINY
from sklearn.decomposition import PCA
from stable_baselines3 import PPO

import envs
import rlpre
from rlpre import (
    Encoder,
    FrameStore,
    HistoryVecEnv,
    InputSpec,
    RlpreError,
    SequenceEncoder,
    fuse,
    policy_kwargs,
    whiten,
)
from rlpre.features import ROWS, covariance, encode

FRAMES = InputSpec((3, 56, 56))
WORLD = "MiniGrid-DoorKey-5x5-v0"
ON = {**TINY[PPO], "device": "cpu"}


def fresh() -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", FRAMES, features=16).eval()


@pytest.fixture(scope="module")
def plain(doorkey: FrameStore) -> Encoder:
    encoder = fresh()
    encoder.standardise(encode(encoder, doorkey, doorkey.sample(500, np.random.default_rng(1))))
    return encoder


@pytest.fixture(scope="module")
def white(plain: Encoder, doorkey: FrameStore) -> Encoder:
    return whiten(plain, doorkey)


def variances(encoder: Encoder | SequenceEncoder, frames: FrameStore) -> torch.Tensor:
    """Along the principal directions, the smallest first, over the rows that `whiten` draws."""
    features = encode(encoder, frames, frames.sample(ROWS, np.random.default_rng(0)))
    assert features.mean(0).abs().max() < (1e-3 if encoder.name.startswith("whitened") else 1)
    return torch.linalg.eigvalsh(covariance(features)).float()


def test_features_become_white_over_the_frames(plain: Encoder, white: Encoder, doorkey: FrameStore) -> None:
    before = variances(plain, doorkey)[1:]  # layer norm fixes the sum of the features: one direction is constant
    assert before[-1] > 100 * before[0]
    torch.testing.assert_close(variances(white, doorkey)[1:], torch.ones(15), atol=1e-2, rtol=0)


@pytest.mark.parametrize("features", ["output", "map"])
def test_strong_directions_stay_stronger_where_features_are_whitened_softly(
    features: str, plain: Encoder, doorkey: FrameStore
) -> None:
    kept, soft, full = (variances(whiten(plain, doorkey, features=features, power=p), doorkey) for p in (0, 0.5, 1))
    for found in (kept, soft, full):
        assert found.mean() == pytest.approx(1, abs=0.1)  # layer norm makes one of 16 directions constant
    strong = kept > 0.1  # far above the floor, and what is known of them from these rows is exact
    torch.testing.assert_close(soft[strong] / soft[-1], (kept[strong] / kept[-1]).sqrt(), rtol=0.02, atol=0)
    assert kept[-1] > 2 * full[-1]


def test_a_linear_head_can_represent_the_same(plain: Encoder, white: Encoder) -> None:
    """The map is affine and loses nothing: each gives the other, on any frames."""
    frames = torch.randint(0, 256, (200, *FRAMES.shape), dtype=torch.uint8)
    with torch.no_grad():
        before, after = plain(frames).double(), white(frames).double()
    for x, y in ((before, after), (after, before)):
        with_bias = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        predicted = with_bias @ torch.linalg.lstsq(with_bias, y, driver="gelsd").solution
        assert (predicted - y).abs().max() < 1e-3 * y.abs().max()


def test_the_original_stays_and_the_seed_decides(
    plain: Encoder, white: Encoder, doorkey: FrameStore, tmp_path: Path
) -> None:
    before = plain.fingerprint()
    assert whiten(plain, doorkey).fingerprint() == white.fingerprint() != whiten(plain, doorkey, seed=1).fingerprint()
    assert whiten(plain.save(tmp_path), doorkey).fingerprint() == white.fingerprint()
    assert plain.fingerprint() == before
    assert white.architecture == "whitened:cnn"


def test_pretraining_goes_on_from_it(white: Encoder, doorkey: FrameStore, tmp_path: Path) -> None:
    result = rlpre.pretrain(doorkey, encoder=white, objective="inverse", steps=2, batch=16, out=tmp_path)
    assert result.encoder.architecture == "whitened:cnn"


@pytest.mark.parametrize("name", ["cnn", "impala", "torchvision:resnet18", "whitened:cnn"])
def test_the_map_of_fresh_weights_changes_nothing(name: str) -> None:
    encoders = []
    for prefix in ("", "whitened:"):
        torch.manual_seed(0)
        encoders.append(Encoder(prefix + name, FRAMES).eval())
    frames = torch.randint(0, 256, (2, *FRAMES.shape), dtype=torch.uint8)
    torch.testing.assert_close(*(encoder(frames) for encoder in encoders), atol=1e-5, rtol=1e-5)
    assert len(encoders[1].stages) == len(encoders[0].stages) + 1


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_a_sequence_encoder(backbone: str, plain: Encoder, doorkey: FrameStore, tmp_path: Path) -> None:
    """White over windows, one step at a time as at once, saved, and frozen in a policy on windows of pixels."""
    torch.manual_seed(0)
    sequence = SequenceEncoder(backbone, plain, 7, width=16, layers=1, window=8)
    white = SequenceEncoder.load(whiten(sequence, doorkey).save(tmp_path)).eval()
    assert (white.backbone, len(white.stages)) == (f"whitened:{backbone}", 3)
    torch.testing.assert_close(variances(white, doorkey)[1:], torch.ones(15), atol=2e-2, rtol=0)
    seen, actions = torch.randn(2, 6, 16), torch.randint(0, 7, (2, 6))
    state, steps = white.begin(2), []
    for t in range(6):
        step, state = white.step(seen[:, t], actions[:, t], None, state)
        steps.append(step)
    wanted = white(seen, actions, None, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(torch.stack(steps, dim=1), wanted, atol=1e-4, rtol=1e-4)
    venv = HistoryVecEnv(envs.make_vec(WORLD, 2, 0), white)
    model = PPO("MultiInputPolicy", venv, policy_kwargs=policy_kwargs(white, "frozen"), **ON).learn(16)
    policy = fuse(model, white)
    windows, _ = model.policy.obs_to_tensor(venv.reset())
    pixels, _ = policy.obs_to_tensor(venv.frames)
    with torch.no_grad():
        theirs, ours = model.policy.get_distribution(windows), policy.get_distribution(pixels)
    torch.testing.assert_close(ours.distribution.logits, theirs.distribution.logits, atol=1e-4, rtol=1e-4)


def test_whitened_twice_changes_nothing_more(plain: Encoder, doorkey: FrameStore) -> None:
    twice = whiten(whiten(SequenceEncoder("gru", plain, 7, width=8, window=4), doorkey), doorkey)
    assert twice.backbone == "whitened:whitened:gru"
    magnified = torch.linalg.eigvalsh(twice.stages[3].weight)
    torch.testing.assert_close(magnified[:7], torch.ones(7), atol=1e-2, rtol=0)  # the last is what layer norm fixes


@pytest.mark.parametrize("name", ["cnn", "whitened:cnn", "vit"])
def test_a_feature_map_becomes_white(name: str, doorkey: FrameStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(name, FRAMES, **({"dim": 16, "depth": 2} if name == "vit" else {})).eval()
    white = Encoder.load(whiten(encoder, doorkey, features="map").save(tmp_path)).eval()
    stage = white.arguments["map_stage"]
    assert white.architecture == "map:" + name.removeprefix("whitened:")
    assert stage == len(encoder.stages) - (3 if name == "whitened:cnn" else 2)
    torch.testing.assert_close(variances(white, doorkey), torch.ones(white.num_features), atol=2e-2, rtol=0)
    x = torch.from_numpy(doorkey.frames(doorkey.sample(ROWS, np.random.default_rng(0))))
    with torch.no_grad():
        features, x = white(x), x * encoder.scale
        for part in encoder.stages[:stage]:
            x = part(x)
    leading = PCA(3, whiten=True, svd_solver="randomized", random_state=0).fit_transform(x.flatten(1))
    torch.testing.assert_close(features[:, :3].abs(), torch.from_numpy(leading).abs().float(), atol=2e-2, rtol=0)


def test_too_few_frames_to_whiten_are_named(tmp_path: Path) -> None:
    frames = rlpre.from_arrays(np.random.default_rng(0).integers(0, 256, (12, 3, 40, 40), np.uint8), tmp_path)
    encoder = Encoder("cnn", InputSpec((3, 40, 40)), features=16)
    with pytest.warns(UserWarning, match="12 different frames cannot whiten 16 features: .* use more frames"):
        rlpre.whiten(encoder, frames)


def test_the_size_and_stage_of_a_map(plain: Encoder, doorkey: FrameStore) -> None:
    default = whiten(plain, doorkey, features="map")
    small = whiten(plain, doorkey, features="map", stage=2, size=5)
    assert (small.num_features, small.training) == (5, plain.training)
    frames = torch.randint(0, 256, (9, *FRAMES.shape), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(small(frames), default(frames)[:, :5])
    assert whiten(plain, doorkey, features="map", stage=1, size=5).stages[-1][1].in_features == 32 * 13 * 13
    half = whiten(fresh().bfloat16(), doorkey, features="map", size=5)
    assert half(frames).dtype == torch.bfloat16


def test_bad_input(doorkey: FrameStore) -> None:
    with pytest.raises(RlpreError, match=r"shape is \(3, 56, 56\), the encoder was built for \(3, 40, 40\)"):
        whiten(Encoder("cnn", InputSpec((3, 40, 40))), doorkey)
    broken, dead = fresh(), fresh()
    torch.nn.init.constant_(broken.stages[3][0].bias, float("nan"))
    with pytest.raises(RlpreError, match="the features to whiten hold NaN or infinity"):
        whiten(broken, doorkey)
    for stage in (0, 3):
        torch.nn.init.zeros_(dead.stages[stage][stage // 3].weight)
    for features in ("output", "map"):
        with pytest.raises(RlpreError, match="the features to whiten are the same for every frame"):
            whiten(dead, doorkey, features=features)
    with pytest.raises(RlpreError, match="unknown encoder 'cn': did you mean 'cnn'"):
        Encoder("whitened:cn", FRAMES)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"power": 2}, r"power is 2: give 0 .* to 1"),
        ({"features": "maps"}, "unknown features to whiten 'maps': did you mean 'map'"),
        ({"stage": 2}, "stage and size are those of a map: give features='map'"),
        ({"features": "map", "stage": 4}, "stage is 4: encoder 'cnn' has maps after stage 1 to 3"),
        ({"features": "map", "stage": 0}, "stage is 0: encoder 'cnn' has maps"),
        (
            {"features": "map", "size": 5000},
            r"size is 5000: the map varies in \d+ directions over the frames, give 1 to",
        ),
        ({"features": "map", "size": 0}, "size is 0: the map varies"),
    ],
)
def test_maps_that_are_not_there_are_refused(arguments: dict, sentence: str, doorkey: FrameStore) -> None:
    with pytest.raises(RlpreError, match=sentence):
        whiten(fresh(), doorkey, **arguments)
    for other in (SequenceEncoder("gru", fresh(), 7), Encoder("map:cnn", FRAMES, map_stage=2, map_size=3)):
        with pytest.raises(RlpreError, match=r"has no feature map to whiten: .* built as a list"):
            whiten(other, doorkey, features="map")
