"""Whitening: white over the frames, the same to a linear head, and an encoder like any other."""

from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

import envs
import rlpre
from rlpre import (
    EncodedVecEnv,
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
from rlpre.measure.conditioning import conditioning
from rlpre.measure.probe import encode
from rlpre.objectives import WindowReader
from rlpre.whiten import ROWS

FRAMES = InputSpec((3, 56, 56))
WORLD = "MiniGrid-DoorKey-5x5-v0"


def fresh(name: str = "cnn", seed: int = 0, features: int = 16) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(name, FRAMES, features=features).eval()


@pytest.fixture(scope="module")
def plain(doorkey: FrameStore) -> Encoder:
    encoder = fresh()
    encoder.standardise(encode(encoder, doorkey, doorkey.sample(500, np.random.default_rng(1))))
    return encoder


@pytest.fixture(scope="module")
def white(plain: Encoder, doorkey: FrameStore) -> Encoder:
    return whiten(plain, doorkey)


def test_condition_number_by_hand() -> None:
    # Variances 8 and 2 along the diagonals, whatever the mean; 0 along the third axis.
    corners = torch.tensor([[4.0, 4, 7], [-4, -4, 7], [2, -2, 7], [-2, 2, 7]]) + 100
    found = conditioning(corners)
    assert (found.number, found.dimensions) == (pytest.approx(4), 2)
    constant = conditioning(torch.ones(5, 3))
    assert (constant.number, constant.dimensions) == (float("inf"), 0)


def test_features_become_white_over_the_frames(plain: Encoder, white: Encoder, doorkey: FrameStore) -> None:
    rows = doorkey.sample(ROWS, np.random.default_rng(0))
    before, after = (encode(encoder, doorkey, rows).double() for encoder in (plain, white))
    assert conditioning(before).number > 100
    varying = conditioning(before).dimensions
    assert varying == 15, "layer norm fixes the sum of 16 features"
    assert after.mean(0).abs().max() < 1e-3
    variances = torch.linalg.eigvalsh(torch.cov(after.T, correction=0))[-varying:]
    assert torch.allclose(variances, torch.ones_like(variances), atol=1e-2)
    assert conditioning(after[:, :1]).dimensions == 1


def test_a_linear_head_can_say_the_same(plain: Encoder, white: Encoder, doorkey: FrameStore) -> None:
    """The map is affine and loses nothing: each gives the other, on any frames."""
    frames = torch.randint(0, 256, (200, *FRAMES.shape), dtype=torch.uint8)
    with torch.no_grad():
        before, after = plain(frames).double(), white(frames).double()
    for x, y in ((before, after), (after, before)):
        known = torch.cat([x, torch.ones(len(x), 1)], dim=1)
        predicted = known @ torch.linalg.lstsq(known, y, driver="gelsd").solution
        assert (predicted - y).abs().max() < 1e-3 * y.abs().max()


def test_the_original_stays_and_chance_decides_nothing(plain: Encoder, white: Encoder, doorkey: FrameStore) -> None:
    before = plain.fingerprint()
    again = whiten(plain, doorkey)
    assert plain.fingerprint() == before
    assert again.fingerprint() == white.fingerprint() != whiten(plain, doorkey, seed=1).fingerprint()


def test_saved_plugged_and_fused(white: Encoder, tmp_path: Path) -> None:
    loaded = Encoder.load(white.save(tmp_path))
    assert loaded.architecture == "whitened:cnn"
    assert loaded.fingerprint() == white.fingerprint()
    venv = envs.make_vec(WORLD, 2, 0)
    model = PPO("MlpPolicy", EncodedVecEnv(venv, loaded), n_steps=16, batch_size=16, n_epochs=1, device="cpu").learn(32)
    policy = fuse(model, loaded)
    frames = venv.reset()
    with torch.no_grad():
        ours = policy.get_distribution(torch.from_numpy(frames)).distribution.logits
        theirs = model.policy.get_distribution(loaded(torch.from_numpy(frames))).distribution.logits
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["frozen", "finetuned", "anchored", "partial", "scratch"])
def test_every_mode_takes_it(mode: str, white: Encoder) -> None:
    venv = envs.make_vec(WORLD, 2, 0)
    arguments = policy_kwargs(white, mode, **({"stages": 4} if mode == "partial" else {}))
    model = PPO("CnnPolicy", venv, policy_kwargs=arguments, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
    inside = model.policy.features_extractor.encoder
    before = {name: tensor.clone() for name, tensor in inside.state_dict().items()}
    same = all(tensor.equal(white.state_dict()[name]) for name, tensor in before.items())
    assert same == (mode != "scratch")
    if mode == "scratch":
        assert before["stages.4.weight"].equal(torch.eye(16)), "fresh weights are not white"
    model.learn(32)
    moved = {name for name, tensor in inside.state_dict().items() if not tensor.equal(before[name])}
    assert ("stages.4.weight" in moved) == (mode != "frozen")
    assert ("stages.0.0.weight" in moved) == (mode in ("finetuned", "anchored", "scratch"))


def test_pretraining_goes_on_from_it(white: Encoder, doorkey: FrameStore, tmp_path: Path) -> None:
    result = rlpre.pretrain(doorkey, encoder=white, objective="inverse", steps=2, batch=16, out=tmp_path)
    assert result.encoder.architecture == "whitened:cnn"


@pytest.mark.parametrize("name", ["impala", "torchvision:resnet18", "whitened:cnn"])
def test_any_architecture(name: str) -> None:
    """Before it is set, the map changes nothing."""
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
    white = SequenceEncoder.load(whiten(sequence, doorkey).save(tmp_path))
    assert (white.backbone, len(white.stages)) == (f"whitened:{backbone}", 3)
    features = WindowReader(doorkey, white, None, torch.device("cpu")).encode(
        white, doorkey.sample(ROWS, np.random.default_rng(0))
    )
    variances = torch.linalg.eigvalsh(torch.cov(features.double().T, correction=0))
    assert torch.allclose(variances[1:], torch.ones(15, dtype=torch.float64), atol=2e-2), "layer norm fixes the sum"
    seen, actions = torch.randn(2, 6, 16), torch.randint(0, 7, (2, 6))
    state, steps = white.begin(2), []
    for t in range(6):
        step, state = white.step(seen[:, t], actions[:, t], None, state)
        steps.append(step)
    wanted = white(seen, actions, None, torch.ones(2, 6, dtype=torch.bool))
    torch.testing.assert_close(torch.stack(steps, dim=1), wanted, atol=1e-4, rtol=1e-4)
    venv = HistoryVecEnv(envs.make_vec(WORLD, 2, 0), white)
    arguments = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "device": "cpu"}
    model = PPO("MultiInputPolicy", venv, policy_kwargs=policy_kwargs(white, "frozen"), **arguments).learn(32)
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


def test_bad_input(plain: Encoder, doorkey: FrameStore) -> None:
    with pytest.raises(RlpreError, match=r"shape is \(3, 56, 56\), the encoder was built for \(3, 40, 40\)"):
        whiten(Encoder("cnn", InputSpec((3, 40, 40))), doorkey)
    broken, dead = fresh(), fresh()
    torch.nn.init.constant_(broken.stages[3][0].bias, float("nan"))
    with pytest.raises(RlpreError, match="the features to whiten hold NaN or infinity"):
        whiten(broken, doorkey)
    torch.nn.init.zeros_(dead.stages[3][1].weight)
    with pytest.raises(RlpreError, match="the features to whiten are the same for every frame"):
        whiten(dead, doorkey)
    with pytest.raises(RlpreError, match="unknown encoder 'cn': did you mean 'cnn'"):
        Encoder("whitened:cn", FRAMES)
