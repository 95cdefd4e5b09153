"""How much of what an agent will meet in MiniGrid environments do offline frames contain?"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from minigrid.minigrid_env import MiniGridEnv

from envs.minigrid import render
from envs.minigrid.collect import collect
from envs.minigrid.experts import expert_for
from envs.minigrid.render import UnknownObjectError, symbols_of
from envs.minigrid.worlds import GridWorld, make, make_vec, recorded_look
from rlpre.data.collect import seeds
from rlpre.data.store import FrameStore, Indices
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.evaluation.overlap import Overlap, overlap

SEED = 2**31 - 1  # of the fresh episodes; frames are collected with smaller seeds
STEPS = 20_000


def overlaps(
    frames: FrameStore,
    environments: Sequence[str],
    steps: int = STEPS,
    seed: int = SEED,
    behaviour: str | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Overlap]:
    """Compares ``frames`` with fresh episodes of each environment: states, layouts and observations.

    Overlap is not always avoidable: a small world has so few states that its frames contain the test.

    Args:
        frames: any store of frames as the environments show them.
        environments: registered ids.
        steps: to play in each of them.
        seed: of the episodes.
        behaviour: as in `envs.collect`; None: half at random and half a noisy expert, if there is one.
        encoder: compares frames by features, see `rlpre.evaluation.overlap.overlap`.

    Raises:
        RlpreError: for no environment or an unknown one, ``frames`` of another shape, the seed that they were collected
            with, or an encoder that was pretrained on them.
    """
    spec = frames.manifest["spec"]
    if not environments:
        raise RlpreError("no environment to compare with: name at least one id, such as MiniGrid-DoorKey-5x5-v0")
    if spec.get("seed") == seed:
        raise RlpreError(f"{frames.path} was collected with seed {seed}, and would be met again: give another")
    look = recorded_look(spec)
    found: dict[str, Overlap] = {}
    known: Indices | str
    try:
        known = states(frames)
    except RlpreError as error:
        known = str(error)
    for name in environments:
        world = make(name, **look)
        if world.observation_space != frames.space:
            shapes = f"{world.observation_space.shape}, {frames.path} holds {frames.space.shape}"
            raise RlpreError(f"{name} shows frames {shapes}: give frames of its view and tile size")
        world.reset(seed=0)
        play = behaviour or ("random" if expert_for(world) is None else "0.5*random + 0.5*expert:0.3")
        with tempfile.TemporaryDirectory() as folder:
            met = collect(name, Path(folder) / "met", steps, seed, play, **look)
            found[name] = overlap(frames, met, known if isinstance(known, str) else (known, states(met)), encoder)
    return found


def states(store: FrameStore) -> Indices:
    """A hash of the true state (grid, pose, mission, carried object) at every row, (N,).

    A store of `envs.collect` can be replayed, because the worlds are seeded and the actions are stored.

    Raises:
        RlpreError: if another collector wrote the store, or the installed minigrid behaves differently.
    """
    spec = store.manifest["spec"]
    if "environments" not in spec or "taken_from" in spec:
        raise RlpreError(f"{store.path} is not a complete collection of envs.collect and cannot be replayed")
    found = np.empty(len(store), np.int64)
    tasks, acted, start = store.column("task"), store.acted, 0
    for number, shard in enumerate(store.manifest["shards"]):
        rows = np.arange(start, start + shard["rows"])
        length = int(acted[rows].sum()) // spec["n_envs"]
        ends = rows[acted[rows]][length - 1 :: length] + 2  # each world's rows end with the one after its last action
        world_seed, _ = seeds(spec["seed"], number)
        name = store.tasks[tasks[start]]
        worlds = make_vec(name, spec["n_envs"], world_seed, **recorded_look(spec)).unwrapped
        for world, seed, end in zip(worlds.envs, worlds.seed(world_seed), ends.tolist(), strict=True):
            found[start:end] = list(_replay(store, np.arange(start, end), world, seed))
            start = end
    return found


def state(world: MiniGridEnv) -> int:
    """A signed 64-bit hash of grid, pose, mission and carried object; right after a reset, of the layout.

    Raises:
        RlpreError: if an object is not one of MiniGrid's own.
    """
    try:
        symbols = symbols_of([*world.grid.grid, world.carrying])
    except UnknownObjectError as error:
        raise RlpreError(f"{world} holds an object without a code: its states cannot be compared") from error
    x, y = world.agent_pos
    pose = f"{world.width} {x} {y} {world.agent_dir} {world.mission}".encode()
    return int.from_bytes(hashlib.blake2b(symbols + pose, digest_size=8).digest(), signed=True)


def _replay(store: FrameStore, rows: Indices, world: GridWorld, seed: int | None) -> Iterator[int]:
    """The states at the rows of one world, which began with a reset by ``seed``."""
    begins = rows[store.column("episode_start")[rows]]
    resets, shown = set(begins.tolist()), []
    for row, action in zip(rows.tolist(), store.column("action")[rows].tolist(), strict=True):
        if row in resets:
            world.reset_unrendered(seed)
            seed = None
            shown.append(world.frame)
        yield state(world.grid_env)
        if action >= 0:
            world.step_unobserved(action)
    shown.append(world.view(world.grid_env))
    if not np.array_equal(render.encode(shown, world.rows, world.columns), store.codes([*begins, rows[-1]])):
        raise RlpreError(
            f"{store.path} was collected with minigrid {store.manifest['spec']['minigrid']}, and its actions lead "
            "elsewhere in the installed one: collect again to compare states"
        )
