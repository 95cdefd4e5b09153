"""Reinforcement learning from a clone: PPO whose first policy is the cloned one, and the way back.

References:
    [0] Baker et al. 2022, "Video PreTraining (VPT)", section on RL fine-tuning: a decaying KL to the cloned policy.
    [1] Wolczyk et al. 2024, "Fine-tuning Reinforcement Learning Models is Secretly a Forgetting Mitigation Problem".
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.policy import SequencePolicy
from agents.train import PPOConfig, Report
from envs.layouts import is_test, layout
from rlpre import HistoryVecEnv, RlpreError, policy_kwargs
from rlpre.errors import at_least, lookup
from rlpre.files import write_json
from rlpre.pretrain import quiet
from rlpre.provenance import provenance
from rlpre.sb3 import MODES, floored_advantages, kl_to, value_first


@dataclass(frozen=True)
class Tuning:
    """How PPO starts from a policy, and how it learns."""

    mode: str = "finetuned"  # of the plug: "finetuned" from the clone's weights, "scratch" from fresh ones
    value_first: float = 0.1  # share of the gradient steps in which the value head learns alone
    beta: float = 0.0  # cost of a nat of divergence from the policy that it starts as, in the first rollout
    beta_left: float = 0.05  # share of beta in the last rollout
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(n_steps=128, learning_rate=1e-3, n_epochs=4, ent_coef=0.0))

    def check(self) -> None:
        """Refuses what could not be trained.

        Raises:
            RlpreError: for an unknown mode, or a number that is missing or out of range.
        """
        if not lookup("mode", self.mode, MODES).trainable:
            raise RlpreError(f"mode {self.mode!r} trains no encoder: tune with 'finetuned' or 'scratch'")
        if None in (self.ppo.learning_rate, self.ppo.n_epochs):
            raise RlpreError("tuning has no recipe to take learning_rate and n_epochs from: give both")
        at_least(self, beta=0)
        at_least(self.ppo, n_envs=1, n_steps=2, batch_size=2, n_epochs=1, hidden=1)
        for name in ("value_first", "beta_left"):
            if not 0 <= getattr(self, name) <= 1:
                raise RlpreError(f"{name} is {getattr(self, name)}: it is a share, from 0 to 1")


def tune(
    policy: SequencePolicy,
    level: str,
    out: Path,
    steps: int,
    seed: int,
    tuning: Tuning,
    report: Callable[[int], None] = quiet,
) -> SequencePolicy:
    """Trains a policy with PPO, in layouts to learn from alone.

    Args:
        policy: to start from; copied, never changed. PPO runs on its device. From mode "scratch" only its architecture,
            its encoder of frames and its vocabulary are kept.
        level: a registered id.
        out: receives the policy, ``run.json`` and TensorBoard events.
        steps: environment steps, rounded up to whole rollouts.
        seed: of the worlds, the actions and fresh weights.
        tuning: settings.
        report: called with the number of environment steps so far.

    Raises:
        RlpreError: for settings out of range, or a level that the policy does not fit.
    """
    tuning.check()
    venv = worlds(level, tuning.ppo.n_envs, seed)
    model = to_ppo(policy, venv, tuning, steps, seed, tensorboard_log=str(out))
    model.learn(steps, callback=Report(report), tb_log_name="tensorboard")
    venv.close()
    tuned = from_ppo(model, policy)
    cost = {"environment_steps": model.num_timesteps, "gradient_steps": tuning.ppo.updates(steps)}
    write_json(
        out / "run.json", {"configuration": {"level": level, "seed": seed, **asdict(tuning)}, **cost, **provenance()}
    )
    tuned.save(out)
    return tuned


def to_ppo(
    policy: SequencePolicy,
    venv: VecEnv,
    tuning: Tuning | None = None,
    steps: int = 1,
    seed: int | None = None,
    **others: Any,
) -> PPO:
    """PPO on windows of the past; unless it starts from scratch, its first policy is ``policy``.

    That is exact for a transformer; a GRU forgets what lies before the window.

    Args:
        policy: copied; PPO runs on its device.
        venv: worlds as pixels, with missions in their infos.
        tuning: settings; default ``Tuning()``.
        steps: environment steps of the run, which shares of it are taken of.
        seed: SB3's.
        **others: of ``PPO``.
    """
    tuning = tuning or Tuning()
    settings = asdict(tuning.ppo)
    hidden, floor, _ = settings.pop("hidden"), settings.pop("advantage_floor"), settings.pop("n_envs")
    windows = HistoryVecEnv(venv, policy.encoder, device=policy.encoder.device)
    heads = {"pi": [], "vf": [hidden, hidden]}  # the clone's head is linear
    arguments = {
        "policy": "MultiInputPolicy",
        "env": windows,
        "policy_kwargs": policy_kwargs(policy.encoder, tuning.mode, net_arch=heads),
        "seed": seed,
        "device": policy.encoder.device,
        **settings,
        **others,
    }
    model = PPO(**arguments, **floored_advantages(floor))
    if MODES[tuning.mode].pretrained:
        model.policy.action_net.load_state_dict(policy.head.state_dict())
    if tuning.beta:
        rollouts = tuning.ppo.updates(steps) / tuning.ppo.updates(1)
        start = model.policy.state_dict()
        model = PPO(**arguments, **kl_to(model.policy, tuning.beta, tuning.beta_left ** (1 / rollouts), floor))
        model.policy.load_state_dict(start)
    value_first(model.policy, round(tuning.value_first * tuning.ppo.updates(steps)))
    return model


def from_ppo(model: PPO, like: SequencePolicy) -> SequencePolicy:
    """The policy that PPO has made of ``like``, on the device of ``like``, ready to be measured as a clone is."""
    policy = copy.deepcopy(like)
    policy.encoder.load_state_dict(model.policy.features_extractor.encoder.state_dict())
    policy.head.load_state_dict(model.policy.action_net.state_dict())
    return policy.eval()


def worlds(level: str, n_envs: int, seed: int) -> VecEnv:
    """Worlds that never show a layout for tests."""
    venv = envs.make_vec(level, n_envs, seed)
    for world in venv.envs:
        world.env = _ToLearnFrom(world.env)
    return venv


class _ToLearnFrom(gym.Wrapper):
    """Resets again while the layout is one for tests."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(seed=seed, options=options)
        while is_test(layout(self.unwrapped)):
            answer = self.env.reset(options=options)
        return answer
