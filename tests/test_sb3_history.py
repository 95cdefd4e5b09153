"""Windows of the past in front of the policy, and features that a sequence encoder computes step by step."""

from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, Quadrant, build, odd_encoder, odd_sequence, worlds
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv

import envs
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.sb3 import policy_kwargs
from rlpre.sb3.sequence import SequenceExtractor

COLOURS = ["red", "green", "blue", "purple", "yellow", "grey"]
THINGS = ["door", "key", "ball", "box"]
WORDS = Vocabulary.of(
    f"go to {which} {colour} {thing}" for which in ("a", "the") for colour in COLOURS for thing in THINGS
)
REVERSED = Vocabulary(WORDS.words[::-1], WORDS.length)
Windows = dict[str, np.ndarray]


def policy_reader(encoder: SequenceEncoder, venv: VecEnv) -> Callable[[Windows], np.ndarray]:
    """What the heads of a policy get of windows, which SB3 turns into floats."""
    extractor = SequenceExtractor(venv.observation_space, **policy_kwargs(encoder)["features_extractor_kwargs"])

    @torch.no_grad()
    def extract(windows: Windows) -> np.ndarray:
        return extractor({name: torch.as_tensor(part).float() for name, part in windows.items()}).numpy()

    return extract


def playing(venv: VecEnv, steps: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Random actions, and what SB3 gets in return for them."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.integers(venv.action_space.n, size=venv.num_envs)
        yield actions, venv.step(actions)


def padded(entries: list[Any], window: int, blank: Any) -> np.ndarray:
    """The last entries, after blanks where there are too few."""
    return np.stack(([blank] * window + entries)[-window:])


def check(given: Windows, frames: list[np.ndarray], actions: list[int], encoder: SequenceEncoder, window: int) -> None:
    """One environment's window is what an episode of these frames, with these actions between them, ends in."""
    with torch.no_grad():
        features = list(encoder.frames(torch.from_numpy(np.stack(frames))).numpy())
    assert given["features"] == pytest.approx(padded(features, window, np.zeros(16)), abs=1e-5)
    assert given["actions"].tolist() == padded([-1, *actions], window, -1).tolist()
    assert given["present"].tolist() == padded([1] * len(frames), window, 0).tolist()


@pytest.mark.parametrize(("length", "window"), [(3, 5), (7, 4), (2, 1)])
def test_windows_are_the_last_steps_of_their_own_episode(length: int, window: int) -> None:
    encoder = odd_sequence()
    pixels, venv = worlds(3, length=length), HistoryVecEnv(worlds(3, length=length), encoder, window, "cpu")
    frames, actions = [[frame] for frame in pixels.reset()], [[] for _ in range(3)]
    given, ended = venv.reset(), 0
    for taken, (after, rewards, dones, infos) in playing(venv, 3 * length + 1):
        for env in range(3):
            check({name: part[env] for name, part in given.items()}, frames[env], actions[env], encoder, window)
        seen, plain_rewards, plain_dones, plain_infos = pixels.step(taken)
        assert np.array_equal(rewards, plain_rewards)
        assert np.array_equal(dones, plain_dones)
        for env in range(3):
            if dones[env]:
                last = plain_infos[env]["terminal_observation"]
                terminal = infos[env]["terminal_observation"]
                assert venv.observation_space.contains(terminal)
                check(terminal, [*frames[env], last], [*actions[env], taken[env]], encoder, window)
                frames[env], actions[env], ended = [seen[env]], [], ended + 1
            else:
                frames[env], actions[env] = [*frames[env], seen[env]], [*actions[env], taken[env]]
        given = after
        assert all(venv.observation_space.contains({k: part[env] for k, part in given.items()}) for env in range(3))
        wanted = [padded(one, window, np.zeros(FRAME.shape, np.uint8)) for one in frames]
        assert np.array_equal(venv.frames["frames"], wanted)
        assert all(np.array_equal(venv.frames[name], given[name]) for name in ("actions", "present"))
    assert ended == 9


def test_a_reset_forgets_the_episode_before() -> None:
    venv = HistoryVecEnv(worlds(length=50), odd_sequence(), device="cpu")
    venv.reset()
    for _ in playing(venv, 3):
        pass
    given = venv.reset()
    assert given["present"].sum(1).tolist() == [1, 1]
    assert not given["features"][:, :-1].any()
    assert (given["actions"] == -1).all()


@pytest.mark.parametrize("wrapper", [HistoryVecEnv, EncodedVecEnv])
def test_each_frame_is_encoded_once(wrapper: Callable[..., VecEnv]) -> None:
    venv = wrapper(worlds(length=6), odd_sequence(), device="cpu")
    sizes: list[int] = []
    venv.encoder.frames.register_forward_hook(lambda _module, frames, _features: sizes.append(len(frames[0])))
    venv.reset()
    for _ in playing(venv, 6):
        pass
    first, terminals = 2, 2
    assert sum(sizes) == first + 2 * 6 + terminals


# Missions.


def grid_worlds(count: int) -> VecEnv:
    return envs.make_vec("BabyAI-GoToObj-v0", count, 0)


def worlds_in_processes(count: int) -> VecEnv:
    venv = SubprocVecEnv([lambda: envs.make("BabyAI-GoToObj-v0")] * count, start_method="fork")
    venv.seed(0)
    return venv


def worlds_one_by_one(count: int) -> VecEnv:
    venv = DummyVecEnv([lambda: envs.make("BabyAI-GoToObj-v0")] * count)
    venv.seed(0)
    return venv


@pytest.mark.parametrize("make", [grid_worlds, worlds_one_by_one, worlds_in_processes])
def test_a_window_holds_the_mission_of_its_own_episode(make: Callable[[int], VecEnv]) -> None:
    pixels = make(3)
    frames = Encoder("cnn", InputSpec(pixels.observation_space.shape), features=16)
    venv = HistoryVecEnv(pixels, SequenceEncoder("gru", frames, 7, WORDS, width=8, window=3), device="cpu")
    given, seen, terminals = venv.reset(), set(), 0
    for _, (after, _, dones, infos) in playing(venv, 70):
        wanted = WORDS.encode([info["mission"] for info in infos])
        assert np.array_equal(given["mission"], wanted)
        for env in np.flatnonzero(dones):
            assert np.array_equal(infos[env]["terminal_observation"]["mission"], wanted[env])
            terminals += 1
        seen |= {info["mission"] for info in infos}
        given = after
    venv.close()
    assert terminals >= 3
    assert len(seen) > 3


class Speaking(Quadrant):
    """Says a mission at reset; later the info has none."""

    def __init__(self, mission: Any) -> None:
        super().__init__()
        self.mission = mission

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        return super().reset(**arguments)[0], {} if self.mission is None else {"mission": self.mission}


@pytest.mark.parametrize(
    ("mission", "named"),
    [
        (None, "environment 0 began an episode without a mission"),
        (7, "without a mission"),
        ("go to the moon", "lacks 'moon'"),
        ("go to the red red ball", "has 6 words"),
    ],
)
@pytest.mark.parametrize("wrapper", [HistoryVecEnv, EncodedVecEnv])
def test_a_mission_that_cannot_be_read_is_refused(wrapper: Callable[..., VecEnv], mission: Any, named: str) -> None:
    venv = wrapper(DummyVecEnv([lambda: Speaking(mission)]), odd_sequence(vocabulary=WORDS), device="cpu")
    with pytest.raises(RlpreError, match=named) as caught:
        venv.reset()
    assert "\n" not in str(caught.value)


# Step by step.


class Colourful(Speaking):
    """Each episode has another mission."""

    def __init__(self, length: int) -> None:
        super().__init__(None)
        self.length = length

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        frame, _ = super().reset(**arguments)
        return frame, {"mission": f"go to the {self.np_random.choice(COLOURS)} door"}


@pytest.mark.parametrize(("backbone", "length"), [("transformer", 13), ("gru", 4)])
def test_steps_give_the_features_of_windows(backbone: str, length: int) -> None:
    encoder, venvs = odd_sequence(backbone, window=5, vocabulary=WORDS), []
    for _ in range(2):
        venvs.append(DummyVecEnv([lambda length=length - env: Colourful(length) for env in range(3)]))
        venvs[-1].seed(0)
    steps, windows = EncodedVecEnv(venvs[0], encoder, "cpu"), HistoryVecEnv(venvs[1], encoder, device="cpu")
    extract = policy_reader(encoder, windows)
    given, read, ended = steps.reset(), windows.reset(), 0
    rng = np.random.default_rng(0)
    for _ in range(40):
        assert steps.observation_space.contains(given[0])
        assert given == pytest.approx(extract(read), abs=1e-5)
        assert given == pytest.approx(extract(steps.frames), abs=1e-5)
        actions = rng.integers(4, size=3)
        (given, _, _, ours), (read, _, _, theirs) = steps.step(actions), windows.step(actions)
        for mine, info in zip(ours, theirs, strict=True):
            if "terminal_observation" in info:
                last = {name: part[None] for name, part in info["terminal_observation"].items()}
                assert mine["terminal_observation"] == pytest.approx(extract(last)[0], abs=1e-5)
                ended += 1
    assert ended >= 9


def test_a_gru_remembers_more_step_by_step_than_a_window_holds() -> None:
    encoder = odd_sequence("gru", window=3)
    steps = EncodedVecEnv(worlds(1, length=9), encoder, "cpu")
    windows = HistoryVecEnv(worlds(1, length=9), encoder, device="cpu")
    extract, given, read = policy_reader(encoder, windows), steps.reset(), windows.reset()
    for step in range(6):
        assert np.allclose(given, extract(read), atol=1e-5) is (step < 3)
        (given, *_), (read, *_) = steps.step(np.array([step % 4])), windows.step(np.array([step % 4]))


# Bad input.


class Wide(Quadrant):
    """With other spaces."""

    def __init__(self, **changed: gym.Space) -> None:
        super().__init__()
        self.__dict__ |= changed


WRONG: list[tuple[dict[str, gym.Space], str]] = [
    ({"action_space": spaces.Box(-1, 1, (2,))}, "reads discrete actions, the environment takes Box"),
    ({"action_space": spaces.Discrete(7)}, r"takes Discrete\(7\), the encoder was built for Discrete\(4\)"),
    ({"action_space": spaces.Discrete(4, start=1)}, "start=1"),
    ({"observation_space": spaces.Box(0, 255, (3, 9, 9), np.uint8)}, r"shape is \(3, 9, 9\)"),
    ({"observation_space": spaces.Dict({"image": FRAME.space})}, "reads a Box of frames, the environment gives Dict"),
]


@pytest.mark.parametrize(("changed", "named"), WRONG)
@pytest.mark.parametrize("wrapper", [HistoryVecEnv, EncodedVecEnv])
def test_another_world_is_refused(wrapper: Callable[..., VecEnv], changed: dict[str, gym.Space], named: str) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        wrapper(DummyVecEnv([lambda: Wide(**changed)]), odd_sequence(), device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: HistoryVecEnv(worlds(), odd_encoder()), "HistoryVecEnv is for a SequenceEncoder, this is Encoder"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), 6), "window is 6, the encoder was built for 5"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence("gru"), 6), "window is 6"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), 0), "window is 0"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), device="abacus"), "device 'abacus'"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence(), stack=2), "leave out stack"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence(causal=False)), "causal=True"),
    ],
)
def test_bad_arguments_are_one_sentence(make: Callable[[], VecEnv], named: str) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        make()
    assert "\n" not in str(caught.value)


def odd_elsewhere() -> SequenceEncoder:
    """Its encoder of frames differs by one number."""
    encoder = odd_sequence()
    encoder.frames.feature_mean[0] += 1
    return encoder


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (worlds, "wrap it in HistoryVecEnv"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence()), "wrap it in HistoryVecEnv"),
        (lambda: HistoryVecEnv(worlds(), odd_elsewhere()), "'features' is FeatureSpace"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(vocabulary=None)), "'mission' is None"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(vocabulary=REVERSED)), "'mission' is MissionSpace"),
    ],
)
def test_a_policy_refuses_what_its_encoder_does_not_read(make: Callable[[], VecEnv], named: str) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        build(PPO, policy_kwargs(odd_sequence(vocabulary=WORDS)), venv=make(), policy="MultiInput")
    assert "\n" not in str(caught.value)
