"""The scenarios of ViZDoom [0] as pixels: one game, or several that threads of this process play together.

The rules are those of ViZDoom's own Gymnasium environments (rewards, monsters, time limit). Three things differ: the
observation is the image alone, a time limit truncates at a frame that is really drawn, and the buttons are combined
as described in `combinations`.

References:
    [0] Wydmuch, Kempka and Jaskowski 2018, "ViZDoom Competitions: Playing Doom from Pixels".
"""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from PIL import Image
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor

from rlpre.data.store import UNKNOWN
from rlpre.errors import RlpreError, at_least, lookup

try:
    import vizdoom as vzd
    import vizdoom.gymnasium_wrapper  # registers the ids
except ImportError as error:  # also of a shared library
    raise RlpreError(
        f"ViZDoom cannot be imported ({error}): pip install vizdoom, and if a shared library is named, install the "
        "package of your system that holds it"
    ) from error

DIED = vzd.ViZDoomErrorException, vzd.ViZDoomUnexpectedExitException, vzd.ViZDoomIsNotRunningException
OTHERS = "MultiBinary", "Audio", "Notifications"  # ids of a scenario with other actions or observations
RESOLUTIONS = (120, 160), (240, 320), (480, 640)  # that games draw
GAME_BYTES = 20 * 2**20  # memory of one game

VARIABLES = "POSITION_X", "POSITION_Y", "ANGLE", "VELOCITY_X", "VELOCITY_Y", "HEALTH", "SELECTED_WEAPON_AMMO"
OBJECTS = 8  # in the state, the nearest ones
IGNORED = (
    "Self",
    "Explosive",
    "Gibs",
    "Gore",
)  # categories that are no part of the task: the player, smoke, blood, the dead
STATE = 8 + 5 * OBJECTS  # length of the state

# The labels of a frame, for probes
LABELS = "x", "y", "angle", "object", "direction", "distance", "health", "ammo"
NAMES = "Cacodemon", "GreenArmor", "Medikit", "Demon", "MarineChainsawVzd", "Zombieman", "ShotgunGuy", "ChaingunGuy"
CELL, SECTORS, COLUMNS = 128, 8, 5  # map units of a bin of x and y; bins of the angle; bins of a frame's width
ORIGIN = 32_768  # maps reach from -32768 to 32767


def scenarios() -> dict[str, str]:
    """The configuration files of ViZDoom's scenarios by id, such as "VizdoomBasic-v1"."""
    files = {name: spec.kwargs.get("scenario_config_file") for name, spec in gym.registry.items()}
    return {name: file for name, file in files.items() if file and not any(other in name for other in OTHERS)}


def combinations(buttons: Sequence[str]) -> list[tuple[str, ...]]:
    """The buttons that each action presses: none, each alone, and a turn while going forward.

    Basic and DefendCenter have 4 actions, HealthGathering 6, MyWayHome 8.
    """
    turns = [("MOVE_FORWARD", turn) for turn in ("TURN_LEFT", "TURN_RIGHT")]
    return [(), *((button,) for button in buttons), *(pair for pair in turns if {*pair} <= {*buttons})]


class DoomEnv(gym.Env[np.ndarray, int]):
    """One game of a scenario, observed as pixels, (3, H, W) uint8; the action is an index into ``actions``.

    After a terminating action, such as reaching the armour or dying, the game draws no frame. The observation then is
    the one before the action. At the time limit it is the frame of that moment. If the game's process dies, the episode
    is truncated at the last frame, with a warning, and a new process plays the next one.

    Args:
        env_id: one of `scenarios`.
        shape: (H, W) of the observation.
        skip: frames of the game (35 a second) for which an action is held.
        state: whether ``info["state"]`` is the true state, see `state_vector`.
        labels: whether the attribute ``labels`` is filled.

    Attributes:
        actions: the names of the buttons that each action presses.
        state: the same as ``info["state"]``, of the current frame.
        labels: names of ``LABELS`` -> integers that describe the current frame, see `frame_labels`.

    Raises:
        RlpreError: for an unknown id, numbers out of range, or a game that does not start.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 9}  # noqa: RUF012 (as in Gymnasium)
    render_mode = "rgb_array"

    def __init__(
        self,
        env_id: str,
        shape: tuple[int, int] = (60, 80),
        skip: int = 4,
        state: bool = False,
        labels: bool = False,
    ) -> None:
        config = lookup("environment", env_id, scenarios())
        arguments = {"shape": shape, "skip": skip, "state": state, "labels": labels}
        self.spec = EnvSpec(env_id, "envs.doom:DoomEnv", kwargs={"env_id": env_id, **arguments})
        if len(shape) != 2:
            raise RlpreError(f"shape is {shape}: give (height, width), the channels are 3")
        at_least(SimpleNamespace(**arguments, height=shape[0], width=shape[1]), skip=1, height=1, width=1)
        drawn = next((size for size in RESOLUTIONS if size[0] >= shape[0] and size[1] >= shape[1]), None)
        if drawn is None:
            raise RlpreError(f"shape is {shape}: games draw at most {RESOLUTIONS[-1]}, (height, width)")
        self.observation_space = spaces.Box(0, 255, (3, *shape), np.uint8)
        self.shape, self.skip, self.has_state, self.has_labels = shape, skip, state, labels
        self.labels: dict[str, int] = {}
        self._deaths = 0  # of processes since an episode ended by the rules
        self._game = self._configure(config, drawn)
        self._limit = self._game.get_episode_start_time() + (self._game.get_episode_timeout() or 2**31)
        self._game.set_episode_timeout(0)  # the game would not draw the last frame
        buttons = [button.name for button in self._game.get_available_buttons()]
        self.actions = combinations(buttons)
        self._pressed = [[float(button in pressed) for button in buttons] for pressed in self.actions]
        self.action_space = spaces.Discrete(len(self.actions))

    def _configure(self, config: str, drawn: tuple[int, int]) -> vzd.DoomGame:
        """A game that has not started yet."""
        game = vzd.DoomGame()
        game.load_config(config)
        game.set_doom_config_path(os.devnull)  # settings of other games and users stay out
        game.set_window_visible(False)
        game.set_mode(vzd.Mode.PLAYER)
        game.set_screen_resolution(getattr(vzd.ScreenResolution, f"RES_{drawn[1]}X{drawn[0]}"))
        game.set_screen_format(vzd.ScreenFormat.RGB24)
        game.set_available_buttons([each for each in game.get_available_buttons() if not vzd.is_delta_button(each)])
        game.set_available_game_variables([getattr(vzd.GameVariable, name) for name in VARIABLES])
        game.set_objects_info_enabled(self.has_state)
        game.set_labels_buffer_enabled(self.has_labels)
        return game

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self._game.set_seed(int(self.np_random.integers(2**31)))
        try:
            if self._game.is_running():
                self._game.new_episode()
            else:
                self._game.init()
        except DIED as error:
            self._game.close()
            raise RlpreError(f"the game of {self.spec.id} does not start: {error}") from error
        self._observe()
        return self._frame, self._info()

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        try:
            left = self._limit - self._game.get_episode_time()
            reward = self._game.make_action(self._pressed[action], min(self.skip, left))
            terminated = self._game.is_episode_finished()
        except DIED as error:
            self._dead(error)
            return self._frame, 0.0, False, True, self._info()
        truncated = not terminated and left <= self.skip
        if not terminated:
            self._observe()
        if terminated or truncated:
            self._deaths = 0
        return self._frame, reward, terminated, truncated, self._info()

    def _dead(self, error: Exception) -> None:
        """Warns that the process of the game died; refuses to go on if that happened to the episode before, too."""
        self._game.close()
        self._deaths += 1
        if self._deaths > 1:
            raise RlpreError(f"the game of {self.spec.id} died in two episodes in a row ({error}): play fewer games")
        warnings.warn(f"the game of {self.spec.id} died: its episode is truncated, a new game starts", stacklevel=3)

    def _observe(self) -> None:
        """Reads what the game shows."""
        state = self._game.get_state()
        self._screen = state.screen_buffer
        frame = Image.fromarray(self._screen).resize(self.shape[::-1], Image.Resampling.BOX)
        self._frame = np.ascontiguousarray(np.moveaxis(np.asarray(frame), -1, 0))
        player = dict(zip(VARIABLES, state.game_variables.tolist(), strict=True))
        if self.has_state:
            self.state = state_vector(player, state.objects)
        if self.has_labels:
            self.labels = frame_labels(player, state.labels, self._screen.shape[1])

    def _info(self) -> dict[str, Any]:
        return {"state": self.state} if self.has_state else {}

    def render(self) -> np.ndarray:
        """The last frame as the game drew it, (height, width, 3) uint8."""
        return self._screen

    def close(self) -> None:
        self._game.close()


def state_vector(player: Mapping[str, float], objects: Sequence[Any]) -> np.ndarray:
    """The true state, (STATE,) float32, of numbers around -1 to 1.

    Position x, y (in 1,000 map units), sine and cosine of the angle, velocity forward and to the left (in 10), health
    and ammunition (in 100); then for each of the ``OBJECTS`` nearest objects, near ones first: present (1), monster (1
    or 0), distance (in 1,000 map units), sine and cosine of its direction relative to the view. Objects out of sight
    count; absent ones are zeros.
    """
    angle = np.deg2rad(player["ANGLE"])
    sine, cosine, x, y = np.sin(angle), np.cos(angle), player["VELOCITY_X"] / 10, player["VELOCITY_Y"] / 10
    values = [player["POSITION_X"] / 1000, player["POSITION_Y"] / 1000, sine, cosine, x * cosine + y * sine]
    values += [y * cosine - x * sine, player["HEALTH"] / 100, player["SELECTED_WEAPON_AMMO"] / 100]
    found = []
    for thing in objects:
        if thing.category not in IGNORED:
            offset = thing.position_x - player["POSITION_X"], thing.position_y - player["POSITION_Y"]
            direction = np.arctan2(offset[1], offset[0]) - angle
            monster = float(thing.category == "Monster")
            found.append((np.hypot(*offset) / 1000, monster, np.sin(direction), np.cos(direction)))
    for distance, monster, sine, cosine in sorted(found)[:OBJECTS]:
        values += [1.0, monster, distance, sine, cosine]
    return np.array(values + [0.0] * (STATE - len(values)), np.float32)


def frame_labels(player: Mapping[str, float], visible: Sequence[Any], width: int) -> dict[str, int]:
    """What is to be seen in a frame, as integers for probes.

    "x" and "y" (bins of ``CELL`` map units), "angle" (one of ``SECTORS``), "object" (the nearest that is visible: 0 for
    none, or 1 + its place in ``NAMES``, or a last number for other names), its "direction" (one of ``COLUMNS`` of the
    frame), its "distance" (map units), "health" (in tens) and "ammo". Direction and distance are `UNKNOWN` without an
    object.
    """
    position = player["POSITION_X"], player["POSITION_Y"]
    kind, direction, distance = 0, UNKNOWN, UNKNOWN
    things = [thing for thing in visible if thing.object_category not in IGNORED]
    if things:
        far = [np.hypot(each.object_position_x - position[0], each.object_position_y - position[1]) for each in things]
        nearest = things[int(np.argmin(far))]
        kind = 1 + (NAMES.index(nearest.object_name) if nearest.object_name in NAMES else len(NAMES))
        direction = int((nearest.x + nearest.width / 2) * COLUMNS / width)
        distance = int(min(far))
    x, y = (int((place + ORIGIN) // CELL) for place in position)
    angle = int(player["ANGLE"] % 360 * SECTORS // 360)
    health, ammo = int(max(player["HEALTH"], 0) // 10), int(max(player["SELECTED_WEAPON_AMMO"], 0))
    return dict(zip(LABELS, (x, y, angle, kind, direction, distance, health, ammo), strict=True))


def read_labels(venv: VecEnv) -> dict[str, list[int]]:
    """The labels of games that were made with ``labels=True``, for ``rlpre.collect(..., labels=read_labels)``."""
    labels = venv.get_attr("labels")
    if not all(labels):
        raise RlpreError("these games tell no labels: make them with labels=True")
    return {name: [each[name] for each in labels] for name in LABELS}


class DoomVecEnv(DummyVecEnv):
    """Games that play at the same time: each is a process of its own, which a thread waits for."""

    def __init__(self, makers: Sequence[Callable[[], DoomEnv]], threads: int) -> None:
        super().__init__(list(makers))
        self._pool = ThreadPoolExecutor(threads)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Gives every game its own random stream; unlike ``seed + i``, similar seeds share no episodes."""
        self._seeds = np.random.SeedSequence(seed).generate_state(self.num_envs).tolist()
        return self._seeds

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict]]:
        list(self._pool.map(self._step, range(self.num_envs)))
        return self._obs_from_buf(), self.buf_rews.copy(), self.buf_dones.copy(), deepcopy(self.buf_infos)

    def _step(self, i: int) -> None:
        """One step of game ``i``, and the reset after its end, as in `DummyVecEnv`."""
        observed, self.buf_rews[i], terminated, truncated, info = self.envs[i].step(int(self.actions[i]))
        self.buf_dones[i], self.buf_infos[i] = terminated or truncated, info
        info["TimeLimit.truncated"] = truncated and not terminated
        if terminated or truncated:
            info["terminal_observation"] = observed
            observed, self.reset_infos[i] = self.envs[i].reset()
        self._save_obs(i, observed)

    def close(self) -> None:
        super().close()
        self._pool.shutdown()


def make_doom(
    env_id: str,
    n_envs: int,
    seed: int,
    shape: tuple[int, int] = (60, 80),
    skip: int = 4,
    state: bool = False,
    labels: bool = False,
    threads: int | None = None,
) -> VecMonitor:
    """Makes ``n_envs`` games of a scenario of ViZDoom.

    Args:
        env_id: "VizdoomBasic-v1", "VizdoomMyWayHome-v1", "VizdoomHealthGathering-v1", "VizdoomDefendCenter-v1" or
            another of `scenarios`.
        n_envs: number of games.
        seed: seeds the first reset; each game has its own random stream.
        shape: (H, W) of the observations (3, H, W), at most (480, 640).
        skip: frames of the game for which an action is held.
        state: tell the true state as ``infos[i]["state"]``, and as ``venv.unwrapped.reset_infos[i]["state"]`` after a
            reset, see `state_vector`.
        labels: compute what `read_labels` gives.
        threads: that wait for games; None: as many as there are processors.

    Returns:
        A `DoomVecEnv` in SB3's ``VecMonitor``. An ended game is reset in the same step.

    Raises:
        RlpreError: as `DoomEnv`, if a number is below 1, or if the games need more memory than there is.
    """
    threads = min(n_envs, os.cpu_count() or 1) if threads is None else threads
    at_least(SimpleNamespace(n_envs=n_envs, threads=threads, seed=seed), n_envs=1, threads=1, seed=0)
    most = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // GAME_BYTES
    if n_envs > most:
        raise RlpreError(f"{n_envs} games need more memory than this machine has: make at most {most}")
    venv = DoomVecEnv([lambda: DoomEnv(env_id, shape, skip, state, labels)] * n_envs, threads)
    venv.seed(seed)
    return VecMonitor(venv)
