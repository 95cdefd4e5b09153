"""A clone becomes the start of PPO and A2C: the same policy at first, value head first, near the clone."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import TINY, Algorithm, build, odd_encoder, odd_sequence, other_frames, refuse, same, worlds
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from test_sb3_clone import quadrants

from rlpre import EncodedVecEnv, FrameStore, HistoryVecEnv, clone, collect, fuse, policy_kwargs, start_from
from rlpre.sb3 import floored_advantages, kl_penalty

ROLLOUT = 16  # environment steps, for PPO in TINY
SETTINGS = {"steps": 60, "check_every": 20, "lr": 1e-2, "label_smoothing": 0.2, "net_arch": (8,), "device": "cpu"}
NET = {"net_arch": [8]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("start")


@pytest.fixture(scope="module")
def frames(home: Path) -> FrameStore:
    return collect(worlds(8), home / "frames", 80, quadrants)


@pytest.fixture(scope="module")
def policy(home: Path, frames: FrameStore) -> ActorCriticPolicy:
    return clone(frames, odd_encoder(), out=home / "clone", **SETTINGS)


def on_features(algorithm: Algorithm = PPO, **arguments: Any) -> BaseAlgorithm:
    return build(algorithm, NET, venv=EncodedVecEnv(worlds(), odd_encoder()), policy="Mlp", **arguments)


def inside(mode: str) -> BaseAlgorithm:
    return build(PPO, policy_kwargs(odd_encoder(), mode, **NET))


def pixels(count: int = 6) -> Any:
    """Observations with pixels, and the features of the same."""
    venv = EncodedVecEnv(worlds(count, seed=9), odd_encoder(), device="cpu")
    features = venv.reset()
    return venv.frames, features


def shares(policy: ActorCriticPolicy, observed: Any) -> np.ndarray:
    """Probabilities of the actions, (n, 4)."""
    with torch.no_grad():
        return policy.get_distribution(policy.obs_to_tensor(observed)[0]).distribution.probs.numpy()


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_model_on_features_starts_as_the_clone_and_its_value_head_learns_first(
    algorithm: Algorithm, policy: ActorCriticPolicy, tmp_path: Path
) -> None:
    model, (_, features) = on_features(algorithm), pixels()
    rollout = model.n_steps * model.n_envs
    start_from(model, policy, value_first=2 * rollout - 1, kl=0)
    start = shares(policy, features)
    assert np.ptp(start, axis=1).min() > 0.05, "the clone prefers some actions"
    np.testing.assert_allclose(shares(model.policy, features), start, atol=1e-6)
    values = model.policy.value_net.weight.clone()
    model.learn(rollout)
    assert not model.policy.value_net.weight.equal(values)
    model.save(tmp_path / "model")
    model = algorithm.load(tmp_path / "model", env=model.get_env(), device="cpu")  # the wait goes on
    model.learn(rollout, reset_num_timesteps=False)
    np.testing.assert_allclose(shares(model.policy, features), start, atol=1e-6)
    model.learn(rollout, reset_num_timesteps=False)
    assert np.abs(shares(model.policy, features) - start).max() > 1e-4


@pytest.mark.parametrize("mode", ["frozen", "finetuned", "anchored"])
def test_a_model_with_the_encoder_inside_starts_as_the_clone(mode: str, policy: ActorCriticPolicy, home: Path) -> None:
    model, (frames, features) = inside(mode), pixels()
    start_from(model, home / "clone", value_first=0)
    np.testing.assert_allclose(shares(model.policy, frames), shares(policy, features), atol=1e-5)
    model.learn(2 * ROLLOUT)
    assert model.rollout_buffer.kl.shape == (8, 2)
    assert np.abs(model.rollout_buffer.kl).max() > 0
    reference = model.rollout_buffer_kwargs["penalty"].policy
    np.testing.assert_allclose(shares(reference, frames), shares(policy, features), atol=1e-5)


def test_a_model_on_windows_starts_with_the_layers_that_the_clone_trained(frames: FrameStore, tmp_path: Path) -> None:
    encoder = odd_sequence(window=3)
    policy = clone(frames, encoder, out=tmp_path, **SETTINGS)
    venv = HistoryVecEnv(worlds(), encoder, device="cpu")
    model = build(PPO, policy_kwargs(encoder, "finetuned", **NET), venv=venv, policy="MultiInput")
    start_from(model, policy, value_first=0)
    assert same(model.policy.features_extractor.encoder, policy.features_extractor.encoder)
    observed = venv.reset()
    np.testing.assert_allclose(shares(model.policy, observed), shares(policy, observed), atol=1e-5)
    model.learn(ROLLOUT)


def test_vectors_start_with_the_deviation_of_the_clone(tmp_path: Path) -> None:
    frames = collect(worlds(8, continuous=True), tmp_path / "frames", 80)
    policy = clone(frames, odd_encoder(), out=tmp_path / "clone", **SETTINGS)
    model = build(PPO, NET, venv=EncodedVecEnv(worlds(continuous=True), odd_encoder()), policy="Mlp")
    start_from(model, policy)
    assert model.policy.log_std.equal(policy.log_std)
    model.learn(ROLLOUT)
    assert model.policy.log_std.equal(policy.log_std)


def test_the_penalty_keeps_the_model_near_the_clone(policy: ActorCriticPolicy) -> None:
    _, features = pixels(64)
    start, moved = shares(policy, features), {}
    for kl in (0.0, 5.0):
        model = on_features(learning_rate=1e-2, n_epochs=4)
        start_from(model, policy, value_first=0, kl=kl, kl_decay=float("inf"))
        model.learn(20 * ROLLOUT)
        moved[kl] = (start * np.log(start / shares(model.policy, features))).sum(1).mean()
    assert moved[5.0] < 0.3 * moved[0.0]


@pytest.mark.parametrize(("n_steps", "rollouts"), [(8, 8), (32, 2)])
def test_the_penalty_halves_after_the_same_steps_whatever_the_rollout(
    n_steps: int, rollouts: int, policy: ActorCriticPolicy
) -> None:
    model = on_features(n_steps=n_steps)
    start_from(model, policy, kl=0.4, kl_decay=64, kl_least=0.05)
    model.learn(64 * 2)
    assert model.rollout_buffer.beta == pytest.approx(0.1)
    assert model.num_timesteps == rollouts * n_steps * 2
    model.learn(64 * 2)
    assert model.rollout_buffer.beta == 0.05


def test_a_started_model_is_fused(policy: ActorCriticPolicy) -> None:
    model, (frames, features) = on_features(), pixels()
    start_from(model, policy)
    for mode in ("frozen", "finetuned"):
        fused = fuse(model, odd_encoder(), as_model=True, mode=mode)
        head = fused.policy.action_net.weight.clone()
        np.testing.assert_allclose(shares(fused.policy, frames), shares(policy, features), atol=1e-5)
        fused.learn(ROLLOUT)
        assert fused.policy.action_net.weight.equal(head), "the value head still learns alone"


def test_a_floor_of_ones_own_stays(policy: ActorCriticPolicy) -> None:
    model = on_features(**floored_advantages(0.5))
    start_from(model, policy)
    assert model.rollout_buffer.floor == 0.5


@pytest.mark.parametrize("start", [{"value_first": 0}, {"kl": 0}])
def test_a_model_starts_once(start: dict[str, Any], policy: ActorCriticPolicy) -> None:
    model = on_features()
    start_from(model, policy, **start)
    refuse("has a KL penalty or waiting parameters already", lambda: start_from(model, policy, value_first=0, kl=0))


class Doubled(FlattenExtractor):
    """Changes the features, and keeps their number."""

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(observations)


def of_its_own() -> BaseAlgorithm:
    arguments = {**NET, "features_extractor_class": Doubled}
    return build(PPO, arguments, venv=EncodedVecEnv(worlds(), odd_encoder()), policy="Mlp")


def of_adagrad() -> BaseAlgorithm:
    arguments = {**NET, "optimizer_class": torch.optim.Adagrad}
    return build(PPO, arguments, venv=EncodedVecEnv(worlds(), odd_encoder()), policy="Mlp")


def stacked() -> BaseAlgorithm:
    return build(PPO, NET, venv=EncodedVecEnv(worlds(), odd_encoder(), stack=2), policy="Mlp")


def normalised() -> BaseAlgorithm:
    return build(PPO, NET, venv=VecNormalize(EncodedVecEnv(worlds(), odd_encoder())), policy="Mlp")


def other_encoder() -> BaseAlgorithm:
    return build(PPO, NET, venv=EncodedVecEnv(worlds(), odd_encoder(0.1)), policy="Mlp")


def windows() -> BaseAlgorithm:
    encoder = other_frames()
    venv = HistoryVecEnv(worlds(), encoder, device="cpu")
    return build(PPO, policy_kwargs(encoder, **NET), venv=venv, policy="MultiInput")


def test_a_policy_that_learned_behind_vecnormalize_is_refused() -> None:
    learned = normalised().learn(ROLLOUT).policy
    refuse("the policy has learned behind VecNormalize", lambda: start_from(on_features(), learned))


@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("start_from is for PPO and A2C, whose actor a clone can be, not for DQN", lambda: build(DQN, {})),
        ("not for SAC", lambda: build(SAC, {})),
        ("the model has learned for 16 steps, which start_from would", lambda: on_features().learn(ROLLOUT)),
        ("VecNormalize changes the features", normalised),
        ("the clone acts on FeatureSpace.*, the model on FeatureSpace", other_encoder),
        ("the model on FeatureSpace.*: give it the encoder .* without stack", stacked),
        ("the model's policy changes the features by Doubled: leave out features_extractor_class", of_its_own),
        ("optimizer 'Adagrad' cannot", of_adagrad),
        ("the clone acts on FeatureSpace.*, the model on Dict", windows),
        ("the model on Box", lambda: build(PPO, {})),
        ("the clone acts on FeatureSpace.*, the model on FeatureSpace", lambda: inside("scratch")),
        (
            r"net_arch=\[8\] and Tanh, the model's \[16\] and Tanh: give both the same",
            lambda: build(PPO, {"net_arch": [16]}, venv=EncodedVecEnv(worlds(), odd_encoder()), policy="Mlp"),
        ),
        (
            r"the model's \[8\] and ReLU",
            lambda: build(
                PPO,
                {**NET, "activation_fn": torch.nn.ReLU},
                venv=EncodedVecEnv(worlds(), odd_encoder()),
                policy="Mlp",
            ),
        ),
        (
            "the clone's actions are Discrete.*, the environment's Box",
            lambda: build(PPO, NET, venv=EncodedVecEnv(worlds(continuous=True), odd_encoder()), policy="Mlp"),
        ),
    ],
)
def test_another_model_gets_one_sentence(
    named: str, make: Callable[[], BaseAlgorithm], policy: ActorCriticPolicy
) -> None:
    model = make()
    before = [tensor.clone() for tensor in model.policy.state_dict().values()]
    refuse(named, lambda: start_from(model, policy))
    assert all(map(torch.equal, before, model.policy.state_dict().values()))


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        (r"value_first is 0.05: give environment steps", {"value_first": 0.05}),
        ("value_first is -1", {"value_first": -1}),
        ("beta is -1: give the cost of a nat", {"kl": -1}),
        ("half_life is 0: give environment steps", {"kl_decay": 0}),
        ("least is 0.3: beta starts at 0.05", {"kl_least": 0.3}),
        ("half_life is -5: give environment steps", {"kl": 0, "kl_decay": -5}),
        ("value_first is inf: give environment steps", {"value_first": float("inf")}),
        ("value_first is nan: give environment steps", {"value_first": float("nan")}),
    ],
)
def test_numbers_out_of_range_get_one_sentence(named: str, changes: dict[str, Any], policy: ActorCriticPolicy) -> None:
    refuse(named, lambda: start_from(on_features(), policy, **changes))


def test_a_directory_without_a_clone_is_named(tmp_path: Path) -> None:
    refuse("cannot be read .*policy.zip.*give the directory of a", lambda: start_from(on_features(), tmp_path))
    refuse("cannot be read .*or the policy that it returned", lambda: start_from(on_features(), on_features()))


def test_a_penalty_by_hand_is_the_same(policy: ActorCriticPolicy) -> None:
    """What `start_from` does to a model is what SB3's constructor does with the arguments of `kl_penalty`."""
    assert TINY[PPO]["n_steps"] * 2 == ROLLOUT
    models = [on_features(), on_features(**kl_penalty(policy, 0.3))]
    start_from(models[0], policy, value_first=0, kl=0.3)
    models[1].policy.load_state_dict(models[0].policy.state_dict())
    for model in models:
        model.set_random_seed(1)
        model.learn(2 * ROLLOUT)
    assert same(*(model.policy for model in models))
