"""The runs of a comparison: one makes the encoders that arms start from, one trains an agent."""

import importlib
import inspect
import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from gymnasium import spaces
from PIL import Image
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space, is_image_space_channels_first
from stable_baselines3.common.vec_env import (
    VecEnv,
    VecMonitor,
    VecNormalize,
    VecTransposeImage,
    is_vecenv_wrapped,
    unwrap_vec_normalize,
    unwrap_vec_wrapper,
)
from torch import nn
from torch.optim import Adam

from rlpre.compare.arms import ORACLE, Arm, Backbone, Clone, fresh_encoder, in_front, variant
from rlpre.compare.runner import Measurements, Run
from rlpre.data.adapters import as_vec_env
from rlpre.data.store import FrameStore
from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder, load_encoder
from rlpre.errors import RlpreError, at_least, lookup
from rlpre.features import whiten
from rlpre.pretrain import PretrainConfig, pretrain
from rlpre.sb3 import (
    EncodedVecEnv,
    HistoryVecEnv,
    KeepLearning,
    StateVecEnv,
    clone,
    fuse,
    policy_kwargs,
    start_from,
    zero_value,
)
from rlpre.sb3.vecenv import FeaturesVecEnv
from rlpre.utils import atomic, provenance, resolve_device, write_json

MakeEnv = Callable[[int, int], VecEnv]  # (number of environments, seed) -> seeded environments
Report = Callable[[int], None]  # called with the number of steps so far
Curve = list[tuple[int, float]]  # environment steps, and the mean return there

RUN, EVALUATIONS, FILM = "run.json", "evaluations.npz", "policy.gif"
BEST_MODEL, LAST_MODEL = "best_model.zip", "last_model.zip"
EVALUATION_SEED = 1_000_000  # evaluation shares no seed with training
FILM_SEED = 2_000_000
EPISODES, EPISODE_STEPS = 3, 50  # of a film
LARGE = 20  # size of returns from which the value head's errors may drown what an encoder learns from the policy
SIDE = 160  # most pixels of a film's width and height
MILLISECONDS, LAST_MILLISECONDS = 120, 800  # that a picture is shown; the last one of an episode


@dataclass(frozen=True)
class Preparation:
    """Encoders to make before agents are trained.

    Attributes:
        frames: directory of the frames.
        pretrain: settings, with the seed.
        memory: settings for sequence encoders.
        objective: to pretrain by; empty: not at all.
        start: checkpoint directory of a given encoder; None: fresh weights.
        fresh: configuration of an encoder with fresh weights.
        arms: by name; decide the variants: after a pretraining step, whitened, with a sequence encoder on top.
    """

    frames: Path
    pretrain: PretrainConfig
    memory: PretrainConfig
    objective: str
    start: Path | None
    fresh: Mapping[str, Any]
    arms: Mapping[str, Arm]


@dataclass(frozen=True)
class Training:
    """Everything that decides one run.

    Attributes:
        make_env: makes the environments.
        seed: of weights, environments and actions.
        steps: environment steps, over all environments.
        mode: of `rlpre.policy_kwargs`, or "oracle": the agent observes the true state, and has no encoder.
        encoder: checkpoint directory; None: fresh weights.
        fresh: configuration of an encoder with fresh weights, see `rlpre.Encoder.config`.
        memory: a fresh sequence encoder to put on ``encoder``.
        clone: the policy to start from.
        demonstrations: directory of the frames that are cloned.
        policy_kwargs: further arguments of `rlpre.policy_kwargs`.
        algorithm: of SB3 or sb3-contrib.
        algorithm_kwargs: its arguments.
        zero_value: whether the value head of an on-policy algorithm starts at zero, see `rlpre.sb3.zero_value`.
        auxiliary: arguments of `rlpre.sb3.KeepLearning`, if an objective goes on while the agent learns.
        n_envs: environments that are stepped together.
        eval_every: environment steps between evaluations.
        eval_episodes: episodes of an evaluation, in environments with seeds of their own.
        deterministic: whether evaluations take the most likely actions instead of sampling.
        eval_start: whether the agent is also evaluated before its first step.
        film: whether to film the final policy, if the environment renders.
    """

    make_env: MakeEnv
    seed: int
    steps: int
    mode: str = "scratch"
    encoder: Path | None = None
    fresh: Mapping[str, Any] = field(default_factory=dict)
    memory: Backbone | None = None
    clone: Clone | None = None
    demonstrations: Path | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algorithm: type[BaseAlgorithm] = PPO
    algorithm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    zero_value: bool = True
    auxiliary: Mapping[str, Any] = field(default_factory=dict)
    n_envs: int = 8
    eval_every: int = 2048
    eval_episodes: int = 16
    deterministic: bool = False
    eval_start: bool = False
    film: bool = False

    def check(self) -> None:
        """Refuses numbers that are too small, or a device that is not there.

        Raises:
            RlpreError: naming the setting.
        """
        at_least(self, seed=0, steps=1, n_envs=1, eval_every=1, eval_episodes=1)
        if self.steps < self.eval_every:
            raise RlpreError(f"steps={self.steps} end before the first evaluation: lower eval_every={self.eval_every}")
        if self.eval_start and not issubclass(self.algorithm, PPO | A2C):
            raise RlpreError(f"a clone starts PPO or A2C, not {self.algorithm.__name__}: choose one, or no clone")
        if self.auxiliary and not issubclass(self.algorithm, OnPolicyAlgorithm):
            raise RlpreError(
                f"auxiliary reads rollouts, {self.algorithm.__name__} has none: choose PPO, or leave it out"
            )
        resolve_device(self.algorithm_kwargs.get("device", "auto"))


def prepare(preparations: Mapping[Run, Preparation], run: Run, out: Path, report: Report) -> Measurements:
    """Makes the encoders of one run of `compare`, and returns the scores of probes on the pretrained one."""
    task = preparations[run]
    frames, config, arms = FrameStore.open(task.frames), task.pretrain, task.arms.values()
    measured: dict[str, float] = {}
    if task.objective:
        keep = {arm.step for arm in arms if arm.step is not None}
        result = pretrain(frames, out=out, config=config, report=report, keep=keep, objective=task.objective)
        measured = {f"probe {label}": score for label, score in result.probes.items()}
        measured |= {f"probe {label}, fresh weights": score for label, score in result.control.items()}
    else:
        (load_encoder(task.start) if task.start else fresh_encoder(task.fresh, config.seed)).save(out)
    whitened = {variant(out, replace(arm, memory_objective="")): arm for arm in arms if arm.whiten}
    for path, arm in whitened.items():
        plain = load_encoder(variant(out, replace(arm, whiten=False, memory_objective="")))
        read = "map" if arm.whiten == "map" else "output"
        whiten(plain, frames, config.seed, features=read, power=1 if arm.power is None else arm.power).save(path)
    for path, arm in {variant(out, arm): arm for arm in arms if arm.memory_objective}.items():
        vision = Encoder.load(variant(out, replace(arm, memory_objective="")))
        _pretrain_memory(arm, vision, frames, path, task.memory, lambda steps: report(config.steps + steps))
    return measured


def _pretrain_memory(
    arm: Arm, vision: Encoder, frames: FrameStore, path: Path, config: PretrainConfig, report: Report
) -> None:
    """Pretrains a sequence encoder on ``vision``; its causal copy, which can act, is saved to ``path``."""
    assert arm.memory is not None
    torch.manual_seed(config.seed)
    start = arm.memory.build(vision, frames.num_actions, objective=arm.memory_objective)
    config = replace(config, objective=arm.memory_objective)
    result = pretrain(frames, encoder=start, out=path.parent, config=config, report=report)
    cast(SequenceEncoder, result.encoder).causal_copy().save(path)


def train(spec: Training, out: Path, report: Report = lambda steps: None) -> Measurements:
    """Trains an agent.

    Args:
        spec: the settings.
        out: receives ``run.json``, ``evaluations.npz`` (of SB3's ``EvalCallback``), TensorBoard events, the SB3 models
            ``best_model.zip`` and ``last_model.zip``, their policies on pixels ``best_policy.zip`` and
            ``last_policy.zip``, and the film ``policy.gif``. An oracle leaves no policies on pixels. A clone is in
            ``clone/``; where it is not tuned, there are no evaluations.npz and no events.
        report: called with the number of environment steps so far.

    Returns:
        The curve "return": steps, and the mean over the episodes of an evaluation.

    Raises:
        RlpreError: for unknown names, or an encoder that does not fit the environment.
    """
    device = resolve_device(spec.algorithm_kwargs.get("device", "auto"))
    venvs = [make_venv(spec.make_env, spec.n_envs, seed) for seed in (spec.seed, EVALUATION_SEED + spec.seed)]
    encoder = starting_encoder(spec, venvs[0])
    venv, evaluation = (observed(spec, each, encoder, device) for each in venvs)
    model = make_model(spec, venv, encoder, device, out)
    config = encoder.config if encoder else None
    write_json(out / RUN, {"configuration": described(spec), **provenance(), "encoder": config})
    if spec.clone:
        _clone(spec, model, cast(AnyEncoder, encoder), out / "clone")
    curve = _learn(spec, model, evaluation, out, report)
    _warn_of_large_returns(venv, curve)
    model.save(str(out / LAST_MODEL))
    best = spec.algorithm.load(out / BEST_MODEL, device=device)
    if encoder is not None:
        for name, trained in (("best", best), ("last", model)):
            policy = fuse(trained, encoder) if isinstance(venv, FeaturesVecEnv) else trained.policy
            policy.save(str(out / f"{name}_policy.zip"))
    if spec.film:
        torch.manual_seed(spec.seed)
        stage = observed(spec, make_venv(spec.make_env, 1, FILM_SEED), encoder, device)
        film(model, stage, out / FILM)
        stage.close()
    for each in (venv, evaluation):
        each.close()
    return {"return": curve}


def _clone(spec: Training, model: BaseAlgorithm, encoder: AnyEncoder, out: Path) -> None:
    """Makes the clone, and a model that starts from it, or is it."""
    assert spec.clone is not None
    assert spec.demonstrations is not None
    config = replace(spec.clone.config, seed=spec.seed, device=str(model.device))
    policy = cast(ActorCriticPolicy, model.policy)
    layers = policy.net_arch["pi"] if isinstance(policy.net_arch, dict) else policy.net_arch
    config = replace(config, net_arch=tuple(layers), activation=policy.activation_fn.__name__)
    start = clone(FrameStore.open(spec.demonstrations), encoder, out=out, config=config)
    start_from(model, start, **(spec.clone.start if spec.clone.tuned else {"value_first": 0, "kl": 0}))


def _learn(spec: Training, model: BaseAlgorithm, evaluation: VecEnv, out: Path, report: Report) -> Curve:
    """Lets a model learn, and returns its evaluations; a clone that is not tuned is evaluated once."""
    evaluate = _evaluation(spec.algorithm)(
        evaluation,
        n_eval_episodes=spec.eval_episodes,
        eval_freq=max(1, spec.eval_every // spec.n_envs),
        log_path=str(out),
        best_model_save_path=str(out),
        deterministic=spec.deterministic,
        verbose=0,
    )
    curve: Curve = []
    if spec.eval_start:
        found, _ = evaluate_policy(model, evaluation, spec.eval_episodes, spec.deterministic)
        evaluate.best_mean_reward = float(cast(float, found))
        curve = [(0, evaluate.best_mean_reward)]
        model.save(str(out / BEST_MODEL))
    if spec.clone and not spec.clone.tuned:
        assert isinstance(model, PPO | A2C)
        rollout, every = model.n_steps * spec.n_envs, evaluate.eval_freq * spec.n_envs
        return [(step, curve[0][1]) for step in range(0, -(-spec.steps // rollout) * rollout + 1, every)]
    callbacks = [evaluate, ReportSteps(report), *([KeepLearning(**spec.auxiliary)] if spec.auxiliary else [])]
    model.learn(spec.steps, callback=CallbackList(callbacks), tb_log_name="tensorboard")
    with np.load(out / EVALUATIONS) as file:
        return curve + list(zip(file["timesteps"].tolist(), file["results"].mean(axis=1).tolist(), strict=True))


def _warn_of_large_returns(venv: VecEnv, curve: Curve) -> None:
    """Agents that train their encoder suffer from large rewards more than others, which makes a comparison unfair."""
    largest = max((value for _, value in curve), key=abs)
    if abs(largest) >= LARGE and not is_vecenv_wrapped(venv, VecNormalize):
        warnings.warn(
            f"returns are as large as {largest:.0f}: they slow down agents that train their encoder more than others; "
            "let make_env return VecNormalize(venv, norm_obs=False), which leaves the reported returns as they are",
            stacklevel=3,
        )


def _evaluation(algorithm: type[BaseAlgorithm]) -> type[EvalCallback]:
    """The callback that evaluates agents of an algorithm; that of MaskablePPO reads the action masks."""
    if algorithm.__name__ != "MaskablePPO":
        return EvalCallback
    return cast(
        type[EvalCallback], importlib.import_module("sb3_contrib.common.maskable.callbacks").MaskableEvalCallback
    )


def find_env(make_env: str | MakeEnv) -> MakeEnv:
    """The function that makes environments.

    Args:
        make_env: that function, "module:function", or a Gymnasium id.

    Raises:
        RlpreError: if there is no such function or id.
    """
    if not isinstance(make_env, str):
        if not callable(make_env):
            raise RlpreError(
                f"{type(make_env).__name__} makes no environments: give a function (n_envs, seed) -> VecEnv, "
                "'module:function', or a Gymnasium id"
            )
        return make_env
    module, _, name = make_env.rpartition(":")
    if not module or re.search(r"-v\d+$", name):  # Gymnasium knows ids such as "ale_py:ALE/Pong-v5"
        try:
            gym.spec(make_env)
        except (gym.error.Error, ImportError):
            lookup("environment", make_env, gym.registry)
        return partial(_gymnasium, make_env)
    try:
        return cast(MakeEnv, getattr(importlib.import_module(module), name))
    except (ImportError, AttributeError) as error:
        raise RlpreError(
            f"{make_env!r} cannot be imported ({error}): give module:function, or a Gymnasium id"
        ) from error


def find_algorithm(name: str) -> type[BaseAlgorithm]:
    """The algorithm of SB3, or of sb3-contrib if that is installed, by its name in any case.

    Raises:
        RlpreError: if there is none.
    """
    contrib = vars(importlib.import_module("sb3_contrib")) if find_spec("sb3_contrib") else {}
    known = {key.lower(): value for key, value in (vars(stable_baselines3) | contrib).items()}
    algorithms = {key: value for key, value in known.items() if hasattr(value, "policy_aliases")}
    return cast(type[BaseAlgorithm], lookup("algorithm", name.lower(), algorithms))


def _gymnasium(name: str, n_envs: int, seed: int) -> VecEnv:
    spread = int(np.random.SeedSequence(seed).generate_state(1)[0])  # SB3 adds 0, 1, .. for the environments
    try:
        try:
            return make_vec_env(name, n_envs, spread, env_kwargs={"render_mode": "rgb_array"})
        except TypeError:  # an environment that does not render
            return make_vec_env(name, n_envs, spread)
    except (gym.error.Error, ImportError) as error:
        raise RlpreError(f"environment {name!r} cannot be made: {error}") from error


def make_venv(make: MakeEnv, n_envs: int, seed: int) -> VecEnv:
    """Makes environments whose images have their channels first, with SB3's monitor of episodes.

    Raises:
        RlpreError: if the function does not give what `as_vec_env` takes, or another number of environments.
    """
    try:
        venv = as_vec_env(make(n_envs, seed))
    except RlpreError as error:
        raise RlpreError(f"make_env({n_envs}, {seed}): {error}") from error
    if venv.num_envs != n_envs:
        raise RlpreError(f"make_env({n_envs}, {seed}) made {venv.num_envs} environments: make as many as it is given")
    venv = _monitored(venv)
    space = venv.observation_space
    parts = space.values() if isinstance(space, spaces.Dict) else [space]
    images = [part for part in parts if isinstance(part, spaces.Box) and is_image_space(part)]
    last = images and not any(map(is_image_space_channels_first, images))
    return VecTransposeImage(venv) if last else venv


def _monitored(venv: VecEnv) -> VecEnv:
    """With SB3's monitor of episodes, which must see the rewards before a ``VecNormalize`` divides them."""
    monitor, normalizer = unwrap_vec_wrapper(venv, VecMonitor), unwrap_vec_normalize(venv)
    if monitor and (inside := unwrap_vec_normalize(monitor.venv)) and inside.norm_reward:
        raise RlpreError(
            "VecMonitor around VecNormalize would report divided returns: put VecNormalize around VecMonitor"
        )
    if monitor or all(venv.env_is_wrapped(Monitor)):
        return venv
    if not normalizer:
        return VecMonitor(venv)
    while deeper := unwrap_vec_normalize(normalizer.venv):
        normalizer = deeper
    normalizer.venv = VecMonitor(normalizer.venv)
    return venv


def starting_encoder(spec: Training, venv: VecEnv) -> AnyEncoder | None:
    """The encoder at the start of a run: pretrained, with fresh weights, or fresh memory on a pretrained one.

    It is None for an oracle.

    Raises:
        RlpreError: if the checkpoint is missing or damaged.
    """
    if spec.mode == ORACLE:
        return None
    if spec.encoder is None:
        return fresh_encoder(spec.fresh, spec.seed)
    if spec.memory is None:
        return load_encoder(spec.encoder)
    torch.manual_seed(spec.seed)
    return spec.memory.build(Encoder.load(spec.encoder), int(cast(spaces.Discrete, venv.action_space).n))


def trained_encoder(run: Path, algorithm: type[BaseAlgorithm]) -> Encoder:
    """The encoder in the policy of a finished run at its end.

    Raises:
        RlpreError: if the run left no model.
    """
    if not (run / LAST_MODEL).exists():
        raise RlpreError(
            f"{run / LAST_MODEL} is missing: let arm {run.parent.name!r} run first, or, if it has, delete {run} and "
            "start the comparison again"
        )
    policy = algorithm.load(run / LAST_MODEL, device="cpu").policy
    return next(module for module in policy.modules() if isinstance(module, Encoder))


def observed(spec: Training, venv: VecEnv, encoder: AnyEncoder | None, device: torch.device) -> VecEnv:
    """What the agent observes: the true state, features, windows of features, or pixels."""
    if encoder is None:
        return StateVecEnv(venv)
    if in_front(spec.mode, encoder):
        return EncodedVecEnv(venv, encoder, device=device)
    return venv if isinstance(encoder, Encoder) else HistoryVecEnv(venv, encoder, device=device)


def make_model(
    spec: Training, venv: VecEnv, encoder: AnyEncoder | None, device: torch.device, out: Path
) -> BaseAlgorithm:
    """The algorithm, with the encoder in its policy unless that is in front."""
    settings = dict(spec.algorithm_kwargs)
    arguments = dict(settings.pop("policy_kwargs", {}))
    base = "Mlp"
    if encoder is not None and not isinstance(venv, EncodedVecEnv):
        base, arguments = "Cnn", policy_kwargs(encoder, spec.mode, **{**arguments, **spec.policy_kwargs})
    if isinstance(venv.observation_space, spaces.Dict):
        base = "MultiInput"
    recurrent = f"{base}LstmPolicy"
    policy = recurrent if recurrent in spec.algorithm.policy_aliases else f"{base}Policy"
    if policy not in spec.algorithm.policy_aliases:
        raise RlpreError(f"{spec.algorithm.__name__} has no {policy}, which reads images: use another, such as PPO")
    if base == "Mlp" and "optimizer_class" in inspect.signature(spec.algorithm.policy_aliases[policy]).parameters:
        # as with an encoder in the policy, so that arms differ in their encoder alone
        arguments = {"optimizer_class": Adam, "optimizer_kwargs": {"eps": 1e-5}, **arguments}
    common = {"policy_kwargs": arguments, "seed": spec.seed, "tensorboard_log": str(out)}
    model = spec.algorithm(policy, venv, **{**settings, **common, "device": device})
    if spec.zero_value and isinstance(model, OnPolicyAlgorithm):
        zero_value(model)
    return model


def film(
    model: BaseAlgorithm | BasePolicy, venv: VecEnv, path: Path, episodes: int = EPISODES, deterministic: bool = False
) -> None:
    """Plays episodes and writes them as GIF, if the environment renders RGB arrays.

    Args:
        model: acts.
        venv: one environment.
        path: of the GIF.
        episodes: how many, each cut after a number of steps.
        deterministic: whether actions are the most likely ones instead of sampled.
    """
    if venv.render_mode != "rgb_array":
        return
    pictures: list[Image.Image] = []
    durations: list[int] = []
    ends = _render_ends(venv)
    masked = "action_masks" in inspect.signature(model.predict).parameters and venv.has_attr("action_masks")
    for _ in range(episodes):
        observations, memory, starts = venv.reset(), None, np.ones(1, bool)
        shots: list[Any] = []
        done = False
        while not done and len(shots) < EPISODE_STEPS:
            shots.append(venv.get_images()[0])
            masks = {"action_masks": np.stack(venv.env_method("action_masks"))} if masked else {}
            actions, memory = model.predict(observations, memory, starts, deterministic, **masks)  # type: ignore[arg-type]  # dict
            observations, _, (done,), _ = venv.step(actions)
            starts = np.zeros(1, bool)
        shots += ends[-1:] if done else []
        for shot in shots:
            pictures.append(Image.fromarray(np.asarray(shot)))
            pictures[-1].thumbnail((SIDE, SIDE))
        durations += [MILLISECONDS] * (len(shots) - 1) + [LAST_MILLISECONDS]
    first, *others = pictures
    with atomic(path) as temporary:
        first.save(temporary, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _render_ends(venv: VecEnv) -> list[Any]:
    """A list that receives the last picture of each episode; it stays empty if other processes hold the environment.

    A ``VecEnv`` resets in the step that ends an episode, so the picture exists only until the environment's own reset.
    """
    ends: list[Any] = []
    begun = set()
    for env in getattr(venv.unwrapped, "envs", ()):
        reset = env.unwrapped.reset

        def render_and_reset(*, env: Any = env, reset: Any = reset, **arguments: Any) -> Any:
            if env in begun:  # before the first reset there is nothing to see
                ends.append(env.render())
            begun.add(env)
            return reset(**arguments)

        env.unwrapped.reset = render_and_reset
    return ends


def described(value: Any) -> Any:
    """A setting as JSON: functions and classes by name, encoders by their fingerprint."""
    if isinstance(value, partial):
        return {"function": described(value.func), "args": described(value.args), "kwargs": described(value.keywords)}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: described(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): described(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [described(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted((described(part) for part in value), key=str)
    if isinstance(value, nn.Module):
        return f"encoder {value.fingerprint()[:12]}" if isinstance(value, AnyEncoder) else type(value).__name__
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    return _identified(value)


def _identified(value: Any) -> Any:
    """An object that is no value of JSON, by the name of its class or its own, and its state."""
    if hasattr(value, "__qualname__"):
        return f"{value.__module__}:{value.__qualname__}"
    kind, state = described(type(value)), getattr(value, "__dict__", {})  # such as a schedule, or noise of actions
    shown = kind if " at 0x" in repr(value) else f"{kind} {value!r}"  # such as a range
    return {"type": kind, **described(state)} if state else shown


class ReportSteps(BaseCallback):
    """Calls ``report`` with the number of environment steps so far."""

    def __init__(self, report: Report) -> None:
        super().__init__()
        self.report = report

    def _on_step(self) -> bool:
        self.report(self.num_timesteps)
        return True
