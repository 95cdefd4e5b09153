"""How much of what an agent will meet in an environment do offline frames hold already?"""

import hashlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from minigrid.core.actions import Actions
from minigrid.minigrid_env import MiniGridEnv

from envs import views
from envs.collect import collect
from envs.experts import expert_for
from envs.symbols import UnknownObjectError, spell
from envs.worlds import GridWorld, make, make_vec
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.measure.overlap import Overlap, overlap
from rlpre.sampling import Indices
from rlpre.sources.rollout import seeds

LOOK = {"view": "partial", "tile_size": 8, "palette": "day"}  # of frames that do not say how they were drawn
SEED = 2**31 - 1  # of the episodes that are met: not one that frames are collected with
STEPS = 20_000
HANDS = (Actions.pickup, Actions.drop, Actions.toggle)  # change more than the agent's pose


def overlaps(
    frames: FrameStore,
    environments: Sequence[str],
    steps: int = STEPS,
    seed: int = SEED,
    behaviour: str | None = None,
    encoder: Encoder | None = None,
) -> dict[str, Overlap]:
    """What ``frames`` hold of the states, layouts and observations that an agent meets in each environment.

    They are met in fresh episodes. Overlap of them is no fault of ``frames``: a small world has few states, and whoever
    has seen it has seen the test.

    Args:
        frames: any store of frames as the environments show them.
        environments: registered ids.
        steps: to play in each of them.
        seed: of those episodes.
        behaviour: who plays, as in `envs.collect`; None: half at random, half a noisy expert where there is one, as an
            agent begins and as it ends.
        encoder: judges likeness, see `rlpre.measure.contamination.overlap`.

    Raises:
        RlpreError: for an unknown name or none, ``frames`` of another shape, the seed that they were collected with, or
            an encoder that is not independent of them.
    """
    spec = frames.manifest["spec"]
    if not environments:
        raise RlpreError("no environment to compare with: name at least one id, such as MiniGrid-DoorKey-5x5-v0")
    if spec.get("seed") == seed:
        raise RlpreError(f"{frames.path} was collected with seed {seed}, and would be met again: give another")
    look = {key: spec.get(key, usual) for key, usual in LOOK.items()}
    known = _told(frames)
    found: dict[str, Overlap] = {}
    for name in environments:
        world = make(name, **look)
        if world.observation_space != frames.space:
            shapes = f"{world.observation_space.shape}, {frames.path} holds {frames.space.shape}"
            raise RlpreError(f"{name} shows frames {shapes}: give frames of its view and tile size")
        with tempfile.TemporaryDirectory() as home:
            met = collect(name, Path(home) / "met", steps, seed, behaviour or _usual(world), **look)
            found[name] = overlap(frames, met, known if isinstance(known, str) else (known, states(met)), encoder)
    return found


def states(store: FrameStore) -> Indices:
    """A hash of the true state at every row: grid, pose, mission and what is carried; (N,).

    What `envs.collect` wrote can be played again: the worlds are seeded and the actions are stored.

    Raises:
        RlpreError: if the store is not `envs.collect`'s, or the installed minigrid plays another game than then.
    """
    spec = store.manifest["spec"]
    if "environments" not in spec or "taken_from" in spec:
        raise RlpreError(f"{store.path} is no whole collection by envs.collect, which could be played again")
    found = np.empty(len(store), np.int64)
    tasks, acted, start = store.column("task"), store.acted, 0
    for number, shard in enumerate(store.manifest["shards"]):
        rows = np.arange(start, start + shard["rows"])
        length = int(acted[rows].sum()) // spec["n_envs"]
        # each world's stretch ends with the row after its last action
        ends = rows[acted[rows]][length - 1 :: length] + 2
        world_seed, _ = seeds(spec["seed"], number)
        name = store.tasks[tasks[start]]
        worlds = make_vec(name, spec["n_envs"], world_seed, **{key: spec[key] for key in LOOK}).unwrapped
        for world, seed, end in zip(worlds.envs, worlds.seed(world_seed), ends.tolist(), strict=True):
            found[start:end] = list(_replay(store, np.arange(start, end), world, seed))
            start = end
    return found


def state(world: MiniGridEnv, symbols: bytes | None = None) -> int:
    """A signed 64-bit hash of grid, pose, mission and what is carried; right after a reset, of the layout.

    Args:
        world: asked for its state.
        symbols: its `_symbols`, if they are known.

    Raises:
        RlpreError: if an object is not one of MiniGrid's own.
    """
    x, y = world.agent_pos
    pose = f"{world.width} {x} {y} {world.agent_dir} {world.mission}".encode()
    content = (_symbols(world) if symbols is None else symbols) + pose
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), signed=True)


def _symbols(world: MiniGridEnv) -> bytes:
    """Everything in the world but the agent itself."""
    try:
        return spell([*world.grid.grid, world.carrying])
    except UnknownObjectError as error:
        raise RlpreError(f"{world} holds an object without a code: its states cannot be told apart") from error


def _replay(store: FrameStore, rows: Indices, world: GridWorld, seed: int | None) -> Iterator[int]:
    """The states at the rows of one world's stretch, which began with a reset by ``seed``."""
    inner, begins, glances = world.grid_env, rows[store.column("episode_start")[rows]], []
    resets, cells, symbols = set(begins.tolist()), None, b""
    for row, action in zip(rows.tolist(), store.column("action")[rows].tolist(), strict=True):
        if row in resets:
            world.begin(seed)
            seed = None
            glances.append(world.glance)
        if cells != inner.grid.grid:  # most steps only move the agent
            cells, symbols = inner.grid.grid.copy(), _symbols(inner)
        yield state(inner, symbols)
        if action >= 0:
            world.skip(action)
        if action in HANDS:
            cells = None
    glances.append(world.view(inner))
    if not np.array_equal(views.encode(glances, world.rows, world.columns), store.codes([*begins, rows[-1]])):
        raise RlpreError(
            f"{store.path} was collected with minigrid {store.manifest['spec']['minigrid']}, and its actions lead "
            "elsewhere in the installed one: collect again to tell states"
        )


def _told(frames: FrameStore) -> Indices | str:
    """The states of a store, or why they cannot be told."""
    try:
        return states(frames)
    except RlpreError as error:
        return str(error)


def _usual(world: GridWorld) -> str:
    world.reset(seed=0)
    return "random" if expert_for(world) is None else "0.5*random + 0.5*expert:0.3"
