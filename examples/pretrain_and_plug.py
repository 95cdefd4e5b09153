"""Pretrain an encoder on frames of a Gymnasium environment, then train PPO on it, fine-tuned and frozen.

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

FRAMES, UPDATES, STEPS = 400, 20, 256  # enough to see it run; use 20_000, 2_000 and 100_000 in earnest
PPO_SETTINGS = {"n_steps": 32, "batch_size": 64, "n_epochs": 2, "seed": 0}


def make_lake() -> gym.Env:
    """FrozenLake as pixels, every fourth one: (64, 64, 3) uint8."""
    env = AddRenderObservation(gym.make("FrozenLake-v1", is_slippery=False, render_mode="rgb_array"))
    return TransformObservation(env, lambda frame: frame[::4, ::4], Box(0, 255, (64, 64, 3), np.uint8))


# 1. Collect frames. The policy is random unless you give one. Encoders read channels first.
venv = make_vec_env(make_lake, n_envs=4, seed=0)
frames = rlpre.collect(venv, "runs/frames/lake", steps=FRAMES)
print(f"{len(frames)} frames, {frames.distinct} different ones")

# 2. Pretrain. "temporal" pulls together frames that follow each other; "inverse" predicts the action between them.
result = rlpre.pretrain(frames, objective="temporal+inverse", steps=UPDATES, batch=32, out="runs/encoders/lake")
encoder = result.encoder

# 3a. Fine-tuned: the encoder is part of the policy and trains at a tenth of the heads' learning rate.
arguments = rlpre.policy_kwargs(encoder, mode="finetuned")
finetuned = PPO("CnnPolicy", venv, policy_kwargs=arguments, **PPO_SETTINGS).learn(STEPS)

# 3b. Frozen: the encoder stands before the policy and encodes each frame once. Whitened features train faster.
encoded = rlpre.EncodedVecEnv(venv, rlpre.whiten(encoder, frames))
frozen = PPO("MlpPolicy", encoded, **PPO_SETTINGS).learn(STEPS)

# 4. Evaluate. The frozen agent acts on features; fuse gives a policy that acts on pixels.
pixels = rlpre.fuse(frozen, encoded.encoder)
actions, _ = pixels.predict(encoded.frames)
print("actions of the fused policy:", actions)
for name, model, world in (("finetuned", finetuned, venv), ("frozen", frozen, encoded)):
    mean, _ = evaluate_policy(model, world, n_eval_episodes=8, deterministic=False)
    print(f"{name}: mean return {mean:.2f}")
