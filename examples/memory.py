"""Give an agent a memory: a sequence encoder over frozen features, pretrained on trajectories.

The environment shows a colour in the first frame only and rewards the matching action in the last one.
"""

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

import rlpre


class Recall(gym.Env):
    """Eight steps; the first frame is red or blue, and the last action must name the colour."""

    observation_space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        """Draws a colour and shows it."""
        super().reset(seed=seed)
        self.colour, self.time = int(self.np_random.integers(2)), 0
        frame = np.zeros(self.observation_space.shape, np.uint8)
        frame[0 if self.colour == 0 else 2] = 255
        return frame, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        """Shows a grey frame; the eighth action ends the episode."""
        self.time += 1
        done = self.time == 8
        frame = np.full(self.observation_space.shape, 40 * self.time % 256, np.uint8)
        return frame, float(done and action == self.colour), done, False, {}


venv = make_vec_env(Recall, n_envs=8, seed=0)
frames = rlpre.collect(venv, "runs/frames/recall", steps=800)

# An encoder of frames, then a transformer that mixes the last eight steps.
vision = rlpre.pretrain(frames, objective="contrastive", steps=20, batch=32, out="runs/encoders/recall").encoder
memory = rlpre.SequenceEncoder("transformer", rlpre.whiten(vision, frames), actions=2, width=32, window=8)
memory = rlpre.pretrain(frames, encoder=memory, objective="cpc", steps=10, batch=16, out="runs/encoders/memory").encoder

# Windows of features reach the policy; the transformer inside it is fine-tuned.
history = rlpre.HistoryVecEnv(venv, memory)
arguments = rlpre.policy_kwargs(memory, "finetuned")
model = PPO("MultiInputPolicy", history, n_steps=32, batch_size=64, n_epochs=2, policy_kwargs=arguments, seed=0)
model.learn(512)  # use 100_000 in earnest
policy = rlpre.fuse(model, memory)  # reads windows of pixels
print("actions:", policy.predict(history.frames)[0])
