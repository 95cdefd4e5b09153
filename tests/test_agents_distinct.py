"""Parts of a store with exactly so many different frames."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from agents.distinct import take_distinct
from rlpre import FrameStore, RlpreError


@pytest.mark.parametrize("count", [1, 37, 90])
def test_exactly_so_many(count: int, doorkey: FrameStore, tmp_path: Path) -> None:
    part = take_distinct(doorkey, tmp_path / "part", count)
    assert part.distinct == count
    assert (part.tasks, part.labels, part.space) == (doorkey.tasks, doorkey.labels, doorkey.space)
    *whole, cut = np.split(np.arange(len(part)), np.flatnonzero(part.column("episode_start"))[1:])
    originals = np.split(np.arange(len(doorkey)), np.flatnonzero(doorkey.column("episode_start"))[1:])
    order = np.random.default_rng(0).permutation(len(originals))
    for rows, episode in zip(whole, order, strict=False):
        np.testing.assert_array_equal(part.frames(rows), doorkey.frames(originals[episode]))
        for name in ("action", "reward", "terminated", "expert", "mission"):
            np.testing.assert_array_equal(part.column(name)[rows], doorkey.column(name)[originals[episode]])
    source = originals[order[len(whole)]][: len(cut)]
    np.testing.assert_array_equal(part.frames(cut), doorkey.frames(source))
    np.testing.assert_array_equal(part.column("action")[cut[:-1]], doorkey.column("action")[source[:-1]])
    last = {name: part.column(name)[-1] for name in ("action", "reward", "terminated", "truncated", "expert")}
    assert list(last.values()) == [-1, 0, False, False, -1]
    assert part.ids[-1] not in part.ids[:-1], "it ends with the frame that fills the count"


def test_parts_lie_in_each_other_and_stay(doorkey: FrameStore, tmp_path: Path) -> None:
    small, large = (take_distinct(doorkey, tmp_path / str(count), count, seed=3) for count in (20, 60))
    frames = large.frames(np.arange(len(small)))
    np.testing.assert_array_equal(small.frames(np.arange(len(small))), frames)
    assert take_distinct(doorkey, tmp_path / "20", 20, seed=3).hash == small.hash
    assert take_distinct(doorkey, tmp_path / "other", 20, seed=4).hash != small.hash


def test_vectors_and_pixels(tmp_path: Path) -> None:
    """Any store can be cut: here without tiles, labels and missions, and with vectors as actions."""
    writer = FrameStore.create(
        tmp_path / "all",
        space=gym.spaces.Box(0, 255, (1, 4, 4), np.uint8),
        action_space=gym.spaces.Box(-1, 1, (2,), np.float32),
        spec={},
    )
    frames = np.arange(6, dtype=np.uint8)[:, None, None, None].repeat(4, 2).repeat(4, 3)
    action = np.zeros((6, 2), np.float32)
    action[-1] = np.nan
    start = np.arange(6) == 0
    with writer:
        writer.append(frames, action=action, reward=1.0, terminated=0, truncated=0, episode_start=start, task=0)
    part = take_distinct(FrameStore.open(tmp_path / "all"), tmp_path / "part", 4)
    assert part.acted.tolist() == [True, True, True, False]
    assert part.column("reward").tolist() == [1, 1, 1, 0]


def test_bad_input(doorkey: FrameStore, tmp_path: Path) -> None:
    for count in (0, doorkey.distinct + 1):
        with pytest.raises(RlpreError, match=f"holds {doorkey.distinct} different frames, not {count}: collect more"):
            take_distinct(doorkey, tmp_path / "part", count)
    take_distinct(doorkey, tmp_path / "part", 5)
    with pytest.raises(RlpreError, match=r"part holds other frames than 6 different ones of .*doorkey"):
        take_distinct(doorkey, tmp_path / "part", 6)
