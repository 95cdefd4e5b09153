"""Corrections of exposure bias by supervised learning, and their controls, at one budget.

Each starts from the same clone, goes on from its weights for the same number of gradient steps, and keeps the weights
that are best on held-out layouts, the clone's among them. Those that ask the expert for further labels ask for the same
number.

References:
    [0] Bansal, Krizhevsky, Ogale 2018, "ChauffeurNet": the past is hidden in half the examples.
    [1] Laskey et al. 2017, "DART: Noise Injection for Robust Imitation Learning".
    [2] Ross, Gordon, Bagnell 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online
        Learning" (DAgger), with beta_i = [i = 1]: the expert acts in the demonstrations and nowhere else.
"""

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from agents.clone import CloneConfig, fit, write_run
from agents.episodes import Episodes
from agents.policy import SequencePolicy
from envs.demos import stored
from envs.trials import Actor, Trial, expert, noisy, play, train_seeds
from rlpre import FrameStore, RlpreError
from rlpre.errors import at_least, lookup
from rlpre.pretrain import quiet
from rlpre.sources.rollout import seeds

TRIED = 32  # episodes in which the policy's error is measured
HOPELESS = 64  # episodes in a row that the expert could not label: it never will
AFRESH = 1_000_000  # streams of layouts from this number on are none of the demonstrations'
MOST_NOISE = 0.5  # beyond it the expert hardly gets anywhere


@dataclass(frozen=True)
class Correction:
    """What a clone goes on learning from, and how."""

    player: str | None = None  # "expert" or "learner": who plays what the expert labels anew; None: no further labels
    noisy: bool = False  # whether the player's actions are disturbed as often as the clone errs
    rounds: int = 1  # into which labels and gradient steps are cut; the learner of each plays in the next
    history_dropout: float = 0.0  # as in CloneConfig
    scheduled_sampling: bool = False  # as in CloneConfig


@dataclass(frozen=True)
class Budget:
    """What a correction may cost; what it did cost stands in its ``run.json``."""

    labels: int  # further steps that the expert labels
    steps: int  # further gradient steps


CORRECTIONS = {
    "clone": Correction(rounds=0),
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
    budget: Budget,
    config: CloneConfig | None = None,
    report: Callable[[int], None] = quiet,
) -> SequencePolicy:
    """Corrects a clone.

    Args:
        name: of the correction, in ``CORRECTIONS``.
        clone: to start from; copied, never changed.
        store: the demonstrations that it was cloned from.
        out: receives the policy, ``run.json``, TensorBoard events, and what the expert labelled anew as stores.
        budget: what it may cost.
        config: settings, but for those that the correction or the budget decides; its seed draws the layouts too.
        report: called with the number of gradient steps so far.

    Returns:
        The corrected policy.

    Raises:
        RlpreError: for an unknown name, numbers out of range, demonstrations that do not fit the clone, or an expert
            that loses its plan in all episodes.
    """
    correction, config = lookup("correction", name, CORRECTIONS), config or CloneConfig()
    at_least(budget, labels=max(1, correction.rounds), steps=max(1, correction.rounds))
    how = {key: getattr(correction, key) for key in ("history_dropout", "scheduled_sampling")}
    config = replace(config, patience=None, **how)
    config.check()
    policy, level = copy.deepcopy(clone), store.tasks[0]
    episodes = Episodes.read(store, policy.encoder)
    known, longest = episodes.labels, int(episodes.lengths.max())
    cost: dict[str, Any] = {"labels": 0, "gradient_steps": 0, "noise": 0.0, "rounds": []}
    for number in range(correction.rounds):
        labels, steps = (_share(total, number, correction.rounds) for total in (budget.labels, budget.steps))
        before = cost["gradient_steps"]
        if correction.player:
            first, draw = seeds(config.seed, AFRESH + number)
            actor = policy.actor(draw) if correction.player == "learner" else expert()
            if correction.noisy:
                cost["noise"] = min(MOST_NOISE, error(policy, level, longest, first))
                actor = noisy(actor, cost["noise"], np.random.default_rng(draw))
            trials = label(level, actor, labels, longest, first)
            episodes += Episodes.read(stored(trials, level, out / f"labels-{number}"), policy.encoder)
        settings, board = replace(config, steps=steps), out / f"round-{number}"
        fitted = fit(policy, episodes, board, settings, lambda step, before=before: report(before + step))
        cost["rounds"].append(asdict(fitted))
        cost |= {"labels": episodes.labels - known, "gradient_steps": before + fitted.gradient_steps}
    write_run(out, config, {"correction": name, "budget": asdict(budget), **cost})
    policy.save(out)
    return policy


def label(level: str, actor: Actor, labels: int, longest: int, first: int) -> list[Trial]:
    """Trials in layouts to learn from, of which the expert labels exactly so many steps.

    Args:
        level: a registered id.
        actor: who plays.
        labels: how many.
        longest: steps of an episode that are kept; a learner that is lost repeats itself.
        first: the lowest reset seed.

    Raises:
        RlpreError: if the expert loses its plan in all episodes.
    """
    trials: list[Trial] = []
    played = 0
    while labels:
        resets = train_seeds(level, -(-labels // longest), first)  # fewer could not give as many
        first, played = resets[-1] + 1, played + len(resets)
        for trial in play(level, resets, actor):
            if not trial.lost:
                trials.append(_cut(trial, min(len(trial.actions), labels, longest)))
                labels -= len(trials[-1].actions)
        if played >= HOPELESS and not trials:
            raise RlpreError(f"the expert lost its plan in all of {played} episodes of {level}: it cannot label them")
    return trials


def error(policy: SequencePolicy, level: str, longest: int, first: int) -> float:
    """Share of steps at which a policy that plays freely in layouts to learn from does not do as the expert would."""
    own = play(level, train_seeds(level, TRIED, first), policy.actor())
    wrong = [(trial.actions != trial.advice)[:longest] for trial in own if not trial.lost]
    return float(np.concatenate(wrong).mean()) if wrong else 1.0


def _cut(trial: Trial, steps: int) -> Trial:
    """The first steps of a trial; one that is cut short was not ended by the world."""
    parts = {name: getattr(trial, name)[:steps] for name in ("actions", "advice", "regret", "reward")}
    terminated = trial.terminated and steps == len(trial.actions)
    return replace(trial, codes=trial.codes[: steps + 1], terminated=terminated, **parts)


def _share(total: int, number: int, rounds: int) -> int:
    return total * (number + 1) // rounds - total * number // rounds
