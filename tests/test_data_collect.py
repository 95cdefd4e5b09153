"""Collection from any vectorised environment: what is stored is what happened, and it goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import SyncVectorEnv
from PIL import Image
from pixel_world import build, refuse, worlds
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
)

import rlpre
from rlpre import FrameStore, RlpreError
from rlpre.data import store as frame_store
from rlpre.data.collect import converted

DISCRETE, VECTORS = spaces.Discrete(4), spaces.Box(-1, 1, (2,), np.float32)


class Clock(gym.Env[Any, Any]):
    """Every frame tells the environment's number, the episode and the time; the reward tells the action.

    Even episodes terminate after 5 steps, odd ones are truncated after 7, unless they are ``endless``.
    """

    def __init__(
        self,
        number: int,
        layout: str = "CHW",
        actions: spaces.Space = DISCRETE,
        keys: tuple[str, ...] = (),
        endless: bool = False,
        size: tuple[int, int] = (6, 5),
    ) -> None:
        shape = {"CHW": (3, *size), "HWC": (*size, 3), "HW": size}[layout]
        image = spaces.Box(0, 255, shape, np.uint8)
        self.observation_space: spaces.Space = image
        if keys:
            self.observation_space = spaces.Dict({key: image for key in keys} | {"time": spaces.Discrete(256)})
        self.action_space, self.layout, self.keys, self.size = actions, layout, keys, size
        self.number, self.endless, self.episode, self.time = number, endless, -1, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict]:
        super().reset(seed=seed)
        self.episode, self.time = self.episode + 1, 0
        return self._look(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        self.time += 1
        terminated, truncated = (not self.endless and (self.episode % 2, self.time) == end for end in ((0, 5), (1, 7)))
        return self._look(), float(np.sum(action)) / 2, terminated, truncated, {}

    def _look(self) -> Any:
        frame = np.zeros((3, *self.size), np.uint8)
        frame[:, 0, 0] = self.number, self.episode, self.time % 256
        frame[0, 1, :3] = frame[:, 0, 0]  # gray frames hold all three
        image = {"CHW": frame, "HWC": frame.transpose(1, 2, 0), "HW": frame[0]}[self.layout]
        return {key: image for key in self.keys} | {"time": self.time} if self.keys else image


def clocks(count: int = 3, **arguments: Any) -> DummyVecEnv:
    return DummyVecEnv([lambda n=n: Clock(n, **arguments) for n in range(count)])


def check(store: FrameStore, steps: int) -> None:
    """The frames and flags of clocks tell one whole story."""
    assert store.acted.sum() == steps
    number, episode, time = store.frames(np.arange(len(store)))[:, 0, 1, :3].T.astype(int)
    cut = 0
    for rows in np.split(np.arange(len(store)), np.flatnonzero(store.column("episode_start"))[1:]):
        assert len(set(number[rows])) == len(set(episode[rows])) == 1
        np.testing.assert_array_equal(time[rows], np.arange(len(rows)))
        np.testing.assert_array_equal(store.acted[rows], rows != rows[-1])
        whole = len(rows) - 1 == (5, 7)[episode[rows[0]] % 2]
        cut += not whole
        for column, parity in (("terminated", 0), ("truncated", 1)):
            expected = (rows == rows[-1] - 1) & whole & (episode[rows[0]] % 2 == parity)
            np.testing.assert_array_equal(store.column(column)[rows], expected)
    assert cut <= 3
    action = store.column("action")[store.acted].astype(np.float64)
    np.testing.assert_array_equal(store.column("reward")[store.acted], np.float32(action.reshape(steps, -1).sum(1) / 2))
    assert (store.column("reward")[~store.acted] == 0).all()


@pytest.mark.parametrize("layout", ["CHW", "HWC", "HW"])
@pytest.mark.parametrize("actions", [DISCRETE, VECTORS], ids=["discrete", "vectors"])
@pytest.mark.parametrize("keys", [(), ("camera",)], ids=["box", "dict"])
def test_what_is_stored_is_what_happened(
    tmp_path: Path, layout: str, actions: spaces.Space, keys: tuple[str, ...]
) -> None:
    store = rlpre.collect(clocks(layout=layout, actions=actions, keys=keys), tmp_path / "s", 100)
    check(store, 102)
    assert store.space.shape == ((1, 6, 5) if layout == "HW" else (3, 6, 5))
    assert store.action_space == actions
    assert store.labels == []
    taken = store.column("action")[store.acted]
    assert len(np.unique(taken)) == (4 if actions is DISCRETE else taken.size)


def test_short_stretches_keep_episodes_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three shards' worth of stretches shorter than an episode give the rows that one stretch gives."""
    whole = rlpre.collect(clocks(), tmp_path / "whole", 150)
    monkeypatch.setattr(frame_store, "SHARD_ROWS", 18)  # 3 steps each of 3 environments
    parts = rlpre.collect(clocks(), tmp_path / "parts", 150)
    check(parts, 150)
    assert len(parts.manifest["shards"]) > 5

    def sorted_rows(store: FrameStore) -> list[tuple[bytes, int, float]]:
        frames, columns = store.frames(np.arange(len(store))), [store.column(name) for name in ("action", "terminated")]
        return sorted((frame.tobytes(), *row) for frame, *row in zip(frames, *columns, strict=True))

    assert sorted_rows(parts) == sorted_rows(whole)


def test_an_endless_episode_is_cut_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frame_store, "SHARD_ROWS", 20)
    store = rlpre.collect(clocks(1, endless=True), tmp_path / "s", 50)
    time = store.frames(np.arange(len(store)))[:, 0, 1, 2].astype(int)
    np.testing.assert_array_equal(time, [*range(21), *range(20, 41), *range(40, 51)])
    assert np.flatnonzero(store.column("episode_start")).tolist() == [0, 21, 42]
    assert not (store.column("terminated") | store.column("truncated")).any()


def test_the_seed_decides_everything(tmp_path: Path) -> None:
    hashes = [rlpre.collect(worlds(), tmp_path / str(n), 60, seed=seed).hash for n, seed in enumerate((3, 3, 4))]
    assert hashes[0] == hashes[1] != hashes[2]


def test_more_steps_are_appended_and_a_complete_store_stays(tmp_path: Path) -> None:
    first = rlpre.collect(clocks(), tmp_path / "s", 30)
    before = first.frames(np.arange(len(first)))
    assert rlpre.collect(clocks(), tmp_path / "s", 30).hash == first.hash
    grown = rlpre.collect(clocks(), tmp_path / "s", 60)
    assert grown.acted.sum() == 60
    np.testing.assert_array_equal(grown.frames(np.arange(len(before))), before)
    late = grown.column("action")[len(before) :]
    assert not np.array_equal(late[late >= 0], grown.column("action")[: len(before)][first.acted])


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC, RecurrentPPO])
def test_a_model_acts(tmp_path: Path, algorithm: type) -> None:
    def fresh() -> DummyVecEnv:
        return clocks(2, keys=("camera",), actions=VECTORS if algorithm is SAC else DISCRETE, size=(36, 36))

    policy = "MultiInputLstmPolicy" if algorithm is RecurrentPPO else "MultiInputPolicy"
    arguments = {"buffer_size": 10} if algorithm in (DQN, SAC) else {"n_steps": 32}
    model = algorithm(policy, fresh(), seed=0, device="cpu", **arguments)
    stores = [rlpre.collect(fresh(), tmp_path / name, 20, policy=model) for name in "ab"]
    check(stores[0], 20)
    assert stores[0].hash == stores[1].hash
    assert stores[0].manifest["spec"]["policy"].startswith(f"{algorithm.__name__} ")
    model.policy.load_state_dict({name: 0 * tensor for name, tensor in model.policy.state_dict().items()})
    with pytest.raises(RlpreError, match=rf"policy is '{algorithm.__name__} \w+' there and '{algorithm.__name__} \w+'"):
        rlpre.collect(fresh(), tmp_path / "a", 40, policy=model)
    with pytest.raises(RlpreError, match="the policy cannot act on these observations: "):
        rlpre.collect(clocks(2, keys=("camera",)), tmp_path / "c", 20, policy=model)


def test_a_callable_sees_the_observations(tmp_path: Path) -> None:
    store = rlpre.collect(clocks(), tmp_path / "s", 60, policy=lambda observed: observed[:, 0, 1, 2] % 4)
    time = store.frames(np.arange(len(store)))[:, 0, 1, 2]
    np.testing.assert_array_equal(store.column("action")[store.acted], time[store.acted] % 4)


def test_wrapped_environments(tmp_path: Path) -> None:
    check(rlpre.collect(VecTransposeImage(clocks(layout="HWC")), tmp_path / "transposed", 60), 60)
    stack = VecFrameStack(clocks(layout="HWC"), 4)
    with pytest.raises(
        RlpreError, match=r"images of the environment have shape \(6, 5, 12\).*give layout='CHW' or layout='HWC'"
    ):
        rlpre.collect(stack, tmp_path / "stacked", 60)
    store = rlpre.collect(stack, tmp_path / "stacked", 60, layout="HWC")
    frames, start = store.frames(np.arange(len(store))), store.column("episode_start")
    assert frames.shape[1:] == (12, 6, 5)
    inside = np.flatnonzero(~start)
    np.testing.assert_array_equal(frames[inside, 6:9], frames[inside - 1, 9:])
    assert not frames[start, :9].any()


def test_stored_rewards_are_the_environments_own(tmp_path: Path) -> None:
    plain = rlpre.collect(clocks(), tmp_path / "plain", 60)
    normalised = rlpre.collect(VecMonitor(VecNormalize(clocks(), norm_obs=False)), tmp_path / "normalised", 60)
    assert plain.column("reward").any()
    np.testing.assert_array_equal(normalised.column("reward"), plain.column("reward"))


@pytest.mark.parametrize(
    "make", [lambda: Clock(0), lambda: SyncVectorEnv([lambda n=n: Clock(n) for n in range(3)])], ids=["env", "vector"]
)
def test_other_environments(tmp_path: Path, make: Callable[[], Any]) -> None:
    store = rlpre.collect(make(), tmp_path / "s", 60)
    check(store, 60)
    assert store.tasks == ["default"]


@pytest.mark.filterwarnings("ignore:an EnvPool is seeded when it is made")
def test_envpool(tmp_path: Path) -> None:
    envpool = pytest.importorskip("envpool")
    store = rlpre.collect(envpool.make_gymnasium("Pong-v5", num_envs=2, stack_num=1), tmp_path / "s", 20, size=(32, 32))
    assert store.space.shape == (1, 32, 32)


def test_the_task_is_named_after_the_environment(tmp_path: Path) -> None:
    clock = Clock(0)
    clock.spec = EnvSpec("Clock-v0")
    store = rlpre.collect(clock, tmp_path / "clock", 20, size=(24, 20), gray=True)
    assert (store.tasks, store.space.shape) == (["Clock-v0"], (1, 24, 20))
    assert {name: store.manifest["spec"][name] for name in ("size", "gray")} == {"size": [24, 20], "gray": True}
    assert rlpre.collect(clocks(), tmp_path / "named", 20, task="clocks").tasks == ["clocks"]


def test_frames_are_resized_and_gray_as_by_pillow(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 6, 30, 20), np.uint8)
    gray, both = converted(frames, None, True), converted(frames, (12, 10), True)
    assert (gray.shape, both.shape) == ((4, 2, 30, 20), (4, 2, 12, 10))
    assert converted(frames[0], (12, 10), False).shape == (6, 12, 10)
    for n, newest in np.ndindex(4, 2):
        image = Image.fromarray(frames[n, 3 * newest : 3 * newest + 3].transpose(1, 2, 0)).convert("L")
        np.testing.assert_array_equal(gray[n, newest], image)
        resized = np.asarray(image.resize((10, 12), Image.Resampling.BILINEAR))
        np.testing.assert_allclose(both[n, newest].astype(int), resized, atol=1)
    with pytest.raises(RlpreError, match="frames of 4 channels are no colours: leave gray out"):
        converted(frames[:, :4], None, True)
    store = rlpre.collect(clocks(layout="HWC"), tmp_path / "s", 30, gray=True)
    plain = rlpre.collect(clocks(), tmp_path / "plain", 30)
    rows = np.arange(len(plain))
    np.testing.assert_array_equal(store.frames(rows), converted(plain.frames(rows), None, True))


class Pool:
    """Batched environments that are no VecEnv, such as those of EnvPool; episodes are truncated after 5 steps."""

    num_envs, render_mode = 2, None
    observation_space, action_space = spaces.Box(0, 255, (3, 6, 5), np.uint8), DISCRETE

    def __init__(self) -> None:
        self.unwrapped, self.time = self, np.zeros(2, int)

    def look(self) -> np.ndarray:
        return np.broadcast_to(self.time.astype(np.uint8)[:, None, None, None], (2, 3, 6, 5)).copy()


class Adapter(VecEnvWrapper):
    """As people write it: a VecEnvWrapper around the pool."""

    def reset(self) -> np.ndarray:
        self.venv.time[:] = 0
        return self.venv.look()

    def seed(self, seed: int | None = None) -> None:
        pass

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.time += 1

    def step_wait(self) -> Any:
        last, done = self.venv.look(), self.venv.time == 5
        self.venv.time[done] = 0
        infos = [{"terminal_observation": last[i], "TimeLimit.truncated": True} if done[i] else {} for i in range(2)]
        return self.venv.look(), np.zeros(2, np.float32), done, infos


def test_an_adapter_around_another_kind_of_environment(tmp_path: Path) -> None:
    store = rlpre.collect(Adapter(Pool()), tmp_path / "s", 20)
    np.testing.assert_array_equal(store.frames(range(len(store)))[:, 0, 0, 0], [0, 1, 2, 3, 4, 5] * 4)
    np.testing.assert_array_equal(np.flatnonzero(store.column("truncated")), [4, 10, 16, 22])
    assert store.missions == []


ENDLESS = """
import sys
sys.path.insert(0, sys.argv[1])
from test_data_collect import clocks, frame_store, rlpre
frame_store.SHARD_ROWS = 60
rlpre.collect(clocks(), sys.argv[2], 10**7)
"""


def test_killed_it_opens_and_goes_on(tmp_path: Path) -> None:
    here, out = Path(__file__).parent, tmp_path / "s"
    environment = {**os.environ, "PYTHONPATH": str(here.parent)}
    process = subprocess.Popen([sys.executable, "-c", ENDLESS, here, out], env=environment, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (out / "manifest.json").exists() or len(json.loads((out / "manifest.json").read_text())["shards"]) < 5:
        assert process.poll() is None, "the collection ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    killed = FrameStore.open(out)
    killed.verify()
    taken = int(killed.acted.sum())
    check(killed, taken)
    whole = rlpre.collect(clocks(), out, taken + 60)
    assert taken + 60 <= whole.acted.sum() < taken + 63
    np.testing.assert_array_equal(whole.frames(np.arange(len(killed))), killed.frames(np.arange(len(killed))))


class Forgetful(DummyVecEnv):
    """Keeps no terminal observations."""

    def step_wait(self) -> Any:
        *rest, infos = super().step_wait()
        return *rest, [{} for _ in infos]


@pytest.mark.parametrize(
    ("venv", "change", "message"),
    [
        (object, {}, "object is not an environment that rlpre reads"),
        (clocks, {"steps": 0}, "cannot collect 0 steps"),
        (clocks, {"steps": 1e4}, "steps is 10000.0: give a whole number, as an int"),
        (clocks, {"size": (0, 4)}, r"and size \(0, 4\): use positive numbers"),
        (clocks, {"seed": -1}, "with seed -1"),
        (clocks, {"image": "camera"}, "are not a Dict, so there is no image 'camera'"),
        (clocks, {"layout": "CWH"}, "unknown layout 'CWH': did you mean 'CHW'"),
        (lambda: clocks(keys=("left", "right")), {}, r"hold several images, left, right: name one with image="),
        (lambda: clocks(keys=("left", "right")), {"image": "lift"}, "unknown image 'lift': did you mean 'left'"),
        (lambda: DummyVecEnv([lambda: gym.make("CartPole-v1")]), {}, "frames are uint8 images"),
        (lambda: clocks(actions=spaces.MultiDiscrete([2, 2])), {}, "not MultiDiscrete"),
        (clocks, {"policy": lambda observed: np.zeros(5, int)}, r"gave actions \(5,\) int64: expected \(3,\) int64"),
        (clocks, {"policy": lambda observed: np.zeros(3)}, r"gave actions \(3,\) float64: expected \(3,\) int64"),
        (lambda: Forgetful([lambda: Clock(0)]), {}, r"without infos\[0\]\['terminal_observation'\]"),
    ],
)
def test_bad_input(tmp_path: Path, venv: Callable[[], VecEnv], change: dict[str, Any], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        rlpre.collect(venv(), tmp_path / "s", **{"steps": 20} | change)
    assert not list(tmp_path.rglob("frames-*"))


@pytest.mark.parametrize(
    ("venv", "change", "message"),
    [
        (clocks, {"seed": 1}, "seed is 0 there and 1 here"),
        (clocks, {"gray": True}, r"frames is \[3, 6, 5\] there and \[1, 6, 5\] here"),
        (clocks, {"task": "clock"}, "task is 'default' there and 'clock' here"),
        (lambda: clocks(2), {}, "n_envs is 3 there and 2 here"),
        (lambda: clocks(actions=VECTORS), {}, "actions is {'n': 4} there"),
        (lambda: clocks(layout="HW"), {}, r"frames is \[3, 6, 5\] there and \[1, 6, 5\] here"),
    ],
)
def test_a_store_of_another_collection_is_refused(
    tmp_path: Path, venv: Callable[[], VecEnv], change: dict[str, Any], message: str
) -> None:
    before = rlpre.collect(clocks(), tmp_path / "s", 20)
    with pytest.raises(RlpreError, match=f"belongs to another collection: {message}"):
        rlpre.collect(venv(), tmp_path / "s", 40, **change)
    assert FrameStore.open(tmp_path / "s").hash == before.hash


def test_two_functions_of_one_name_and_two_environments_share_no_store(tmp_path: Path) -> None:
    first, second = (lambda frames: np.zeros(len(frames), np.int64)), (lambda frames: np.ones(len(frames), np.int64))
    rlpre.collect(worlds(), tmp_path / "a", 16, first)
    assert len(rlpre.collect(worlds(), tmp_path / "a", 16, first)) > 0
    with pytest.raises(RlpreError, match="belongs to another collection: policy is"):
        rlpre.collect(worlds(), tmp_path / "a", 16, second)
    rlpre.collect(worlds(), tmp_path / "b", 16, task="one")
    with pytest.raises(RlpreError, match="belongs to another collection: task is 'one' there and 'two' here"):
        rlpre.collect(worlds(), tmp_path / "b", 16, task="two")


# Labels and masks.


def quadrants(venv: VecEnv) -> dict[str, list[int]]:
    return {"quadrant": [env.quadrant for env in venv.unwrapped.envs]}


def test_a_label_that_is_forgotten_later_is_named(tmp_path: Path) -> None:
    calls = iter(range(1000))

    def labels(venv: VecEnv) -> dict[str, list[int]]:
        return {"a": [0, 1]} if next(calls) > 3 else {"a": [0, 1], "b": [1, 0]}

    with pytest.raises(RlpreError, match=r"labels\(\) gave 'b' at first and now does not: give -1"):
        rlpre.collect(worlds(), tmp_path, 16, labels=labels)


def test_labels_belong_to_the_frames(tmp_path: Path) -> None:
    def frames_and_labels(steps: int) -> tuple[np.ndarray, np.ndarray]:
        store = rlpre.collect(worlds(noise=0), tmp_path, steps, labels=quadrants)
        acted = np.flatnonzero(store.acted)
        assert (store.column("quadrant")[~store.acted] == -1).all()
        return store.frames(acted), store.column("quadrant")[acted]

    for steps in (40, 80):  # the second continues the first
        frames, labels = frames_and_labels(steps)
        corners = frames[:, 0, ::35, ::35].reshape(-1, 4)
        assert len(labels) == steps
        assert np.array_equal(corners.argmax(1), labels)
    refuse("labels is .'quadrant'. there and None here", lambda: rlpre.collect(worlds(noise=0), tmp_path, 120))


@pytest.mark.parametrize("values", [[0.5, 1.0], [1, 2, 3], [40_000, 1]])
def test_labels_that_are_no_small_integers_are_refused(values: list[Any], tmp_path: Path) -> None:
    refuse(
        "label 'far' is .*give one integer for each of the 2 environments, 0 to 32767",
        lambda: rlpre.collect(worlds(), tmp_path, 8, labels=lambda venv: {"far": values}),
    )


@pytest.mark.parametrize("agent", [None, MaskablePPO])
def test_masked_actions_are_not_taken(agent: type[MaskablePPO] | None, tmp_path: Path) -> None:
    policy = build(agent, {}) if agent else None
    store = rlpre.collect(worlds(), tmp_path, 200, policy=policy, labels=quadrants)
    after = store.column("action") - store.column("quadrant")
    assert set((after % 4)[store.acted].tolist()) == {0, 2, 3}
