"""An expert that finds the way in scenarios of ViZDoom, and frames that it plays.

It reads the map, and knows for every place the shortest way to the goal that keeps off the walls. It looks at a point a
little ahead on this way. Its advice depends on the position and the angle alone, so it can advise any player.
"""

from itertools import product
from math import atan2, pi
from os import devnull
from pathlib import Path
from typing import Any

import numpy as np
import vizdoom as vzd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import dijkstra
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from envs.doom import DoomEnv, make_doom, read_labels, scenarios
from envs.minigrid.collect import Behaviour, MixturePlayer, load_agent, parse
from rlpre.data.collect import collect
from rlpre.data.store import FrameStore
from rlpre.errors import RlpreError
from rlpre.utils import sha256

Floats = NDArray[np.float64]

GOALS = {"VizdoomMyWayHome-v1": "GreenArmor"}  # names of the objects that solve scenarios
PIXEL = 4  # map units of a pixel of the drawn map
NARROW, WIDE = 12, 32  # map units to the nearest wall: nobody gets nearer, and nearer than this a way is longer
AHEAD = 16  # pixels of the way to the point that the player looks at
STRAIGHT, CURVE = pi / 18, pi / 4  # up to these angles from it the player goes straight on, and goes on while it turns


class Guide:
    """The expert's advice in one scenario.

    Raises:
        RlpreError: for a scenario without a goal that can be walked to.
    """

    def __init__(self, env_id: str) -> None:
        if env_id not in GOALS:
            raise RlpreError(f"there is no expert for {env_id}: collect it with 'random' or 'agent:path.zip'")
        walls, goal = read_map(env_id)
        self.corner = walls.min((0, 1))
        free = np.ones(self._pixel(walls.max((0, 1))) + 1, bool)
        for start, end in walls:
            free[tuple(self._pixel(np.linspace(start, end, 1 + int(np.ptp(walls) / PIXEL))).T)] = False
        margin = PIXEL * distance_transform_edt(free)  # of every pixel to the nearest wall
        price = np.where(margin < NARROW, np.inf, 1 + (np.maximum(WIDE - margin, 0) / PIXEL) ** 2)
        home = np.ravel_multi_index(tuple(self._pixel(goal)), free.shape)
        left, next_ = dijkstra(neighbours(price), indices=home, return_predecessors=True)
        next_[home] = home
        ahead = np.arange(free.size)
        for _ in range(AHEAD):
            ahead = next_[ahead]
        shut = ~np.isfinite(left).reshape(free.shape)
        nearest = distance_transform_edt(shut, return_distances=False, return_indices=True)
        ahead = ahead.reshape(free.shape)[tuple(nearest)]  # nobody stands in a wall, but a pixel may
        self.target = self.corner + PIXEL * np.stack(np.unravel_index(ahead, free.shape), axis=-1)

    def _pixel(self, place: Floats) -> NDArray[np.int64]:
        return np.rint((place - self.corner) / PIXEL).astype(np.int64)

    def advise(self, game: DoomEnv) -> int:
        """The best action now, in a game that was made with ``state=True``."""
        x, y, sine, cosine = game.state[:4].astype(np.float64)
        place = 1000 * np.array([x, y])
        east, north = self.target[tuple(self._pixel(place))] - place
        turn = (atan2(north, east) - atan2(sine, cosine) + pi) % (2 * pi) - pi  # positive to the left
        buttons = ["MOVE_FORWARD"] if abs(turn) < CURVE else []
        buttons += ["TURN_LEFT" if turn > 0 else "TURN_RIGHT"] if abs(turn) > STRAIGHT else []
        return game.actions.index(tuple(buttons))


def neighbours(price: Floats) -> coo_array:
    """The graph of a picture (X, Y): the cost of a step to each of the eight neighbours of a pixel."""
    pixels, padded = np.arange(price.size).reshape(price.shape), np.pad(price, 1, constant_values=np.inf)
    edges = []
    for x, y in {*product((-1, 0, 1), repeat=2)} - {(0, 0)}:
        cost = np.hypot(x, y) * padded[1 + x :, 1 + y :][: price.shape[0], : price.shape[1]]
        step = np.isfinite(cost) & np.isfinite(price)
        start = pixels[step]
        edges.append((cost[step], start, start + x * price.shape[1] + y))
    cost, start, end = map(np.concatenate, zip(*edges, strict=True))
    return coo_array((cost, (end, start)), shape=(price.size, price.size))


def read_map(env_id: str) -> tuple[Floats, Floats]:
    """The walls (n, 2 ends, 2) of a scenario, and where its goal is, (2,)."""
    game = vzd.DoomGame()
    game.load_config(scenarios()[env_id])
    game.set_doom_config_path(devnull)
    game.set_window_visible(False)
    game.set_sectors_info_enabled(True)
    game.set_objects_info_enabled(True)
    game.init()
    state = game.get_state()
    lines = [line for sector in state.sectors for line in sector.lines if line.is_blocking]
    goal = next((thing.position_x, thing.position_y) for thing in state.objects if thing.name == GOALS[env_id])
    game.close()
    return np.array([[(line.x1, line.y1), (line.x2, line.y2)] for line in lines]), np.array(goal)


class DoomPlayer(MixturePlayer):
    """Plays games by a mixture of behaviours; a policy for `rlpre.collect`, which asks for the `known` labels first."""

    labels = ("expert",)

    def __init__(
        self, venv: VecEnv, behaviours: list[Behaviour], agents: dict[str, BaseAlgorithm], rng: np.random.Generator
    ) -> None:
        super().__init__(venv, behaviours, agents, rng)
        experts = any(part.kind == "expert" for part in behaviours)
        self.guide = Guide(self.worlds[0].spec.id) if experts else None

    def known(self, venv: VecEnv) -> dict[str, ArrayLike]:
        """The expert's actions (n_envs,), -1 if no behaviour asks for them; and what the frames show."""
        advised = [self.guide.advise(game) if self.guide else -1 for game in self.worlds]
        self.advised = np.array(advised)[:, None]
        return {"expert": self.advised[:, 0], **read_labels(venv)}

    def __call__(self, observed: np.ndarray) -> np.ndarray:
        for env in np.flatnonzero(self.venv.episode_lengths == 0):
            self._start_episode(env)
        return self.act(observed, self.advised)


def collect_doom(
    env_id: str, out: str | Path, steps: int, seed: int, behaviour: str = "random", n_envs: int = 16, **look: Any
) -> FrameStore:
    """Collects frames of a scenario, as `envs.collect`; ``look`` is that of `make_doom`.

    Labels are "expert" and those of `frame_labels`.
    """
    behaviours = parse(behaviour)
    venv = make_doom(env_id, n_envs, seed, state=True, labels=True, **look)
    paths = [part.agent for part in behaviours if part.agent]
    agents = {path: load_agent(path, venv.observation_space) for path in paths}
    player = DoomPlayer(venv, behaviours, agents, np.random.default_rng(seed))
    player.__qualname__ = " ".join([behaviour, *(sha256(Path(path))[:12] for path in paths)])  # the store's spec has it
    store = collect(venv, out, steps, player, seed, task=env_id, labels=player.known)
    venv.close()
    return store
