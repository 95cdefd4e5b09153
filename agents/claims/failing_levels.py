"""Claim 8: on a map learned without labels, Bayesian optimisation finds what is sought in few evaluations.

What is sought are levels in which a trained policy fails. The map consists of features of the whole level, by an
encoder that was pretrained on other levels. Each seed has its own levels and encoder; the policy is trained once.
"""

from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import BasePolicy

import envs
from agents.claims.cells import copied, fresh_encoder
from agents.claims.claim import Claim, Verdict, judge
from agents.failures import first_frames, play, search
from agents.presets import PPOConfig
from rlpre import EncodedVecEnv, FrameStore, fuse, pretrain, whiten
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval

WORLD, LEVELS, SOUGHT, BUDGET = "BabyAI-GoToRedBallNoDists-v0", 2000, 5, 240
TRAINING_STEPS, FRAMES = 102_400, 4000
PRETRAINING = {"objective": "contrastive", "steps": 100, "batch": 64, "device": "cpu"}
RANDOM, RAW, MAP = "random", "raw pixels", "map"
FAILURE = 0.0  # the return of a failure, at most
TOGETHER, TRAINING_SEED = 32, 10**6  # levels played at once; seed of the training levels


def measure(directory: Path, seeds: int, mixed: bool = False) -> Verdict:
    """The fall (log10) of the number of roll-outs by the map; ``mixed`` gives each level the place of another one."""
    whole = envs.collect(WORLD, directory / "whole", FRAMES, 1, view="full")
    seen = envs.collect(WORLD, directory / "seen", FRAMES, 1)
    unlabelled = copied(whole, directory / "unlabelled")
    policy = trained_policy(seen)
    found: dict[str, list[float]] = {name: [] for name in (RANDOM, RAW, MAP)}
    failing = []
    for seed in range(seeds):
        first = seed * LEVELS
        levels = np.concatenate(first_frames(envs.find(WORLD, view="full"), range(first, first + LEVELS)))
        encoder = pretrain(unlabelled, out=directory / f"encoder-{seed}", seed=seed, **PRETRAINING).encoder
        with torch.inference_mode():
            features = whiten(encoder, unlabelled, seed)(torch.from_numpy(levels)).numpy()
        if mixed:
            features = np.random.default_rng(seed).permutation(features)
        returns = Returns(policy, first)
        for name, place in ((RANDOM, None), (RAW, levels / 255), (MAP, features)):
            result = search(place, returns, LEVELS, BUDGET, seed)
            found[name].append(-np.log10(result.needed(SOUGHT, FAILURE) or BUDGET))
            if name == RANDOM:
                failing.append(float((result.returns <= FAILURE).mean()))
    needed = "; ".join(f"{name} {show_interval(mean_interval(10 ** -np.array(each)))}" for name, each in found.items())
    measured = (
        f"fall (log10) of the roll-outs until {SOUGHT} levels are found in which the policy fails; it fails in "
        f"{show_interval(mean_interval(failing))} of {LEVELS}; roll-outs, at most {BUDGET}: {needed}; the figure is "
        "that over the harder control"
    )
    over = [judge(found[MAP], found[name], 0.1, measured, f"{name}, -log10 roll-outs") for name in (RANDOM, RAW)]
    return min(over, key=lambda each: each.figure.value)


class Returns:
    """The returns of a policy in the levels from ``first`` on; each level is played once."""

    def __init__(self, policy: BasePolicy, first: int) -> None:
        self.policy, self.first = policy, first
        self.known: dict[int, float] = {}

    def __call__(self, levels: np.ndarray) -> np.ndarray:
        """The returns (n,) of levels (n,)."""
        levels = levels + self.first
        new = [level for level in levels.tolist() if level not in self.known]
        for at in range(0, len(new), TOGETHER):
            part = new[at : at + TOGETHER]
            self.known.update(zip(part, play(self.policy, envs.find(WORLD), part).tolist(), strict=True))
        return np.array([self.known[level] for level in levels.tolist()])


def trained_policy(seen: FrameStore) -> BasePolicy:
    """A policy on pixels, trained by PPO on frozen and whitened features of fresh weights."""
    venv = EncodedVecEnv(envs.make_vec(WORLD, 16, TRAINING_SEED), whiten(fresh_encoder(seen, 0), seen), "cpu")
    model = PPO("MlpPolicy", venv, seed=0, device="cpu", **PPOConfig().suited("frozen").arguments())
    return fuse(model.learn(TRAINING_STEPS), venv.encoder)


CLAIM = Claim(
    8,
    "On a map learned without labels, Bayesian optimisation finds what is sought in few evaluations.",
    measure,
    "random search, and Bayesian optimisation on raw pixels",
    needs="failures that are rare and look alike in the features of whole levels",
)
