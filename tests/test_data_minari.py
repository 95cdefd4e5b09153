"""Minari data sets there and back, bit for bit; warnings for all that is left out."""

import os
import sys
import warnings
from collections.abc import Callable
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
IMAGE, LARGE = spaces.Box(0, 255, (8, 9, 3), np.uint8), spaces.Box(0, 255, (40, 36, 3), np.uint8)
STEPS = (5, 1, 3)  # of the episodes: one terminates, one is truncated, one is cut
pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def noise(space: spaces.Space, rows: int) -> Any:
    """``rows`` random values of a space."""
    space.seed(rows)
    if isinstance(space, spaces.Dict):
        return {name: noise(part, rows) for name, part in space.items()}
    return ["open the door" if rows > 4 else "go"] * rows if isinstance(space, spaces.Text) else many(space, rows)


def many(space: spaces.Space, rows: int) -> np.ndarray:
    return np.array([space.sample() for _ in range(rows)], space.dtype)


def record(
    name: str = "toy/camera-v0",
    space: spaces.Space = IMAGE,
    actions: spaces.Space = ACTIONS["discrete"],
    observe: Callable[[spaces.Space, int], Any] = noise,
    infos: Callable[[int, int], dict[str, Any]] = lambda number, rows: {},
    jpeg: bool = False,
    steps: tuple[int, ...] = STEPS,
) -> minari.MinariDataset:
    """A data set of noise; ``infos`` gives those of an episode by its number and its number of observations."""
    buffers = [
        EpisodeBuffer(
            observations=observe(space, n + 1),
            actions=many(actions, n),
            rewards=list(np.random.default_rng(n).normal(size=n) / 3),
            terminations=[number == 0 and t == n - 1 for t in range(n)],
            truncations=[number == 1 and t == n - 1 for t in range(n)],
            infos=infos(number, n + 1) or None,
        )
        for number, n in enumerate(steps)
    ]
    about = {"author": {"A. Nonym"}, "description": "toy"}
    with warnings.catch_warnings(action="ignore"):
        return minari.create_dataset_from_buffers(
            name, buffers, observation_space=space, action_space=actions, jpeg_encoding=jpeg, **about
        )


def same(first: minari.MinariDataset, second: minari.MinariDataset) -> None:
    assert (first.observation_space, first.action_space) == (second.observation_space, second.action_space)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        for name in ("observations", "actions", "rewards", "terminations", "truncations"):
            left, right = getattr(one, name), getattr(other, name)
            assert left.dtype == right.dtype
            np.testing.assert_array_equal(left, right)
        assert {name: list(values) for name, values in one.infos.items()} == {
            name: list(values) for name, values in other.infos.items()
        }


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("shape", [(40, 36, 3), (4, 33, 35), (34, 32), (9, 6, 1)], ids=str)
def test_from_minari_and_back(tmp_path: Path, home: Path, actions: str, shape: tuple[int, ...]) -> None:
    space = spaces.Box(0, 255, shape, np.uint8)
    dataset = record(
        space=space, actions=ACTIONS[actions], infos=lambda _, rows: {"success": (np.arange(rows) > 2).astype(int)}
    )
    store = rlpre.from_minari(dataset, tmp_path / "s")
    np.testing.assert_array_equal(store.episode, [0] * 6 + [1] * 2 + [2] * 4)
    assert store.action_space == dataset.action_space
    for number, episode in enumerate(dataset):
        rows = np.flatnonzero(store.episode == number)
        images = episode.observations
        expected = images[:, None] if len(shape) == 2 else images if shape[0] == 4 else images.transpose(0, 3, 1, 2)
        np.testing.assert_array_equal(store.frames(rows), expected)
        np.testing.assert_array_equal(store.acted[rows], rows != rows[-1])
        columns = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
        for column, name in columns.items():
            np.testing.assert_array_equal(store.column(column)[rows[:-1]], getattr(episode, name))
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
    rows = np.arange(len(doorkey))
    np.testing.assert_array_equal(again.frames(rows), doorkey.frames(rows))
    for name in ("action_space", "tasks", "missions"):
        assert getattr(again, name) == getattr(doorkey, name)
    assert again.labels == sorted(doorkey.labels)
    for name in ("action", "reward", "terminated", "truncated", "episode_start", "task", "mission", *doorkey.labels):
        np.testing.assert_array_equal(again.column(name), doorkey.column(name))
        assert again.column(name).dtype == doorkey.column(name).dtype


def test_tasks_and_keys_survive(tmp_path: Path) -> None:
    dataset = record(space=spaces.Dict({"left": IMAGE, "right": IMAGE}))
    with pytest.warns(UserWarning, match="observations left of Minari set toy/camera-v0 are left out"):
        store = rlpre.from_minari(dataset, tmp_path / "s", image="right")
    kind = {name: getattr(store, name) for name in ("space", "action_space")}
    with FrameStore.create(tmp_path / "two", **kind, spec=store.manifest["spec"], tasks=["a", "b"]) as writer:
        for task in (1, 0):
            names = ("action", "reward", "terminated", "truncated", "episode_start")
            writer.append(store.frames(np.arange(12)), task=task, **{name: store.column(name) for name in names})
    two = rlpre.to_minari(FrameStore.open(tmp_path / "two"), "two-v0")
    assert two.observation_space == spaces.Dict({"right": IMAGE})
    again = rlpre.from_minari("two-v0", tmp_path / "again")
    assert again.tasks == ["a", "b"]
    np.testing.assert_array_equal(again.column("task"), [1] * 12 + [0] * 12)
    np.testing.assert_array_equal(again.frames(np.arange(12)), store.frames(np.arange(12)))


def test_nested_dict_observations_there_and_back(tmp_path: Path) -> None:
    place = spaces.Box(-1, 1, (2,))
    dataset = record(space=spaces.Dict({"view": spaces.Dict({"image": IMAGE, "place": place}), "goal": place}))
    with pytest.warns(UserWarning, match="observations goal, view/place of Minari set toy/camera-v0 are left out"):
        store = rlpre.from_minari(dataset, tmp_path / "s")
    images = np.concatenate([episode.observations["view"]["image"] for episode in dataset])
    np.testing.assert_array_equal(store.frames(range(12)).transpose(0, 2, 3, 1), images)
    back = rlpre.to_minari(store, "back-v0")
    assert back.observation_space == spaces.Dict({"view": spaces.Dict({"image": IMAGE})})
    assert rlpre.from_minari(back, tmp_path / "again", image="view/image").hash == store.hash


@pytest.mark.parametrize("high", [1, 255])
def test_images_of_floats_are_rounded_with_a_warning(tmp_path: Path, high: int) -> None:
    pixels, scale = many(IMAGE, 6), np.float32(high / 255)
    space = spaces.Dict({"image": spaces.Box(0, high, IMAGE.shape, np.float32)})
    dataset = record(space=space, observe=lambda _, rows: {"image": pixels[:rows] * scale})
    with pytest.warns(UserWarning, match="images of Minari set toy/camera-v0 are floats and are rounded to 8 bits"):
        store = rlpre.from_minari(dataset, tmp_path / "s")
    np.testing.assert_array_equal(store.frames(range(6)).transpose(0, 2, 3, 1), pixels)
    wrong = record("wrong-v0", space, observe=lambda _, rows: {"image": pixels[:rows] * scale - 1})
    with pytest.raises(RlpreError, match=rf"images of floats must lie in 0\.\.{high}"), pytest.warns(match="floats"):
        rlpre.from_minari(wrong, tmp_path / "t")


def test_missions_there_and_back(tmp_path: Path) -> None:
    store = rlpre.from_minari(record(space=spaces.Dict({"image": IMAGE, "mission": spaces.Text(99)})), tmp_path / "s")
    again = rlpre.from_minari(rlpre.to_minari(store, "back-v0"), tmp_path / "again")
    for one in (store, again):
        assert (one.missions, one.labels) == (["open the door", "go"], [])
        np.testing.assert_array_equal(one.column("mission"), [0] * 6 + [1] * 6)


def test_frames_stored_as_jpeg_give_a_warning(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Minari set toy/camera-v0 keeps its frames as JPEG.*jpeg_encoding=False"):
        lossy = rlpre.from_minari(record(space=LARGE, jpeg=True), tmp_path / "s")
    exact = rlpre.from_minari(record("exact-v0", LARGE), tmp_path / "exact")
    assert np.abs(lossy.frames(np.arange(12)).astype(int) - exact.frames(np.arange(12))).max() > 50
    rlpre.from_minari(record("small-v0", jpeg=True), tmp_path / "small")  # Minari does not compress small images


def test_infos_that_no_label_can_hold_are_named(tmp_path: Path) -> None:
    def infos(number: int, rows: int) -> dict[str, Any]:
        short, deep = np.arange(rows - 1) % 2 == 0, {"er": np.ones(rows, int)}
        others = {"score": np.linspace(0, 1, rows), "far": np.full(rows, 40_000)}
        return {"count": np.arange(rows), "short": short, "deep": deep, **others}

    dataset = record(infos=infos)
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


@pytest.mark.parametrize("later", [{}, {"room": 40_000}, {"room": 0.5}])
def test_infos_that_do_not_fit_in_a_later_episode_are_left_out(tmp_path: Path, later: dict[str, float]) -> None:
    """Absent, too large or floats after the first episode."""

    def infos(number: int, rows: int) -> dict[str, Any]:
        return {name: np.full(rows, value) for name, value in (later if number else {"room": 1}).items()}

    with pytest.warns(UserWarning, match="infos room of Minari set toy/camera-v0 are left out"):
        store = rlpre.from_minari(record(infos=infos), tmp_path / "s")
    assert (store.labels, len(store)) == ([], 12)


@pytest.mark.parametrize("name", ["action", "reward", "episode_start", "mission", "task"])
def test_infos_that_are_called_like_a_column_are_left_out(tmp_path: Path, name: str) -> None:
    dataset = record(infos=lambda _, rows: {name: np.arange(rows)})
    with pytest.warns(UserWarning, match=f"infos {name} of Minari set toy/camera-v0 are left out"):
        assert rlpre.from_minari(dataset, tmp_path / "s").labels == []
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
        ("vector-v0", "the observations of Minari set vector-v0 are Dict.*frames are uint8 images"),
        ("dict-v0", "hold several images, left, right: name one with image="),
        ("empty-v0", "Minari set empty-v0 holds no episodes"),
        ("many-v0", "not MultiDiscrete"),
        (
            "short-v0",
            "episode 0 of Minari set short-v0 has 5 observations for 5 steps, not 6: its final one is missing",
        ),
    ],
)
def test_bad_sets(tmp_path: Path, source: str | Path, message: str) -> None:
    states = spaces.Box(-1, 1, (3,))
    record()
    record("states-v0", states)
    record("vector-v0", spaces.Dict({"state": states}))
    record("dict-v0", spaces.Dict({"left": IMAGE, "right": IMAGE}))
    record("empty-v0", steps=())
    record("many-v0", actions=spaces.MultiDiscrete([2, 2]))
    record("short-v0", observe=lambda space, rows: noise(space, rows - 1))
    with pytest.raises(RlpreError, match=message):
        rlpre.from_minari(source, tmp_path / "s")
    assert not (tmp_path / "s").exists()


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
