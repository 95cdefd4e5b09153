"""Collection: what is stored is what was seen, repeatably, through crashes, from every behaviour."""

import importlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper

from envs import collect, make_vec
from envs.minigrid.collect import parse
from envs.minigrid.experts import LABELS
from rlpre.data import store
from rlpre.data.store import FrameStore
from rlpre.errors import RlpreError

EMPTY, DOORKEY = "MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0"


class Witness(VecEnvWrapper):
    """Keeps every frame that the agent was shown, per environment, the terminal ones in their place."""

    def __init__(self, venv: VecEnv) -> None:
        super().__init__(venv)
        self.shown: list[list[np.ndarray]] = [[] for _ in range(venv.num_envs)]

    def reset(self) -> np.ndarray:
        self._keep(observed := self.venv.reset())
        return observed

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        observed, reward, done, infos = self.venv.step_wait()
        for env in np.flatnonzero(done):
            self.shown[env].append(infos[env]["terminal_observation"].copy())
        self._keep(observed)
        return observed, reward, done, infos

    def _keep(self, observed: np.ndarray) -> None:
        for shown, frame in zip(self.shown, observed, strict=True):
            shown.append(frame.copy())


@pytest.mark.parametrize("view", ["partial", "full"])
@pytest.mark.parametrize("palette", ["day", "night"])
def test_what_is_stored_is_what_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, view: str, palette: str
) -> None:
    witnesses: list[Witness] = []

    def watched(*args: object, **kwargs: object) -> Witness:
        witnesses.append(Witness(make_vec(*args, **kwargs)))
        return witnesses[-1]

    # the package's attribute of this name is the function
    monkeypatch.setattr(importlib.import_module("envs.minigrid.collect"), "make_vec", watched)
    store = collect(DOORKEY, tmp_path / "s", 1200, 0, "0.5*random+0.5*expert:0.2", 3, view=view, palette=palette)
    frames = store.frames(np.arange(len(store)))
    row, steps = 0, 0
    for shown in witnesses[0].shown:
        while steps < 400:
            end = row + np.flatnonzero(store.column("action")[row:] == -1)[0]
            np.testing.assert_array_equal(frames[row : end + 1], np.stack(shown[: end + 1 - row]))
            del shown[: end + 1 - row]
            row, steps = end + 1, steps + end - row
        assert steps == 400
        steps = 0
    assert row == len(store)
    assert store.space == witnesses[0].observation_space
    np.testing.assert_array_equal(store.decode(store.read([5, 0, 9])).numpy(), store.frames([5, 0, 9]))


def test_rows_tell_the_story_of_each_step(tmp_path: Path) -> None:
    store = collect(DOORKEY, tmp_path / "s", 6000, 1, "random+expert:0.1", 4)
    action, reward, front, carrying, distance, expert = (
        store.column(name) for name in ("action", "reward", "front", "carrying", "distance", "expert")
    )
    acted = action >= 0
    assert acted.sum() == 6000
    codes = store.codes(np.arange(len(store)))
    # in the partial view the agent stands in the middle of the last row, on what it carries
    np.testing.assert_array_equal(front[acted], codes[acted, 5, 3, 0])
    np.testing.assert_array_equal(carrying[acted], codes[acted, 6, 3, 0])
    won = (front == 8) & (action == 2)
    assert won.sum() > 20
    np.testing.assert_array_equal(store.column("terminated"), won)
    np.testing.assert_array_equal(reward > 0, won)
    np.testing.assert_array_equal(distance[won], 1)
    inside = np.flatnonzero(acted[:-1] & acted[1:])
    followed = inside[(action == expert)[inside]]
    assert len(followed) > 500
    np.testing.assert_array_equal(distance[followed + 1], distance[followed] - 1)
    assert all((store.column(label)[~acted] == -1).all() for label in LABELS)
    timeout = store.column("truncated")
    assert not (timeout & store.column("terminated")).any()
    np.testing.assert_array_equal(np.flatnonzero(store.column("episode_start"))[1:], np.flatnonzero(~acted)[:-1] + 1)


def test_missions_are_stored_with_their_episodes(tmp_path: Path) -> None:
    store = collect("BabyAI-GoToLocal-v0", tmp_path / "s", 600, 0, "expert", 3)
    mission, starts = store.column("mission"), np.flatnonzero(store.column("episode_start"))
    assert mission.min() == 0
    assert mission.max() == len(store.missions) - 1
    assert len(starts) > len(store.missions) > 10
    names = {"key": 5, "ball": 6, "box": 7}
    for start, end in zip(starts, [*starts[1:], len(store)], strict=True):
        assert len(set(mission[start:end])) == 1
        kind = store.missions[mission[start]].split()[-1]
        if store.column("terminated")[start:end].any():  # it stands before what it was told to go to
            assert store.codes([end - 1])[0, 5, 3, 0] == names[kind]


def test_the_seed_decides_everything_and_a_complete_store_is_not_collected_again(tmp_path: Path) -> None:
    runs = [("a", 3), ("b", 3), ("c", 4), ("a", 3)]
    stores = [collect(DOORKEY, tmp_path / name, 400, seed, "0.3*random + 0.7*expert:0.5", 4) for name, seed in runs]
    first, again, other, last = (store.hash for store in stores)
    assert first == again == last != other


def test_an_expert_is_better_than_chance_and_noise_is_in_between(tmp_path: Path) -> None:
    def length(behaviour: str) -> float:
        store = collect(EMPTY, tmp_path / behaviour, 2000, 0, behaviour, 4)
        return 2000 / store.column("terminated").sum()

    lengths = [length(behaviour) for behaviour in ("expert", "expert:0.5", "random")]
    assert lengths[0] == pytest.approx(5, abs=0.1)  # two turns or none, and four steps: 5 as this world starts
    assert lengths[0] * 1.5 < lengths[1] < lengths[2] / 1.5


def test_shares_are_fractions_of_the_episodes(tmp_path: Path) -> None:
    store = collect(DOORKEY, tmp_path / "s", 6000, 0, "0.25*random+0.75*expert", 8)
    starts = np.flatnonzero(store.column("episode_start"))
    as_advised = store.column("action") == store.column("expert")
    perfect = [as_advised[start:end].all() for start, end in zip(starts, [*starts[1:], len(store)], strict=True)]
    assert np.mean(perfect) == pytest.approx(0.75, abs=0.07)


def test_several_worlds_in_one_store(tmp_path: Path) -> None:
    store = collect([EMPTY, DOORKEY, "BabyAI-GoToLocal-v0"], tmp_path / "s", 900, 0, n_envs=3)
    assert store.tasks == [EMPTY, DOORKEY, "BabyAI-GoToLocal-v0"]
    acted = store.column("action") >= 0
    assert np.bincount(store.column("task")[acted]).tolist() == [300, 300, 300]
    doors = (store.codes(np.arange(len(store)))[..., 0] == 4).any(axis=(1, 2))
    assert doors[store.column("task") == 1].any()
    assert not doors[store.column("task") == 0].any()
    bot = store.column("task") == 2
    assert (store.column("expert")[bot & acted] >= 0).mean() > 0.9
    assert (store.column("distance")[bot] == -1).all()


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_a_saved_agent_acts(tmp_path: Path, algorithm: type) -> None:
    arguments = {"buffer_size": 10} if algorithm is DQN else {"n_steps": 8}
    agent = algorithm("MlpPolicy", make_vec(EMPTY, 1, 0, tile_size=2), device="cpu", **arguments)
    agent.save(path := tmp_path / "agent.zip")
    stores = [collect(EMPTY, tmp_path / name, 100, 0, f"agent:{path}", 2, tile_size=2) for name in "ab"]
    assert stores[0].hash == stores[1].hash
    if algorithm is DQN:  # greedy: the same frame gives the same action
        acted = np.flatnonzero(stores[0].column("action") >= 0)
        expected = agent.policy.predict(stores[0].frames(acted))[0]
        np.testing.assert_array_equal(stores[0].column("action")[acted], expected)
    with pytest.raises(RlpreError, match=r"acts on Box.*the frames are Box"):
        collect(EMPTY, tmp_path / "c", 100, 0, f"agent:{path}", 2, tile_size=4)
    assert not (tmp_path / "c").exists()


COLLECT = """
import sys
from rlpre.data import store
store.SHARD_ROWS = 400
from envs import collect
collect("MiniGrid-DoorKey-5x5-v0", sys.argv[1], int(sys.argv[2]), 7, "0.5*random+0.5*expert:0.3", 4)
"""


def test_killed_and_continued_it_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = 4000
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", COLLECT, str(tmp_path / "killed"), str(steps)]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    manifest = tmp_path / "killed" / store.MANIFEST
    deadline = time.monotonic() + 120
    while not (manifest.exists() and len(json.loads(manifest.read_text())["shards"]) >= 5):
        assert process.poll() is None, "the collection ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    partial = FrameStore.open(tmp_path / "killed")
    partial.verify()
    assert 3 <= len(partial.manifest["shards"]) < 20
    before = partial.frames(np.arange(len(partial)))
    monkeypatch.setattr(store, "SHARD_ROWS", 400)
    arguments = (DOORKEY, steps, 7, "0.5*random+0.5*expert:0.3", 4)
    whole, resumed = (collect(arguments[0], tmp_path / name, *arguments[1:]) for name in ("whole", "killed"))
    assert resumed.hash == whole.hash
    np.testing.assert_array_equal(resumed.frames(np.arange(len(before))), before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed is 0 there and 1 here"),
        ({"behaviour": "expert"}, "behaviour is 'random' there and 'expert' here"),
        ({"palette": "night"}, "palette is 'day' there and 'night' here"),
        ({"env_id": DOORKEY}, f"environments is \\['{EMPTY}'\\] there"),
    ],
)
def test_a_store_of_another_configuration_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments = {"env_id": EMPTY, "out": tmp_path / "s", "steps": 20, "seed": 0, "n_envs": 2}
    before = collect(**arguments)
    with pytest.raises(RlpreError, match=f"belongs to another collection: {message}"):
        collect(**{**arguments, **change})
    assert FrameStore.open(tmp_path / "s").hash == before.hash


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env_id": "MiniGrid-DoorKey-5x6-v0"}, "did you mean 'MiniGrid-DoorKey-"),
        ({"env_id": [EMPTY, "MiniGrid-Empty-6x6-v0"], "view": "full"}, f"{EMPTY} and MiniGrid-Empty-6x6-v0 differ"),
        ({"env_id": []}, "no environment to collect from"),
        ({"steps": 0}, "cannot collect 0 steps"),
        ({"n_envs": 0}, "with 0 envs"),
        ({"env_id": "MiniGrid-Fetch-5x5-N2-v0", "behaviour": "expert"}, "there is no expert for MiniGrid-Fetch"),
        ({"behaviour": "agent:nowhere.zip"}, "nowhere.zip is not a saved Stable-Baselines3 agent"),
        ({"behaviour": "agent:" + __file__}, "is not a saved Stable-Baselines3 agent"),
        ({"view": "partiel"}, "did you mean 'partial'"),
    ],
)
def test_bad_input_is_named_and_nothing_is_written(tmp_path: Path, change: dict[str, object], message: str) -> None:
    arguments = {"env_id": EMPTY, "out": tmp_path / "s", "steps": 20, "seed": 0, "n_envs": 2}
    with pytest.raises(RlpreError, match=message):
        collect(**{**arguments, **change})
    assert not list(tmp_path.rglob("frames-*"))


@pytest.mark.parametrize(
    "text",
    ["", "expart", "expert:2", "expert:x", "random:0.5", "0*random", "-1*random", "x*random", "agent:", "random+"],
)
def test_behaviours_that_cannot_be_read(text: str) -> None:
    with pytest.raises(RlpreError, match="cannot be read at"):
        parse(text)


def test_behaviours_are_scaled_to_fractions() -> None:
    parts = parse("random + 3*expert:0.2 + agent:a/b.zip")
    assert [(part.share, part.kind, part.noise, part.agent) for part in parts] == [
        (0.2, "random", 0.0, ""),
        (0.6, "expert", 0.2, ""),
        (0.2, "agent", 0.0, "a/b.zip"),
    ]
