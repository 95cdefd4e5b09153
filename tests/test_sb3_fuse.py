"""From a policy trained on features back to pixels."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import (
    HEADS,
    TINY,
    Quadrant,
    build,
    dict_space,
    encoders_in,
    odd_encoder,
    odd_sequence,
    same,
    worlds,
    worlds_for,
)
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecNormalize

import envs
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.sb3 import fuse, policy_kwargs


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def agree(features: BasePolicy, pixels: BasePolicy, venv: EncodedVecEnv | HistoryVecEnv, steps: int = 14) -> None:
    """Actions of both policies are equal on the same observations, greedy and sampled, also with an LSTM's states."""
    observations, states, ours, starts = venv.reset(), None, None, np.ones(venv.num_envs, bool)
    for step in range(steps):
        for deterministic in (True, False):
            torch.manual_seed(step)
            wanted, after = features.predict(observations, states, starts, deterministic=deterministic)
            torch.manual_seed(step)
            given, ours_after = pixels.predict(venv.frames, ours, starts, deterministic=deterministic)
            assert given == pytest.approx(wanted, abs=1e-4)
        observations, _, starts, _ = venv.step(wanted)
        states, ours = after, ours_after


def fused_and_loaded(model: BaseAlgorithm, encoder: Encoder | SequenceEncoder, path: Path) -> list[BasePolicy]:
    fused = fuse(model, encoder)
    assert type(fused) is type(model.policy)
    assert not fused.training
    fused.save(str(path))
    loaded = type(fused).load(str(path), device="cpu")
    assert same(loaded, fused)
    return [fused, loaded]


@pytest.mark.parametrize(("parts", "stack"), [(False, 1), (False, 4), (True, 1), (True, 3)])
@pytest.mark.parametrize("algorithm", TINY)
def test_fused_policies_act_on_pixels_as_the_trained_ones_on_features(
    algorithm: type[BaseAlgorithm], parts: bool, stack: int, encoder: Encoder, tmp_path: Path
) -> None:
    venv = EncodedVecEnv(worlds_for(algorithm, 8, parts=parts), encoder, "cpu", stack=stack)
    model = build(algorithm, {}, venv=venv, policy="MultiInput" if parts else "Mlp").learn(32)
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, venv)
    pixels = worlds_for(algorithm, parts=parts)
    if not parts:
        assert policy.observation_space == VecFrameStack(pixels, stack, "first").observation_space
    elif stack == 1:
        assert policy.observation_space == pixels.observation_space


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, RecurrentPPO, MaskablePPO])
@pytest.mark.parametrize("shared", [False, True])
def test_heads_share_an_encoder_or_have_their_own(
    algorithm: type[BaseAlgorithm], shared: bool, encoder: Encoder
) -> None:
    share = {"share_features_extractor": shared}
    followers = 1 if algorithm is SAC else 0
    inside = encoders_in(build(algorithm, policy_kwargs(encoder, "finetuned", **share)).learn(16))
    assert len(inside) == (1 if shared else 2) + followers
    venv = EncodedVecEnv(worlds_for(algorithm), encoder, "cpu")
    model = build(algorithm, share, venv=venv, policy="Mlp").learn(16)
    fused = fuse(model, encoder)
    assert sum(isinstance(module, Encoder) for module in fused.modules()) == 1 + followers
    agree(model.policy, fused, venv)


def test_an_lstm_carries_its_state_over_pixels(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(RecurrentPPO), encoder, "cpu")
    fused = fuse(build(RecurrentPPO, {}, venv=venv, policy="Mlp").learn(32), encoder)
    venv.reset()
    _, first = fused.predict(venv.frames)
    _, second = fused.predict(venv.frames, first, np.zeros(2, bool))
    assert first[0].shape == (HEADS[RecurrentPPO]["n_lstm_layers"], 2, HEADS[RecurrentPPO]["lstm_hidden_size"])
    assert not np.array_equal(first[0], second[0])


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
    wanted, given = (
        policy.predict_values(policy.obs_to_tensor(observed)[0])
        for policy, observed in ((model.policy, observations), (fused, venv.frames))
    )
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_reloaded_model_fuses_and_refuses_another_encoder(
    algorithm: type[BaseAlgorithm], encoder: Encoder, tmp_path: Path
) -> None:
    venv = EncodedVecEnv(worlds(), encoder, "cpu")
    model = build(algorithm, {}, venv=venv, policy="Mlp").learn(48)
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=venv, device="cpu")
    agree(model.policy, fuse(again, encoder), EncodedVecEnv(worlds(count=16, seed=7), encoder, "cpu"))
    again.learn(16)
    with pytest.raises(RlpreError, match="this encoder gives FeatureSpace"):
        fuse(again, odd_encoder(1))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        algorithm.load(tmp_path / "model", env=EncodedVecEnv(worlds(), odd_encoder(1), "cpu"))


# Sequence encoders.


def history(encoder: SequenceEncoder, seed: int = 0, **arguments: Any) -> HistoryVecEnv:
    return HistoryVecEnv(worlds(seed=seed, **arguments), encoder, device="cpu")


@pytest.mark.parametrize(("algorithm", "backbone"), [(PPO, "transformer"), (DQN, "gru")])
def test_windows_of_pixels_in_place_of_features(algorithm: type[BaseAlgorithm], backbone: str, tmp_path: Path) -> None:
    encoder = odd_sequence(backbone)
    model = build(algorithm, policy_kwargs(encoder, "finetuned"), venv=history(encoder), policy="MultiInput").learn(32)
    model.save(tmp_path / "model")
    again = fuse(algorithm.load(tmp_path / "model", device="cpu"), encoder)
    for policy in [*fused_and_loaded(model, encoder, tmp_path / "fused"), again]:
        agree(model.policy, policy, history(encoder, seed=7, count=4, length=9))


def test_separate_extractors_stay_so_on_windows_of_pixels() -> None:
    encoder = odd_sequence()
    arguments = policy_kwargs(encoder, "finetuned", share_features_extractor=False)
    model = build(PPO, arguments, venv=history(encoder), policy="MultiInput").learn(32)
    fused, venv = fuse(model, encoder), history(encoder)
    wanted = model.policy.predict_values(model.policy.obs_to_tensor(venv.reset())[0])
    torch.testing.assert_close(fused.predict_values(fused.obs_to_tensor(venv.frames)[0]), wanted)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_windows_of_pixels_in_place_of_steps(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    encoder = odd_sequence()
    model = build(algorithm, {}, venv=EncodedVecEnv(worlds(), encoder, "cpu"), policy="Mlp").learn(32)
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, EncodedVecEnv(worlds(4, 7, length=9), encoder, "cpu"))


def test_babyai_with_missions(tmp_path: Path) -> None:
    venv = envs.make_vec("BabyAI-GoToLocal-v0", 4, 0)
    frames = Encoder("cnn", InputSpec(venv.observation_space.shape), features=16)
    things = [
        f"{colour} {thing}"
        for colour in ("red", "green", "blue", "purple", "yellow", "grey")
        for thing in ("ball", "box", "key")
    ]
    words = Vocabulary.of(f"go to {which} {thing}" for which in ("a", "the") for thing in things)
    encoder = SequenceEncoder("transformer", frames, 7, words, width=16, window=5).eval()
    windows, steps = HistoryVecEnv(venv, encoder, device="cpu"), EncodedVecEnv(venv, encoder, "cpu")
    for wrapped, policy, arguments in (
        (windows, "MultiInput", policy_kwargs(encoder, "finetuned")),
        (steps, "Mlp", {}),
    ):
        model = build(PPO, arguments, venv=wrapped, policy=policy).learn(16)
        for fused in fused_and_loaded(model, encoder, tmp_path / "fused"):
            agree(model.policy, fused, wrapped, 6)


# What cannot be fused.


def trained(make: Callable[[], Any], arguments: dict[str, Any] | None = None, policy: str = "Mlp") -> PPO:
    return build(PPO, arguments or {}, venv=make(), policy=policy).learn(16)


def other_frames() -> SequenceEncoder:
    other = odd_sequence()
    other.frames.feature_mean[0] += 1
    return other


ONE, TRANSFORMER, GRU = odd_encoder(), odd_sequence(), odd_sequence("gru")
WINDOWS: tuple[Any, ...] = (lambda: history(TRANSFORMER), policy_kwargs(TRANSFORMER), "MultiInput")
WRONG = "fuse it with the encoder that its EncodedVecEnv or HistoryVecEnv used"


@pytest.mark.parametrize(
    ("model", "encoder", "named"),
    [
        ((worlds, policy_kwargs(ONE), "Cnn"), ONE, "trained on Box"),
        ((worlds, policy_kwargs(ONE), "Cnn"), TRANSFORMER, WRONG),
        (WINDOWS, other_frames(), WRONG),
        (WINDOWS, ONE, WRONG),
        ((lambda: EncodedVecEnv(worlds(), GRU),), GRU, "behind EncodedVecEnv a GRU remembers the whole episode"),
        ((WINDOWS[0], {}, "MultiInput"), TRANSFORMER, "does not hold a SequenceEncoder"),
        ((lambda: VecNormalize(EncodedVecEnv(worlds(), ONE)),), ONE, "norm_obs=False"),
    ],
)
def test_what_cannot_be_fused_is_refused(model: tuple[Any, ...], encoder: Any, named: str) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        fuse(trained(*model), encoder)
    assert "\n" not in str(caught.value)
