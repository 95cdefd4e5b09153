"""Sequence encoders in policies: every mode, the traps of SB3, back to pixels, and what must be remembered."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from minigrid.core.constants import COLOR_NAMES
from pixel_world import FRAME, WAYS, Recall, build, odd_encoder, odd_sequence, same, worlds
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor, VecNormalize
from torch import Tensor

import envs
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary, fuse
from rlpre.sb3 import policy_kwargs

BACKBONES = ["gru", "transformer"]
MODES = {**WAYS, "partial": {"mode": "partial", "stages": 1}}
CASES = [(PPO, way, "transformer") for way in MODES]
CASES += [(PPO, "frozen", "gru"), (PPO, "partial", "gru"), (A2C, "finetuned", "gru"), (DQN, "partial", "transformer")]


def history(encoder: SequenceEncoder, seed: int = 0, **arguments: Any) -> HistoryVecEnv:
    return HistoryVecEnv(worlds(seed=seed, **arguments), encoder, device="cpu")


def built(algorithm: type[BaseAlgorithm], encoder: SequenceEncoder, **arguments: Any) -> BaseAlgorithm:
    """A small model on windows; arguments are those of ``policy_kwargs``."""
    return build(algorithm, policy_kwargs(encoder, **arguments), venv=history(encoder), policy="MultiInput")


def sequences_in(model: BaseAlgorithm) -> list[SequenceEncoder]:
    return [module for module in model.policy.modules() if isinstance(module, SequenceEncoder)]


def cloned(encoder: SequenceEncoder) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in encoder.state_dict().items()}


@pytest.mark.parametrize(("algorithm", "way", "backbone"), CASES)
def test_learns_saves_and_loads_in_every_mode(
    algorithm: type[BaseAlgorithm], way: str, backbone: str, tmp_path: Path
) -> None:
    encoder = odd_sequence(backbone)
    model = built(algorithm, encoder, **MODES[way])
    start = [cloned(inside) for inside in sequences_in(model)]
    assert len(start) == (2 if algorithm is DQN else 1)
    assert all(same(inside, encoder) for inside in sequences_in(model)) is (way not in ("scratch", "random"))
    assert all(same(inside.frames, encoder.frames) for inside in sequences_in(model)), "no mode begins with fresh ones"
    model.learn(32)
    kept = ("frames", "feature_", "stages.0") if way == "partial" else ("frames", "feature_")
    for inside, old in zip(sequences_in(model), start, strict=True):
        trained = {name for name, _ in inside.named_parameters()}
        for name, tensor in inside.state_dict().items():
            still = way in ("random", "frozen") or name.startswith(kept)
            assert (name in trained) is not still
            assert not still or tensor.equal(old[name])
        assert same(inside, encoder) is (way == "frozen")
        assert not inside.training
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=history(encoder), device="cpu")
    assert same(again.policy, model.policy)
    windows = history(encoder).reset()
    assert np.array_equal(again.predict(windows, deterministic=True)[0], model.predict(windows, deterministic=True)[0])
    again.learn(8)


# The traps of SB3.


def test_heads_start_alike_and_fresh_weights_come_from_the_models_seed() -> None:
    encoder = odd_sequence()
    heads = [built(PPO, encoder, **way).policy.mlp_extractor for way in MODES.values()]
    assert all(same(head, heads[0]) for head in heads)
    arguments, venv = policy_kwargs(encoder, "scratch"), history(encoder)
    first, again, other = (
        sequences_in(build(PPO, arguments, seed, venv=venv, policy="MultiInput"))[0] for seed in (0, 0, 1)
    )
    assert same(first, again)
    assert not same(first.stages, other.stages)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_policy_that_is_updated_is_the_one_that_acted(backbone: str) -> None:
    encoder = odd_sequence(backbone)
    arguments = policy_kwargs(encoder, "finetuned")
    model = build(
        PPO, arguments, venv=history(encoder, length=9), policy="MultiInput", learning_rate=0.0, n_steps=64
    ).learn(128)
    assert model.logger.name_to_value["train/approx_kl"] < 1e-6


@pytest.mark.parametrize("backbone", BACKBONES)
def test_no_gradient_is_computed_through_what_is_frozen(backbone: str) -> None:
    encoder = odd_sequence(backbone)
    windows = {name: torch.as_tensor(part).float() for name, part in history(encoder).reset().items()}
    needed: dict[str, list[bool]] = {}
    for way in ("frozen", "partial", "finetuned"):
        extractor = built(PPO, encoder, **MODES[way]).policy.features_extractor
        with torch.no_grad():
            features = extractor.encoder.encode_frames(torch.zeros(1, *FRAME.shape))
        token = extractor.encoder.tokens(features[None], torch.tensor([[-1]]), None)
        needed[way] = [token.requires_grad, extractor(windows).requires_grad]
    assert needed == {"frozen": [False, False], "partial": [False, True], "finetuned": [True, True]}


def test_separate_extractors_are_both_protected() -> None:
    encoder = odd_sequence("gru")
    model = built(PPO, encoder, mode="frozen", share_features_extractor=False).learn(32)
    assert [same(inside, encoder) for inside in sequences_in(model)] == [True, True]


def test_during_a_warm_up_the_heads_learn_alone() -> None:
    encoder = odd_sequence()
    model = built(PPO, encoder, mode="finetuned", warmup_updates=5)
    model.learn(16)
    assert same(sequences_in(model)[0], encoder)
    model.learn(16)
    assert not same(sequences_in(model)[0].stages, encoder.stages)


@pytest.mark.parametrize("mode", ["frozen", "scratch"])
def test_arguments_that_lost_their_weights_refuse_to_act(mode: str) -> None:
    encoder = odd_sequence()
    arguments = policy_kwargs(encoder, mode)
    model = build(PPO, pickle.loads(pickle.dumps(arguments)), venv=history(encoder), policy="MultiInput")
    with pytest.raises(RlpreError, match="left behind"):
        model.predict(history(encoder).reset())
    wanted = built(PPO, encoder, mode=mode)
    model.set_parameters(wanted.get_parameters())
    model.predict(history(encoder).reset())
    assert same(model.policy, wanted.policy)


def test_the_callers_encoder_and_the_policys_are_two() -> None:
    encoder = odd_sequence()
    arguments, before = policy_kwargs(encoder, "finetuned"), copy.deepcopy(encoder)
    build(PPO, arguments, venv=history(encoder), policy="MultiInput").learn(16)
    assert same(encoder, before)
    with torch.no_grad():
        next(encoder.parameters()).zero_()
    assert same(sequences_in(build(PPO, arguments, venv=history(before), policy="MultiInput"))[0], before)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mode": "finetuned", "augment": True}, "augment has no effect on a SequenceEncoder"),
        ({"stack": 4}, "stack has no effect on a SequenceEncoder"),
        ({"image_key": "image"}, "image_key has no effect on a SequenceEncoder"),
        ({"mode": "partial", "stages": 2}, "encoder 'transformer' has 2, freeze at least one"),
        ({"mode": "anchored", "parent": (odd_sequence("gru"), 1.0)}, "the parent encoder lacks tensor"),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        policy_kwargs(odd_sequence(), **arguments)
    assert "\n" not in str(caught.value)


# Back to pixels.


def agree(features: BasePolicy, pixels: BasePolicy, venv: HistoryVecEnv | EncodedVecEnv, steps: int = 14) -> None:
    """Actions of both policies are equal on the same observations, greedy and sampled."""
    observations = venv.reset()
    for step in range(steps):
        for deterministic in (True, False):
            torch.manual_seed(step)
            wanted, _ = features.predict(observations, deterministic=deterministic)
            torch.manual_seed(step)
            assert np.array_equal(pixels.predict(venv.frames, deterministic=deterministic)[0], wanted)
        observations, *_ = venv.step(wanted)


def fused_and_loaded(model: BaseAlgorithm, encoder: SequenceEncoder, path: Path) -> list[BasePolicy]:
    fused = fuse(model, encoder)
    assert type(fused) is type(model.policy)
    fused.save(str(path))
    return [fused, type(fused).load(str(path), device="cpu")]


@pytest.mark.parametrize(("algorithm", "backbone"), [(PPO, "transformer"), (DQN, "gru")])
def test_what_was_trained_on_windows_acts_on_pixels(
    algorithm: type[BaseAlgorithm], backbone: str, tmp_path: Path
) -> None:
    encoder = odd_sequence(backbone)
    model = built(algorithm, encoder, mode="finetuned").learn(32)
    model.save(tmp_path / "model")
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, history(encoder, seed=7, count=4, length=9))
        assert not policy.training
    again = algorithm.load(tmp_path / "model", device="cpu")
    agree(model.policy, fuse(again, encoder), history(encoder, seed=8))


def test_separate_extractors_stay_so_on_pixels() -> None:
    encoder = odd_sequence()
    model = built(PPO, encoder, mode="finetuned", share_features_extractor=False).learn(32)
    fused, venv = fuse(model, encoder), history(encoder)
    wanted = model.policy.predict_values(model.policy.obs_to_tensor(venv.reset())[0])
    torch.testing.assert_close(fused.predict_values(fused.obs_to_tensor(venv.frames)[0]), wanted)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_what_was_trained_on_steps_acts_on_pixels(algorithm: type[BaseAlgorithm], tmp_path: Path) -> None:
    encoder = odd_sequence()
    model = build(algorithm, {}, venv=EncodedVecEnv(worlds(), encoder, "cpu"), policy="Mlp").learn(32)
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, EncodedVecEnv(worlds(4, 7, length=9), encoder, "cpu"))


def test_babyai_with_missions(tmp_path: Path) -> None:
    venv = envs.make_vec("BabyAI-GoToLocal-v0", 4, 0)
    frames = Encoder("cnn", InputSpec(venv.observation_space.shape), features=16)
    things = [f"{colour} {thing}" for colour in COLOR_NAMES for thing in ("ball", "box", "key")]
    words = Vocabulary.of(f"go to {which} {thing}" for which in ("a", "the") for thing in things)
    encoder = SequenceEncoder("transformer", frames, 7, words, width=16, window=5).eval()
    windows = HistoryVecEnv(venv, encoder, device="cpu")
    model = build(PPO, policy_kwargs(encoder, "finetuned"), venv=windows, policy="MultiInput").learn(16)
    for policy in fused_and_loaded(model, encoder, tmp_path / "windows"):
        agree(model.policy, policy, windows, 6)
    steps = EncodedVecEnv(venv, encoder, "cpu")
    model = build(PPO, {}, venv=steps, policy="Mlp").learn(16)
    for policy in fused_and_loaded(model, encoder, tmp_path / "steps"):
        agree(model.policy, policy, steps, 6)


def test_what_cannot_be_fused_is_refused() -> None:
    encoder, gru = odd_sequence(), odd_sequence("gru")
    other = odd_sequence()
    other.frames.feature_mean[0] += 1
    windows, steps = built(PPO, encoder), build(PPO, {}, venv=EncodedVecEnv(worlds(), gru, "cpu"), policy="Mlp")
    plain = build(PPO, {}, venv=history(encoder), policy="MultiInput")
    normalised = VecNormalize(EncodedVecEnv(worlds(), encoder, "cpu"))
    for model, given, named in (
        (windows, other, "fuse it with the encoder that its EncodedVecEnv or HistoryVecEnv used"),
        (windows, odd_encoder(), "fuse it with the encoder"),
        (build(PPO, policy_kwargs(odd_encoder())), encoder, "fuse it with the encoder"),
        (steps, gru, "behind EncodedVecEnv a GRU remembers the whole episode"),
        (plain, encoder, "does not hold a SequenceEncoder"),
        (build(PPO, {}, venv=normalised, policy="Mlp"), encoder, "norm_obs=False"),
    ):
        with pytest.raises(RlpreError, match=named):
            fuse(model, given)


# The plug must let an agent remember.


def recalling(encoder: SequenceEncoder, window: int, seed: int) -> HistoryVecEnv:
    venv = DummyVecEnv([Recall] * 8)
    venv.seed(seed)
    return HistoryVecEnv(VecMonitor(venv), encoder, window, "cpu")


@pytest.mark.parametrize(("backbone", "window"), [("gru", 3), ("transformer", 3), ("transformer", 1)])
def test_what_is_gone_is_remembered_with_a_window_and_not_without(backbone: str, window: int) -> None:
    torch.manual_seed(0)
    frames = Encoder("cnn", FRAME, features=16)
    encoder = SequenceEncoder(  # which does not see its actions, or one that names the quadrant too soon would do
        backbone, frames, 4, width=16, layers=1, heads=2, window=3, previous_action=False
    )
    arguments = {"net_arch": [32], **policy_kwargs(encoder, "scratch")}
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 6, "gamma": 0.9, "ent_coef": 0.02, "learning_rate": 3e-3}
    model = build(PPO, arguments, venv=recalling(encoder, window, 0), policy="MultiInput", **settings).learn(1536)
    mean, _ = evaluate_policy(model, recalling(encoder, window, 100), n_eval_episodes=64)
    assert mean > 0.9 if window > 1 else mean < 0.45, "chance is 1/4"
