"""Any environment by its name: MiniGrid and BabyAI levels, EnvPool's and ViZDoom's games, other Gymnasium ids."""

import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.vec_env import VecEnv

from envs.minigrid.collect import collect as collect_grids
from envs.minigrid.worlds import LOOK, GridWorld
from envs.minigrid.worlds import make_vec as make_grids
from envs.pool import MEGABYTES, kinds, make_pool
from rlpre.compare.train import MakeEnv, find_env
from rlpre.data.store import FrameStore
from rlpre.errors import RlpreError, lookup


def make_vec(env_id: str, n_envs: int, seed: int, engine: str = "minigrid", **look: Any) -> VecEnv:
    """Makes ``n_envs`` environments that are stepped together.

    Args:
        env_id: a level of MiniGrid or BabyAI, a game of Procgen ("CoinrunEasy-v0"), Atari ("Pong-v5") or ViZDoom
            ("VizdoomBasic-v1"), another Gymnasium id, or "module:function".
        n_envs: number of environments.
        seed: seeds the first reset.
        engine: what steps levels: "minigrid" (every view, and experts), or "envpool" (faster, the partial view alone).
        **look: see `envs.minigrid.worlds.make`, `envs.pool.make_pool` and `envs.doom.make_doom`.

    Returns:
        A ``VecEnv`` whose infos hold "episode" where one has ended.

    Raises:
        RlpreError: for an unknown id or engine, a look that the environments do not have, a missing library, or more
            environments than memory holds.
    """
    return find(env_id, engine, **look)(n_envs, seed)


def find(name: str, engine: str = "minigrid", **look: Any) -> MakeEnv:
    """The function ``(n_envs, seed) -> VecEnv`` that makes environments of this name.

    The arguments are those of `make_vec`. Other environments ignore a look that is the default of levels.

    Raises:
        RlpreError: as `make_vec`.
    """
    make = lookup("engine", engine, {"minigrid": make_grids, "envpool": make_pool})
    if name.startswith(("MiniGrid-", "BabyAI-")):
        _check_look(name, look, GridWorld)
        return partial(_make, name, MEGABYTES["minigrid"], partial(make, name, **look))
    look = _own(look)
    doom, gymnasium = name.startswith("Vizdoom"), ":" in name or name in gym.registry
    if engine == "envpool" and (doom or gymnasium):
        raise RlpreError(f"EnvPool steps MiniGrid, BabyAI, Procgen and Atari here, not {name}: leave out the engine")
    if doom:
        from envs.doom import make_doom  # imports ViZDoom

        _check_look(name, look, make_doom)
        return partial(make_doom, name, **look)
    if gymnasium:
        look.pop("state", None)  # it is the environment that puts it into its infos, or does not
        if look:
            raise RlpreError(f"{name} does not take {next(iter(look))!r}: leave it out")
        return find_env(name)
    kind = lookup("environment", name, dict.fromkeys(gym.registry, "") | kinds())
    return partial(_make, name, MEGABYTES[kind], partial(make_pool, name, **look))


def collect(
    env_id: str | Sequence[str],
    out: str | Path,
    steps: int,
    seed: int,
    behaviour: str = "random",
    n_envs: int = 16,
    **look: Any,
) -> FrameStore:
    """Collects frames by random, expert or saved agents: of levels of MiniGrid and BabyAI, or of a scenario of ViZDoom.

    Arguments and errors are those of `envs.minigrid.collect.collect`; there is one scenario to a store, see
    `envs.doom_expert.collect_doom`.
    """
    ids = [env_id] if isinstance(env_id, str) else list(env_id)
    if not any(name.startswith("Vizdoom") for name in ids):
        _check_look(", ".join(ids), look, GridWorld)
        return collect_grids(ids, out, steps, seed, behaviour, n_envs, **look)
    from envs.doom import make_doom  # imports ViZDoom
    from envs.doom_expert import collect_doom

    if len(ids) > 1:
        raise RlpreError(f"{len(ids)} environments with {ids[0]} among them: collect scenarios into one store each")
    _check_look(ids[0], look := _own(look), make_doom)
    return collect_doom(ids[0], out, steps, seed, behaviour, n_envs, **look)


def _check_look(name: str, look: Iterable[str], make: Callable[..., Any]) -> None:
    known = [each for each in inspect.signature(make).parameters if each not in ("env", "env_id", "n_envs", "seed")]
    for key in look:
        lookup(f"argument of {name}:", key, dict.fromkeys(known))


def _own(look: dict[str, Any]) -> dict[str, Any]:
    """Without what is the default of levels, which other environments do not have."""
    return {key: value for key, value in look.items() if value != {**LOOK, "state": False}.get(key)}


def _make(name: str, megabytes: float, make: MakeEnv, n_envs: int, seed: int) -> VecEnv:
    need, have = n_envs * megabytes / 1e3, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    if n_envs < 1:
        raise RlpreError(f"n_envs is {n_envs}: give at least 1 environment")
    if need > have:
        raise RlpreError(f"{n_envs} of {name} need about {need:.0f} GB, this machine has {have:.0f} GB: use fewer")
    return make(n_envs, seed)
