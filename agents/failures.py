"""Where does a trained policy fail? Bayesian optimisation finds bad levels, on a map of what they look like.

A level is an environment made with one seed. Its place on the map are features of its first frame. A Gaussian process
learns the return from the levels played so far, and those of the largest expected improvement are played next [0].

[0] Jones, Schonlau and Welch 1998, "Efficient Global Optimization of Expensive Black-Box Functions".
"""

import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file

from envs.minigrid.collect import ALGORITHMS
from rlpre.compare.train import MakeEnv, make_venv
from rlpre.errors import RlpreError

Floats = np.ndarray
DIMENSIONS = 16  # principal components of the map that the Gaussian process reads
FIRST, TOGETHER = 16, 16  # levels that are drawn at random to begin with, and levels of a round after that
WORST = 10  # levels that are sought: an improvement is a return below that of the tenth worst


@dataclass(frozen=True)
class Search:
    """The levels that were played, in this order."""

    levels: np.ndarray  # (n,) int64, indices into the map
    returns: Floats  # (n,)

    def worst(self, count: int = WORST) -> np.ndarray:
        """The indices of the levels of the lowest returns, the lowest first."""
        return self.levels[np.argsort(self.returns, kind="stable")[:count]]

    def needed(self, count: int, below: float) -> int | None:
        """The number of levels after which ``count`` had a return of at most ``below``; None if there were not."""
        hits = np.flatnonzero(self.returns <= below)
        return int(hits[count - 1]) + 1 if len(hits) >= count else None


def search(place: Floats | None, play: Callable[[np.ndarray], Floats], levels: int, budget: int, seed: int) -> Search:
    """Plays ``budget`` of the levels.

    Args:
        place: features (levels, d) of the levels; None: they are drawn at random.
        play: returns (n,) of levels (n,).
        levels: how many there are.
        budget: how many to play, at most ``levels``.
        seed: of the first levels.

    Raises:
        RlpreError: if there are fewer levels than are to be played.
    """
    if not 1 <= budget <= levels:
        raise RlpreError(f"budget is {budget} of {levels} levels: give at least 1, and at most as many as there are")
    order = np.random.default_rng(seed).permutation(levels)
    if place is None:
        return Search(order[:budget], play(order[:budget]))
    points = _standard(place)
    played = order[: min(FIRST, budget)]
    returns = play(played)
    while len(played) < budget:
        gain = expected_improvement(points, played, returns, seed)
        gain[played] = -np.inf
        chosen = np.argsort(-gain, kind="stable")[: min(TOGETHER, budget - len(played))]
        played, returns = np.append(played, chosen), np.append(returns, play(chosen))
    return Search(played, returns)


def expected_improvement(points: Floats, played: np.ndarray, returns: Floats, seed: int = 0) -> Floats:
    """How far each of ``points`` (n, d) is expected to lie below the `WORST`-th lowest of the returns so far [0]."""
    kernel = ConstantKernel() * Matern(length_scale=points.shape[1] ** 0.5, nu=2.5) + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal returns leave the kernel's scales at their bounds
        mean, spread = process.fit(points[played], returns).predict(points, return_std=True)
    target = np.sort(returns)[min(WORST, len(returns)) - 1]
    z = (target - mean) / (spread := np.maximum(spread, 1e-9))
    return np.asarray((target - mean) * norm.cdf(z) + spread * norm.pdf(z))


def _standard(place: Floats) -> Floats:
    """The leading principal components (n, d), in units of the first one's standard deviation."""
    flat = np.asarray(place, np.float64).reshape(len(place), -1)
    components = PCA(min(DIMENSIONS, *flat.shape), random_state=0).fit_transform(flat)
    return np.asarray(components / max(components[:, 0].std(), 1e-9))


def first_frames(make_env: MakeEnv, levels: Sequence[int]) -> list[Any]:
    """The first observation of each level, as SB3 gives it, for one environment."""
    found = []
    for level in levels:
        venv = make_venv(make_env, 1, level)
        found.append(venv.reset())
        venv.close()
    return found


def play(policy: Any, make_env: MakeEnv, levels: Sequence[int]) -> Floats:
    """Plays an episode of each level with the policy's most likely actions.

    Args:
        policy: a policy or a model of SB3, on what the environments give.
        make_env: makes environments by a seed.
        levels: the seeds.

    Returns:
        The returns (n,).
    """
    venvs = [make_venv(make_env, 1, level) for level in levels]
    observations, memory, starts = [venv.reset() for venv in venvs], None, np.ones(len(venvs), bool)
    returns, playing = np.zeros(len(venvs)), np.ones(len(venvs), bool)
    while playing.any():
        actions, memory = policy.predict(_together(observations), memory, starts, deterministic=True)
        starts = np.zeros(len(venvs), bool)
        for n in np.flatnonzero(playing):
            observations[n], (reward,), (done,), _ = venvs[n].step(actions[n : n + 1])
            returns[n] += reward
            playing[n] = not done
    for venv in venvs:
        venv.close()
    return returns


def _together(observations: Sequence[Any]) -> Any:
    first = observations[0]
    if isinstance(first, dict):
        return {key: np.concatenate([each[key] for each in observations]) for key in first}
    return np.concatenate(observations)


@torch.no_grad()
def own_features(policy: Any, observations: Sequence[Any]) -> Floats:
    """What the policy's own encoder says of observations, (n, d)."""
    policy = getattr(policy, "policy", policy)
    found = []
    for at in range(0, len(observations), 256):
        batch, _ = policy.obs_to_tensor(_together(observations[at : at + 256]))
        features = policy.extract_features(batch)
        found.append((features[0] if isinstance(features, tuple) else features).float().cpu().numpy())
    return np.concatenate(found)


def load_policy(path: Path) -> Any:
    """A saved SB3 model (PPO, A2C, DQN), or a policy of PPO or A2C such as ``last_policy.zip``.

    Raises:
        RlpreError: if the file is missing or is neither.
    """
    try:
        with zipfile.ZipFile(path) as file:
            is_model = "data" in file.namelist()
        if not is_model:
            return ActorCriticPolicy.load(str(path), device="cpu")
        settings = load_from_zip_file(path, device="cpu")[0] or {}
        return next(kind for setting, kind in ALGORITHMS.items() if setting in settings).load(path, device="cpu")
    except (OSError, TypeError, KeyError, StopIteration, RuntimeError, zipfile.BadZipFile) as error:
        raise RlpreError(
            f"{path} is no policy that can be played ({type(error).__name__}: {error}): give last_policy.zip of a run, "
            "or the zip of a PPO, A2C or DQN model on pixels"
        ) from error
