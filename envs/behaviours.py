"""Who acts while frames are collected: at random, a noisy expert, a saved agent, or a mixture by episodes."""

import json
import zipfile
from typing import NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from envs.experts import Expert, expert_for
from envs.labels import LABELS, UNKNOWN, labels
from rlpre.errors import RlpreError

# SB3 zips do not name their algorithm; the first of these settings that they hold does
ALGORITHMS: dict[str, type[BaseAlgorithm]] = {"clip_range": PPO, "exploration_fraction": DQN, "gae_lambda": A2C}


class Behaviour(NamedTuple):
    """One part of a mixture."""

    share: float  # of the episodes
    kind: str  # "random", "expert" or "agent"
    noise: float = 0.0  # probability of a random action
    agent: str = ""  # path of the zip


def parse(mixture: str) -> list[Behaviour]:
    """Reads ``[share*]behaviour[+ ...]``, for example "random", "expert:0.3" or "0.5*random + 0.5*expert:0.1".

    A behaviour is "random", "expert[:noise]" (noise = probability of a random action, default 0) or
    "agent:path.zip" (a saved SB3 PPO, A2C or DQN). Shares are fractions of the episodes and are scaled to sum to 1.

    Raises:
        RlpreError: if the text cannot be read so.
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
            f"behaviour {mixture!r} is not understood at {text!r}: "
            "write 'random', 'expert:0.3' (noise), 'agent:path.zip' or '0.5*random + 0.5*expert'"
        )
    return Behaviour(share, kind, noise, argument if kind == "agent" else "")


def load_agent(path: str, frames: spaces.Space) -> BaseAlgorithm:
    """Loads a saved SB3 agent that acts on such frames.

    Raises:
        RlpreError: if the file is no such agent or acts on something else.
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


class Cast:
    """Acts in a vec-env; at the start of each episode it draws who plays it.

    Args:
        venv: the worlds.
        behaviours: the mixture; its shares sum to 1.
        agents: the agents of the mixture by path.
        rng: draws players and random actions.
    """

    def __init__(
        self, venv: VecEnv, behaviours: list[Behaviour], agents: dict[str, BaseAlgorithm], rng: np.random.Generator
    ) -> None:
        self.venv, self.behaviours, self.rng = venv, behaviours, rng
        self.worlds = [env.unwrapped for env in venv.envs]
        self.noise = np.array([1.0 if part.kind == "random" else part.noise for part in behaviours])
        self.agents = {n: agents[part.agent] for n, part in enumerate(behaviours) if part.agent}
        self.player = np.zeros(venv.num_envs, np.int64)
        self.experts: list[Expert | None] = [None] * venv.num_envs
        self.taken: list[int | None] = [None] * venv.num_envs
        for env in range(venv.num_envs):
            self.begin(env)

    def begin(self, env: int) -> None:
        """Call after each reset of one environment."""
        self.player[env] = self.rng.choice(len(self.behaviours), p=[part.share for part in self.behaviours])
        self.experts[env] = expert_for(self.worlds[env])
        self.taken[env] = None

    def labels(self) -> np.ndarray:
        """The values of `LABELS` in the current states, (n_envs, 4) int16; call once a step."""
        advice = (
            expert.advise(taken) if expert else (UNKNOWN, UNKNOWN)
            for expert, taken in zip(self.experts, self.taken, strict=True)
        )
        return np.array([labels(world, said) for world, said in zip(self.worlds, advice, strict=True)], np.int16)

    def act(self, frames: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Actions (n_envs,) int64 for frames (n_envs, C, H, W) and what `labels` gave for them."""
        # an expert that lost its plan plays on at random
        actions = known[:, LABELS.index("expert")].astype(np.int64)
        for number, agent in self.agents.items():
            mine = self.player == number
            if mine.any():
                actions[mine] = agent.policy.predict(frames[mine])[0]
        free = self.rng.integers(self.venv.action_space.n, size=len(actions))
        noisy = self.rng.random(len(actions)) < self.noise[self.player]
        actions = np.where(noisy | (actions < 0), free, actions)
        self.taken = actions.tolist()
        return actions
