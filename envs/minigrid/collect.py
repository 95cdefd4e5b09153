"""Collecting offline frames of MiniGrid and BabyAI into a `FrameStore`, by random, expert or saved agents."""

import importlib.metadata
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from envs.minigrid.experts import LABELS, UNKNOWN, Expert, expert_for, labels
from envs.minigrid.worlds import GridWorld, full_look, make, make_vec
from rlpre.data.collect import Recorder, seeds, segments
from rlpre.data.store import FrameStore, resume_store
from rlpre.errors import RlpreError
from rlpre.utils import sha256

# SB3's zip files do not name their algorithm; it follows from the first of these settings that they hold
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"clip_range": PPO, "exploration_fraction": DQN, "gae_lambda": A2C}


class Behaviour(NamedTuple):
    """One part of a mixture."""

    share: float  # of the episodes
    kind: str  # "random", "expert" or "agent"
    noise: float = 0.0  # probability of a random action
    agent: str = ""  # path of the zip


def parse(mixture: str) -> list[Behaviour]:
    """Reads ``[share*]behaviour[+ ...]`` (see `collect`); shares are scaled to sum to 1.

    Raises:
        RlpreError: if the text is not of this form.
    """
    parts = [_part(part.strip(), mixture) for part in mixture.split("+")]
    total = sum(part.share for part in parts)
    return [part._replace(share=part.share / total) for part in parts]


def _part(text: str, mixture: str) -> Behaviour:
    left, star, right = text.partition("*")
    kind, _, argument = (right if star else text).strip().partition(":")
    try:
        share = float(left) if star else 1.0
        noise = float(argument) if kind == "expert" and argument else 0.0
    except ValueError:
        share = noise = -1.0
    known = {"random": not argument, "expert": True, "agent": bool(argument)}
    if not (known.get(kind, False) and 0 < share < float("inf") and 0 <= noise <= 1):
        raise RlpreError(
            f"behaviour {mixture!r} cannot be read at {text!r}: "
            "write 'random', 'expert:0.3' (noise), 'agent:path.zip' or '0.5*random + 0.5*expert'"
        )
    return Behaviour(share, kind, noise, argument if kind == "agent" else "")


def load_agent(path: str, frames: spaces.Space) -> BaseAlgorithm:
    """Loads a saved SB3 agent whose observation space is ``frames``.

    Raises:
        RlpreError: if the file is not a saved PPO, A2C or DQN, or it has another observation space.
    """
    try:
        with zipfile.ZipFile(path) as file:
            settings = json.loads(file.read("data"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RlpreError(
            f"{path} is not a saved Stable-Baselines3 agent ({error}): give the .zip of model.save"
        ) from error
    algorithm = next((cls for key, cls in ALGORITHMS.items() if key in settings), None)
    if algorithm is None:
        raise RlpreError(f"{path} is not a PPO, A2C or DQN agent: collect with one of these")
    model = algorithm.load(path, device="cpu")
    if model.observation_space != frames:
        raise RlpreError(
            f"{path} acts on {model.observation_space}, the frames are {frames}: "
            "collect with the view it was trained on, and fuse an agent that was trained on features"
        )
    return model


class MixturePlayer:
    """Plays by a mixture of behaviours, one drawn at the start of each episode; a `rlpre.data.collect.Player`.

    What is stored are tile codes, and the labels of the experts.

    Args:
        venv: the environments.
        behaviours: the mixture; its shares sum to 1.
        agents: the agents of the mixture by path.
        rng: draws behaviours and random actions.
    """

    labels = LABELS

    def __init__(
        self, venv: VecEnv, behaviours: list[Behaviour], agents: dict[str, BaseAlgorithm], rng: np.random.Generator
    ) -> None:
        self.venv, self.behaviours, self.rng = venv, behaviours, rng
        self.worlds = [env.unwrapped for env in venv.envs]
        self.noise = np.array([1.0 if part.kind == "random" else part.noise for part in behaviours])
        self.agents = {n: agents[part.agent] for n, part in enumerate(behaviours) if part.agent}
        self.chosen = np.zeros(venv.num_envs, np.int64)
        self.experts: list[Expert | None] = [None] * venv.num_envs
        self.taken: list[int | None] = [None] * venv.num_envs
        for env in range(venv.num_envs):
            self._start_episode(env)

    def _start_episode(self, env: int) -> None:
        self.chosen[env] = self.rng.choice(len(self.behaviours), p=[part.share for part in self.behaviours])
        self.experts[env] = expert_for(self.worlds[env])
        self.taken[env] = None

    def frames(self, observed: np.ndarray) -> np.ndarray:
        return self.venv.codes

    def known(self) -> np.ndarray:
        advice = (
            expert.advise(taken) if expert else (UNKNOWN, UNKNOWN)
            for expert, taken in zip(self.experts, self.taken, strict=True)
        )
        return np.array([labels(world, advised) for world, advised in zip(self.worlds, advice, strict=True)], np.int16)

    def act(self, observed: np.ndarray, known: np.ndarray) -> np.ndarray:
        actions = known[:, self.labels.index("expert")].astype(np.int64)
        for number, agent in self.agents.items():
            mine = self.chosen == number
            if mine.any():
                actions[mine] = agent.policy.predict(observed[mine])[0]
        free = self.rng.integers(self.venv.action_space.n, size=len(actions))
        noisy = self.rng.random(len(actions)) < self.noise[self.chosen]
        actions = np.where(noisy | (actions < 0), free, actions)  # an expert without a plan acts at random
        self.taken = actions.tolist()
        return actions

    def end(self, env: int, info: dict[str, Any]) -> np.ndarray:
        self._start_episode(env)
        return self.venv.terminal_codes[env]


def collect(
    env_id: str | Sequence[str],
    out: str | Path,
    steps: int,
    seed: int,
    behaviour: str = "random",
    n_envs: int = 16,
    **look: Any,
) -> FrameStore:
    """Collects at least ``steps`` transitions, shared equally by the environments.

    The work is cut into segments, one shard each, with their own seeds. So the same arguments give the same store, and
    an interrupted collection that is called again goes on where it stopped and ends with that same store.

    Args:
        env_id: one id, or several of equal frame shape and actions (column "task" says which).
        out: the directory of the store.
        steps: transitions in all; rounded up to a multiple of ``n_envs`` per id.
        seed: of the environments and the actions.
        behaviour: "random", "expert:0.3" (noise: probability of a random action, default 0), "agent:path.zip" (a saved
            SB3 PPO, A2C or DQN), or a mixture by episodes such as "0.5*random + 0.5*expert:0.1".
        n_envs: environments stepped together.
        **look: view, tile_size, palette, strength and pictures, as in `envs.make`.

    Returns:
        The store, with label columns "front", "carrying", "distance" and "expert" (-1 = unknown, as in the last row of
        every episode); `distinct` and `unchanged` describe its variety.

    Raises:
        RlpreError: for a wrong name, behaviour or number, shapes that differ, a behaviour without its expert, or an
            ``out`` that belongs to another configuration; if the disk is full.
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    if not ids:
        raise RlpreError("no environment to collect from: name at least one id, such as MiniGrid-DoorKey-5x5-v0")
    if min(steps, n_envs) < 1 or seed < 0:
        raise RlpreError(f"cannot collect {steps} steps with {n_envs} envs and seed {seed}: use positive numbers")
    behaviours = parse(behaviour)
    look = full_look(**look)
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
    writer = resume_store(Path(out), spec, **world.store_arguments(ids, LABELS))
    parts = segments(len(ids), -(-steps // len(ids)), n_envs, writer.shard_rows // 2)
    with Recorder(writer, n_envs * sum(length for _, length in parts)) as recorder:
        for number in range(len(writer.manifest["shards"]), len(parts)):  # one shard each
            (task, length), (world_seed, policy_seed) = parts[number], seeds(seed, number)
            with torch.random.fork_rng(devices=[]):  # a saved agent samples its actions with torch
                torch.manual_seed(policy_seed)
                venv = make_vec(ids[task], n_envs, world_seed, **look)
                observed = venv.reset()
                player = MixturePlayer(venv, behaviours, agents, np.random.default_rng(policy_seed))
                recorder.play(venv, player, observed, length, last=True, task=task)
                venv.close()
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
