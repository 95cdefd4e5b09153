"""FrameStore: round trips, crash safety, sampling, bad input."""

import json
import resource
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces

from rlpre import FrameStore, RlpreError
from rlpre.data.store import FrameWriter

SHAPE = (3, 4, 4)
SPACE = spaces.Box(0, 255, SHAPE, np.uint8)


def new(path: Path, **changes) -> FrameWriter:
    arguments = {"space": SPACE, "action_space": spaces.Discrete(3), "spec": {"id": "toy"}, "labels": ("front",)}
    return FrameStore.create(path, **{**arguments, **changes})


def frame(*values: int) -> np.ndarray:
    """Frames that each hold one value everywhere."""
    return np.broadcast_to(np.array(values, np.uint8)[:, None, None, None], (len(values), *SHAPE))


def add(writer: FrameWriter, *values: int, **changes) -> None:
    """Appends one episode whose frames are the given values."""
    n = len(values)
    columns = {
        "action": np.where(np.arange(n) == n - 1, -1, np.arange(n) % 3),
        "reward": np.arange(n) / 4,
        "terminated": np.arange(n) == n - 2,
        "truncated": False,
        "episode_start": np.arange(n) == 0,
        "task": 0,
        "front": values,
    }
    writer.append(frame(*values), **{**columns, **changes})


def store(path: Path, *episodes: tuple[int, ...]) -> FrameStore:
    with new(path) as writer:
        for episode in episodes:
            add(writer, *episode)
            writer.flush()
    return FrameStore.open(path)


def test_round_trip_over_shards(tmp_path: Path) -> None:
    frames = store(tmp_path / "s", (1, 2, 3), (4, 5), (1, 3))
    assert (len(frames), frames.space, frames.cell, len(frames.manifest["shards"])) == (7, SPACE, 1, 3)
    order = np.array([6, 0, 3, 3, 5, 1, 2, 4])
    np.testing.assert_array_equal(frames.frames(order), frame(3, 1, 4, 4, 1, 2, 3, 5))
    np.testing.assert_array_equal(frames.decode(frames.read(order)).numpy(), frames.frames(order))
    np.testing.assert_array_equal(frames.column("action"), [0, 1, -1, 0, -1, 0, -1])
    np.testing.assert_array_equal(frames.column("terminated"), [0, 1, 0, 1, 0, 1, 0])
    np.testing.assert_array_equal(frames.column("episode_start"), [1, 0, 0, 1, 0, 1, 0])
    dtypes = {"action": "int64", "reward": "float64", "truncated": "bool", "task": "int32", "front": "int16"}
    assert {name: str(frames.column(name).dtype) for name in dtypes} == dtypes
    np.testing.assert_array_equal(frames.ids, [0, 1, 2, 3, 4, 0, 2])
    assert frames.distinct == 5
    np.testing.assert_array_equal(frames.episode, [0, 0, 0, 1, 1, 2, 2])
    np.testing.assert_array_equal(frames.acted, [1, 1, 0, 1, 0, 1, 0])
    assert frames.action_space == spaces.Discrete(3)
    frames.verify()


@pytest.mark.parametrize("shape", [(1,), (3,), (2, 3)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_may_be_vectors(tmp_path: Path, shape: tuple[int, ...], dtype: type) -> None:
    space = spaces.Box(-np.inf, 2.5, shape, dtype)
    action = np.random.default_rng(0).normal(size=(4, *shape)).astype(dtype)
    action[3] = np.nan
    with new(tmp_path / "s", action_space=space) as writer:
        add(writer, 1, 2, 3, 4, action=action, reward=[0.1, 1e-300, -2.0, 0.0])
    frames = FrameStore.open(tmp_path / "s")
    assert frames.action_space == space
    assert frames.column("action").dtype == dtype
    np.testing.assert_array_equal(frames.column("action"), action)
    np.testing.assert_array_equal(frames.column("reward"), [0.1, 1e-300, -2.0, 0.0])
    np.testing.assert_array_equal(frames.acted, [1, 1, 1, 0])
    anchor, later, chosen = frames.pairs(2).sample(50, np.random.default_rng(0))
    flat = action.reshape(4, -1).astype(np.float32)
    np.testing.assert_array_equal(chosen[:, 0], flat[anchor])
    np.testing.assert_array_equal(chosen[:, 1], np.where((later - anchor == 2)[:, None], flat[anchor + 1], 0))
    with pytest.raises(RlpreError, match="holds no discrete actions"):
        _ = frames.num_actions


def test_frames_without_actions_come_in_pieces(tmp_path: Path) -> None:
    with new(tmp_path / "s", action_space=None, labels=()) as writer:
        columns = {"action": -1, "reward": 0.0, "terminated": False, "truncated": False, "task": 0}
        with pytest.raises(RlpreError, match="episode_start in the first row"):
            writer.append(frame(1), **columns, episode_start=False)
        for piece, start in (((1, 1), [1, 0]), ((2, 3), [0, 0]), ((4, 5), [1, 0])):
            writer.append(frame(*piece), **columns, episode_start=np.array(start, bool))
            writer.flush()
        with pytest.raises(RlpreError, match="holds no actions: append action -1"):
            writer.append(frame(1), **columns | {"action": 0}, episode_start=True)
    frames = FrameStore.open(tmp_path / "s")
    assert (frames.action_space, frames.labels) == (None, [])
    np.testing.assert_array_equal(frames.episode, [0, 0, 0, 0, 1, 1])
    assert not frames.acted.any()
    assert frames.unchanged == pytest.approx(1 / 4)
    anchor, later, _ = frames.pairs(1).sample(200, np.random.default_rng(0))
    assert set(zip(anchor.tolist(), later.tolist(), strict=True)) == {(1, 2), (2, 3), (4, 5)}
    with pytest.raises(RlpreError, match="its action space is None"):
        _ = frames.num_actions


@pytest.mark.parametrize("shape", [(1, 5, 7), (4, 2, 2), (12, 3, 9)])
def test_any_channels_and_any_size(tmp_path: Path, shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *shape), np.uint8)
    with new(tmp_path / "s", space=spaces.Box(0, 255, shape, np.uint8), labels=()) as writer:
        columns = {"action": [0, 1, -1], "episode_start": [True, False, False], "task": 0}
        writer.append(pixels, **columns, reward=0, terminated=False, truncated=False)
    np.testing.assert_array_equal(FrameStore.open(tmp_path / "s").frames([2, 0, 1]), pixels[[2, 0, 1]])


def test_missions_are_stored_once_and_numbered(tmp_path: Path) -> None:
    with new(tmp_path / "s") as writer:
        add(writer, 1, 2, mission="go to the key")
        add(writer, 3, 4, 5, mission=["open the door", "open the door", None])
        writer.flush()
        with pytest.raises(RlpreError, match="complete episodes"):
            add(writer, 6, 7, mission="never written", action=0)
        add(writer, 6, 7)
        add(writer, 8, 9, mission="go to the key")
    frames = FrameStore.open(tmp_path / "s")
    assert frames.missions == ["go to the key", "open the door"]
    np.testing.assert_array_equal(frames.column("mission"), [0, 0, 1, 1, -1, -1, -1, 0, 0])
    with FrameStore.extend(frames.path) as writer:
        add(writer, 1, 2, mission="a third")
    grown = FrameStore.open(frames.path)
    assert grown.missions == ["go to the key", "open the door", "a third"]
    assert grown.column("mission")[-1] == 2


def test_extend_continues_and_changes_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = store(tmp_path / "a", (1, 2))
    with FrameStore.extend(first.path) as writer:
        add(writer, 3, 4)
    second = FrameStore.open(first.path)
    np.testing.assert_array_equal(second.frames(range(4)), frame(1, 2, 3, 4))
    assert second.hash != first.hash
    assert second.hash == store(tmp_path / "b", (1, 2), (3, 4)).hash
    monkeypatch.setattr("rlpre.data.store.SHARD_ROWS", 4)
    writer = FrameStore.extend(first.path)
    for start in range(0, 12, 3):
        add(writer, start, start + 1, start + 2)
    assert len(FrameStore.open(first.path)) == 16, "full shards are written without flush"


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    first = store(tmp_path / "a", (1, 2))
    one, other = FrameStore.extend(first.path), FrameStore.extend(first.path)
    add(one, 3, 4)
    one.flush()
    add(other, 5, 6)
    with pytest.raises(RlpreError, match=r"another process writes .*a too: let it end, then make this call again"):
        other.flush()
    np.testing.assert_array_equal(FrameStore.open(first.path).frames(range(4)), frame(1, 2, 3, 4))


def test_unchanged_counts_transitions_not_rows(tmp_path: Path) -> None:
    assert store(tmp_path / "s", (1, 1, 2, 2), (2, 3)).unchanged == pytest.approx(2 / 4)


def test_pairs_contract(tmp_path: Path) -> None:
    episodes = [(1, 2, 2, 3, 1), (5, 5, 5), (7, 8), (1, 1, 1, 4)]
    frames = store(tmp_path / "s", *episodes)
    episode = np.cumsum(frames.column("episode_start"))
    rng = np.random.default_rng(0)
    for k in (1, 2, 3, 50):
        anchor, later, actions = frames.pairs(k).sample(4000, rng)
        assert anchor.dtype == later.dtype == actions.dtype == np.int64
        gap = later - anchor
        assert gap.min() >= 1
        assert gap.max() <= k
        assert (episode[anchor] == episode[later]).all()
        assert (frames.ids[anchor] != frames.ids[later]).all()
        assert actions.shape == (4000, k)
        for j in range(k):
            between = frames.column("action")[np.minimum(anchor + j, len(frames) - 1)]
            np.testing.assert_array_equal(actions[:, j], np.where(j < gap, between, -1))
        assert ((actions >= 0).sum(1) == gap).all()
    _, counts = np.unique((anchor * 100 + later)[anchor == 0], return_counts=True)
    assert len(counts) == 3, "of 1, 2, 2, 3, 1 the last equals the first"
    assert counts.max() / counts.min() < 1.5
    assert set(zip(anchor.tolist(), later.tolist(), strict=True)) >= {(0, 1), (0, 2), (1, 3), (2, 3), (8, 9), (10, 13)}
    same = store(tmp_path / "same", (1, 1, 1))
    for k, message in ((5, r"no frame of .* changes within 5 steps"), (0, "k=0")):
        with pytest.raises(RlpreError, match=message):
            same.pairs(k)


def test_rare_frames_are_sampled_too(tmp_path: Path) -> None:
    frames = store(tmp_path / "s", (*[1] * 1000, 2))
    drawn = frames.sample(200_000, np.random.default_rng(0))
    assert drawn.dtype == np.int64
    # 1,000 rows of weight 1000 ** -0.5 against one row of weight 1
    assert np.mean(drawn == 1000) == pytest.approx(1 / (1 + 1000**0.5), rel=0.05)
    assert len(np.unique(drawn)) == 1001


def test_sampling_repeats_with_its_generator(tmp_path: Path) -> None:
    frames = store(tmp_path / "s", tuple(range(50)), tuple(range(20, 90)))
    for draw in (frames.sample, lambda batch, rng: frames.pairs(5).sample(batch, rng)[1]):
        first, again = (draw(64, np.random.default_rng(3)) for _ in range(2))
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(first, draw(64, np.random.default_rng(4)))


VECTORS = {"action_space": spaces.Box(-1, 1, (2,))}


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ({}, {"front": [1, 2]}, "column 'front' has shape"),
        ({}, {"action": [0, 0, 0]}, "complete episodes"),
        ({}, {"action": [0, -1, -1]}, "complete episodes"),
        ({}, {"episode_start": [False, False, False]}, "complete episodes"),
        ({}, {"action": [0, 3, -1]}, r"column 'action' .* must lie in -1\.\.2"),
        ({}, {"task": 1}, r"column 'task' .* must lie in 0\.\.0"),
        ({}, {"colour": 1}, "missing or unknown: colour"),
        ({}, {"action": [0, 1.5, -1]}, "column 'action' is int64 and cannot hold"),
        ({}, {"action": [0, np.nan, -1]}, "column 'action' is int64 and cannot hold"),
        ({}, {"front": 40_000}, "column 'front' is int16 and cannot hold"),
        ({}, {"mission": ["go", "go"]}, r"column 'mission' has shape \(2,\)"),
        ({}, {"mission": 7}, "missions of .* are texts"),
        (VECTORS, {"action": np.zeros((3, 2))}, "ends with a row of action nan"),
        (VECTORS, {"action": [[0, 0], [np.nan, 0], [np.nan] * 2]}, "ends with a row of action nan"),
        (VECTORS, {"action": np.full((3, 2), np.nan)}, "ends with a row of action nan"),
        (VECTORS, {"action": [0.0, 0.0, np.nan]}, r"column 'action' has shape \(3,\): expected \(3, 2\)"),
    ],
)
def test_bad_rows_are_refused_and_the_writer_continues(tmp_path: Path, kind: dict, change: dict, message: str) -> None:
    writer = new(tmp_path / "s", **kind)
    with pytest.raises(RlpreError, match=message):
        add(writer, 1, 2, 3, **change)
    add(writer, 1, 2, 3, **({"action": [[0, 0], [0, 0], [np.nan] * 2]} if kind else {}))
    writer.flush()
    assert len(FrameStore.open(tmp_path / "s")) == 3


@pytest.mark.parametrize("bad", [frame(1, 2)[:, :, :3], frame(1, 2).astype(np.float32), frame(1, 2)[:0]])
def test_frames_of_another_shape_are_refused(tmp_path: Path, bad: np.ndarray) -> None:
    with pytest.raises(RlpreError, match=r"holds frames \(n, 3, 4, 4\) uint8"):
        new(tmp_path / "s").append(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"action_space": spaces.MultiDiscrete([2, 3])}, "discrete actions"),
        ({"action_space": spaces.Discrete(3, start=1)}, "discrete actions"),
        ({"action_space": spaces.Box(0, 9, (2,), np.int64)}, "vectors of floats"),
        ({"action_space": spaces.Box(-1, 1, ())}, "vectors of floats"),
        ({"space": spaces.Box(0, 1, SHAPE, np.float32)}, "uint8"),
        ({"space": spaces.Box(0, 255, (4,), np.uint8)}, "channels, height, width"),
        ({"labels": ("front", "reward")}, "label 'reward' is the name of another column"),
    ],
)
def test_spaces_that_cannot_be_stored(tmp_path: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        new(tmp_path / "s", **change)


def test_missing_empty_and_foreign_stores(tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=r"manifest\.json is missing"):
        FrameStore.open(tmp_path / "nowhere")
    new(tmp_path / "empty")
    with pytest.raises(RlpreError, match="holds no complete shard"):
        FrameStore.open(tmp_path / "empty")
    with pytest.raises(RlpreError, match="already holds a frame store"):
        new(tmp_path / "empty")
    (tmp_path / "empty" / "manifest.json").write_text(json.dumps({"format": 2}))
    with pytest.raises(RlpreError, match="not a frame store of format 3: collect the frames again"):
        FrameStore.open(tmp_path / "empty")


def test_a_truncated_or_missing_shard_is_named(tmp_path: Path) -> None:
    frames = store(tmp_path / "s", (1, 2), (3, 4))
    shard = frames.path / "frames-00001.npy"
    content = shard.read_bytes()
    shard.write_bytes(content[:-1])
    with pytest.raises(RlpreError, match=r"frames-00001\.npy has \d+ bytes instead of"):
        FrameStore.open(frames.path)
    shard.unlink()
    with pytest.raises(RlpreError, match=r"frames-00001\.npy has 0 bytes"):
        FrameStore.open(frames.path)
    shard.write_bytes(content[:-1] + b"\xff")
    with pytest.raises(RlpreError, match=r"frames-00001\.npy does not match its SHA-256"):
        FrameStore.open(frames.path).verify()


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    writer = new(tmp_path / "s")
    add(writer, 1, 2)
    writer.flush()
    add(writer, *range(100))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, hard))  # the kernel refuses to write more, as on a full disk
    try:
        with pytest.raises(RlpreError, match="File too large; nothing already written is lost"):
            writer.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert len(FrameStore.open(tmp_path / "s")) == 2
    assert not list((tmp_path / "s").glob(".*"))
    writer.flush()
    np.testing.assert_array_equal(FrameStore.open(tmp_path / "s").frames(range(102)), frame(1, 2, *range(100)))


def test_an_exception_leaves_only_complete_shards(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new(tmp_path / "s") as writer:
            add(writer, 1, 2)
            writer.flush()
            add(writer, 3, 4)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(FrameStore.open(tmp_path / "s")) == 2


def test_indices_and_names_are_checked(tmp_path: Path) -> None:
    frames = store(tmp_path / "s", (1, 2))
    with pytest.raises(RlpreError, match=r"lie in 0\.\.1, got 0\.\.2"):
        frames.frames([0, 2])
    with pytest.raises(RlpreError, match="unknown column 'rewards': did you mean 'reward'"):
        frames.column("rewards")
    with pytest.raises(RlpreError, match="holds pixels"):
        frames.codes([0])
