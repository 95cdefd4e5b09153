"""EnvPool's worlds, many stepped together in compiled code: MiniGrid and BabyAI as pixels, Procgen and Atari games."""

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from envs.minigrid.render import atlas, one_hot
from rlpre.data.adapters import VectorVecEnv
from rlpre.data.tiles import AGENT_SHIFT, HIGHLIGHT, PALETTES, TileAtlas
from rlpre.errors import RlpreError, lookup

MEGABYTES = {"minigrid": 0.1, "procgen": 4.4, "atari": 1.4}  # of memory for one environment, measured
REFUSED = {  # start of ids -> how EnvPool 1.2.5 differs from MiniGrid 3.2, of all ids that both have
    "MiniGrid-MultiRoom-N2-S4-": "its rooms are placed otherwise",
    "MiniGrid-ObstructedMaze-1Dl": "its grid is 16 x 16 instead of 11 x 6",
    "MiniGrid-ObstructedMaze-2Dlh": "its boxes are blue instead of grey",
    "MiniGrid-ObstructedMaze-1Q": "its boxes are blue instead of grey",
    "MiniGrid-ObstructedMaze-2Q": "its boxes are blue instead of grey",
    "MiniGrid-ObstructedMaze-Full": "its boxes are blue instead of grey",
    "BabyAI-ActionObjDoor-": "some of its doors are locked",
    "BabyAI-GoToImpUnlock-": "it holds two objects fewer",
    "BabyAI-Unlock-": "it holds three objects fewer",
    "MiniGrid-WFC-": "the installed MiniGrid cannot build it, so the two were not compared",
}

_SHOWN = np.full(256, HIGHLIGHT, np.uint8)  # flags by type of cell: all that is not unseen is highlighted
_SHOWN[0] = 0
_UP = (1 + 3) << AGENT_SHIFT  # the agent in its own view looks up


def kinds() -> dict[str, str]:
    """The ids of EnvPool that this module makes, and the kind of each, a key of `MEGABYTES`.

    Raises:
        RlpreError: if EnvPool cannot be imported.
    """
    try:
        import envpool  # noqa: F401 (registers the ids)
        from envpool.registration import registry
    except ImportError as error:
        raise RlpreError(f"EnvPool cannot be imported ({error}): install it with 'pip install envpool'") from error
    parts = {name: module.removeprefix("envpool.") for name, (module, *_) in registry.specs.items()}
    return {name: part for name, part in parts.items() if part in MEGABYTES}


def make_pool(env_id: str, n_envs: int, seed: int, state: bool = False, **look: Any) -> VecMonitor:
    """Makes environments that EnvPool steps together, in a thread of its own.

    MiniGrid and BabyAI levels are observed as `envs.minigrid.worlds.make_vec` shows them, pixel for pixel, in the
    partial view; `GridPool` says what else they share. Procgen games give (3, 64, 64), Atari games the last 4 frames
    in gray, (4, 84, 84), both uint8, with 4 frames an action and raw scores as rewards in Atari.

    Args:
        env_id: an id of EnvPool, such as "MiniGrid-DoorKey-8x8-v0", "CoinrunEasy-v0" or "Pong-v5".
        n_envs: number of environments.
        seed: each environment gets its own random stream from it. ``venv.seed`` seeds the next reset.
        state: whether each info holds the true state as "state", float32: of a level, the cells in view (see
            `one_hot`); of an Atari game, its 128 bytes of memory in 0..1.
        **look: of a level, tile_size and palette, as in `envs.make`; view can only be "partial".

    Raises:
        RlpreError: for an unknown id, a level that differs from MiniGrid's, a missing library, a look or a state that
            the environment does not have.
    """
    kind = lookup("environment", env_id, kinds())
    if reason := next((reason for start, reason in REFUSED.items() if env_id.startswith(start)), None):
        raise RlpreError(f"{env_id} of EnvPool is not MiniGrid's: {reason}; use engine='minigrid'")
    create = partial(_create, env_id)
    if kind == "minigrid":
        return VecMonitor(GridPool(create, n_envs, seed, state=state, **_grid_look(env_id, **look)))
    if look:
        raise RlpreError(f"{env_id} does not take {next(iter(look))!r}: leave it out")
    if state and kind != "atari":
        raise RlpreError(f"EnvPool does not tell the state of {env_id}: leave out state=True, or the oracle")
    return VecMonitor(PoolVecEnv(create, n_envs, seed, ram=state))


def _grid_look(env_id: str, view: str = "partial", tile_size: int = 8, palette: str = "day", **other: Any) -> dict:
    if view != "partial" or other:
        wrong = f"view={view!r}" if view != "partial" else next(iter(other))
        raise RlpreError(f"EnvPool shows {env_id} in the partial view alone, without {wrong}: use engine='minigrid'")
    return {"tile_size": tile_size, "palette": palette}


def _create(env_id: str, seeds: Sequence[int]) -> Any:
    import envpool

    try:
        return envpool.make_gymnasium(env_id, num_envs=len(seeds), num_threads=1, env_seed=list(seeds))
    except ImportError as error:
        if "Qt" in str(error):
            packages = "libqt5core5a and libqt5gui5 (in newer releases libqt5core5t64 and libqt5gui5t64)"
            raise RlpreError(f"{env_id} needs Qt 5: install Debian's packages {packages}") from error
        raise RlpreError(f"{env_id} needs a library that is missing ({error}): install it") from error


class PoolVecEnv(VectorVecEnv):
    """An EnvPool that can be seeded at any time, and that refuses wrong actions, which EnvPool answers by aborting.

    Args:
        create: makes the pool from one seed for each environment.
        n_envs: number of environments.
        seed: of the first episodes.
        ram: whether infos hold Atari's memory as "state".
    """

    def __init__(self, create: Callable[[Sequence[int]], Any], n_envs: int, seed: int, ram: bool = False) -> None:
        self._create, self.ram = create, ram
        super().__init__(create(_spread(seed, n_envs)))

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Gives every environment its own random stream from the next reset on."""
        self._seeds: list[Any] = _spread(seed, self.num_envs)
        return self._seeds

    def reset(self) -> VecEnvObs:
        """As in SB3. EnvPool takes seeds only when it is made, so after `seed` it is made anew."""
        self._reseed()
        observations = super().reset()
        self._tell_state(self.reset_infos)
        return observations

    def step_async(self, actions: np.ndarray) -> None:
        """As in SB3."""
        super().step_async(actions)
        count, given = int(self.action_space.n), self._actions.tolist()
        if self._actions.shape != (self.num_envs,) or not 0 <= min(given) <= max(given) < count:
            raise RlpreError(f"actions {given}: give {self.num_envs} numbers from 0 to {count - 1}")

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        answer = super().step_wait()
        self._tell_state(answer[-1])
        self._tell_state(self.reset_infos)
        return answer

    def _reseed(self) -> None:
        if self._seeds[0] is not None:
            self.env.close()
            self.env = self._create(self._seeds)
            self._reset_seeds()

    def _tell_state(self, infos: list[dict[str, Any]]) -> None:
        for info in infos if self.ram else ():
            info["state"] = info["ram"].astype(np.float32) / 255


class GridPool(PoolVecEnv):
    """MiniGrid and BabyAI levels of EnvPool, as `envs.minigrid.worlds.GridVecEnv` shows its own.

    Frames, missions, rewards, horizons and actions are the same, and so are "mission" and "direction" in each info.
    Episodes are others for the same seed. An episode that fails without a reward, as in lava, in the very last step
    that it may take counts as truncated: EnvPool does not tell the difference.

    The compiled pool is called directly: EnvPool's own layers in Python cost a fifth of a step.

    Attributes:
        terminal_codes: environment -> codes (R, C, 3) of the last frame of its episode, for episodes that ended in the
            last step.
    """

    def __init__(
        self, create: Callable[[Sequence[int]], Any], n_envs: int, seed: int, tile_size: int, palette: str, state: bool
    ) -> None:
        night = lookup("palette", palette, PALETTES)
        self.atlas, self.palette, self.state = atlas(tile_size), palette, state
        self._tiles = _shown(self.atlas)
        super().__init__(create, n_envs, seed)
        size = self.observation_space["image"].shape[0]
        self.observation_space = spaces.Box(0, 255, (3, size * tile_size, size * tile_size), np.uint8)
        self.terminal_codes: dict[int, np.ndarray] = {}
        self._lamp = np.array([size * (size - 1) + size // 2]) if night else None  # the agent's cell
        self._missions = [""] * n_envs
        self._all = np.arange(n_envs, dtype=np.int32)

    @property
    def codes(self) -> np.ndarray:
        """The current observations, (n_envs, R, C, 3) uint8, see `rlpre.data.tiles`."""
        return _codes(self._images)

    def reset(self) -> VecEnvObs:
        """As in SB3."""
        self._reseed()
        self._reset_options()
        seen = self._begin(self._all)
        self._images, self._missions, self.terminal_codes = seen["obs:image"], _texts(seen["obs:mission"]), {}
        self.reset_infos = self._infos(self._missions, seen)
        return _draw(self._tiles, self._images, self._lamp)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        self.env._send([self._all, self._all, self._actions.astype(np.int32)])
        seen = self._receive()
        rewards, dones = seen["reward"], seen["done"]
        infos = self._infos(self._missions, seen)
        cut = seen["trunc"] & (rewards == 0)  # EnvPool calls every end in the last step that is allowed a truncation
        for info, is_cut in zip(infos, cut.tolist(), strict=True):
            info["TimeLimit.truncated"] = is_cut
        self._images, self.terminal_codes = seen["obs:image"], {}
        frames = self._restart_grids(dones, infos) if dones.any() else _draw(self._tiles, self._images, self._lamp)
        return frames, rewards, dones, infos

    def _restart_grids(self, dones: np.ndarray, infos: list[dict[str, Any]]) -> np.ndarray:
        """The frames after a step that ended episodes; the last frames of these go to ``infos``."""
        ended = np.flatnonzero(dones)
        first = self._begin(ended.astype(np.int32))
        last, self._images[ended] = self._images[ended], first["obs:image"]
        frames = _draw(self._tiles, np.concatenate([self._images, last]), self._lamp)
        missions, codes = _texts(first["obs:mission"]), _codes(last)
        begun = self._infos(missions, first)
        for k, i in enumerate(ended.tolist()):
            infos[i]["terminal_observation"] = frames[self.num_envs + k].copy()
            self.terminal_codes[i], self._missions[i], self.reset_infos[i] = codes[k], missions[k], begun[k]
        return frames[: self.num_envs]

    def _begin(self, ids: np.ndarray) -> dict[str, np.ndarray]:
        """Starts episodes in environments ``ids`` (n,) int32."""
        self.env._reset(ids)
        return self._receive()

    def _receive(self) -> dict[str, np.ndarray]:
        """What EnvPool tells after a step or a reset, with the agent in each image, (n, C, R, 3)."""
        seen: dict[str, np.ndarray] = dict(zip(self.env._state_keys, self.env._recv(), strict=True))
        _mark_agent(seen["obs:image"])
        return seen

    def _infos(self, missions: Sequence[str], seen: dict[str, np.ndarray]) -> list[dict[str, Any]]:
        pairs = zip(missions, seen["obs:direction"].tolist(), strict=True)
        infos: list[dict[str, Any]] = [{"mission": mission, "direction": direction} for mission, direction in pairs]
        if self.state:
            for info, state in zip(infos, one_hot(_codes(seen["obs:image"])).reshape(len(infos), -1), strict=True):
                info["state"] = state
        return infos


def _spread(seed: int | None, count: int) -> list[int]:
    """One seed for each environment; unlike ``seed + i``, similar seeds share no episodes."""
    return (np.random.SeedSequence(seed).generate_state(count) >> 1).tolist()


def _mark_agent(images: np.ndarray) -> None:
    """Marks the agent's cell in MiniGrid's symbols (N, C, R, 3) of the partial view."""
    images[:, images.shape[1] // 2, -1, 2] |= _UP


def _codes(images: np.ndarray) -> np.ndarray:
    """Tile codes (N, R, C, 3) of MiniGrid's symbols (N, C, R, 3), where the agent is marked."""
    codes = images.transpose(0, 2, 1, 3).copy()
    codes[..., 2] |= _SHOWN[codes[..., 0]]
    return codes


def _draw(tiles: TileAtlas, images: np.ndarray, agent: np.ndarray | None = None) -> np.ndarray:
    """The frames of those symbols, without codes in between; ``tiles`` are `_shown`, ``agent`` is as in `draw`."""
    return tiles.draw(tiles.tile_ids(images).transpose(0, 2, 1), agent)


@lru_cache(maxsize=8)
def _shown(tiles: TileAtlas) -> TileAtlas:
    """The tiles of MiniGrid's symbols: as of ``tiles``, where all that is not unseen is highlighted."""
    index = tiles.index.copy()
    index[1:] = index[1:, :, np.arange(index.shape[2]) | HIGHLIGHT]
    return TileAtlas(tiles.tiles, index, tiles.light)


def _texts(missions: np.ndarray) -> list[str]:
    """The texts of missions (N, bytes), which end with zeros."""
    return [mission.tobytes().rstrip(b"\0").decode() for mission in missions]
