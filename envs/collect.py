"""Collecting offline frames of MiniGrid and BabyAI into a `FrameStore`."""

import contextlib
import importlib.metadata
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from envs.atlas import atlas
from envs.behaviours import Behaviour, Cast, load_agent, parse
from envs.experts import expert_for
from envs.labels import LABELS, UNKNOWN
from envs.worlds import GridWorld, make, make_vec
from rlpre.errors import RlpreError
from rlpre.files import sha256
from rlpre.frames import FrameStore, digests
from rlpre.framewriter import MANIFEST, FrameWriter

Rows = tuple[np.ndarray, dict[str, np.ndarray]]  # frames, columns


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
    writer = _writer(Path(out), world, spec)
    segments = _segments(len(ids), -(-steps // len(ids)), n_envs, writer.shard_rows // 2)
    _run(writer, segments, lambda venv, rng: Cast(venv, behaviours, agents, rng))
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


def _writer(out: Path, world: GridWorld, spec: dict[str, Any]) -> FrameWriter:
    """The writer of a new store, or of one that was begun with the same specification."""
    if not (out / MANIFEST).exists():
        return FrameStore.create(
            out,
            space=world.observation_space,
            action_space=world.action_space,
            spec=spec,
            atlas=atlas(spec["tile_size"]),
            palette=spec["palette"],
            tasks=spec["environments"],
            labels=LABELS,
        )
    writer = FrameStore.extend(out)
    found, wanted = writer.manifest["spec"], json.loads(json.dumps(spec))
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            raise RlpreError(
                f"{out} belongs to another collection: {key} is {found.get(key)!r} there and {wanted.get(key)!r} here: "
                "choose another directory"
            )
    return writer


def _segments(tasks: int, steps: int, n_envs: int, most: int) -> list[tuple[int, int]]:
    """(task, steps of each environment) per segment, none of more than ``most`` transitions if that can be."""
    longest, total = max(1, most // n_envs), -(-steps // n_envs)
    return [(task, min(longest, total - start)) for task in range(tasks) for start in range(0, total, longest)]


class _Census:
    """Counts distinct frames and unchanged transitions while they come in."""

    def __init__(self, begun: Path | None) -> None:
        self.seen: set[bytes] = set()
        self.transitions = self.unchanged = 0
        if begun:
            store = FrameStore.open(begun)
            self.add(store.read(np.arange(len(store))).numpy(), store.column("action"))

    def add(self, frames: np.ndarray, action: np.ndarray) -> None:
        marks = list(digests(frames))
        acted = np.flatnonzero(action >= 0)
        self.seen.update(marks)
        self.transitions += len(acted)
        self.unchanged += sum(marks[row] == marks[row + 1] for row in acted)

    @property
    def found(self) -> dict[str, str]:
        if not self.transitions:
            return {}
        return {"distinct": f"{len(self.seen):,}", "unchanged": f"{self.unchanged / self.transitions:.0%}"}


def _run(
    writer: FrameWriter, segments: list[tuple[int, int]], cast_for: Callable[[VecEnv, np.random.Generator], Cast]
) -> None:
    """Plays the segments that the store does not hold yet, one shard each."""
    spec, done = writer.manifest["spec"], len(writer.manifest["shards"])
    census = _Census(writer.path if done else None)
    steps = [spec["n_envs"] * length for _, length in segments]
    with tqdm(
        total=sum(steps),
        initial=sum(steps[:done]),
        unit="step",
        desc=writer.path.name,
        postfix=census.found,
        disable=None,
    ) as bar:
        for number, (task, length) in list(enumerate(segments))[done:]:
            world_seed, seed = (np.random.SeedSequence([spec["seed"], number]).generate_state(2) >> 1).tolist()
            look = {key: spec[key] for key in ("view", "tile_size", "palette")}
            # MiniGrid prints every level it rejects; a saved agent samples its actions with torch
            with contextlib.redirect_stdout(None), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                venv = make_vec(spec["environments"][task], spec["n_envs"], world_seed, **look)
                observed = venv.reset()
                rollout = list(_play(venv, cast_for(venv, np.random.default_rng(seed)), observed, length, bar))
                venv.close()
            for frames, columns in rollout:
                census.add(frames, columns["action"])
                writer.append(frames, task=task, **columns)
            writer.flush()
            bar.set_postfix(census.found)


def _play(venv: VecEnv, cast: Cast, observed: np.ndarray, length: int, bar: "tqdm[Any]") -> Iterator[Rows]:
    """Plays ``length`` steps and gives the rows of each environment in turn."""
    frames = np.empty((length, *venv.codes.shape), np.uint8)
    known = np.empty((length, venv.num_envs, len(LABELS)), np.int16)
    action = np.empty((length, venv.num_envs), np.int64)
    reward = np.empty(action.shape, np.float32)
    done, truncated = np.zeros(action.shape, bool), np.zeros(action.shape, bool)
    ends: list[dict[int, np.ndarray]] = [{} for _ in range(venv.num_envs)]
    for t in range(length):
        frames[t], known[t] = venv.codes, cast.labels()
        action[t] = cast.act(observed, known[t])
        observed, reward[t], done[t], infos = venv.step(action[t])
        for env in np.flatnonzero(done[t]):
            truncated[t, env] = infos[env]["TimeLimit.truncated"]
            ends[env][t] = venv.terminal_codes[env]
            cast.begin(env)
        bar.update(venv.num_envs)
    for env in np.flatnonzero(~done[-1]):
        ends[env][length - 1] = venv.codes[env]
    columns = {"action": action, "reward": reward, "terminated": done & ~truncated, "truncated": truncated}
    columns |= {label: known[..., i] for i, label in enumerate(LABELS)}
    for env in range(venv.num_envs):
        yield _episodes(frames[:, env], {name: column[:, env] for name, column in columns.items()}, ends[env])


def _episodes(frames: np.ndarray, columns: dict[str, np.ndarray], ends: dict[int, np.ndarray]) -> Rows:
    """Rows of one environment: behind each end, a row with the frame that the episode ended on."""
    after = np.array(list(ends)) + 1
    start = np.zeros(len(frames), bool)
    start[[0, *after[after < len(frames)]]] = True
    rows = {name: np.insert(column, after, UNKNOWN) for name, column in columns.items() if name in ("action", *LABELS)}
    rows |= {name: np.insert(column, after, 0) for name, column in columns.items() if name not in rows}
    rows["episode_start"] = np.insert(start, after, False)
    return np.insert(frames, after, list(ends.values()), axis=0), rows
