"""MiniGrid and BabyAI as pixels: one environment, or many that are rendered together."""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.error import DependencyNotInstalled
from gymnasium.utils import RecordConstructorArgs
from minigrid.minigrid_env import MiniGridEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecMonitor

import minigrid  # noqa: F401 (registers the ids)
from envs.minigrid import render
from envs.minigrid.distract import PICTURES, STRENGTH, Drift, distracting
from envs.minigrid.render import SymbolicFrame, UnknownObjectError, atlas
from rlpre.data.backgrounds import DistractingAtlas
from rlpre.data.tiles import PALETTES, TileAtlas
from rlpre.errors import RlpreError, lookup

_WORDS = (
    "a after and at avoid ball behind blue box door end fetch find from front get go goal green grey hallway in key "
    "lava left matching maze must near next object of on open opening pick purple put reach red right room rooms "
    "square the then to traverse unlock up use yellow you your"
)
WORDS = _WORDS.split()
SEPARATORS = {"after", "and", "from", "near", "next", "then", "unlock"}  # between two objects of a mission
CLAUSES = 8  # in the longest mission of BabyAI's grammar
SHAPE = CLAUSES, len(WORDS)  # of a mission as an observation, `clauses`
LOOK = {"view": "partial", "tile_size": 8, "palette": "day"}  # how frames show the grid by default, see `GridWorld`
DISTRACTION = ("strength", "pictures")  # arguments of the view "distract" alone


def full_look(**look: Any) -> dict[str, Any]:
    """These arguments of `make`, and the defaults of `LOOK`, as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in {**LOOK, **look}.items()}


def recorded_look(spec: Mapping[str, Any]) -> dict[str, Any]:
    """How the frames of a store with this specification show the grid: arguments of `make`."""
    return full_look(**{name: spec[name] for name in (*LOOK, *DISTRACTION) if name in spec})


@lru_cache(maxsize=4096)
def clauses(mission: str) -> np.ndarray:
    """The words of each clause of a mission, as a (clauses, words) int8 array of 0 and 1, read-only.

    A separator opens a new clause. So "put the red ball next to the blue box" differs from "put the blue box next to
    the red ball", and no two missions of MiniGrid's grammar, with its one word order, give the same array.

    Raises:
        RlpreError: for a word that no mission of MiniGrid and BabyAI has, or too many clauses.
    """
    marks = np.zeros(SHAPE, np.int8)
    clause = 0
    for word in mission.lower().replace(",", " ").split():
        clause += word in SEPARATORS
        if word not in WORDS or clause == CLAUSES:
            what = f"more than {CLAUSES} clauses" if word in WORDS else f"the unknown word {word!r}"
            raise RlpreError(f"the mission {mission!r} has {what}: leave out dict_obs and read the mission from info")
        marks[clause, WORDS.index(word)] = 1
    marks.setflags(write=False)
    return marks


Observation = np.ndarray | dict[str, np.ndarray]

# MiniGrid's Memory task with the smallest view: at the fork the object shown at the start is out of sight
NARROW_MEMORY = "MiniGrid-MemoryS7View3-v0"
gym.register(NARROW_MEMORY, entry_point="minigrid.envs:MemoryEnv", kwargs={"size": 7, "agent_view_size": 3})


class GridWorld(gym.Wrapper, RecordConstructorArgs):
    """A MiniGrid environment observed as pixels, (3, H, W) uint8.

    A step reads the grid once, at its end, and renders by look-up; MiniGrid's own symbolic observation is not
    computed. ``info`` has "mission" (str), "direction" (int, 0-3: right, down, left, up) and "codes"
    ((R, C, 3) uint8, with one row more for the background in the view "distract", see `DistractingAtlas`; None if the
    frame holds an object without a tile: then MiniGrid renders it). With ``state`` it has "state" too.

    Args:
        env: an environment whose base is a ``MiniGridEnv``.
        view: "partial" (the square in front of the agent, as ``RGBImgPartialObsWrapper``), "full" (the whole grid, as
            ``RGBImgObsWrapper``) or "distract" (as "partial", blended with a natural picture that drifts with each
            step; each episode draws another picture, crop, rotation and order of colours).
        tile_size: pixels of a cell along each axis.
        palette: "day" or "night" (a lamp around the agent).
        dict_obs: observe a dict of "image", "direction" and "mission" (see `clauses`) instead of the image alone.
        strength: of view "distract": weight of the picture, 0 to 1; default 0.5.
        pictures: of view "distract": "train" (the default), "test" (others), or a folder of images, see
            `envs.minigrid.distract.distracting`.
        state: put the symbols that the observation shows into ``info["state"]`` as numbers, see `states`.

    Attributes:
        frame: the symbols after the last reset or step.

    Raises:
        RlpreError: if the view or the palette is unknown, or the strength or the pictures do not fit.
    """

    def __init__(
        self,
        env: gym.Env,
        view: str = "partial",
        tile_size: int = 8,
        palette: str = "day",
        dict_obs: bool = False,
        strength: float | None = None,
        pictures: str | Path | None = None,
        state: bool = False,
    ) -> None:
        look = {"view": view, "tile_size": tile_size, "palette": palette, "strength": strength, "pictures": pictures}
        RecordConstructorArgs.__init__(self, dict_obs=dict_obs, state=state, **look)
        super().__init__(env)
        lookup("palette", palette, PALETTES)
        self.palette = palette
        self.dict_obs = dict_obs
        self.tells_state = state
        self.view = lookup("view", view, render.VIEWS)
        self.grid_env: MiniGridEnv = env.unwrapped
        self.rows, self.columns = render.shape(self.view, self.grid_env)
        self.atlas, self.drift = _background(atlas(tile_size), self.rows, self.columns, view, strength, pictures)
        image = spaces.Box(0, 255, (3, self.rows * tile_size, self.columns * tile_size), np.uint8)
        mission = spaces.MultiBinary(SHAPE)
        parts = {"image": image, "direction": spaces.Discrete(4), "mission": mission}
        self.observation_space = spaces.Dict(parts) if dict_obs else image
        self.frame = SymbolicFrame(b"", b"")
        size = self.grid_env.agent_view_size
        self._blank_image = np.zeros((size, size, 3), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Observation, dict]:
        info = self.reset_unrendered(seed, options)
        return self._observe(info), info

    def step(self, action: int) -> tuple[Observation, float, bool, bool, dict]:
        reward, terminated, truncated, info = self.step_unrendered(action)
        return self._observe(info), reward, terminated, truncated, info

    def reset_unrendered(self, seed: int | None = None, options: dict[str, Any] | None = None) -> dict:
        """Resets without rendering and returns ``info``.

        Raises:
            RlpreError: if MiniGrid cannot build the environment.
        """
        try:
            with contextlib.redirect_stdout(None):  # MiniGrid prints about rejected levels
                _, info = self._unobserved(self.env.reset, seed=seed, options=options)
        except (ImportError, FileNotFoundError, DependencyNotInstalled) as error:
            name = self.spec.id if self.spec else type(self.grid_env).__name__
            raise RlpreError(f"the installed minigrid cannot build {name}: {error}") from error
        if self.drift:
            self.drift.reset(seed)
        return self._read_grid(info)

    def step_unrendered(self, action: int) -> tuple[float, bool, bool, dict]:
        """Steps without rendering; returns reward, terminated, truncated and ``info``."""
        _, reward, terminated, truncated, info = self._unobserved(self.env.step, int(action))
        if self.drift:
            self.drift.step()
        return float(reward), terminated, truncated, self._read_grid(info)

    def step_unobserved(self, action: int) -> None:
        """Steps without reading the grid: `frame` and its background do not change."""
        self._unobserved(self.env.step, int(action))

    def render_frames(self, symbolic: Sequence[SymbolicFrame]) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N, R, C, 3) of the atlas, with the row of a background, and pixels (N, 3, H, W) of N frames."""
        codes = render.encode(symbolic, self.rows, self.columns)
        frames = self.atlas.plain.decode(codes, self.palette)
        for frame, of in zip(frames, symbolic, strict=True):
            if of.stock is not None:
                frame[:] = of.stock
        if isinstance(self.atlas, DistractingAtlas):
            rows = np.frombuffer(b"".join([of.background for of in symbolic]), np.uint8).reshape(len(frames), -1)
            self.atlas.blend(frames, rows)
            codes = np.concatenate([codes, rows.reshape(-1, 1, self.columns, 3)], axis=1)
        return codes, frames

    def states(self, symbolic: Sequence[SymbolicFrame], codes: np.ndarray, infos: Sequence[dict]) -> np.ndarray:
        """What observations show of N frames, as numbers (N, n) float32: `render.one_hot` of their cells.

        It is followed by the direction where that is not always up, and by the mission where it is observed.

        Raises:
            RlpreError: if a frame holds an object without a tile.
        """
        if any(frame.stock is not None for frame in symbolic):
            raise RlpreError(f"{self.grid_env} holds an object without a tile, which its state lacks: leave out state")
        parts = [render.one_hot(codes[:, : self.rows]).reshape(len(codes), -1)]  # without a row for the background
        if self.dict_obs or self.view is render.full:
            parts.append(np.eye(4, dtype=np.float32)[[info["direction"] for info in infos]])
        if self.dict_obs:
            parts.append(np.stack([clauses(info["mission"]).ravel() for info in infos]).astype(np.float32))
        return np.concatenate(parts, axis=1)

    def text_parts(self) -> dict[str, np.ndarray]:
        """Direction and mission of a Dict observation of the current state; empty without ``dict_obs``."""
        if not self.dict_obs:
            return {}
        mission = clauses(self.grid_env.mission).copy()
        return {"direction": np.int64(self.grid_env.agent_dir), "mission": mission}

    def _observe(self, info: dict) -> Observation:
        codes, frames = self.render_frames([self.frame])
        info["codes"] = codes[0] if self.frame.stock is None else None
        if self.tells_state:
            info["state"] = self.states([self.frame], codes, [info])[0]
        return _with(frames[0], self.text_parts())

    def _unobserved(self, act: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Calls ``act`` without computing MiniGrid's own observation, which is not used."""
        self.grid_env.gen_obs = self._blank
        try:
            return act(*args, **kwargs)
        finally:
            del self.grid_env.gen_obs

    def _blank(self) -> dict[str, Any]:
        return {"image": self._blank_image, "direction": self.grid_env.agent_dir, "mission": self.grid_env.mission}

    def _read_grid(self, info: dict) -> dict:
        """Sets `frame`, and returns ``info`` with mission and direction."""
        try:
            self.frame = self.view(self.grid_env)
        except UnknownObjectError:
            self.frame = self._stock_frame()
        if len(self.frame.symbols) != self.rows * self.columns:
            raise RlpreError(f"{self.grid_env} changed the size of its grid: use view='partial'")
        if self.drift:
            self.frame = self.frame._replace(background=self.drift.row)
        return {**info, "mission": self.grid_env.mission, "direction": int(self.grid_env.agent_dir)}

    def _stock_frame(self) -> SymbolicFrame:
        env, size = self.grid_env, self.atlas.tile_size
        frame = env.get_frame(highlight=env.highlight, tile_size=size, agent_pov=self.view is render.partial)
        frame = np.ascontiguousarray(frame.transpose(2, 0, 1))
        if PALETTES[self.palette]:
            frame = self.atlas.dim(frame, render.agent_cell(self.view, env))
        blank = bytes(self.rows * self.columns)
        return SymbolicFrame(blank, blank, frame)

    def store_arguments(self, tasks: Sequence[str], labels: Sequence[str]) -> dict[str, Any]:
        """The arguments of `FrameStore.create` for the frames of these ids and these label columns."""
        kind = {"space": self.observation_space, "action_space": self.action_space, "atlas": self.atlas}
        return {**kind, "palette": self.palette, "tasks": list(tasks), "labels": labels}


def _background(
    tiles: TileAtlas, rows: int, columns: int, view: str, strength: float | None, pictures: str | Path | None
) -> tuple[TileAtlas, Drift | None]:
    """The atlas of a view and, if pictures lie behind its cells, what moves them."""
    if view != "distract":
        if strength is not None or pictures is not None:
            raise RlpreError(f"view {view!r} has no pictures: give view='distract', or leave out strength and pictures")
        return tiles, None
    size = rows * tiles.tile_size, columns * tiles.tile_size
    with_pictures = distracting(tiles, size, PICTURES if pictures is None else pictures)
    return with_pictures, Drift(with_pictures, size, STRENGTH if strength is None else strength)


class GridVecEnv(DummyVecEnv):
    """Grid worlds that are stepped in this process and rendered together.

    Attributes:
        terminal_codes: environment -> codes of the last frame of its episode, for episodes that ended in the
            last step. A frame with an object that has no tile is left out.
    """

    envs: list[GridWorld]

    def __init__(self, makers: Sequence[Callable[[], GridWorld]]) -> None:
        super().__init__(list(makers))
        self.terminal_codes: dict[int, np.ndarray] = {}

    @property
    def codes(self) -> np.ndarray:
        """Codes (n_envs, ...) uint8 of the current observations; RlpreError if one holds an object without a tile."""
        for env in self.envs:
            if env.frame.stock is not None:
                raise RlpreError(f"{env.grid_env} holds an object without a tile: store its pixels instead")
        return self._codes

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Gives every environment its own random stream; unlike ``seed + i``, similar seeds share no episodes."""
        self._seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        return self._seeds

    def reset(self) -> Observation:
        for i, env in enumerate(self.envs):
            self.reset_infos[i] = env.reset_unrendered(self._seeds[i], self._options[i] or None)
        self._reset_seeds()
        self._reset_options()
        self.terminal_codes = {}
        symbolic = [env.frame for env in self.envs]
        self._codes, frames = self.envs[0].render_frames(symbolic)
        self._tell(symbolic, self._codes, self.reset_infos)
        return self._stacked(frames)

    def step_wait(self) -> tuple[Observation, np.ndarray, np.ndarray, list[dict]]:
        rewards = np.zeros(self.num_envs, np.float32)
        dones = np.zeros(self.num_envs, bool)
        infos: list[dict] = []
        ends: dict[int, tuple[SymbolicFrame, dict]] = {}
        for i, (env, action) in enumerate(zip(self.envs, self.actions.tolist(), strict=True)):
            rewards[i], terminated, truncated, info = env.step_unrendered(action)
            info["TimeLimit.truncated"] = truncated and not terminated
            infos.append(info)
            if terminated or truncated:
                dones[i] = True
                ends[i] = env.frame, env.text_parts()
                self.reset_infos[i] = env.reset_unrendered()
        symbolic = [env.frame for env in self.envs] + [frame for frame, _ in ends.values()]
        codes, frames = self.envs[0].render_frames(symbolic)
        self._codes, self.terminal_codes = codes[: self.num_envs], {}
        now = [self.reset_infos[i] if i in ends else info for i, info in enumerate(infos)]
        self._tell(symbolic, codes, [*now, *(infos[i] for i in ends)])
        for k, (i, (frame, words)) in enumerate(ends.items(), start=self.num_envs):
            infos[i]["terminal_observation"] = _with(frames[k].copy(), words)
            if frame.stock is None:
                self.terminal_codes[i] = codes[k]
        return self._stacked(frames[: self.num_envs]), rewards, dones, infos

    def _tell(self, symbolic: Sequence[SymbolicFrame], codes: np.ndarray, infos: Sequence[dict]) -> None:
        if self.envs[0].tells_state:
            for info, state in zip(infos, self.envs[0].states(symbolic, codes, infos), strict=True):
                info["state"] = state

    def _stacked(self, frames: np.ndarray) -> Observation:
        words = [env.text_parts() for env in self.envs]
        return _with(frames, {key: np.stack([word[key] for word in words]) for key in words[0]})


def _with(image: np.ndarray, words: dict[str, np.ndarray]) -> Observation:
    return {"image": image, **words} if words else image


def make(env_id: str, **look: Any) -> GridWorld:
    """Makes a MiniGrid or BabyAI environment observed as pixels.

    Args:
        env_id: a registered id, such as "MiniGrid-DoorKey-8x8-v0".
        **look: view, tile_size, palette, dict_obs, strength, pictures and state, as of `GridWorld`.

    Returns:
        An environment whose observations are ``Box(0, 255, (3, H, W), uint8)``, see `GridWorld`.

    Raises:
        RlpreError: if the id, the view or the palette is unknown, the id is not a MiniGrid environment, or the strength
            or the pictures do not fit.
    """
    known = {name: spec for name, spec in gym.registry.items() if name.startswith(("MiniGrid-", "BabyAI-"))}
    spec = gym.registry.get(env_id) or lookup("environment", env_id, known)
    env = gym.make(spec, render_mode="rgb_array", disable_env_checker=True)
    if not isinstance(env.unwrapped, MiniGridEnv):
        raise RlpreError(f"{env_id} is not a MiniGrid environment: give an id such as 'MiniGrid-DoorKey-8x8-v0'")
    return GridWorld(env, **look)


def make_vec(env_id: str, n_envs: int, seed: int, **look: Any) -> VecMonitor:
    """Makes ``n_envs`` environments that one process steps and renders together.

    Args:
        env_id: a registered id.
        n_envs: number of environments.
        seed: seeds the first reset; each environment has its own random stream.
        **look: view, tile_size, palette, dict_obs, strength, pictures and state, as in `make`.

    Returns:
        A `GridVecEnv` in SB3's ``VecMonitor``, so ``infos[i]["episode"]`` is filled.

    Raises:
        RlpreError: as `make`, and if ``n_envs`` is below 1.
    """
    if n_envs < 1:
        raise RlpreError(f"n_envs is {n_envs}: give at least 1 environment")
    venv = GridVecEnv([lambda: make(env_id, **look)] * n_envs)
    venv.seed(seed)
    return VecMonitor(venv)
