"""An objective that goes on while the agent learns."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, build, refuse, same, worlds
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecFrameStack
from test_compare import compare

import rlpre
from rlpre import Arm, EncodedVecEnv, Encoder, FrameStore, InputSpec
from rlpre.compare.train import trained_encoder
from rlpre.sb3 import KeepLearning, policy_kwargs
from rlpre.sb3.auxiliary import _numbers


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return rlpre.collect(worlds(), tmp_path_factory.mktemp("frames") / "store", 200, seed=0)


def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", FRAME, features=16)


def agent(mode: str = "finetuned", venv: Any = None, policy: str = "Cnn", **options: Any) -> PPO:
    return build(PPO, policy_kwargs(encoder(), mode, **options), venv=venv or worlds(), policy=policy)


def wide_actions() -> Any:
    venv = worlds(continuous=True)
    venv.action_space = spaces.Box(0, 10, (2,))
    return venv


def keep(store: FrameStore, **settings: Any) -> KeepLearning:
    return KeepLearning("temporal+inverse", store, **{"updates": 2, "batch": 16, **settings})


def loss_over_chance(store: FrameStore, lr: float) -> float:
    """After some rollouts. The policy's learning rate is 0, so the objective alone moves the encoder."""
    model = agent("scratch")
    model.lr_schedule = lambda _: 0.0
    callback = KeepLearning("contrastive", store, updates=10, batch=32, live=1.0, lr=lr)
    model.learn(16 * 8, callback)
    metrics = callback.learn(np.random.default_rng(0))
    return float(metrics["contrastive/loss"] / metrics["contrastive/chance_loss"])


def test_the_objective_is_learned_on_rollouts_while_the_agent_acts(store: FrameStore) -> None:
    assert loss_over_chance(store, 1e-3) < 0.8 * loss_over_chance(store, 1e-9)


def test_a_batch_mixes_offline_and_live_frames_in_one_numbering(store: FrameStore) -> None:
    model, callback = agent(), keep(store, live=0.25)
    model.learn(16, callback)
    batch = callback.draw(np.random.default_rng(0))
    assert batch.anchor.shape == (16, *FRAME.shape)
    recent = {frame.tobytes() for frame in callback.rollout.frames.frames}
    live = [frame.numpy().tobytes() in recent for frame in batch.anchor]
    assert live == [False] * 12 + [True] * 4
    ids = torch.cat([batch.anchor_id, batch.later_id])
    frames = torch.cat([batch.anchor, batch.later]).flatten(1)
    assert torch.equal(ids[:, None] == ids[None], (frames[:, None] == frames[None]).all(-1))


def test_pairs_of_a_rollout_are_of_one_environment_and_episode(store: FrameStore) -> None:
    model, callback = agent(venv=worlds(3, length=3)), keep(store)
    model.learn(24, callback)
    rollout, reader = callback.rollout.frames, callback.rollout
    starts = model.rollout_buffer.episode_starts  # flattened by PPO only after training
    assert len(rollout.frames) == starts.size
    anchor, later, actions = reader.pairs.sample(200, np.random.default_rng(0))
    assert (rollout.episode[anchor] == rollout.episode[later]).all()
    assert (actions[:, 0] == rollout.action[anchor]).all()
    assert np.bincount(rollout.episode).max() <= 3


def test_the_same_seed_gives_the_same_agent(store: FrameStore) -> None:
    one, two = (agent().learn(32, keep(store)).policy for _ in range(2))
    assert same(one, two)
    assert not same(one, agent().learn(32, keep(store, live=0.0)).policy)


@pytest.mark.parametrize(
    "setting", [{"stack": 2}, {"parts": True}, {"parts": True, "last": True}, {"continuous": True}]
)
def test_all_kinds_of_observations(setting: dict[str, Any], tmp_path: Path) -> None:
    options, setting = {"stack": setting.get("stack", 1)}, {k: v for k, v in setting.items() if k != "stack"}
    frames = rlpre.collect(worlds(continuous="continuous" in setting), tmp_path / "frames", 60, seed=0)
    venv = worlds(**setting)
    venv = VecFrameStack(venv, 2, "first") if options["stack"] == 2 else venv
    policy = "MultiInput" if "parts" in setting else "Cnn"
    callback = keep(frames)
    agent(venv=venv, policy=policy, **options).learn(16, callback)
    assert callback.rollout.frames.frames.max() > 180  # bright quadrants


def test_squashed_actions_are_those_of_the_environment(tmp_path: Path) -> None:
    frames = rlpre.collect(wide_actions(), tmp_path, 60, seed=0)
    arguments = {**policy_kwargs(encoder(), "finetuned"), "squash_output": True}
    model, callback = build(PPO, arguments, venv=wide_actions(), use_sde=True), keep(frames)
    model.learn(16, callback)
    squashed = model.rollout_buffer.actions  # -1 to 1; one environment after another, since PPO has trained
    np.testing.assert_allclose(callback.rollout.frames.action, 5 * (squashed + 1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("actions", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)])
def test_frames_without_actions_fit_every_agent(actions: spaces.Space[Any], tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, *FRAME.shape), np.uint8)
    frames = rlpre.from_arrays(pixels, tmp_path, episode_start=np.arange(40) % 10 == 0)
    venv = worlds()
    venv.action_space = actions
    venv.step_async = lambda taken: setattr(venv, "actions", np.zeros(2, int))
    callback = KeepLearning("temporal", frames, updates=1, batch=8)
    agent(venv=venv).learn(16, callback)
    assert callback.rollouts == 1


def test_every_rollout_is_learned_from_once_and_heads_stay(store: FrameStore, monkeypatch: pytest.MonkeyPatch) -> None:
    model, callback, calls = agent(), keep(store), []
    learn = callback.learn
    monkeypatch.setattr(callback, "learn", lambda rng: calls.append(callback.num_timesteps) or learn(rng))
    model.learn(16, callback)
    heads = callback.objective
    model.learn(32, callback, reset_num_timesteps=False)
    assert calls == [16, 32, 48]
    assert callback.objective is heads


def test_it_waits_as_long_as_the_encoder(store: FrameStore) -> None:
    model = agent(warmup_updates=5)  # a rollout has four updates
    before, seen = model.policy.features_extractor.encoder.fingerprint(), []
    callback = keep(store)
    for _ in range(3):
        model.learn(16, callback, reset_num_timesteps=False)
        seen.append(model.policy.features_extractor.encoder.fingerprint() == before)
    assert seen == [True, False, False]


def test_numbers_tell_frames_apart() -> None:
    frames = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8)
    numbers = _numbers(torch.cat([frames, frames.flip(0)]))
    assert torch.equal(numbers[:50], numbers[50:].flip(0))
    assert len(numbers.unique()) == 50


def test_what_cannot_work_is_refused(store: FrameStore, tmp_path: Path) -> None:
    refuse("updates is 0", lambda: keep(store, updates=0))
    refuse("live is 2", lambda: keep(store, live=2))
    refuse("lr is -1", lambda: keep(store, lr=-1))
    refuse("rollouts do not have", lambda: KeepLearning("supervised", store, 1))
    refuse("no manifest|manifest.json is missing", lambda: KeepLearning("contrastive", tmp_path, 1))
    refuse("DQN has none", lambda: build(DQN, policy_kwargs(encoder()), venv=worlds()).learn(8, keep(store)))
    refuse("no encoder of frames that learns", lambda: agent("frozen").learn(8, keep(store)))
    features = build(PPO, {}, venv=EncodedVecEnv(worlds(), encoder(), "cpu"), policy="Mlp")
    refuse("no encoder of frames that learns", lambda: features.learn(8, keep(store)))
    refuse("the agent takes Box", lambda: agent(venv=worlds(continuous=True)).learn(8, keep(store)))
    with FrameStore.create(
        tmp_path / "large", space=InputSpec((3, 40, 40)).space, action_space=spaces.Discrete(4), spec={}
    ) as writer:
        columns = {"action": [0, -1], "episode_start": [True, False]}
        rest = dict.fromkeys(("reward", "terminated", "truncated", "task"), 0)
        writer.append(np.zeros((2, 3, 40, 40), np.uint8), **columns, **rest)
    refuse("40", lambda: agent().learn(8, KeepLearning("contrastive", tmp_path / "large", 1)))


def test_an_arm_of_a_comparison_keeps_learning(store: FrameStore, tmp_path: Path) -> None:
    arms = {
        "scratch": Arm("scratch"),
        "auxiliary": Arm("scratch", auxiliary={"objective": "contrastive", "updates": 1}),
    }
    result = compare(tmp_path, arms, frames=store, controls=False)
    encoders = [trained_encoder(tmp_path / "comparison" / name / "seed-0", PPO) for name in arms]
    assert not same(*encoders)
    assert [record["arm"] for record in result.table()] == ["scratch", "auxiliary"]


@pytest.mark.parametrize(
    ("mode", "auxiliary", "named"),
    [
        ("scratch", {"objective": "contrastive", "updates": 0}, "updates is 0"),
        ("scratch", {"objective": "supervised", "updates": 1}, "rollouts do not have"),
        ("random", {"objective": "contrastive", "updates": 1}, "use mode 'scratch' or 'finetuned'"),
        ("scratch", {"objective": "contrastive"}, "auxiliary has no updates"),
        ("scratch", {"objective": "contrast", "updates": 1}, "did you mean 'contrastive'"),
        ("scratch", {"objective": "contrastive", "update": 1}, "did you mean 'updates'"),
    ],
)
def test_wrong_arms_are_refused(mode: str, auxiliary: dict[str, Any], named: str, tmp_path: Path) -> None:
    refuse(named, lambda: compare(tmp_path, {"scratch": Arm("scratch"), "mine": Arm(mode, auxiliary=auxiliary)}))
