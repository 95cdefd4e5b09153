"""Clone a player who errs three times in ten, then let PPO go on from the clone.

FrozenLake is rendered to pixels here; any environment with image observations works the same way.
"""

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import AddRenderObservation, TransformObservation
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

import rlpre

LABELS, STEPS = 1_000, 2_048  # enough to see it work; take more of both on harder tasks
LEFT, DOWN, RIGHT, UP = range(4)
ROUTE = [DOWN, RIGHT, DOWN, LEFT, DOWN, DOWN, DOWN, DOWN, RIGHT, DOWN, DOWN, DOWN, DOWN, RIGHT, RIGHT, DOWN]  # by field
PPO_SETTINGS = {"n_steps": 64, "batch_size": 64, "seed": 0}


def make_lake() -> gym.Env:
    """FrozenLake as pixels, every fourth one: (64, 64, 3) uint8."""
    env = AddRenderObservation(gym.make("FrozenLake-v1", is_slippery=False, render_mode="rgb_array"))
    return TransformObservation(env, lambda frame: frame[::4, ::4], Box(0, 255, (64, 64, 3), np.uint8))


def player(observations: np.ndarray) -> np.ndarray:
    """The way to the goal, with 30 % random actions."""
    best = np.array([ROUTE[env.unwrapped.s] for env in venv.envs])
    return np.where(rng.random(len(best)) < 0.3, rng.integers(4, size=len(best)), best)


# 1. Frames with the actions of somebody who sometimes succeeds.
venv, rng = make_vec_env(make_lake, n_envs=8, seed=0), np.random.default_rng(0)
frames = rlpre.collect(venv, "runs/frames/lake", steps=LABELS, policy=player)

# 2. An encoder: pretrained, or with fresh weights as here. The whitened feature map gives good clones.
encoder = rlpre.Encoder("cnn", rlpre.InputSpec(frames.space.shape))
encoder = rlpre.whiten(encoder, frames, features="map")
encoded = rlpre.EncodedVecEnv(venv, encoder)

# 3. Clone. Episodes without success are not imitated: they have weight 0.
policy = rlpre.clone(frames, encoder, out="runs/clones/lake", weights="return", steps=300)
print(f"clone: mean return {evaluate_policy(policy, encoded, 32, deterministic=False)[0]:.2f}")

# 4. PPO from the clone: first the value head alone, then everything, not far from the clone at first.
model = PPO("MlpPolicy", encoded, **PPO_SETTINGS)
rlpre.start_from(model, policy, value_first=STEPS // 4, kl_decay=STEPS // 2)
model.learn(STEPS)
print(f"clone, then PPO: mean return {evaluate_policy(model, encoded, 32, deterministic=False)[0]:.2f}")
rlpre.fuse(model, encoder).save("runs/clones/policy.zip")  # acts on pixels
