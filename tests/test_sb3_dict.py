"""Dict observations: the encoder reads the image, the heads read everything else too."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, TINY, Quadrant, build, dict_space, odd_encoder, same, worlds_for
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.preprocessing import preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

import envs
from rlpre.encoders import Encoder, InputSpec
from rlpre.errors import RlpreError
from rlpre.sb3 import EncodedVecEnv, fuse, policy_kwargs
from rlpre.sb3.observation import find_image

ALGORITHMS = list(TINY)


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def tensors(observations: Any) -> dict[str, Tensor]:
    return {key: torch.as_tensor(part) for key, part in observations.items()}


def test_the_other_keys_stand_beside_the_features_as_in_sb3(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(PPO, parts=True), encoder, "cpu")
    policy = build(PPO, policy_kwargs(encoder), venv=worlds_for(PPO, parts=True), policy="MultiInput").policy
    features = tensors(venv.reset())
    wanted = CombinedExtractor(venv.observation_space)(preprocess_obs(features, venv.observation_space))
    frames = tensors(venv.frames)
    assert policy.features_dim == wanted.shape[1] == 16 + 4 + 6 + 4
    torch.testing.assert_close(policy.extract_features(frames), wanted, rtol=1e-4, atol=1e-5)
    backwards = dict(reversed(frames.items()))
    assert policy.extract_features(backwards).equal(policy.extract_features(frames)), "the space decides the order"


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_reads_a_dict(algorithm: type[BaseAlgorithm], encoder: Encoder, tmp_path: Path) -> None:
    venv = worlds_for(algorithm, parts=True)
    inside = build(algorithm, policy_kwargs(encoder, "finetuned"), venv=venv, policy="MultiInput").learn(16)
    inside.save(tmp_path / "inside")
    assert same(algorithm.load(tmp_path / "inside", env=venv, device="cpu").policy, inside.policy)
    encoded = EncodedVecEnv(worlds_for(algorithm, parts=True), encoder, "cpu")
    model = build(algorithm, {}, venv=encoded, policy="MultiInput").learn(16)
    fused = fuse(model, encoder)
    assert fused.observation_space == venv.observation_space
    fused.save(str(tmp_path / "fused"))
    loaded = type(fused).load(str(tmp_path / "fused"), device="cpu")
    observations = encoded.reset()
    for step in range(8):
        wanted, _ = model.predict(observations, deterministic=True)
        for policy in (fused, loaded):
            torch.manual_seed(step)
            assert policy.predict(encoded.frames, deterministic=True)[0] == pytest.approx(wanted, abs=1e-5)
        observations, *_ = encoded.step(wanted)


def test_only_the_image_gives_way_to_features_in_terminal_observations_too(encoder: Encoder) -> None:
    pixels = worlds_for(PPO, 3, parts=True, length=2)
    venv = EncodedVecEnv(worlds_for(PPO, 3, parts=True, length=2), encoder, "cpu")
    plain = EncodedVecEnv(worlds_for(PPO, 3, length=2), encoder, "cpu")
    assert venv.reset()["image"] == pytest.approx(plain.reset(), abs=1e-5)
    pixels.reset()
    for _ in range(4):
        actions = np.zeros(3, int)
        observed, _, _, infos = pixels.step(actions)
        given, _, _, ours = venv.step(actions)
        features, _, _, plain_infos = plain.step(actions)
        pairs = [(observed, given, features)]
        pairs += [
            tuple(info["terminal_observation"] for info in three)
            for three in zip(infos, ours, plain_infos, strict=True)
            if "terminal_observation" in three[0]
        ]
        for theirs, mine, feature in pairs:
            assert list(theirs) == list(mine)
            assert mine["image"] == pytest.approx(feature, abs=1e-5)
            assert all(np.array_equal(theirs[key], mine[key]) for key in theirs if key != "image")
        assert venv.frames.keys() == observed.keys()
        assert all(np.array_equal(venv.frames[key], observed[key]) for key in observed)


def test_an_order_of_keys_that_is_not_the_alphabet(encoder: Encoder) -> None:
    class Ordered(Quadrant):
        def __init__(self) -> None:
            super().__init__(parts=True)
            space = dict_space(tokens=spaces.MultiDiscrete([2, 3]))
            names = ["velocity", "image", "direction", "tokens", "mission"]
            self.observation_space = spaces.Dict(OrderedDict((name, space[name]) for name in names))

    venv = EncodedVecEnv(DummyVecEnv([Ordered] * 2), encoder, "cpu")
    model = build(PPO, {}, venv=venv, policy="MultiInput").learn(16)
    observations, fused = venv.reset(), fuse(model, encoder)
    assert list(fused.observation_space) == list(venv.observation_space) == list(Ordered().observation_space)
    wanted = model.policy.predict_values(tensors(observations))
    torch.testing.assert_close(fused.predict_values(tensors(venv.frames)), wanted, rtol=1e-4, atol=1e-5)


def test_minigrid_with_mission_and_direction() -> None:
    venv = envs.make_vec("BabyAI-GoToObj-v0", 2, 0, dict_obs=True)
    encoder = Encoder("cnn", InputSpec(venv.observation_space["image"].shape), features=16)
    build(PPO, policy_kwargs(encoder, "finetuned"), venv=venv, policy="MultiInput").learn(16)
    encoded = EncodedVecEnv(venv, encoder, "cpu")
    fuse(build(PPO, {}, venv=encoded, policy="MultiInput").learn(16), encoder).predict(venv.reset())


BYTES = spaces.Box(0, 255, (5,), np.uint8)
SMALL = spaces.Box(0, 255, (3, 9, 9), np.uint8)
REFUSED: list[tuple[spaces.Space[Any], str | None, str]] = [
    (spaces.Dict({"velocity": spaces.Box(-1, 1, (2,))}), None, r"no key of the observation \(velocity\)"),
    (spaces.Dict({"a": SMALL, "b": SMALL}), None, r"no key of the observation \(a, b\)"),
    (spaces.Dict({"image": SMALL}), None, r"shape is \(3, 9, 9\)"),
    (spaces.Dict({"left": FRAME.space, "right": FRAME.space}), None, "'left' or 'right': name one, image_key='left'"),
    (spaces.Dict({"left": FRAME.space, "right": FRAME.space}), "left", "'right' holds bytes"),
    (spaces.Dict({"image": FRAME.space, "mission": BYTES}), None, "'mission' holds bytes"),
    (spaces.Dict({"image": FRAME.space}), "imago", "unknown key 'imago': did you mean 'image'"),
    (dict_space(), "velocity", r"shape is \(2, 2\)"),
    (dict_space(), "direction", "gives Discrete"),
    (FRAME.space, "image", "image_key='image' is for Dict observations"),
]


@pytest.mark.parametrize(("space", "key", "named"), REFUSED)
def test_what_the_encoder_cannot_find_is_refused(
    space: spaces.Space[Any], key: str | None, named: str, encoder: Encoder
) -> None:
    world = Quadrant()
    world.observation_space = space
    venv = DummyVecEnv([lambda: world])
    with pytest.raises(RlpreError, match=named) as caught:
        EncodedVecEnv(venv, encoder, "cpu", image_key=key)
    assert "\n" not in str(caught.value)
    with pytest.raises(RlpreError, match=named):
        build(PPO, policy_kwargs(encoder, image_key=key), venv=venv, policy="MultiInput")


def test_another_image_is_told_apart() -> None:
    scaled = spaces.Box(0, 1, FRAME.shape, np.float32)
    assert find_image(spaces.Dict({"frame": FRAME.space, "scaled": scaled}), FRAME) == "frame"
    assert find_image(spaces.Dict({"frame": scaled}), InputSpec(FRAME.shape, "float32", high=1.0)) == "frame"
