"""Demonstrations: trials of the expert, or of a learner with the expert's advice, as a frame store."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.minigrid.experts import UNKNOWN
from envs.minigrid.trials import ExpertActor, NoisyActor, Trial, layout_seeds, play
from envs.minigrid.worlds import full_look, make
from rlpre.data.collect import seeds
from rlpre.data.store import FrameStore, FrameWriter, new_store, resume_store
from rlpre.errors import RlpreError

LABELS = ("expert", "layout")  # the expert's action, and the layout of the episode
EPISODES = 64  # of a shard
MOST_FAILURES = 64  # episodes in a row that the expert fails before the level counts as unsolvable


def demonstrations(
    level: str,
    out: str | Path,
    episodes: int,
    seed: int,
    noise: float = 0.0,
    part: str = "train",
    **look: Any,
) -> FrameStore:
    """Records whole episodes in which the expert accomplishes its mission.

    Episodes in which it fails or has no plan are dropped and replaced by others; ``manifest["dropped"]`` counts them.
    The same arguments give the same store, and an interrupted recording that is called again goes on where it stopped
    and ends with that same store.

    Args:
        level: a registered id with an expert.
        out: the directory of the store.
        episodes: how many.
        seed: of the layouts and the noise.
        noise: probability of an action drawn uniformly from all instead of the advised one: the advice shows how to
            recover (DART [0]).
        part: "train" or "test", the layouts to play in; see `envs.minigrid.trials.layout_seeds`.
        **look: view, tile_size, palette, strength and pictures, as in `envs.make`.

    Returns:
        The store, with missions and the label columns "expert" (the advised action, -1 in the last row of every
        episode; column "action" holds the action that was taken) and "layout".

    Raises:
        RlpreError: if a name or a number is wrong, the expert cannot solve the level, ``out`` belongs to another
            recording, or the disk is full.

    [0] Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning".
    """
    if episodes < 1 or seed < 0 or not 0 <= noise <= 1:
        raise RlpreError(f"cannot record {episodes} episodes with seed {seed} and noise {noise}: check the numbers")
    look = full_look(**look)
    spec = {"demonstrations": level, "episodes": episodes, "seed": seed, "noise": noise, "part": part, **look}
    spec["minigrid"] = importlib.metadata.version("minigrid")
    writer = resume_store(Path(out), spec, **make(level, **look).store_arguments([level], LABELS))
    writer.manifest.setdefault("dropped", 0)
    for number in range(len(writer.manifest["shards"]), -(-episodes // EPISODES)):
        wanted = min(EPISODES, episodes - number * EPISODES)
        trials, dropped = _solved(level, part, wanted, noise, seeds(seed, number), look)
        writer.manifest["dropped"] += dropped
        _append(writer, trials)
    return FrameStore.open(out)


def stored(trials: Sequence[Trial], level: str, out: str | Path, **look: Any) -> FrameStore:
    """Writes trials of any actor as a store like that of `demonstrations`.

    Trials in which the expert had no plan are dropped, and ``manifest["dropped"]`` counts them.

    Args:
        trials: of one level.
        level: its id.
        out: a directory that is empty or does not exist.
        **look: view, tile_size, palette, strength and pictures, as they were played.

    Raises:
        RlpreError: if no trial is left, their frames have another shape, ``out`` is not empty, or the disk is full.
    """
    kept = [trial for trial in trials if not trial.lost]
    if not kept:
        raise RlpreError(f"there is nothing to store: the expert had no plan in all {len(trials)} trials of {level}")
    look = full_look(**look)
    kind = make(level, **look).store_arguments([level], LABELS)
    with new_store(Path(out), spec={"trials": level, **look}, **kind) as writer:
        writer.manifest["dropped"] = len(trials) - len(kept)
        _append(writer, kept)
    return FrameStore.open(out)


def _solved(
    level: str, part: str, wanted: int, noise: float, streams: tuple[int, int], look: dict[str, Any]
) -> tuple[list[Trial], int]:
    """``wanted`` trials in which the expert accomplished its mission, and the number of other trials between them."""
    first, noise_seed = streams
    actor = NoisyActor(ExpertActor(), noise, np.random.default_rng(noise_seed))
    solved: list[Trial] = []
    played = 0
    while len(solved) < wanted:
        resets = layout_seeds(level, part, wanted - len(solved), first)
        first = resets[-1] + 1
        solved += [trial for trial in play(level, resets, actor, **look) if trial.success and not trial.lost]
        played += len(resets)
        if not solved and played >= MOST_FAILURES:
            raise RlpreError(f"the expert failed in all of {played} episodes of {level} with noise {noise}: lower it")
    return solved, played - len(solved)


def _append(writer: FrameWriter, trials: Sequence[Trial]) -> None:
    """Writes trials as one shard."""
    rows = [_rows(trial) for trial in trials]
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    writer.append(np.concatenate([trial.codes for trial in trials]), **columns)
    writer.flush()


def _rows(trial: Trial) -> dict[str, np.ndarray]:
    last = np.arange(len(trial.actions)) == len(trial.actions) - 1
    steps = {
        "action": (trial.actions, -1),
        "reward": (trial.reward, 0.0),
        "terminated": (last & trial.terminated, False),
        "truncated": (last & (not trial.terminated), False),
        "expert": (trial.advice, UNKNOWN),
    }
    rows = {name: np.append(values, end) for name, (values, end) in steps.items()}
    size = len(trial.codes)
    whole_episode = {"task": 0, "layout": trial.layout, "mission": trial.mission}
    rows |= {name: np.full(size, value) for name, value in whole_episode.items()}
    return rows | {"episode_start": np.arange(size) == 0}
