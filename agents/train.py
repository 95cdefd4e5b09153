"""Train one agent: an environment, a recipe, a seed, and a run directory that says everything."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.recipes import RECIPES, Backbone, Recipe
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, fuse, policy_kwargs
from rlpre.device import resolve_device
from rlpre.encoders import find_architecture
from rlpre.errors import at_least, lookup
from rlpre.files import write_json
from rlpre.provenance import provenance
from rlpre.sb3 import floored_advantages

EVALUATION_SEED = 1_000_000  # evaluation episodes share no seed with training ones


@dataclass(frozen=True)
class PPOConfig:
    """PPO's settings, the same for every agent but for the learning rate and the passes."""

    n_envs: int = 16  # copies of the environment
    n_steps: int = 64  # steps per copy and rollout
    batch_size: int = 256  # transitions a gradient step
    n_epochs: int | None = None  # passes over a rollout; None: the recipe's
    learning_rate: float | None = None  # Adam; None: the recipe's
    gamma: float = 0.99  # discount; rl-starter-files
    gae_lambda: float = 0.95  # advantage estimation; rl-starter-files
    ent_coef: float = 0.01  # entropy bonus; rl-starter-files
    clip_range: float = 0.2  # PPO paper
    vf_coef: float = 0.5  # SB3
    max_grad_norm: float = 0.5  # SB3
    advantage_floor: float = 0.05  # least divisor of advantages, see rlpre.sb3.advantages
    hidden: int = 64  # width of the two hidden layers of each head; SB3's MlpPolicy

    def suited(self, recipe: Recipe) -> "PPOConfig":
        """These settings with the recipe's where none were given."""
        missing = [name for name in ("learning_rate", "n_epochs") if getattr(self, name) is None]
        return replace(self, **{name: getattr(recipe, name) for name in missing})

    def updates(self, steps: int) -> int:
        """Gradient steps in a run of ``steps`` environment steps."""
        assert self.n_epochs is not None, "settings are suited to a recipe first"
        rollout = self.n_envs * self.n_steps
        return -(-steps // rollout) * self.n_epochs * -(-rollout // self.batch_size)


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run, together with the encoder's weights."""

    env: str = "MiniGrid-Empty-Random-6x6-v0"  # any MiniGrid or BabyAI id
    agent: str = "scratch"  # a name in RECIPES
    encoder: str = ""  # checkpoint directory, for agents that start pretrained; "history" reads one of frames
    architecture: str = "cnn"  # for agents that start from fresh weights
    features: int | None = None  # feature length for agents that start from fresh weights; None: the architecture's
    backbone: Backbone = field(default_factory=lambda: Backbone("gru"))  # of sequence encoders with fresh weights
    seed: int = 0  # of weights, environments and actions
    steps: int = 40_960  # environment steps, over all copies
    view: str = "partial"  # or "full"
    tile_size: int = 8  # pixels a cell
    palette: str = "day"  # or "night"
    eval_every: int = 2048  # environment steps between evaluations
    eval_episodes: int = 32  # episodes an evaluation, on seeds of their own
    device: str = "auto"  # "cpu", "cuda", ...
    ppo: PPOConfig = field(default_factory=PPOConfig)

    def check(self) -> None:
        """Refuses what could not be trained.

        Raises:
            RlpreError: for an unknown name, a number that is too small, a missing device, a recipe without the encoder
                that it starts from, or with one that it does not use.
        """
        recipe = lookup("agent", self.agent, RECIPES)
        if recipe.pretrained and not self.encoder:
            raise RlpreError(f"agent {self.agent!r} starts pretrained: give encoder=DIRECTORY, or use scratch")
        if self.encoder and not recipe.pretrained:
            raise RlpreError(f"agent {self.agent!r} starts from fresh weights: leave out the encoder, or use frozen")
        find_architecture(self.architecture)
        at_least(self, features=1, seed=0, eval_every=1, eval_episodes=1)
        at_least(self.ppo, n_envs=1, n_steps=2, batch_size=2, hidden=1)
        if self.ppo.n_epochs is not None:
            at_least(self.ppo, n_epochs=1)
        if self.steps < self.eval_every:
            raise RlpreError(f"steps={self.steps} end before the first evaluation: lower eval_every={self.eval_every}")
        resolve_device(self.device)
        worlds(replace(self, ppo=replace(self.ppo, n_envs=1)), self.seed).close()


def train(config: TrainConfig, out: Path, report: Callable[[int], None] = lambda steps: None) -> BasePolicy:
    """Trains an agent and writes its run directory.

    Args:
        config: what to run.
        out: receives ``run.json``, ``evaluations.npz``, TensorBoard events, the SB3 models ``best_model.zip`` and
            ``last_model.zip``, and their policies on pixels ``best_policy.zip`` and ``last_policy.zip``.
        report: called with the number of environment steps so far.

    Returns:
        The final policy, acting on pixels whatever it was trained on: on frames, or on windows of them as
        `HistoryVecEnv` gives them under ``frames``.

    Raises:
        RlpreError: for unknown names, a missing encoder, or one that does not fit the environment.
    """
    config.check()
    recipe, device = RECIPES[config.agent], resolve_device(config.device)
    config = replace(config, ppo=config.ppo.suited(recipe))
    start = time.perf_counter()
    venv, evaluation = (worlds(config, seed) for seed in (config.seed, EVALUATION_SEED + config.seed))
    encoder = starting_encoder(config, recipe, venv)
    venv, evaluation = (encoded(v, recipe, encoder, device) for v in (venv, evaluation))
    model = make_ppo(config, recipe, venv, encoder, device, out)
    write_json(out / "run.json", {"configuration": asdict(config), **provenance(), "encoder": encoder.config})
    evaluate = EvalCallback(
        evaluation,
        n_eval_episodes=config.eval_episodes,
        eval_freq=max(1, config.eval_every // config.ppo.n_envs),
        log_path=str(out),
        best_model_save_path=str(out),
        deterministic=False,  # a deterministic policy that sees a part of the world can turn in circles
        verbose=0,
    )
    model.learn(config.steps, callback=CallbackList([evaluate, Report(report)]), tb_log_name="tensorboard")
    model.save(out / "last_model")
    for name, trained in (("best", PPO.load(out / "best_model", device=device)), ("last", model)):
        policy = fuse(trained, encoder) if recipe.history or recipe.encoded_once else trained.policy
        policy.save(out / f"{name}_policy.zip")
    write_json(out / "time.json", {"seconds": time.perf_counter() - start, "steps": model.num_timesteps})
    venv.close()
    evaluation.close()
    return policy


def worlds(config: TrainConfig, seed: int) -> VecEnv:
    """The vectorised environment that a configuration describes."""
    look: dict[str, Any] = {"view": config.view, "tile_size": config.tile_size, "palette": config.palette}
    return envs.make_vec(config.env, config.ppo.n_envs, seed, **look)


def starting_encoder(config: TrainConfig, recipe: Recipe, venv: VecEnv) -> Encoder | SequenceEncoder:
    """The pretrained encoder, one with fresh weights drawn from the seed, or a fresh one over a pretrained one."""
    if recipe.remembers_already:
        return SequenceEncoder.load(config.encoder)
    torch.manual_seed(config.seed)
    if recipe.history:
        actions = int(venv.action_space.n)
        return config.backbone.build(Encoder.load(config.encoder), actions)
    if recipe.pretrained:
        return Encoder.load(config.encoder)
    arguments = {} if config.features is None else {"features": config.features}
    return Encoder(config.architecture, InputSpec(venv.observation_space.shape), **arguments)


def encoded(venv: VecEnv, recipe: Recipe, encoder: Encoder | SequenceEncoder, device: torch.device) -> VecEnv:
    """What an agent sees of its worlds: windows of features, features, or pixels."""
    if in_front(recipe, encoder):
        return EncodedVecEnv(venv, encoder, device=device)
    return HistoryVecEnv(venv, encoder, device=device) if recipe.history else venv


def in_front(recipe: Recipe, encoder: Encoder | SequenceEncoder) -> bool:
    """Whether the encoder stands before the policy, so that each step is encoded once.

    A GRU does not: it would remember the whole episode, and no policy on windows of pixels could act alike.
    """
    return recipe.encoded_once and not (isinstance(encoder, SequenceEncoder) and encoder.recurrent)


def make_ppo(
    config: TrainConfig,
    recipe: Recipe,
    venv: VecEnv,
    encoder: Encoder | SequenceEncoder,
    device: torch.device,
    out: Path,
) -> PPO:
    """PPO with the encoder in its policy, or on features if it stands outside."""
    settings = asdict(config.ppo)
    hidden, floor, _ = settings.pop("hidden"), settings.pop("advantage_floor"), settings.pop("n_envs")
    arguments: dict[str, Any] = {"net_arch": [hidden, hidden]}
    outside = in_front(recipe, encoder)
    if not outside:
        arguments |= policy_kwargs(encoder, **recipe.plug(config.ppo.updates(config.steps)))
    return PPO(
        "MlpPolicy" if outside else "MultiInputPolicy" if recipe.history else "CnnPolicy",
        venv,
        policy_kwargs=arguments,
        seed=config.seed,
        device=device,
        tensorboard_log=str(out),
        **floored_advantages(floor),
        **settings,
    )


class Report(BaseCallback):
    """Tells somebody how far training is."""

    def __init__(self, report: Callable[[int], None]) -> None:
        super().__init__()
        self.report = report

    def _on_step(self) -> bool:
        self.report(self.num_timesteps)
        return True
