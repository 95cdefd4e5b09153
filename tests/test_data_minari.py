"""Minari data sets there and back, bit for bit."""

import os
import sys
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import minari
import numpy as np
import pytest
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer

import rlpre
from rlpre import FrameStore, RlpreError

ACTIONS = {
    "discrete": spaces.Discrete(4),
    "vectors": spaces.Box(-1, 1, (3,), np.float32),
    "doubles": spaces.Box(-1, 1, (2, 2), np.float64),
}
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def record(
    name: str = "toy/camera-v0",
    actions: str = "discrete",
    shape: tuple[int, ...] = (40, 36, 3),
    keys: tuple[str, ...] = (),
    jpeg: bool = False,
    only_first: bool = False,
    **infos: Any,
) -> minari.MinariDataset:
    """Three episodes: one terminates, one is truncated, one is cut; ``infos`` give values by number of rows."""
    rng = np.random.default_rng(0)
    action_space, image = ACTIONS[actions], spaces.Box(0, 255, shape, np.uint8)
    observation_space = spaces.Dict({**dict.fromkeys(keys, image), "speed": spaces.Box(-9, 9, (2,))}) if keys else image
    buffers = []
    for number, steps in enumerate((5, 1, 3)):
        frames = {key: rng.integers(0, 256, (steps + 1, *shape), np.uint8) for key in keys or ("only",)}
        buffers.append(
            EpisodeBuffer(
                observations={**frames, "speed": rng.normal(size=(steps + 1, 2)).astype(np.float32)}
                if keys
                else frames["only"],
                actions=rng.integers(0, 4, steps)
                if actions == "discrete"
                else rng.uniform(-1, 1, (steps, *action_space.shape)).astype(action_space.dtype),
                rewards=list(rng.normal(size=steps) / 3),
                terminations=[number == 0 and t == steps - 1 for t in range(steps)],
                truncations=[number == 1 and t == steps - 1 for t in range(steps)],
                infos=None
                if only_first and number
                else {name: values(steps + 1) for name, values in infos.items()} or None,
            )
        )
    with warnings.catch_warnings(action="ignore"):
        return minari.create_dataset_from_buffers(
            name,
            buffers,
            observation_space=observation_space,
            action_space=action_space,
            jpeg_encoding=jpeg,
            author={"A. Nonym"},
            description="toy",
        )


def same(first: minari.MinariDataset, second: minari.MinariDataset) -> None:
    assert (first.observation_space, first.action_space) == (second.observation_space, second.action_space)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations", "infos"):
            left, right = getattr(one, name), getattr(other, name)
            if isinstance(left, dict):
                assert left.keys() == right.keys()
                left, right = list(left.values()), list(right.values())
            assert name == "infos" or np.asarray(left).dtype == np.asarray(right).dtype
            np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("shape", [(40, 36, 3), (4, 33, 35), (34, 32), (9, 6, 1)], ids=str)
def test_from_minari_and_back(tmp_path: Path, home: Path, actions: str, shape: tuple[int, ...]) -> None:
    dataset = record(actions=actions, shape=shape, success=lambda rows: np.arange(rows) > 2)
    store = rlpre.from_minari(dataset, tmp_path / "s")
    assert len(store) == 6 + 2 + 4
    np.testing.assert_array_equal(store.episode, [0] * 6 + [1] * 2 + [2] * 4)
    assert store.action_space == dataset.action_space
    for number, episode in enumerate(dataset):
        rows = np.flatnonzero(store.episode == number)
        images = episode.observations
        expected = images[:, None] if len(shape) == 2 else images if shape[0] == 4 else images.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(store.frames(rows), expected)
        acted = rows[:-1]
        np.testing.assert_array_equal(store.acted[rows], rows != rows[-1])
        columns = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
        for column, name in columns.items():
            np.testing.assert_array_equal(store.column(column)[acted], getattr(episode, name))
        np.testing.assert_array_equal(store.column("success")[rows], episode.infos["success"])
    back = rlpre.to_minari(store, "other/camera-v1")
    same(dataset, back)
    same(dataset, minari.load_dataset("other/camera-v1"))
    assert not back.storage.jpeg_encoding
    about = [one.storage.metadata for one in (dataset, back)]
    assert all(about[0][key] == about[1][key] for key in ("author", "description", "total_steps"))
    assert {path.name for path in home.iterdir()} == {"toy", "other"}


def test_a_grid_world_to_minari_and_back(tmp_path: Path, doorkey: FrameStore) -> None:
    dataset = rlpre.to_minari(doorkey, "doorkey-v0", tmp_path / "elsewhere")
    assert dataset.total_steps == doorkey.acted.sum()
    again = rlpre.from_minari(tmp_path / "elsewhere" / "doorkey-v0", tmp_path / "again")
    everything = np.arange(len(doorkey))
    np.testing.assert_array_equal(again.frames(everything), doorkey.frames(everything))
    assert (again.action_space, again.labels, again.tasks) == (
        doorkey.action_space,
        sorted(doorkey.labels),
        doorkey.tasks,
    )
    for name in ("action", "reward", "terminated", "truncated", "episode_start", "task", *doorkey.labels):
        np.testing.assert_array_equal(again.column(name), doorkey.column(name))
        assert again.column(name).dtype == doorkey.column(name).dtype


def test_tasks_and_keys_survive(tmp_path: Path) -> None:
    store = rlpre.from_minari(record(keys=("left", "right")), tmp_path / "s", image="right")
    with FrameStore.create(
        tmp_path / "two",
        space=store.space,
        action_space=store.action_space,
        spec=store.manifest["spec"],
        tasks=["a", "b"],
    ) as writer:
        for task in (1, 0):
            names = ("action", "reward", "terminated", "truncated", "episode_start")
            writer.append(store.frames(np.arange(12)), task=task, **{name: store.column(name) for name in names})
    two = rlpre.to_minari(FrameStore.open(tmp_path / "two"), "two-v0")
    assert two.observation_space == spaces.Dict({"right": spaces.Box(0, 255, (40, 36, 3), np.uint8)})
    again = rlpre.from_minari("two-v0", tmp_path / "again")
    assert again.tasks == ["a", "b"]
    np.testing.assert_array_equal(again.column("task"), [1] * 12 + [0] * 12)
    np.testing.assert_array_equal(again.frames(np.arange(12)), store.frames(np.arange(12)))


def test_a_dict_with_one_image_needs_no_name(tmp_path: Path) -> None:
    dataset = record(keys=("camera",))
    store = rlpre.from_minari(dataset.id, tmp_path / "s")
    np.testing.assert_array_equal(store.frames(np.arange(6)).transpose(0, 2, 3, 1), dataset[0].observations["camera"])


def test_frames_kept_as_jpeg_are_warned_of(tmp_path: Path) -> None:
    dataset = record(jpeg=True)
    with pytest.warns(UserWarning, match="Minari set toy/camera-v0 keeps its frames as JPEG.*jpeg_encoding=False"):
        lossy = rlpre.from_minari(dataset, tmp_path / "s")
    exact = rlpre.from_minari(record("exact-v0"), tmp_path / "exact")
    worst = np.abs(lossy.frames(np.arange(12)).astype(int) - exact.frames(np.arange(12))).max()
    assert worst > 50
    rlpre.from_minari(record("small-v0", shape=(30, 30, 3), jpeg=True), tmp_path / "small")  # Minari leaves it raw


def test_infos_that_no_label_can_hold_are_named(tmp_path: Path) -> None:
    infos = {
        "count": lambda rows: np.arange(rows),
        "short": lambda rows: np.arange(rows - 1) % 2 == 0,
        "score": lambda rows: np.linspace(0, 1, rows),
        "far": lambda rows: np.full(rows, 40_000),
        "deep": lambda rows: {"er": np.ones(rows, int)},
    }
    dataset = record(**infos)
    with pytest.warns(UserWarning, match="infos far, score of Minari set toy/camera-v0 are left out"):
        store = rlpre.from_minari(dataset, tmp_path / "s")
    assert store.labels == ["count", "deep/er", "short"]
    np.testing.assert_array_equal(store.column("short")[:6], [1, 0, 1, 0, 1, -1])
    assert rlpre.from_minari(dataset, tmp_path / "one", labels=["deep/er"]).labels == ["deep/er"]
    with pytest.raises(RlpreError, match=r"info 'far' of episode 0 of .* does not fit 16-bit integers.*leave it out"):
        rlpre.from_minari(dataset, tmp_path / "far", labels=["far"])
    with pytest.raises(RlpreError, match="unknown info of episode 0 of Minari set toy/camera-v0 'cuont': did you mean"):
        rlpre.from_minari(dataset, tmp_path / "cuont", labels=["cuont"])
    assert not (tmp_path / "far").exists()


@pytest.mark.parametrize(
    ("name", "later"),
    [("room", None), ("room", lambda rows: np.arange(rows) * 30_000), ("room", lambda rows: np.arange(rows) / 2)]
    + [(column, np.arange) for column in ("action", "reward", "episode_start", "mission", "task")],
)
def test_infos_that_do_not_fit_in_every_episode_are_left_out(tmp_path: Path, name: str, later: Any) -> None:
    """Absent, too large or of another kind after the first episode, or called like a column."""
    values = [np.arange, later, later]
    dataset = record(**{name: lambda rows: values.pop(0)(rows) if later else np.arange(rows)}, only_first=not later)
    with pytest.warns(UserWarning, match=f"infos {name} of Minari set toy/camera-v0 are left out"):
        store = rlpre.from_minari(dataset, tmp_path / "s")
    assert (store.labels, len(store)) == ([], 12)
    if name != "room":
        with pytest.raises(RlpreError, match=f"label '{name}' is the name of another column"):
            rlpre.from_minari(dataset, tmp_path / "t", labels=[name])


def test_the_environment_is_remembered(tmp_path: Path) -> None:
    dataset = record()
    dataset.storage.update_metadata({"env_spec": gym.spec("CartPole-v1").to_json()})
    back = rlpre.to_minari(rlpre.from_minari(minari.load_dataset(dataset.id), tmp_path / "s"), "back-v0")
    assert back.env_spec == gym.spec("CartPole-v1")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("toy/camrea-v0", "unknown Minari set 'toy/camrea-v0': did you mean 'toy/camera-v0'"),
        (Path(__file__).parent, "is no Minari set: give the directory"),
        ("states-v0", "the observations of Minari set states-v0 are Box.*frames are uint8 images"),
        ("dict-v0", "need one image and have left, right: name it with image="),
        ("empty-v0", "Minari set empty-v0 holds no episodes"),
        ("many-v0", "not MultiDiscrete"),
    ],
)
def test_bad_sets(tmp_path: Path, source: str | Path, message: str) -> None:
    record()
    record("dict-v0", keys=("left", "right"))
    image, states = spaces.Box(0, 255, (9, 9, 3), np.uint8), spaces.Box(-1, 1, (3,))
    for name, observed, actions, buffers in (
        ("states-v0", states, ACTIONS["discrete"], [step(np.zeros((2, 3), np.float32), [0])]),
        ("many-v0", image, spaces.MultiDiscrete([2, 2]), [step(np.zeros((2, 9, 9, 3), np.uint8), [[0, 0]])]),
        ("empty-v0", image, ACTIONS["discrete"], []),
    ):
        with warnings.catch_warnings(action="ignore"):
            minari.create_dataset_from_buffers(name, buffers, observation_space=observed, action_space=actions)
    with pytest.raises(RlpreError, match=message):
        rlpre.from_minari(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


def step(observations: np.ndarray, actions: Any) -> EpisodeBuffer:
    return EpisodeBuffer(
        observations=observations, actions=np.array(actions), rewards=[0.0], terminations=[True], truncations=[False]
    )


def test_stores_that_minari_cannot_hold(tmp_path: Path, home: Path) -> None:
    film = rlpre.from_arrays(np.zeros((3, 4, 9, 9), np.uint8), tmp_path / "film")
    with pytest.raises(RlpreError, match="film holds frames without actions, which a Minari set cannot"):
        rlpre.to_minari(film, "film-v0")
    store = rlpre.from_minari(record(), tmp_path / "s")
    for name in ("no version", "camera", "../x-v0"):
        with pytest.raises(RlpreError, match="is no Minari id: write it as 'name-v0'"):
            rlpre.to_minari(store, name)
    with pytest.raises(RlpreError, match="camera-v0 is there already: choose another id"):
        rlpre.to_minari(store, "toy/camera-v0")
    (home / "file").write_text("")
    with pytest.raises(RlpreError, match=r"cannot write .*Not a directory"):
        rlpre.to_minari(store, "x-v0", home / "file")
    assert {path.name for path in home.iterdir()} == {"toy", "file"}
    assert os.environ["MINARI_DATASETS_PATH"] == str(home)


@pytest.mark.parametrize("module", ["minari", "h5py"])
def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    store = rlpre.from_arrays(np.zeros((2, 3, 9, 9), np.uint8), tmp_path / "s")
    monkeypatch.setitem(sys.modules, module, None)
    for door in (lambda: rlpre.from_minari("x-v0", tmp_path / "t"), lambda: rlpre.to_minari(store, "x-v0")):
        with pytest.raises(RlpreError, match=r"needs Minari .*pip install 'rlpre\[minari\]'"):
            door()
