"""Clones: a tiny task is cloned, bad players count less, a killed clone goes on, and bad input is refused."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, Matrices, odd_sequence, refuse, same, worlds
from stable_baselines3 import PPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecMonitor
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlpre
from rlpre import EncodedVecEnv, Encoder, FrameStore, HistoryVecEnv, InputSpec, SequenceEncoder, clone, fuse
from rlpre.features import encode
from rlpre.sb3.clone import LEAST_STD, MOST_WEIGHT, WEIGHTS, CloneConfig, _Task, labelled, split
from rlpre.sb3.vecenv import FeatureSpace
from rlpre.utils import read_json

SHORT = {"steps": 200, "lr": 3e-3, "check_every": 20, "net_arch": (32,), "device": "cpu"}
LENGTH = 4  # steps of an episode
FAULTLESS = LENGTH * 1.0  # its return


def quadrants(observed: np.ndarray) -> np.ndarray:
    """The bright quadrant of frames (n, C, H, W): the right action."""
    means = [
        observed[:, :, row : row + 18, column : column + 18].mean((1, 2, 3)) for row in (0, 18) for column in (0, 18)
    ]
    return np.argmax(means, axis=0)


def half_random(observed: np.ndarray) -> np.ndarray:
    """The first half of the environments play right, the others at random."""
    actions = quadrants(observed)
    actions[len(actions) // 2 :] = np.random.default_rng(int(observed[0, 0, :4, :4].sum())).integers(
        4, size=len(actions) // 2
    )
    return actions


def continuous(observed: np.ndarray) -> np.ndarray:
    """The best vectors, nearly."""
    right = 2 * np.stack(divmod(quadrants(observed), 2), 1) - 1
    return (0.8 * right).astype(np.float32)


def record(path: Path, policy: Any = quadrants, steps: int = 400, **arguments: Any) -> FrameStore:
    return rlpre.collect(worlds(8, noise=20, length=LENGTH, **arguments), path, steps, policy)


def play(policy: ActorCriticPolicy, encoder: Any, wrap: Any = EncodedVecEnv, **arguments: Any) -> float:
    """The mean return of 16 episodes of sampled actions."""
    torch.manual_seed(0)
    venv = wrap(VecMonitor(worlds(4, seed=99, noise=20, length=LENGTH, **arguments)), encoder, device="cpu")
    return float(evaluate_policy(policy, venv, 16, deterministic=False)[0])


@torch.inference_mode()
def likely(policy: ActorCriticPolicy, encoder: Encoder, frames: FrameStore) -> np.ndarray:
    """Probabilities of the actions at the rows that were cloned, (n, 4)."""
    features = encode(encoder, frames, labelled(frames, CloneConfig()))
    return policy.get_distribution(features).distribution.probs.numpy()


@pytest.fixture(scope="module")
def expert(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return record(tmp_path_factory.mktemp("frames") / "expert")


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return record(tmp_path_factory.mktemp("frames") / "mixed", half_random)


@pytest.fixture(scope="module")
def encoder(expert: FrameStore) -> Encoder:
    torch.manual_seed(0)
    return rlpre.whiten(Encoder("cnn", FRAME, features=16), expert)


def test_a_clone_acts_on_features_and_fused_on_pixels(expert: FrameStore, encoder: Encoder, tmp_path: Path) -> None:
    before, drawn = encoder.fingerprint(), torch.get_rng_state()
    policy = clone(expert, encoder, out=tmp_path, **SHORT)
    assert (encoder.fingerprint(), torch.get_rng_state().tolist()) == (before, drawn.tolist())
    assert play(policy, encoder) > 0.85 * FAULTLESS
    venv = EncodedVecEnv(worlds(4, seed=5), encoder, device="cpu")
    actions = policy.predict(venv.reset(), deterministic=True)[0].tolist()
    pixels = ActorCriticPolicy.load(str(tmp_path / "pixels.zip"), device="cpu")
    assert same(pixels, fuse(policy, encoder))
    assert pixels.predict(venv.frames, deterministic=True)[0].tolist() == actions
    refuse("a policy alone does not learn", lambda: fuse(policy, encoder, as_model=True))
    run = read_json(tmp_path / "run.json")
    assert run["labels"] == expert.acted.sum() == 400
    assert run["returns"]["most"] == FAULTLESS
    board = EventAccumulator(str(tmp_path)).Reload()
    losses = {event.step: event.value for event in board.Scalars("held_out/loss")}
    assert run["kept_step"] == min(losses, key=losses.__getitem__)
    assert min(losses.values()) == pytest.approx(run["held_out_loss"], abs=1e-6)


def test_the_seed_decides_and_a_complete_clone_is_loaded(
    expert: FrameStore, encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = {**SHORT, "steps": 40}
    policies = [clone(expert, encoder, out=tmp_path / str(n), **few, seed=n // 2) for n in range(3)]
    assert same(policies[0], policies[1])
    assert not same(policies[0], policies[2])
    steps: list[int] = []
    assert same(clone(expert, encoder, out=tmp_path / "0", **few, report=steps.append), policies[0])
    assert steps == []
    refuse("seed=0, asked for 1", lambda: clone(expert, encoder, out=tmp_path / "0", **few, seed=1))


KILLED = """
import os, signal, sys
sys.path[:0] = [{tests!r}]
from rlpre import Encoder, FrameStore, clone
def report(step):
    if step == 50:
        os.kill(os.getpid(), signal.SIGKILL)
clone(FrameStore.open({frames!r}), Encoder.load({encoder!r}), out={out!r}, report=report, **{settings!r})
"""


def test_a_killed_clone_goes_on_and_ends_with_the_same_weights(
    expert: FrameStore, encoder: Encoder, tmp_path: Path
) -> None:
    few = {**SHORT, "steps": 100, "patience": None}
    encoder.save(tmp_path / "encoder")
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        frames=str(expert.path),
        encoder=str(tmp_path / "encoder"),
        out=str(tmp_path / "killed"),
        settings=few,
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ})
    assert answer.returncode == -signal.SIGKILL, answer.stderr
    refuse("lr=0.003, asked for 0.1", lambda: clone(expert, encoder, out=tmp_path / "killed", **{**few, "lr": 0.1}))
    steps: list[int] = []
    resumed = clone(expert, encoder, out=tmp_path / "killed", report=steps.append, **few)
    assert steps == list(range(41, 101))
    assert same(resumed, clone(expert, encoder, out=tmp_path / "whole", **few))
    assert sorted(path.name for path in (tmp_path / "killed").iterdir() if "events" not in path.name) == [
        "pixels.zip",
        "policy.zip",
        "run.json",
    ]


@pytest.mark.parametrize("weights", ["return", "advantage"])
def test_a_random_half_does_not_poison_a_weighted_clone(
    weights: str, mixed: FrameStore, encoder: Encoder, tmp_path: Path
) -> None:
    returns = {
        name: play(clone(mixed, encoder, out=tmp_path / name, weights=name, **SHORT), encoder)
        for name in ("uniform", weights)
    }
    assert returns["uniform"] < 0.7 * FAULTLESS
    assert returns[weights] > returns["uniform"] + 0.15 * FAULTLESS


def test_weights_have_their_definitions(mixed: FrameStore) -> None:
    rows, config = labelled(mixed, CloneConfig()), CloneConfig(temperature=0.25, discount=1.0)
    returns = np.bincount(mixed.episode, mixed.column("reward"))[mixed.episode[rows]]
    weights = {name: weigh(mixed, rows, np.zeros((len(rows), 1)), config) for name, weigh in WEIGHTS.items()}
    assert (weights["uniform"] == 1).all()
    np.testing.assert_allclose(weights["return"], (returns - returns.min()) / np.ptp(returns))
    later = np.array(
        [
            mixed.column("reward")[row:].cumsum()[LENGTH - 1 - place]
            for row, place in zip(rows, np.tile(range(LENGTH), len(rows) // LENGTH), strict=True)
        ]
    )
    assert np.corrcoef(np.log(weights["advantage"].clip(1e-9)), later)[0, 1] > 0.8  # the baseline knows nothing here
    assert weights["advantage"].max() <= MOST_WEIGHT


def test_a_limit_takes_whole_episodes_and_splits_are_by_episode(expert: FrameStore) -> None:
    rows = labelled(expert, CloneConfig(limit=42))
    assert len(rows) == len(set(rows.tolist())) == 42
    _, counts = np.unique(expert.episode[rows], return_counts=True)
    assert sorted(counts.tolist()) == [2] + [LENGTH] * 10
    assert (
        rows.tolist()
        == labelled(expert, CloneConfig(limit=42)).tolist()
        != labelled(expert, CloneConfig(limit=42, seed=1)).tolist()
    )
    train, held_out = split(expert, rows, np.ones(42), 0.25, 0)
    assert sorted([*train, *held_out]) == list(range(42))
    assert len(set(expert.episode[rows[held_out]])) == 3
    assert not set(expert.episode[rows[train]]) & set(expert.episode[rows[held_out]])


def test_balance_makes_a_rare_action_common(encoder: Encoder, tmp_path: Path) -> None:
    frames = record(tmp_path / "frames", lambda seen: np.where(np.arange(8) > 6, 3, 0))  # 1 in 8, whatever the frame
    shares = {}
    for balance in (0.0, 1.0):
        policy = clone(frames, encoder, out=tmp_path / str(balance), balance=balance, **SHORT)
        shares[balance] = likely(policy, encoder, frames)[:, 3].mean()
    assert shares[0.0] < 0.25
    assert 0.3 < shares[1.0] < 0.7


def test_balance_counts_the_rows_by_their_weights(mixed: FrameStore, encoder: Encoder) -> None:
    config = CloneConfig(weights="return", balance=1, device="cpu")
    rows = labelled(mixed, config)
    policy = ActorCriticPolicy(FeatureSpace(encoder), mixed.action_space, lambda _: 1e-3)
    task = _Task(policy, encoder, mixed, rows, config)
    drawn = np.bincount(mixed.column("action")[rows[task.train]], task.chances)
    np.testing.assert_allclose(drawn, 0.25, atol=0.05)


def test_vectors_are_cloned_by_likelihood(encoder: Encoder, tmp_path: Path) -> None:
    frames = record(tmp_path / "frames", continuous, continuous=True)
    policy = clone(frames, encoder, out=tmp_path / "clone", **{**SHORT, "steps": 600})
    assert play(policy, encoder, continuous=True) > 0.6 * 0.8 * LENGTH
    assert read_json(tmp_path / "clone/run.json")["held_out_agreement"] > 0.8, "R2"
    std = policy.log_std.exp()
    assert (std >= LEAST_STD - 1e-6).all()
    assert (std < 0.5).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matrices_of_actions_are_flat_for_the_gaussian(dtype: Any, encoder: Encoder, tmp_path: Path) -> None:
    venv = Matrices(8, dtype, noise=20, length=LENGTH)
    frames = rlpre.collect(venv, tmp_path / "frames", 400, lambda seen: continuous(seen)[:, None].astype(dtype))
    policy = clone(frames, encoder, out=tmp_path / "clone", **{**SHORT, "steps": 600})
    assert read_json(tmp_path / "clone/run.json")["held_out_agreement"] > 0.8, "R2"
    model = PPO("MlpPolicy", EncodedVecEnv(venv, encoder, device="cpu"), n_steps=8, policy_kwargs={"net_arch": [32]})
    rlpre.start_from(model, policy, value_first=64)
    model.learn(64)
    assert np.abs(model.rollout_buffer.kl).max() < 1e-4, "the model still is its clone"


def test_a_clone_of_other_actions_is_not_taken_for_this_one(encoder: Encoder, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, *FRAME.shape), np.uint8)
    columns = {"action": np.arange(40) % 3, "reward": np.ones(40), "episode_start": np.arange(40) % 5 == 0}
    few = rlpre.from_arrays(pixels, tmp_path / "few", **columns)
    clone(few, encoder, out=tmp_path / "clone", **SHORT)
    more = rlpre.from_arrays(pixels, tmp_path / "more", action_space=spaces.Discrete(4), **columns)
    refuse("holds a clone with actions=", lambda: clone(more, encoder, out=tmp_path / "clone", **SHORT))
    assert clone(more, encoder, out=tmp_path / "other", **SHORT).action_space == spaces.Discrete(4)


def test_a_directory_of_another_kind_is_kept(expert: FrameStore, encoder: Encoder, tmp_path: Path) -> None:
    clone(expert, encoder, out=tmp_path / "clone", **SHORT)
    rlpre.pretrain(expert, objective="inverse", out=tmp_path / "encoder", steps=1, batch=8)
    (tmp_path / "file").touch()
    (tmp_path / "other").mkdir()
    (tmp_path / "other/run.json").write_text("[]")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    for out, fault in (("encoder", "holds something else than a clone: choose"), ("file", "cannot write into .*file")):
        refuse(fault, lambda out=out: clone(expert, encoder, out=tmp_path / out, **SHORT))
    for out, fault in (("clone", "something else than a pretraining: choose"), ("file", "cannot write into .*file")):
        refuse(fault, lambda out=out: rlpre.pretrain(expert, objective="inverse", out=tmp_path / out, steps=1, batch=8))
    refuse("run.json holds no JSON object", lambda: clone(expert, encoder, out=tmp_path / "other", **SHORT))
    refuse(
        "run.json holds no JSON object",
        lambda: rlpre.pretrain(expert, objective="inverse", out=tmp_path / "other", steps=1, batch=8),
    )
    refuse("cannot write .*file/model.safetensors", lambda: encoder.save(tmp_path / "file"))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_sequences_are_cloned_with_the_layers_that_mix_them(backbone: str, expert: FrameStore, tmp_path: Path) -> None:
    encoder = odd_sequence(backbone, window=3)
    policy = clone(expert, encoder, out=tmp_path, **SHORT)
    trained = policy.features_extractor.encoder
    assert same(trained.frames, encoder.frames)
    assert not same(trained.stages, encoder.stages)
    assert play(policy, encoder, HistoryVecEnv) > 0.5 * FAULTLESS
    assert same(ActorCriticPolicy.load(str(tmp_path / "policy.zip"), device="cpu"), policy)
    venv = HistoryVecEnv(worlds(4, seed=5), encoder, device="cpu")
    actions = policy.predict(venv.reset(), deterministic=True)[0].tolist()
    assert fuse(policy, encoder).predict(venv.frames, deterministic=True)[0].tolist() == actions


def test_a_player_who_never_succeeds_is_named(encoder: Encoder, tmp_path: Path) -> None:
    frames = record(tmp_path / "frames", lambda seen: (quadrants(seen) + 1 + seen[:, 0, 0, 0] % 2) % 4)
    told = r"the \d+ episodes of .* all have the same return \(least 0, lower quartile 0, median 0, .* most 0\)"
    with pytest.warns(UserWarning, match=f"{told}: their player never succeeds"):
        clone(frames, encoder, out=tmp_path / "clone", **{**SHORT, "steps": 2})
    refuse(told, lambda: clone(frames, encoder, out=tmp_path / "other", weights="return", **SHORT))
    with pytest.warns(UserWarning, match="or they were stored without rewards"):
        refuse(
            "no action of .* has an advantage over another",
            lambda: clone(frames, encoder, out=tmp_path / "other", weights="advantage", **SHORT),
        )


def test_returns_that_differ_by_rounding_are_equal(encoder: Encoder, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, *FRAME.shape), np.uint8)
    columns = {"action": np.arange(9) % 4, "reward": [0.1, 0.1, 0.1, 0, 0.3, 0, 0.1, 0.2, 0]}
    columns |= {"episode_start": np.isin(np.arange(9), [0, 4, 6])}
    frames = rlpre.from_arrays(pixels, tmp_path / "frames", **columns)
    refuse(
        "all have the same return", lambda: clone(frames, encoder, out=tmp_path / "clone", weights="return", **SHORT)
    )


def without_actions(path: Path) -> FrameStore:
    frames = np.random.default_rng(0).integers(0, 256, (20, *FRAME.shape), np.uint8)
    np.save(path.with_suffix(".npy"), frames)
    return rlpre.from_arrays(path.with_suffix(".npy"), path)


def labelled_store(path: Path, label: list[int]) -> FrameStore:
    """Four episodes of two actions, with a column "advice"."""
    arguments = {"space": FRAME.space, "action_space": worlds().action_space, "spec": {}, "labels": ["advice"]}
    frames = np.random.default_rng(0).integers(0, 256, (12, *FRAME.shape), np.uint8)
    ends = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0}
    with FrameStore.create(path, **arguments) as writer:
        writer.append(frames, action=[0, 1, -1] * 4, episode_start=[True, False, False] * 4, advice=label * 4, **ends)
    return FrameStore.open(path)


def vectors(path: Path, width: float, action: float, reward: float = 1.0) -> FrameStore:
    """Eight episodes of one-dimensional vectors, half of them ``action``."""
    arguments = {"action_space": spaces.Box(-width, width, (1,)), "episode_start": np.arange(40) % 5 == 0}
    pixels = np.random.default_rng(0).integers(0, 256, (40, *FRAME.shape), np.uint8)
    actions = np.where(np.arange(40) % 2, action, 0).astype(np.float32)[:, None]
    return rlpre.from_arrays(pixels, path, action=actions, reward=np.full(40, reward), **arguments)


@pytest.mark.parametrize(
    ("named", "changes"),
    [
        ("unknown weights 'returns': did you mean 'return'", {"weights": "returns"}),
        ("a clone has no setting 'step': it has", {"step": 3}),
        ("unknown column of labels 'expert'", {"labels": "expert"}),
        ("has 400 labels 'action', limit is 500: collect more", {"limit": 500}),
        ("1 of the 1 episodes .* can be learned from, and one is held out: raise limit", {"limit": 4}),
        ("lr is -1: it must be a number above 0", {"lr": -1}),
        ("clip is 0: it must be a number above 0", {"clip": 0}),
        ("net_arch is 64: give the sizes of the hidden layers", {"net_arch": 64}),
        ("net_arch is {'pi': .*}: give the sizes", {"net_arch": {"pi": [64], "vf": [64]}}),
        (r"net_arch is \(0,\): give the sizes", {"net_arch": (0,)}),
        ("unknown activation 'Relu': did you mean 'ReLU'", {"activation": "Relu"}),
        ("temperature are those of weights='advantage', not of 'return'", {"weights": "return", "temperature": 1}),
        ("the clone's actions are not finite any more: lower lr=1e\\+12", {"lr": 1e12}),
        ("held_out is 0: give a number above 0", {"held_out": 0}),
        ("label_smoothing is 1: it is a share", {"label_smoothing": 1}),
        ("limit is 1: it must be at least 2", {"limit": 1}),
        ("limit is 100.0: give a whole number, as an int", {"limit": 1e2}),
        ("steps is 3000.0: give a whole number, as an int", {"steps": 3e3}),
        ("1 of the 1 episodes .* can be learned from", {"limit": 4, "weights": "advantage"}),
    ],
)
def test_bad_settings_get_one_sentence(
    named: str, changes: dict[str, Any], expert: FrameStore, encoder: Encoder, tmp_path: Path
) -> None:
    refuse(named, lambda: clone(expert, encoder, out=tmp_path, **{**SHORT, **changes}))
    assert not list(tmp_path.glob("*.json")), "no clone"


@pytest.mark.parametrize(
    ("named", "make"),
    [
        ("holds frames without actions", without_actions),
        ("the 400 labels 'action' of .* are all \\[2\\]", lambda path: record(path, lambda seen: np.full(8, 2))),
        ("label 'advice' of .* goes up to 5, the actions are Discrete", lambda path: labelled_store(path, [5, 1, -1])),
        ("the 0 labels 'advice' of .* are all \\[\\]", lambda path: labelled_store(path, [-1, -1, -1])),
        ("some actions of .* are not finite", lambda path: vectors(path, 1, np.inf)),
        ("a range of .-0.05, .* gymnasium.wrappers.RescaleAction", lambda path: vectors(path, 0.05, 0.05)),
        ("a range of .-1000, ", lambda path: vectors(path, 1000, 1000)),
        ("some rewards of .* are not finite", lambda path: vectors(path, 1, 1, reward=np.nan)),
    ],
)
def test_bad_frames_get_one_sentence(
    named: str, make: Callable[[Path], FrameStore], encoder: Encoder, tmp_path: Path
) -> None:
    frames, labels = make(tmp_path / "frames"), "advice" if "advice" in named else "action"
    refuse(named, lambda: clone(frames, encoder, out=tmp_path / "clone", labels=labels, **SHORT))


def test_an_advice_is_learned_instead_of_the_action(encoder: Encoder, tmp_path: Path) -> None:
    frames = labelled_store(tmp_path / "frames", [2, 3, -1])
    policy = clone(frames, encoder, out=tmp_path / "clone", labels="advice", **SHORT)
    assert likely(policy, encoder, frames)[:, 2:].sum(1).min() > 0.6


def test_an_encoder_of_other_frames_or_actions_is_refused(expert: FrameStore, encoder: Encoder, tmp_path: Path) -> None:
    other = Encoder("cnn", InputSpec((3, 56, 56)), features=16)
    refuse("the encoder does not fit .*expert", lambda: clone(expert, other, out=tmp_path, **SHORT))
    memory = SequenceEncoder("gru", encoder, 6, width=16, window=3)
    refuse("holds 4 actions, the sequence encoder reads 6", lambda: clone(expert, memory, out=tmp_path, **SHORT))
