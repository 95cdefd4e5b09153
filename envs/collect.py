"""Collecting offline frames of MiniGrid and BabyAI into a `FrameStore`."""

import importlib.metadata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv

from envs.atlas import atlas
from envs.behaviours import Behaviour, Cast, load_agent, parse
from envs.experts import expert_for
from envs.labels import LABELS
from envs.worlds import GridWorld, make, make_vec
from rlpre.errors import RlpreError
from rlpre.files import sha256
from rlpre.frames import FrameStore
from rlpre.framewriter import FrameWriter
from rlpre.sources.rollout import Recorder, begin, seeds, segments


def collect(
    env_id: str | Sequence[str],
    out: str | Path,
    steps: int,
    seed: int,
    behaviour: str = "random",
    n_envs: int = 16,
    view: str = "partial",
    tile_size: int = 8,
    palette: str = "day",
) -> FrameStore:
    """Collects at least ``steps`` transitions, shared equally by the environments.

    The work is cut into segments, one shard each, with worlds and random numbers of their own: the same arguments give
    the same store, and an interrupted collection called again goes on where it stopped and ends with that same store.

    Args:
        env_id: one id, or several of equal frame shape and actions (column "task" says which).
        out: the directory of the store.
        steps: transitions in all; rounded up to a multiple of ``n_envs`` per id.
        seed: of the worlds and the actions.
        behaviour: "random", "expert:0.3" (noise: probability of a random action), "agent:path.zip", or a mixture by
            episodes such as "0.5*random + 0.5*expert:0.1".
        n_envs: worlds stepped together.
        view: as in `envs.make`.
        tile_size: as in `envs.make`.
        palette: as in `envs.make`.

    Returns:
        The store, with label columns "front", "carrying", "distance" and "expert" (-1 = unknown, as in the last row of
        every episode); `distinct` and `unchanged` say how rich it is.

    Raises:
        RlpreError: if a name, the behaviour or a number is wrong, the shapes differ, an expert is asked for where there
            is none, ``out`` belongs to another configuration, or the disk is full.
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    if not ids:
        raise RlpreError("no environment to collect from: name at least one id, such as MiniGrid-DoorKey-5x5-v0")
    if min(steps, n_envs) < 1 or seed < 0:
        raise RlpreError(f"cannot collect {steps} steps with {n_envs} envs and seed {seed}: use positive numbers")
    behaviours = parse(behaviour)
    look: dict[str, Any] = {"view": view, "tile_size": tile_size, "palette": palette}
    world = _check_worlds([make(name, **look) for name in ids], ids, behaviours)
    agents = {part.agent: load_agent(part.agent, world.observation_space) for part in behaviours if part.agent}
    spec = {
        "environments": ids,
        "steps": steps,
        "seed": seed,
        "behaviour": behaviour,
        "agents": {path: sha256(Path(path)) for path in agents},
        "n_envs": n_envs,
        **look,
        "minigrid": importlib.metadata.version("minigrid"),
    }
    writer = _begin(Path(out), world, spec)
    parts = segments(len(ids), -(-steps // len(ids)), n_envs, writer.shard_rows // 2)
    _run(writer, parts, lambda venv, rng: Cast(venv, behaviours, agents, rng))
    return FrameStore.open(out)


def _check_worlds(worlds: list[GridWorld], ids: list[str], behaviours: list[Behaviour]) -> GridWorld:
    first = worlds[0]
    for world, name in zip(worlds, ids, strict=True):
        for what in ("observation_space", "action_space"):
            here, there = getattr(first, what), getattr(world, what)
            if here != there:
                raise RlpreError(f"{ids[0]} and {name} differ: {here} and {there}: collect them into two stores")
        world.reset(seed=0)
        if expert_for(world) is None and any(part.kind == "expert" for part in behaviours):
            raise RlpreError(f"there is no expert for {name}: collect it with 'random' or 'agent:path.zip'")
    return first


def _begin(out: Path, world: GridWorld, spec: dict[str, Any]) -> FrameWriter:
    return begin(
        out,
        spec,
        space=world.observation_space,
        action_space=world.action_space,
        atlas=atlas(spec["tile_size"]),
        palette=spec["palette"],
        tasks=spec["environments"],
        labels=LABELS,
    )


class _Scene:
    """What is stored of grid worlds: their tile codes, and the labels that the cast knows."""

    labels = LABELS

    def __init__(self, venv: VecEnv, cast: Cast) -> None:
        self.venv, self.cast = venv, cast

    def frames(self, observed: np.ndarray) -> np.ndarray:
        return self.venv.codes

    def known(self) -> np.ndarray:
        return self.cast.labels()

    def act(self, observed: np.ndarray, known: np.ndarray) -> np.ndarray:
        return self.cast.act(observed, known)

    def end(self, env: int, info: dict[str, Any]) -> np.ndarray:
        self.cast.begin(env)
        return self.venv.terminal_codes[env]


def _run(
    writer: FrameWriter, parts: list[tuple[int, int]], cast_for: Callable[[VecEnv, np.random.Generator], Cast]
) -> None:
    """Plays the segments that the store does not hold yet, one shard each."""
    spec, done = writer.manifest["spec"], len(writer.manifest["shards"])
    look = {key: spec[key] for key in ("view", "tile_size", "palette")}
    with Recorder(writer, spec["n_envs"] * sum(length for _, length in parts)) as recorder:
        for number, (task, length) in list(enumerate(parts))[done:]:
            world_seed, seed = seeds(spec["seed"], number)
            with torch.random.fork_rng(devices=[]):  # a saved agent samples its actions with torch
                torch.manual_seed(seed)
                venv = make_vec(spec["environments"][task], spec["n_envs"], world_seed, **look)
                observed = venv.reset()
                scene = _Scene(venv, cast_for(venv, np.random.default_rng(seed)))
                recorder.play(venv, scene, observed, length, last=True, task=task)
                venv.close()
