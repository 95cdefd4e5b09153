"""Demonstrations: whole successes in their part's layouts, repeatable, resumed after a stop, read like any store."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from envs import demonstrations, make
from envs.minigrid import demos, trials
from envs.minigrid.trials import ExpertActor, NoisyActor, Trial, layout_seeds, play
from rlpre import FrameStore, RlpreError

GOTO, PUT = "BabyAI-GoToLocal-v0", "BabyAI-PutNextLocal-v0"


def episodes(store: FrameStore) -> list[slice]:
    bounds = [*np.flatnonzero(store.column("episode_start")), len(store)]
    return [slice(*pair) for pair in pairwise(bounds)]


@pytest.mark.parametrize("part", ["train", "test"])
def test_demonstrations_are_the_experts_successes(tmp_path: Path, part: str) -> None:
    store = demonstrations(GOTO, tmp_path / "s", 30, seed=1, part=part)
    assert len(episodes(store)) == 30
    assert store.manifest["dropped"] == 0
    np.testing.assert_array_equal(store.column("action"), store.column("expert"))
    names = {"key": 5, "ball": 6, "box": 7}
    for rows in episodes(store):
        columns = {name: store.column(name)[rows] for name in ("layout", "mission", "reward", "terminated")}
        assert len(set(columns["layout"])) == len(set(columns["mission"])) == 1
        assert trials.is_test(int(columns["layout"][0])) == (part == "test")
        np.testing.assert_array_equal(
            columns["terminated"], np.arange(len(columns["reward"])) == len(columns["reward"]) - 2
        )
        assert columns["reward"][-2] > 0.5
        goal = store.missions[columns["mission"][0]].split()[-1]
        assert store.codes([rows.stop - 1])[0, 5, 3, 0] == names[goal]


def test_noise_is_done_but_not_advised_and_failures_are_replaced(tmp_path: Path) -> None:
    store = demonstrations(PUT, tmp_path / "s", 40, seed=0, noise=0.5)
    acted = store.acted
    wrong = (store.column("action") != store.column("expert"))[acted]
    assert wrong.mean() == pytest.approx(0.5 * 6 / 7, abs=0.06)
    assert (store.column("expert")[acted] >= 0).all()
    assert len(episodes(store)) == 40
    assert store.column("terminated").sum() == 40
    assert store.manifest["dropped"] > 0  # boxes were opened


def test_arguments_decide_everything(tmp_path: Path) -> None:
    first, again, other, noisy_one = (
        demonstrations(GOTO, tmp_path / name, 6, seed, noise)
        for name, seed, noise in (("a", 0, 0.2), ("b", 0, 0.2), ("c", 1, 0.2), ("d", 0, 0.3))
    )
    assert first.hash == again.hash
    assert len({first.hash, other.hash, noisy_one.hash}) == 3
    assert not set(first.column("layout")) & set(other.column("layout"))


def test_stopped_and_called_again_it_is_the_same_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demos, "EPISODES", 5)
    whole = demonstrations(PUT, tmp_path / "whole", 17, 4, noise=0.6)
    assert len(whole.manifest["shards"]) == 4
    played: list[int] = []

    def stops(level: str, seeds: list[int], *arguments: object, **look: object) -> list[Trial]:
        played.append(len(seeds))
        if sum(played) > 16:
            raise KeyboardInterrupt
        return play(level, seeds, *arguments, **look)

    monkeypatch.setattr(demos, "play", stops)
    with pytest.raises(KeyboardInterrupt):
        demonstrations(PUT, tmp_path / "stopped", 17, 4, noise=0.6)
    assert 0 < len(FrameStore.open(tmp_path / "stopped").manifest["shards"]) < 4
    monkeypatch.setattr(demos, "play", play)
    resumed = demonstrations(PUT, tmp_path / "stopped", 17, 4, noise=0.6)
    assert resumed.hash == whole.hash
    assert resumed.manifest["dropped"] == whole.manifest["dropped"] > 0
    with pytest.raises(RlpreError, match=r"belongs to another collection: noise is 0\.6 there and 0\.0 here"):
        demonstrations(PUT, tmp_path / "stopped", 17, 4)


def test_trials_of_anyone_become_a_store(tmp_path: Path) -> None:
    played = play(
        GOTO, layout_seeds(GOTO, "train", 30), NoisyActor(ExpertActor(), 0.9, np.random.default_rng(0)), tile_size=4
    )
    kept = [trial for trial in played if not trial.lost]
    assert 0 < len(kept) < len(played)
    assert not all(trial.success for trial in kept)
    store = demos.stored(played, GOTO, tmp_path / "s", tile_size=4)
    assert store.manifest["dropped"] == len(played) - len(kept)
    assert store.space == make(GOTO, tile_size=4).observation_space
    for rows, trial in zip(episodes(store), kept, strict=True):
        np.testing.assert_array_equal(store.codes(np.arange(len(store))[rows]), trial.codes)
        np.testing.assert_array_equal(store.column("action")[rows], [*trial.actions, -1])
        np.testing.assert_array_equal(store.column("expert")[rows], [*trial.advice, -1])
        np.testing.assert_array_equal(store.column("reward")[rows], [*trial.reward, 0])
        assert store.column("terminated")[rows][-2] == trial.success == (not store.column("truncated")[rows][-2])
        assert (store.column("layout")[rows] == trial.layout).all()
        assert {store.missions[number] for number in store.column("mission")[rows]} == {trial.mission}
    with pytest.raises(RlpreError, match="is there already"):
        demos.stored(played, GOTO, tmp_path / "s", tile_size=4)
    lost = [trial for trial in played if trial.lost]
    with pytest.raises(RlpreError, match=f"the expert had no plan in all {len(lost)} trials"):
        demos.stored(lost, GOTO, tmp_path / "t")
    with pytest.raises(RlpreError, match=r"holds frames \(n, 8, 8, 3\) uint8 and got"):
        demos.stored(played, GOTO, tmp_path / "t", view="full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"episodes": 0}, "cannot record 0 episodes"),
        ({"seed": -1}, "with seed -1"),
        ({"noise": 1.5}, "and noise 1.5"),
        ({"part": "tests"}, "unknown part 'tests': did you mean 'test'"),
        ({"level": "BabyAI-GoToLocall-v0"}, "did you mean 'BabyAI-GoToLocal-v0'"),
        ({"level": "MiniGrid-Fetch-5x5-N2-v0"}, "there is no expert for MiniGrid-Fetch"),
        ({"level": "BabyAI-KeyCorridorS3R3-v0", "noise": 1.0}, "the expert failed in all of 2 episodes"),
    ],
)
def test_bad_input_is_named_and_leaves_no_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object], message: str
) -> None:
    monkeypatch.setattr(demos, "MOST_FAILURES", 2)
    with pytest.raises(RlpreError, match=message):
        demonstrations(**{"level": GOTO, "out": tmp_path / "s", "episodes": 2, "seed": 0, **change})
    assert not list(tmp_path.rglob("frames-*"))
