"""Corrections of exposure bias, and their controls: further supervised learning, or PPO from the clone.

Every supervised correction starts from the weights of the same clone, takes the same number of gradient steps, and
keeps the weights with the lowest held-out loss, the clone's among them. Those that ask the expert for further labels
ask for the same number.

References:
    [0] Bansal, Krizhevsky, Ogale 2018, "ChauffeurNet": the past is hidden in half the examples.
    [1] Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning".
    [2] Ross, Gordon, Bagnell 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
        Learning" (DAgger), with beta_i = [i = 1]: the expert acts in the demonstrations and nowhere else.
    [3] Baker et al. 2022, "Video PreTraining (VPT)", section on RL fine-tuning: a decaying KL to the cloned policy.
    [4] Wolczyk et al. 2024, "Fine-tuning Reinforcement Learning Models is Secretly a Forgetting Mitigation Problem".
"""

import copy
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv

import envs
from agents.cloning import CloneConfig, Episodes, Report, SequencePolicy, fit_episodes, write_run
from agents.presets import PPOConfig
from envs.minigrid.demos import stored
from envs.minigrid.trials import Actor, ExpertActor, NoisyActor, Trial, is_test, layout, layout_seeds, play
from rlpre import FrameStore, HistoryVecEnv, RlpreError, policy_kwargs
from rlpre.compare.train import ReportSteps
from rlpre.data.collect import seeds
from rlpre.errors import at_least, lookup
from rlpre.pretrain import quiet
from rlpre.sb3 import MODES, kl_penalty, value_first
from rlpre.utils import provenance, write_json

TRIED = 32  # episodes in which the policy's error rate is measured
HOPELESS = 64  # episodes in a row without a label, after which the expert is given up
FRESH_LAYOUTS = 1_000_000  # layouts from this number on appear in no demonstration
MOST_NOISE = 0.5  # with more noise the expert hardly reaches a goal


@dataclass(frozen=True)
class Correction:
    """What a clone goes on learning from, and how."""

    player: str | None = None  # "expert" or "learner": who plays the episodes that the expert labels; None: no labels
    noisy: bool = False  # whether the player's actions are disturbed as often as the clone errs
    rounds: int = 1  # labels and gradient steps are divided among them; each round's learner plays in the next
    history_dropout: float = 0.0  # as in CloneConfig
    scheduled_sampling: bool = False  # as in CloneConfig


CORRECTIONS = {
    "history-dropout": Correction(history_dropout=0.5),  # [0]
    "scheduled-sampling": Correction(scheduled_sampling=True),
    "dart": Correction("expert", noisy=True),  # [1]
    "dagger": Correction("learner", rounds=5),  # [2]
    "more-labels": Correction("expert"),
    "more-steps": Correction(),
}


def correct(
    name: str,
    clone: SequencePolicy,
    store: FrameStore,
    out: Path,
    labels: int,
    config: CloneConfig,
    report: Report = quiet,
) -> SequencePolicy:
    """Corrects a clone by supervised learning.

    Args:
        name: a name in ``CORRECTIONS``.
        clone: the policy to start from; it is copied, never changed.
        store: the demonstrations that it was cloned from.
        out: receives the policy, ``run.json``, TensorBoard events, and the newly labelled episodes as stores.
        labels: further steps that the expert labels, if the correction asks it.
        config: settings, with the number of further gradient steps; its seed draws the layouts too.
        report: called with the number of gradient steps so far.
    """
    correction = lookup("correction", name, CORRECTIONS)
    rounds = correction.rounds
    if labels < rounds:
        raise RlpreError(f"labels={labels} cannot be divided among {rounds} rounds: give at least {rounds}")
    changes = {key: getattr(correction, key) for key in ("history_dropout", "scheduled_sampling")}
    config = replace(config, patience=None, **changes)
    config.check()
    at_least(config, steps=rounds)
    policy, level = copy.deepcopy(clone), store.tasks[0]
    episodes = Episodes.read(store, policy.encoder, config.labels)
    known, longest = episodes.labels, int(episodes.lengths.max())
    cost: dict[str, Any] = {"noise": 0.0, "rounds": []}
    done = 0
    for number in range(rounds):
        if correction.player:
            first, seed = seeds(config.seed, FRESH_LAYOUTS + number)
            actor = policy.actor(seed) if correction.player == "learner" else ExpertActor()
            if correction.noisy:
                cost["noise"] = min(MOST_NOISE, error_rate(policy, level, longest, first))
                actor = NoisyActor(actor, cost["noise"], np.random.default_rng(seed))
            trials = label(level, actor, _share(labels, number, rounds), longest, first)
            episodes += Episodes.read(stored(trials, level, out / f"labels-{number}"), policy.encoder)
        settings = replace(config, steps=_share(config.steps, number, rounds))
        fitted = fit_episodes(
            policy, episodes, out / f"round-{number}", settings, lambda step, done=done: report(done + step)
        )
        cost["rounds"].append(asdict(fitted))
        done += fitted.gradient_steps
    write_run(out, config, {"correction": name, "labels": episodes.labels - known, "gradient_steps": done, **cost})
    policy.save(out)
    return policy


def label(level: str, actor: Actor, labels: int, longest: int, first: int) -> list[Trial]:
    """Plays training layouts, from reset seed ``first`` on, until the expert has labelled exactly ``labels`` steps.

    Only the ``longest`` first steps of an episode are kept: a learner that is lost repeats itself.
    """
    trials: list[Trial] = []
    played = 0
    while labels:
        resets = layout_seeds(level, "train", -(-labels // longest), first)  # fewer could not give enough labels
        first, played = resets[-1] + 1, played + len(resets)
        for trial in play(level, resets, actor):
            if not trial.lost:
                trials.append(_cut(trial, min(len(trial.actions), labels, longest)))
                labels -= len(trials[-1].actions)
        if played >= HOPELESS and not trials:
            raise RlpreError(f"the expert lost its plan in all of {played} episodes of {level}: it cannot label them")
    return trials


def error_rate(policy: SequencePolicy, level: str, longest: int, first: int) -> float:
    """Share of steps at which a policy that plays in training layouts does not act as the expert would."""
    own = play(level, layout_seeds(level, "train", TRIED, first), policy.actor())
    wrong = [(trial.actions != trial.advice)[:longest] for trial in own if not trial.lost]
    return float(np.concatenate(wrong).mean()) if wrong else 1.0


def _cut(trial: Trial, steps: int) -> Trial:
    """The first steps of a trial; a trial that is cut short was not ended by the world."""
    arrays = {name: value[:steps] for name, value in vars(trial).items() if isinstance(value, np.ndarray)}
    arrays["codes"] = trial.codes[: steps + 1]
    return replace(trial, **arrays, terminated=trial.terminated and steps == len(trial.actions))


def _share(total: int, number: int, rounds: int) -> int:
    return total * (number + 1) // rounds - total * number // rounds


@dataclass(frozen=True)
class Tuning:
    """How PPO starts from a cloned policy, and how it learns."""

    mode: str = "finetuned"  # of rlpre.policy_kwargs: "finetuned" from the clone's weights, "scratch" from fresh ones
    value_first: float = 0.1  # share of the gradient steps in which the value head learns alone
    beta: float = 0.0  # weight of the KL divergence from the first policy, in the first rollout [3, 4]
    beta_left: float = 0.05  # share of beta in the last rollout
    ppo: PPOConfig = field(default_factory=lambda: PPOConfig(n_steps=128, learning_rate=1e-3, n_epochs=4, ent_coef=0.0))

    def check(self) -> None:
        """Refuses an unknown mode, and numbers that are missing or out of range."""
        if not lookup("mode", self.mode, MODES).trainable:
            raise RlpreError(f"mode {self.mode!r} trains no encoder: tune with 'finetuned' or 'scratch'")
        if None in (self.ppo.learning_rate, self.ppo.n_epochs):
            raise RlpreError("tuning has no recipe to take learning_rate and n_epochs from: give both")
        at_least(self, beta=0)
        at_least(self.ppo, n_envs=1, n_steps=2, batch_size=2, n_epochs=1, hidden=1)
        if not 0 <= self.value_first <= 1:
            raise RlpreError(f"value_first is {self.value_first}: it is a share, from 0 to 1")
        if not 0 < self.beta_left < 1:
            raise RlpreError(f"beta_left is {self.beta_left}: it is a share, above 0 and below 1")


def tune(
    policy: SequencePolicy,
    level: str,
    out: Path,
    steps: int,
    seed: int,
    tuning: Tuning,
    report: Report = quiet,
) -> SequencePolicy:
    """Trains a policy with PPO, in training layouts only.

    Args:
        policy: to start from; it is copied, never changed. PPO runs on its device. Mode "scratch" keeps only its
            architecture, its vision encoder and its vocabulary.
        level: a registered id.
        out: receives the policy, ``run.json`` and TensorBoard events.
        steps: environment steps, rounded up to whole rollouts.
        seed: of the environments, the actions and fresh weights.
        tuning: settings.
        report: called with the number of environment steps so far.
    """
    tuning.check()
    venv = training_envs(level, tuning.ppo.n_envs, seed)
    model = to_ppo(policy, venv, tuning, steps, seed, tensorboard_log=str(out))
    model.learn(steps, callback=ReportSteps(report), tb_log_name="tensorboard")
    venv.close()
    tuned = from_ppo(model, policy)
    cost = {"environment_steps": model.num_timesteps, "gradient_steps": tuning.ppo.updates(steps)}
    configuration = {"level": level, "seed": seed, **asdict(tuning)}
    write_json(out / "run.json", {"configuration": configuration, **cost, **provenance()})
    tuned.save(out)
    return tuned


def to_ppo(
    policy: SequencePolicy, venv: VecEnv, tuning: Tuning, steps: int = 1, seed: int | None = None, **others: Any
) -> PPO:
    """PPO on windows of the past; its first policy is a copy of ``policy``, unless it starts from scratch.

    The two act alike for a transformer; a GRU forgets what lies before the window. ``venv`` gives pixels, with missions
    in the infos; ``steps`` are those of the run; ``others`` go to ``PPO``.
    """
    heads = {"pi": [], "vf": [tuning.ppo.hidden] * 2}  # the clone's head is linear
    arguments = {
        **tuning.ppo.arguments(),
        "policy": "MultiInputPolicy",
        "env": HistoryVecEnv(venv, policy.encoder, device=policy.encoder.device),
        "policy_kwargs": policy_kwargs(policy.encoder, tuning.mode, net_arch=heads),
        "seed": seed,
        "device": policy.encoder.device,
        **others,
    }
    model = PPO(**arguments)
    if MODES[tuning.mode].pretrained:
        model.policy.action_net.load_state_dict(policy.head.state_dict())
    if tuning.beta:
        start, rollout = model.policy.state_dict(), tuning.ppo.n_steps * tuning.ppo.n_envs
        half_life = -(-steps // rollout) * rollout / -math.log2(tuning.beta_left)
        penalty = kl_penalty(model.policy, tuning.beta, half_life, floor=tuning.ppo.advantage_floor)
        model = PPO(**(arguments | penalty))
        model.policy.load_state_dict(start)
    value_first(model.policy, round(tuning.value_first * tuning.ppo.updates(steps)))
    return model


def from_ppo(model: PPO, like: SequencePolicy) -> SequencePolicy:
    """PPO's policy in the form of ``like``, the policy that it started from, and on its device."""
    policy = copy.deepcopy(like)
    policy.encoder.load_state_dict(model.policy.features_extractor.encoder.state_dict())
    policy.head.load_state_dict(model.policy.action_net.state_dict())
    return policy.eval()


def training_envs(level: str, n_envs: int, seed: int) -> VecEnv:
    """Vectorised environments that never show a test layout."""
    venv = envs.make_vec(level, n_envs, seed)
    for world in venv.envs:
        world.env = _TrainingLayouts(world.env)
    return venv


class _TrainingLayouts(gym.Wrapper):
    """Resets again while the layout is one for tests."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        answer = self.env.reset(seed=seed, options=options)
        while is_test(layout(self.unwrapped)):
            answer = self.env.reset(options=options)
        return answer
