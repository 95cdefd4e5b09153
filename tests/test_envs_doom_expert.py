"""The expert of ViZDoom: it finds the armour from everywhere; its frames, noise and advice are collected."""

from pathlib import Path

import numpy as np
from pixel_world import refuse

import envs
from envs.doom import LABELS, make_doom
from envs.doom_expert import Guide, read_map
from rlpre import FrameStore

HOME = "VizdoomMyWayHome-v1"


def test_the_map_is_that_of_the_game() -> None:
    walls, goal = read_map(HOME)
    assert goal.tolist() == [1040, -352]
    assert walls.min((0, 1)).tolist() == [160, -704]
    assert walls.max((0, 1)).tolist() == [1120, 128]


def test_it_reaches_the_armour_from_everywhere() -> None:
    guide, returns, lengths = Guide(HOME), [], []
    venv = make_doom(HOME, 4, 0, state=True)
    venv.reset()
    while len(returns) < 12:
        _, _, _, infos = venv.step([guide.advise(game) for game in venv.unwrapped.envs])
        ends = [info["episode"] for info in infos if "episode" in info]
        returns += [end["r"] for end in ends]
        lengths += [end["l"] for end in ends]
    venv.close()
    assert min(returns) > 0.9
    assert max(lengths) < 200, "the time limit is 525"


def test_frames_of_a_mixture_are_collected_once(tmp_path: Path) -> None:
    def collect(out: Path, behaviour: str, seed: int = 0) -> FrameStore:
        return envs.collect([HOME], out, 1200, seed, behaviour, n_envs=4, view="partial", tile_size=8)

    store = collect(tmp_path / "a", "expert:0.3")
    assert (store.space.shape, store.tasks, store.labels) == ((3, 60, 80), [HOME], ["expert", *LABELS])
    action, advice = (store.column(name)[store.acted] for name in ("action", "expert"))
    assert 0.6 < np.mean(action == advice) < 0.85, "30 % of the actions are random, an eighth of these as advised"
    assert store.column("reward").sum() > 3
    assert collect(tmp_path / "a", "expert:0.3").hash == store.hash, "it is complete"
    mixed = collect(tmp_path / "b", "0.5*random + 0.5*expert")
    first, same = mixed.column("episode_start")[mixed.acted], mixed.column("action") == mixed.column("expert")
    shares = [episode.mean() for episode in np.split(same[mixed.acted], np.flatnonzero(first)[1:])]
    assert {share < 0.5 for share in shares} == {True, False}
    assert {share == 1 for share in shares} == {True, False}, "an episode has one player"
    refuse("belongs to another", lambda: collect(tmp_path / "a", "random"))


def test_bad_input(tmp_path: Path) -> None:
    for named, ids, behaviour in (
        ("no expert for VizdoomBasic-v1", "VizdoomBasic-v1", "expert"),
        ("behaviour 'clever' cannot be read", HOME, "clever"),
        ("collect scenarios into one store each", [HOME, "VizdoomBasic-v1"], "random"),
    ):
        refuse(named, lambda ids=ids, behaviour=behaviour: envs.collect(ids, tmp_path / "x", 8, 0, behaviour, n_envs=1))
