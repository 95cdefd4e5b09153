"""Frames encoded once in front of the policy: single, stacked, in Dicts, in windows, and step by step."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import FRAME, TINY, Quadrant, build, encoders_in, odd_encoder, odd_sequence, same, worlds, worlds_for
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)
from torch import nn

import envs
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.sb3 import fuse, policy_kwargs, vecenv
from rlpre.sb3.policy import SequenceExtractor

COLOURS = ["red", "green", "blue", "purple", "yellow", "grey"]
WORDS = Vocabulary.from_missions(
    f"go to {which} {colour} {thing}"
    for which in ("a", "the")
    for colour in COLOURS
    for thing in ("door", "key", "ball", "box")
)
Windows = dict[str, np.ndarray]


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def counted(encoder: nn.Module) -> list[int]:
    """A list that grows by the batch size of every call of ``encoder``."""
    sizes: list[int] = []
    encoder.register_forward_hook(lambda _module, frames, _features: sizes.append(len(frames[0])))
    return sizes


def sliced(encoder: Encoder, stacks: np.ndarray) -> np.ndarray:
    """Features of stacks (n, k * 3, 36, 36), one slice at a time."""
    with torch.no_grad():
        slices = [encoder(torch.from_numpy(stacks[:, i : i + 3])) for i in range(0, stacks.shape[1], 3)]
    return torch.cat(slices, dim=1).numpy()


def playing(venv: VecEnv, steps: int) -> Iterator[tuple[np.ndarray, Any]]:
    """Random actions, and what SB3 gets in return for them."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        actions = rng.integers(venv.action_space.n, size=venv.num_envs)
        yield actions, venv.step(actions)


# Trap 5: a frozen encoder runs 1 + n_epochs times per frame, and terminal observations need it too.


def test_a_frame_is_encoded_once_instead_of_once_per_epoch(encoder: Encoder) -> None:
    steps, epochs = 8 * 2, TINY[PPO]["n_epochs"]
    inside = build(PPO, policy_kwargs(encoder, "frozen"))
    in_policy = counted(encoders_in(inside)[0])
    inside.learn(steps)
    assert sum(in_policy) >= (1 + epochs) * steps, "plain SB3 no longer encodes per epoch"
    venv = EncodedVecEnv(worlds(), encoder, "cpu")
    outside = counted(venv.encoder)
    PPO("MlpPolicy", venv, device="cpu", **TINY[PPO]).learn(steps)
    first, terminals = 2, 2
    assert sum(outside) == first + steps + terminals


@pytest.mark.parametrize(
    "wrap",
    [
        lambda venv: EncodedVecEnv(venv, odd_encoder(), "cpu", stack=4),
        lambda venv: EncodedVecEnv(venv, odd_sequence(), "cpu"),
        lambda venv: HistoryVecEnv(venv, odd_sequence(), device="cpu"),
    ],
)
def test_a_frame_is_encoded_once_for_all_its_stacks_and_windows(wrap: Callable[[VecEnv], Any]) -> None:
    venv = wrap(worlds(2, length=6))
    sizes = counted(getattr(venv.encoder, "frames", venv.encoder))
    venv.reset()
    for _ in playing(venv, 6):
        pass
    assert sizes == [2, 2, 2, 2, 2, 2, 4], "the last terminal frames too"


def test_a_frame_seen_before_is_not_encoded_again(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    venv = EncodedVecEnv(worlds(noise=0), encoder, "cpu")
    calls = counted(venv.encoder)
    for most, encoded in ((vecenv.MEMORY_FRAMES, {4}), (2, range(5, 99))):
        monkeypatch.setattr(vecenv, "MEMORY_FRAMES", most)
        venv.reset()
        for _, (given, *_) in playing(venv, 40):
            assert given == pytest.approx(sliced(encoder, venv.frames), abs=1e-5)
        assert sum(calls) in encoded, "one per quadrant, and the memory is bounded"


class ForgetsTerminals(VecEnvWrapper):
    """What one writes without rlpre: encodes observations and forgets the terminal ones."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(worlds(), spaces.Box(-np.inf, np.inf, (encoder.num_features,), np.float32))
        self.encode = lambda frames: encoder(torch.from_numpy(frames)).detach().numpy()

    def reset(self) -> np.ndarray:
        return self.encode(self.venv.reset())

    def step_wait(self) -> tuple[Any, ...]:
        frames, *rest = self.venv.step_wait()
        return self.encode(frames), *rest


def test_plain_wrapper_leaves_pixels_in_terminal_observations(encoder: Encoder) -> None:
    with pytest.raises(ValueError, match="shape"):
        PPO("MlpPolicy", ForgetsTerminals(encoder), device="cpu", **TINY[PPO]).learn(16)


@pytest.mark.parametrize("stack", [1, 2, 4])
def test_features_are_those_of_sb3s_stack_in_terminal_observations_too(stack: int, encoder: Encoder) -> None:
    pixels = VecFrameStack(worlds(3, length=3), stack, "first")
    venv = EncodedVecEnv(worlds(3, length=3), encoder, "cpu", stack=stack)
    ended = 0
    for _ in range(2):
        assert venv.reset() == pytest.approx(sliced(encoder, pixels.reset()), abs=1e-4)
        for actions, (features, rewards, dones, infos) in playing(venv, 7):
            frames, same_rewards, same_dones, plain_infos = pixels.step(actions)
            assert venv.observation_space.contains(features[0])
            assert features == pytest.approx(sliced(encoder, frames), abs=1e-4)
            assert np.array_equal(venv.frames, frames)
            assert np.array_equal(rewards, same_rewards)
            assert np.array_equal(dones, same_dones)
            for theirs, mine in zip(plain_infos, infos, strict=True):
                assert theirs.keys() == mine.keys()
                if "terminal_observation" in theirs:
                    wanted = sliced(encoder, theirs["terminal_observation"][None])[0]
                    assert mine["terminal_observation"] == pytest.approx(wanted, abs=1e-4)
                    ended += 1
    assert ended == 12


@pytest.mark.parametrize("stack", [1, 3])
def test_in_a_dict_only_the_image_is_encoded_and_stacked(stack: int, encoder: Encoder) -> None:
    pixels = worlds_for(PPO, 3, parts=True, length=2)
    venv = EncodedVecEnv(worlds_for(PPO, 3, parts=True, length=2), encoder, "cpu", stack=stack)
    plain = EncodedVecEnv(worlds_for(PPO, 3, length=2), encoder, "cpu", stack=stack)
    pixels.reset()
    assert venv.reset()["image"] == pytest.approx(plain.reset(), abs=1e-5)
    for actions, (given, _, _, ours) in playing(venv, 4):
        observed, _, _, infos = pixels.step(actions)
        features, _, _, plain_infos = plain.step(actions)
        triples = [(observed, given, features)]
        triples += [
            tuple(info["terminal_observation"] for info in three)
            for three in zip(infos, ours, plain_infos, strict=True)
            if "terminal_observation" in three[0]
        ]
        for theirs, mine, feature in triples:
            assert list(theirs) == list(mine)
            assert mine["image"] == pytest.approx(feature, abs=1e-5)
            assert all(np.array_equal(theirs[key], mine[key]) for key in theirs if key != "image")
        assert venv.frames.keys() == observed.keys()
        assert np.array_equal(venv.frames["image"][:, -3:], observed["image"])


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_may_be_last(dtype: type, parts: bool) -> None:
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(FRAME.shape, np.dtype(dtype).name), features=16)
    sequence = SequenceEncoder("transformer", encoder, 4, width=8, window=3).eval()
    wraps = [lambda venv: EncodedVecEnv(venv, encoder, "cpu", stack=2)]
    if not parts:
        wraps += [lambda venv: EncodedVecEnv(venv, sequence, "cpu"), lambda venv: HistoryVecEnv(venv, sequence)]
    for wrap in wraps:
        first, last = (wrap(worlds(parts=parts, dtype=dtype, last=last, length=3)) for last in (False, True))
        assert first.observation_space == last.observation_space
        check_same(first.reset(), last.reset())
        for actions, (given, _, _, infos) in playing(first, 7):
            other, _, _, others = last.step(actions)
            check_same((given, infos, first.frames), (other, others, last.frames))


def check_same(one: Any, other: Any) -> None:
    if isinstance(one, dict | list | tuple):
        assert len(one) == len(other)
        for key in one if isinstance(one, dict) else range(len(one)):
            check_same(one[key], other[key])
    else:
        assert np.array_equal(one, other)


@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("algorithm", [DQN, SAC, PPO])
def test_rewards_may_be_normalised_inside(algorithm: type[BaseAlgorithm], parts: bool, encoder: Encoder) -> None:
    """Buffers and weights are those of a VecNormalize outside; other keys of a Dict may be normalised too."""
    keys = {"norm_obs_keys": ["velocity"]} if parts else {"norm_obs": False}
    arguments = {"policy": "MultiInput" if parts else "Mlp"}
    worlds_of = [worlds_for(algorithm, parts=parts, length=3) for _ in range(2)]
    inside = EncodedVecEnv(VecMonitor(VecNormalize(worlds_of[0], **keys)), encoder, "cpu", stack=2)
    outside = VecNormalize(EncodedVecEnv(worlds_of[1], encoder, "cpu", stack=2), **keys)
    models = [build(algorithm, {}, venv=venv, **arguments).learn(40) for venv in (inside, outside)]
    assert all(same(models[0].policy, model.policy) for model in models)
    buffers = [getattr(model, "replay_buffer", None) or model.rollout_buffer for model in models]
    for name in ("observations", "next_observations", "rewards"):
        check_same(*(getattr(buffer, name, None) for buffer in buffers))


def test_windows_with_rewards_normalised_inside(encoder: Encoder) -> None:
    sequence = odd_sequence()
    venv = HistoryVecEnv(VecNormalize(worlds(), norm_obs=False), sequence, device="cpu")
    build(DQN, policy_kwargs(sequence), venv=venv, policy="MultiInput").learn(40)


def test_encoders_are_given_as_such_as_directories_or_as_results(encoder: Encoder, tmp_path: Path) -> None:
    sequence = odd_sequence()
    for one, wrap in ((encoder, EncodedVecEnv), (sequence, EncodedVecEnv), (sequence, HistoryVecEnv)):
        path = one.save(tmp_path / "encoder")
        result = SimpleNamespace(encoder=one)  # as of rlpre.pretrain
        wanted = wrap(worlds(), one).reset()
        model = build(PPO, {}, venv=EncodedVecEnv(worlds(), one), policy="Mlp")
        for given in (path, str(path), result):
            check_same(wrap(worlds(), given).reset(), wanted)
            arguments = policy_kwargs(given, "anchored", parent=(given, 0.1))["features_extractor_kwargs"]
            assert same(arguments["encoder"].build(), one)
            assert same(fuse(model, given), fuse(model, one))
    for call in (EncodedVecEnv, HistoryVecEnv):
        refuse("Flatten is a torch module, not an encoder: register", lambda call=call: call(worlds(), nn.Flatten()))
    refuse("Flatten is a torch module", lambda: policy_kwargs(nn.Flatten()))
    refuse("Flatten is a torch module", lambda: fuse(model, nn.Flatten()))


def test_training_the_encoder_later_does_not_change_the_features(encoder: Encoder) -> None:
    mine = copy.deepcopy(encoder)
    venv, other = EncodedVecEnv(worlds(), mine, "cpu"), EncodedVecEnv(worlds(), encoder, "cpu")
    with torch.no_grad():
        mine.stages[0][0].weight.zero_()
    assert np.array_equal(venv.reset(), other.reset())
    assert not list(venv.encoder.parameters())


@pytest.mark.parametrize("algorithm", [DQN, SAC])
def test_replay_buffers_hold_features(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    def bytes_per_transition(model: BaseAlgorithm) -> float:
        buffer = model.replay_buffer
        return (buffer.observations.nbytes + buffer.next_observations.nbytes) / (buffer.buffer_size * buffer.n_envs)

    venv = EncodedVecEnv(worlds_for(algorithm), encoder, "cpu")
    assert bytes_per_transition(build(algorithm, policy_kwargs(encoder))) == 2 * 3 * 36 * 36
    assert bytes_per_transition(build(algorithm, {}, venv=venv, policy="Mlp")) == 2 * 4 * encoder.num_features


# Windows of the past.


def policy_reader(encoder: SequenceEncoder, venv: VecEnv) -> Callable[[Windows], np.ndarray]:
    """What the heads of a policy get of windows, which SB3 turns into floats."""
    extractor = SequenceExtractor(venv.observation_space, **policy_kwargs(encoder)["features_extractor_kwargs"])

    @torch.no_grad()
    def extract(windows: Windows) -> np.ndarray:
        return extractor({name: torch.as_tensor(part).float() for name, part in windows.items()}).numpy()

    return extract


def padded(entries: list[Any], window: int, blank: Any) -> np.ndarray:
    """The last entries, after blanks where there are too few."""
    return np.stack(([blank] * window + entries)[-window:])


def check(given: Windows, frames: list[np.ndarray], actions: list[int], encoder: SequenceEncoder, window: int) -> None:
    """One environment's window is the end of an episode of these frames, with these actions between them."""
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
    for taken, (after, _, dones, infos) in playing(venv, 3 * length + 1):
        for env in range(3):
            check({name: part[env] for name, part in given.items()}, frames[env], actions[env], encoder, window)
        seen, _, _, plain_infos = pixels.step(taken)
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
    given = venv.reset()
    assert given["present"].sum(1).tolist() == [1, 1, 1], "a reset forgets the episode before"
    assert (given["actions"] == -1).all()


def mission_worlds(kind: str) -> VecEnv:
    if kind == "batched":
        return envs.make_vec("BabyAI-GoToObj-v0", 3, 0)
    make = [lambda: envs.make("BabyAI-GoToObj-v0")] * 3
    venv = DummyVecEnv(make) if kind == "dummy" else SubprocVecEnv(make, start_method="fork")
    venv.seed(0)
    return venv


@pytest.mark.parametrize("kind", ["batched", "dummy", "subprocess"])
def test_a_window_holds_the_mission_of_its_own_episode(kind: str) -> None:
    pixels = mission_worlds(kind)
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


class WithMission(Quadrant):
    """Gives a mission at reset, each episode another one if there is a choice; later infos have none."""

    def __init__(self, *missions: Any, length: int = 6) -> None:
        super().__init__(length)
        self.missions = missions

    def reset(self, **arguments: Any) -> tuple[Any, dict[str, Any]]:
        frame, _ = super().reset(**arguments)
        return frame, {"mission": self.missions[self.np_random.integers(len(self.missions))]} if self.missions else {}


@pytest.mark.parametrize(("backbone", "length"), [("transformer", 13), ("gru", 4)])
def test_steps_give_the_features_of_windows(backbone: str, length: int) -> None:
    encoder, venvs = odd_sequence(backbone, window=5, vocabulary=WORDS), []
    missions = [f"go to the {colour} door" for colour in COLOURS]
    for _ in range(2):
        venvs.append(
            DummyVecEnv([lambda longer=env: WithMission(*missions, length=length - longer) for env in range(3)])
        )
        venvs[-1].seed(0)
    steps, windows = EncodedVecEnv(venvs[0], encoder, "cpu"), HistoryVecEnv(venvs[1], encoder, device="cpu")
    extract = policy_reader(encoder, windows)
    given, read, ended = steps.reset(), windows.reset(), 0
    for actions, (after, _, _, ours) in playing(steps, 40):
        assert given == pytest.approx(extract(read), abs=1e-5)
        given, (read, _, _, theirs) = after, windows.step(actions)
        assert steps.observation_space.contains(given[0])
        assert given == pytest.approx(extract(steps.frames), abs=1e-5)
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


def refuse(named: str, call: Callable[[], object]) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mission", "named"),
    [
        ((), "environment 0 began an episode without a mission"),
        ((7,), "without a mission"),
        (("go to the moon",), "lacks 'moon'"),
        (("go to the red red ball",), "has 6 words"),
    ],
)
@pytest.mark.parametrize("wrapper", [HistoryVecEnv, EncodedVecEnv])
def test_a_mission_that_cannot_be_read_is_refused(wrapper: Callable[..., VecEnv], mission: Any, named: str) -> None:
    venv = wrapper(DummyVecEnv([lambda: WithMission(*mission)]), odd_sequence(vocabulary=WORDS), device="cpu")
    refuse(named, venv.reset)


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
    world = Quadrant()
    world.__dict__ |= changed
    refuse(named, lambda: wrapper(DummyVecEnv([lambda: world]), odd_sequence(), device="cpu"))


def normalized(keys: list[str] | None = None, dtype: type = np.uint8, parts: bool = False) -> VecEnv:
    encoder = Encoder("cnn", InputSpec(FRAME.shape, np.dtype(dtype).name), features=16)
    return EncodedVecEnv(VecMonitor(VecNormalize(worlds(dtype=dtype, parts=parts), norm_obs_keys=keys)), encoder)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: EncodedVecEnv(Quadrant(), odd_encoder()), r"this is Quadrant, not a VecEnv.*: wrap it, DummyVecEnv\("),
        (lambda: HistoryVecEnv(Quadrant(), odd_sequence()), "this is Quadrant, not a VecEnv"),
        (lambda: normalized(dtype=np.float32), "VecNormalize changes the frames .*: give it norm_obs=False"),
        (normalized, "VecNormalize changes the frames .*: give it norm_obs=False"),
        (lambda: normalized(["image"], parts=True), "VecNormalize changes the frames .* or norm_obs_keys without"),
        (lambda: EncodedVecEnv(worlds(), odd_encoder(), "abacus"), "device 'abacus'"),
        (lambda: EncodedVecEnv(VecFrameStack(worlds(), 4, "first"), odd_encoder(), stack=4), "leave out VecFrameStack"),
        (lambda: EncodedVecEnv(worlds(), odd_encoder(), stack=0), "stack is 0"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence(), stack=2), "leave out stack"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence(causal=False)), "causal=True"),
        (lambda: HistoryVecEnv(worlds(), odd_encoder()), "HistoryVecEnv is for a SequenceEncoder, this is Encoder"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), 6), "window is 6, the encoder was built for 5"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), 0), "window is 0"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(), device="abacus"), "device 'abacus'"),
    ],
)
def test_bad_arguments_are_one_sentence(make: Callable[[], VecEnv], named: str) -> None:
    refuse(named, make)
