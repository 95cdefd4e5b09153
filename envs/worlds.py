"""MiniGrid and BabyAI as pixels: one environment, or many that share one look-up."""

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import minigrid  # noqa: F401 (registers the ids)
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils import RecordConstructorArgs
from minigrid.minigrid_env import MiniGridEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

from envs import missions, views
from envs.atlas import atlas
from envs.symbols import UnknownObjectError
from rlpre.errors import RlpreError, lookup
from rlpre.tiles import PALETTES

Observation = np.ndarray | dict[str, np.ndarray]

# MiniGrid's Memory task through the smallest view: what was shown at the start is out of sight at the fork
NARROW_MEMORY = "MiniGrid-MemoryS7View3-v0"
gym.register(NARROW_MEMORY, entry_point="minigrid.envs:MemoryEnv", kwargs={"size": 7, "agent_view_size": 3})


class GridWorld(gym.Wrapper, RecordConstructorArgs):
    """A MiniGrid environment observed as pixels, (3, H, W) uint8.

    A step reads the grid once, after it has come to rest, and looks the pixels up; MiniGrid's own symbolic
    observation is never made. ``info`` has "mission" (str), "direction" (int, 0-3: right, down, left, up) and "codes"
    ((R, C, 3) uint8, or None for a frame with an object that the atlas lacks: MiniGrid draws such a frame itself).

    Args:
        env: an environment whose base is a ``MiniGridEnv``.
        view: "partial", as ``RGBImgPartialObsWrapper``, or "full", as ``RGBImgObsWrapper``.
        tile_size: pixels a cell and axis.
        palette: "day" or "night".
        dict_obs: observe a dict of "image", "direction" and "mission" (see :func:`envs.missions.clauses`).

    Raises:
        RlpreError: if the view or the palette is unknown.
    """

    def __init__(
        self, env: gym.Env, view: str = "partial", tile_size: int = 8, palette: str = "day", dict_obs: bool = False
    ) -> None:
        RecordConstructorArgs.__init__(self, view=view, tile_size=tile_size, palette=palette, dict_obs=dict_obs)
        super().__init__(env)
        lookup("palette", palette, PALETTES)
        self.atlas = atlas(tile_size)
        self.palette = palette
        self.dict_obs = dict_obs
        self.view = lookup("view", view, views.VIEWS)
        self.grid_env: MiniGridEnv = env.unwrapped
        self.rows, self.columns = views.shape(self.view, self.grid_env)
        image = spaces.Box(0, 255, (3, self.rows * tile_size, self.columns * tile_size), np.uint8)
        mission = spaces.MultiBinary(missions.SHAPE)
        parts = {"image": image, "direction": spaces.Discrete(4), "mission": mission}
        self.observation_space = spaces.Dict(parts) if dict_obs else image
        self.glance = views.Glance(b"", b"")  # what the last reset or step ended on
        size = self.grid_env.agent_view_size
        self._unmade = np.zeros((size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        info = self.begin(seed, options)
        return self._observe(info), info

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict]:
        reward, terminated, truncated, info = self.advance(action)
        return self._observe(info), reward, terminated, truncated, info

    def begin(self, seed: int | None = None, options: dict[str, Any] | None = None) -> dict:
        """A reset up to the glance, without pixels: returns ``info``.

        MiniGrid prints of every level that it rejects on the way; that is not shown.

        Raises:
            RlpreError: if MiniGrid cannot build the world.
        """
        try:
            with contextlib.redirect_stdout(None):
                _, info = self._unobserved(self.env.reset, seed=seed, options=options)
        except (ImportError, FileNotFoundError, DependencyNotInstalled) as error:
            name = self.spec.id if self.spec else type(self.grid_env).__name__
            raise RlpreError(f"the installed minigrid cannot build {name}: {error}") from error
        self._look()
        return self._described(info)

    def advance(self, action: int) -> tuple[float, bool, bool, dict]:
        """A step up to the glance, without pixels: returns reward, terminated, truncated, ``info``."""
        _, reward, terminated, truncated, info = self._unobserved(self.env.step, int(action))
        self._look()
        return float(reward), terminated, truncated, self._described(info)

    def skip(self, action: int) -> None:
        """A step that nobody looks at: the glance stays what it was."""
        self._unobserved(self.env.step, int(action))

    def develop(self, glances: Sequence[views.Glance]) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N, R, C, 3) and frames (N, 3, H, W) of N glances, in one look-up."""
        codes = views.encode(glances, self.rows, self.columns)
        frames = self.atlas.decode(codes, self.palette)
        for frame, glance in zip(frames, glances, strict=True):
            if glance.stock is not None:
                frame[:] = glance.stock
        return codes, frames

    def words(self) -> dict[str, np.ndarray]:
        """What a Dict observation of the current state holds beside the image; empty without ``dict_obs``.

        Raises:
            RlpreError: if the mission is not one of MiniGrid's or BabyAI's.
        """
        if not self.dict_obs:
            return {}
        mission = missions.clauses(self.grid_env.mission).copy()
        return {"direction": np.int64(self.grid_env.agent_dir), "mission": mission}

    def _observe(self, info: dict) -> Observation:
        codes, frames = self.develop([self.glance])
        info["codes"] = codes[0] if self.glance.stock is None else None
        return _with(frames[0], self.words())

    def _unobserved(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls ``act`` while MiniGrid's own observation, which nobody reads, costs nothing."""
        self.grid_env.gen_obs = self._blank
        try:
            return act(*args, **kwargs)
        finally:
            del self.grid_env.gen_obs

    def _blank(self) -> dict[str, Any]:
        return {"image": self._unmade, "direction": self.grid_env.agent_dir, "mission": self.grid_env.mission}

    def _look(self) -> None:
        try:
            self.glance = self.view(self.grid_env)
        except UnknownObjectError:
            self.glance = self._stock_glance()
        if len(self.glance.symbols) != self.rows * self.columns:
            raise RlpreError(f"{self.grid_env} changed the size of its grid: use view='partial'")

    def _stock_glance(self) -> views.Glance:
        env, size = self.grid_env, self.atlas.tile_size
        frame = env.get_frame(highlight=env.highlight, tile_size=size, agent_pov=self.view is views.partial)
        frame = np.ascontiguousarray(frame.transpose(2, 0, 1))
        if PALETTES[self.palette]:
            frame = self.atlas.dim(frame, views.agent_cell(self.view, env))
        blank = bytes(self.rows * self.columns)
        return views.Glance(blank, blank, frame)

    def _described(self, info: dict) -> dict:
        return {**info, "mission": self.grid_env.mission, "direction": int(self.grid_env.agent_dir)}


class GridVecEnv(DummyVecEnv):
    """Grid worlds stepped in this process whose frames are looked up together.

    Attributes:
        terminal_codes: for each environment whose episode the last step ended, the codes (R, C, 3) it ended on, unless
            the atlas lacks an object in that frame.
    """

    envs: list[GridWorld]

    def __init__(self, makers: Sequence[Callable[[], GridWorld]]) -> None:
        super().__init__(list(makers))
        self.terminal_codes: dict[int, np.ndarray] = {}

    @property
    def codes(self) -> np.ndarray:
        """(n_envs, R, C, 3) uint8 of the current observations.

        Raises:
            RlpreError: if a frame holds an object that the atlas lacks.
        """
        for env in self.envs:
            if env.glance.stock is not None:
                raise RlpreError(f"{env.grid_env} holds an object without a code: store its pixels instead")
        return self._codes

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Gives every environment a stream of its own; unlike ``seed + i``, near seeds share no episodes."""
        self._seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        return self._seeds

    def reset(self) -> Observation:
        for i, env in enumerate(self.envs):
            self.reset_infos[i] = env.begin(self._seeds[i], self._options[i] or None)
        self._reset_seeds()
        self._reset_options()
        self.terminal_codes = {}
        self._codes, frames = self.envs[0].develop([env.glance for env in self.envs])
        return self._stacked(frames)

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict]]:
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, bool)
        infos: list[dict] = []
        ends: dict[int, tuple[views.Glance, dict]] = {}
        for i, (env, action) in enumerate(zip(self.envs, self.actions.tolist(), strict=True)):
            rewards[i], terminated, truncated, info = env.advance(action)
            info["TimeLimit.truncated"] = truncated and not terminated
            infos.append(info)
            if terminated or truncated:
                dones[i] = True
                ends[i] = env.glance, env.words()
                self.reset_infos[i] = env.begin()
        glances = [env.glance for env in self.envs] + [glance for glance, _ in ends.values()]
        codes, frames = self.envs[0].develop(glances)
        self._codes, self.terminal_codes = codes[: self.num_envs], {}
        for k, (i, (glance, words)) in enumerate(ends.items(), start=self.num_envs):
            infos[i]["terminal_observation"] = _with(frames[k].copy(), words)
            if glance.stock is None:
                self.terminal_codes[i] = codes[k]
        return self._stacked(frames[: self.num_envs]), rewards, dones, infos

    def _stacked(self, frames: np.ndarray) -> Observation:
        words = [env.words() for env in self.envs]
        return _with(frames, {key: np.stack([word[key] for word in words]) for key in words[0]})


def _with(image: np.ndarray, words: dict[str, np.ndarray]) -> Observation:
    return {"image": image, **words} if words else image


def make(
    env_id: str, view: str = "partial", tile_size: int = 8, palette: str = "day", dict_obs: bool = False
) -> GridWorld:
    """Makes a MiniGrid or BabyAI environment observed as pixels.

    Args:
        env_id: a registered id, such as "MiniGrid-DoorKey-8x8-v0".
        view: "partial" (the square before the agent) or "full" (the whole grid).
        tile_size: pixels a cell and axis.
        palette: "day" or "night" (a lamp around the agent).
        dict_obs: observe a dict of "image", "direction" and "mission" instead of the image alone.

    Returns:
        An environment whose observations are ``Box(0, 255, (3, H, W), uint8)``, see :class:`GridWorld`.

    Raises:
        RlpreError: if the id, the view or the palette is unknown, or the id is no MiniGrid environment.
    """
    known = {name: spec for name, spec in gym.registry.items() if name.startswith(("MiniGrid-", "BabyAI-"))}
    spec = gym.registry.get(env_id) or lookup("environment", env_id, known)
    env = gym.make(spec, render_mode="rgb_array", disable_env_checker=True)
    if not isinstance(env.unwrapped, MiniGridEnv):
        raise RlpreError(f"{env_id} is not a MiniGrid environment: give an id such as 'MiniGrid-DoorKey-8x8-v0'")
    return GridWorld(env, view, tile_size, palette, dict_obs)


def make_vec(
    env_id: str,
    n_envs: int,
    seed: int,
    view: str = "partial",
    tile_size: int = 8,
    palette: str = "day",
    dict_obs: bool = False,
) -> VecMonitor:
    """Makes ``n_envs`` worlds that one process steps and one look-up draws.

    Args:
        env_id: a registered id.
        n_envs: number of environments.
        seed: seeds the first reset; each environment has a stream of its own.
        view: as in :func:`make`.
        tile_size: as in :func:`make`.
        palette: as in :func:`make`.
        dict_obs: as in :func:`make`.

    Returns:
        A :class:`GridVecEnv` in SB3's ``VecMonitor``, so ``infos[i]["episode"]`` is filled.

    Raises:
        RlpreError: as :func:`make`, and if ``n_envs`` is below 1.
    """
    if n_envs < 1:
        raise RlpreError(f"n_envs is {n_envs}: give at least 1 environment")
    venv = GridVecEnv([lambda: make(env_id, view, tile_size, palette, dict_obs)] * n_envs)
    venv.seed(seed)
    return VecMonitor(venv)
