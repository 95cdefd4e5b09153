"""The scoreboard: in minutes, how much of what supervision adds to fresh weights does each objective add?

Every objective is pretrained on the same frames of a world. Then its encoder is scored on frames of other episodes.
Linear probes ask for what a policy must know. `imitation` is how well a network like PPO's predicts the expert's action
after a few updates: unlike a probe it depends on how features are scaled, as PPO does. The score is the mean of both.
Fresh weights are the control and `supervised`, which reads the symbols (ViZDoom: the labels), is the ceiling.

    gap closed = (score - score of fresh) / (score of supervised - score of fresh)

Every encoder is read in four ways, see `READOUTS`; of every arm that with the highest mean score over the seeds counts.
Seeds draw weights, batches and shifts; the frames are the same. `rank_correlations` says how well scores rank arms.
"""

import warnings
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tyro
from minigrid.core.constants import IDX_TO_OBJECT, OBJECT_TO_IDX
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder

import envs
import rlpre
from agents import scoreboard_report as metrics
from agents.scoreboard_report import FRESH, GROUPS, READOUTS, SUPERVISED, report
from rlpre import FrameStore, PretrainConfig, RlpreError, pretrain
from rlpre.compare.runner import Measurements, Run, run_study, succeed
from rlpre.data.store import UNKNOWN, Indices
from rlpre.data.tiles import AGENT_SHIFT
from rlpre.errors import at_least, lookup
from rlpre.evaluation.health import conditioning
from rlpre.evaluation.probes import RIDGE, Factor, Floats, cross_score, distinct_rows, fresh
from rlpre.features import encode
from rlpre.objectives import make_reader, parse_objective
from rlpre.objectives.losses import AUGMENTATIONS
from rlpre.objectives.symbols import BACKGROUND, CLASSES, label_edges
from rlpre.pretrain import first_encoder

FRAMES, PROBES = "frames", "probes"  # in a study's directory
DISCOUNT = 0.99  # of the return; SB3's default
DOOR_STATE = 0b11  # the bits of a cell's flags that hold the state of a door
QUANTITIES = ("distance", "return")  # groups that are numbers; the others are classes
HIDDEN, RATE = (64, 64), 2e-3  # of the network that imitates: PPO's in our comparisons
LABELS, UPDATES = 200, 100  # that it learns from, with all labels in a batch

OBJECTIVES = ("change", "inverse@none", "change+inverse@none", "inverse", "forward", "temporal", "temporal+inverse")
OBJECTIVES += ("contrastive", "jigsaw")

Report = Callable[[int], None]


@dataclass(frozen=True)
class Scoreboard:
    """Everything that decides the numbers of a scoreboard."""

    worlds: tyro.conf.Positional[tuple[str, ...]] = ("MiniGrid-DoorKey-6x6-v0",)  # of MiniGrid, BabyAI or ViZDoom
    objectives: tuple[str, ...] = OBJECTIVES  # each with "@none" if frames are not to be shifted
    view: str = "partial"  # see `envs.make`, also for the next two
    strength: float | None = None  # of view "distract": weight of the pictures, 0 to 1; default 0.5
    pictures: str | None = None  # of view "distract": "train", "test" or a folder; default "train"
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects the frames to pretrain on, see `envs.collect`
    frames: int = 60_000  # to pretrain on
    probes: int = 20_000  # to probe on
    player: str = "expert:0.3"  # who collects these; ViZDoom has an expert for MyWayHome alone, give "random" elsewhere
    rows: int = 2500  # distinct frames among them that a probe reads
    seeds: int = 5  # each has weights, batches and shifts of its own
    first_seed: int = 0  # settings were tuned on seeds from 100 on
    published: Path | None = None  # a comparison on these worlds: how well do scores rank its arms?
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(features=256, steps=1500, gap=1, lr=3e-3))

    @property
    def look(self) -> dict[str, Any]:
        """How frames show the grid, see `envs.make`."""
        return {"view": self.view, "strength": self.strength, "pictures": self.pictures}

    @property
    def arms(self) -> tuple[str, ...]:
        """The controls, then the objectives."""
        return (FRESH, SUPERVISED, *self.objectives)


def scoreboard(study: Scoreboard, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a scoreboard, or what is missing of it.

    Args:
        study: what to run.
        out: receives the frames, the encoders with their scores, and the report.
        workers: runs at a time on one machine; default one per core.
        executor: where they run; default processes of this machine.

    Returns:
        The report as text.

    Raises:
        RlpreError: for unknown names, numbers out of range, or a directory with another study.
    """
    check(study)
    out = out.resolve()  # workers may have another working directory
    settings = asdict(study)
    for free in ("worlds", "objectives", "seeds", "first_seed", "published"):  # more can be added later
        del settings[free]
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    for world in study.worlds:
        envs.collect(world, out / FRAMES / world, study.frames, 0, study.behaviour, **study.look)
        envs.collect(world, out / PROBES / world, study.probes, 1, study.player, **study.look)
    runs = [Run(world, arm, seed) for world in study.worlds for arm in study.arms for seed in seeds]
    steps = dict.fromkeys(study.worlds, study.pretrain.steps)
    configuration = {"study": "scoreboard", **settings}
    work = partial(measure, study, out)
    succeed(run_study(out / "runs", runs, work, configuration, steps, executor=executor, workers=workers, keep=True))
    return report(out / "runs", study.worlds, study.arms, study.published)


def check(study: Scoreboard) -> None:
    """Refuses at once what would fail later."""
    at_least(study, seeds=1, first_seed=0, frames=1, probes=1, rows=1)
    for what, given in (("objective to score", study.objectives), ("world to score objectives on", study.worlds)):
        if not given:
            raise RlpreError(f"no {what}: name at least one")
    for name in study.objectives:
        parse_objective(recipe(name)["objective"], "vision")
        lookup("augmentation", recipe(name)["augment"], AUGMENTATIONS)
    if {FRESH, SUPERVISED} & set(study.objectives):
        raise RlpreError(f"{FRESH!r} and {SUPERVISED!r} are the controls of every scoreboard: leave them out")
    decided = ("objective", "augment", "seed")
    if any(getattr(study.pretrain, name) != getattr(PretrainConfig, name) for name in decided):
        raise RlpreError(f"the scoreboard decides pretrain.{', pretrain.'.join(decided)}: leave them out")


def recipe(arm: str) -> dict[str, str]:
    """The settings of a pretraining that "OBJECTIVE" or "OBJECTIVE@AUGMENTATION" stands for."""
    objective, _, augment = arm.partition("@")
    return {"objective": objective, "augment": augment or PretrainConfig.augment}


def measure(study: Scoreboard, home: Path, run: Run, out: Path, report: Report) -> Measurements:
    """Makes the encoder of a run, or goes on with it, and scores all readouts."""
    frames, asked = (FrameStore.open(home / part / run.task) for part in (FRAMES, PROBES))
    if run.arm == FRESH:
        encoder = fresh(first_encoder(frames, None, study.pretrain), run.seed)
    else:
        config = replace(study.pretrain, **recipe(run.arm), seed=run.seed)
        encoder = pretrain(frames, out=out, config=config, report=report).encoder
    rows = distinct_rows(make_reader(asked, encoder), study.rows, seed=0)
    measured = {metrics.CONDITION: conditioning(encode(encoder, asked, rows)).number}
    for readout, how in READOUTS.items():
        features = encode(rlpre.whiten(encoder, frames, **how), asked, rows).numpy()
        measured |= {f"{readout}/{name}": value for name, value in scores(features, asked, rows).items()}
    return measured


def factors(store: FrameStore, rows: Indices) -> dict[str, list[Factor]]:
    """What a policy must know, by group in `GROUPS`, for those of ``rows`` (n,) where it is known.

    Factors that do not vary, or have too few examples, are left out. Frames of an episode share its level (and its
    background): they are on the same side of every split.
    """
    found: dict[str, list[Factor]] = {}
    symbols_of = _cells(store.codes(rows)) if store.atlas else {}
    for group, labels in GROUPS.items():
        asked = {name: store.column(name)[rows] for name in labels if name in store.labels} | symbols_of.get(group, {})
        if group == "return":
            asked = {group: returns(store)[rows]}
        for name, values in asked.items():
            with suppress(RlpreError):
                factor = Factor.from_labels(name, values, store.episode[rows], group in QUANTITIES)
                found[group] = [*found.get(group, []), factor]
    return found


def _cells(codes: npt.NDArray[np.uint8]) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """What the symbols (n, rows, columns, 3) of a grid world show, as integers (n,) by group and name."""
    symbols_of = codes.reshape(len(codes), -1, 3).astype(int)
    kinds = np.where(symbols_of[..., 2] >> AGENT_SHIFT, OBJECT_TO_IDX["empty"], symbols_of[..., 0])
    place = {}
    for kind in range(BACKGROUND, kinds.max() + 1):
        there = kinds == kind
        place[IDX_TO_OBJECT[kind]] = np.where(there.any(1), there.argmax(1), kinds.shape[1])
    door = kinds == OBJECT_TO_IDX["door"]
    state = symbols_of[np.arange(len(kinds)), door.argmax(1), 2] & DOOR_STATE
    return {
        "cells": {f"cell {number}": kind for number, kind in enumerate(kinds.T)},
        "place": place,
        "door": {"door": np.where(door.any(1), state, UNKNOWN)},
    }


def returns(store: FrameStore) -> npt.NDArray[np.float64]:
    """The discounted return from every row to the end of its episode, (N,)."""
    value, reward = np.zeros(len(store)), store.column("reward")
    for row in np.flatnonzero(store.acted)[::-1]:
        value[row] = reward[row] + DISCOUNT * value[row + 1]
    return value


def scores(features: Floats, store: FrameStore, rows: Indices) -> dict[str, float]:
    """All scores of the features (n, dim) of ``rows`` (n,), in [0, 1].

    They are by group in `GROUPS` the mean score above chance of its probes, `metrics.PROBED`, the mean over the groups,
    `imitation`, `metrics.SCORE`, the mean of these two, and `signal`. Where no expert's action is known, imitation is
    left out and the score is that of the probes.

    Raises:
        RlpreError: if nothing can be probed.
    """
    groups = factors(store, rows)
    if not groups:
        raise RlpreError(f"nothing in {store.path} can be probed: collect more frames, from more episodes")
    found = {
        name: float(np.mean([above(cross_score(features[each.places], each), each) for each in group]))
        for name, group in groups.items()
    }
    found[metrics.SCORE] = found[metrics.PROBED] = float(np.mean(list(found.values())))
    for action in groups.get("action", []):
        found[metrics.IMITATION] = imitation(features[action.places], action)
        found[metrics.SCORE] = (found[metrics.PROBED] + found[metrics.IMITATION]) / 2
    return {**found, metrics.SIGNAL: signal(features, symbols(store, rows), store.episode[rows])}


def above(score: float, factor: Factor) -> float:
    """0 for the score of a constant prediction, or less; 1 for the best one."""
    return max(0.0, (score - factor.chance) / (1 - factor.chance))


def imitation(features: Floats, action: Factor) -> float:
    """The balanced accuracy above chance of a network like PPO's that had `UPDATES` updates on `LABELS` actions.

    It is trained on features (n, dim) as they are, and tested on other episodes.
    """
    predicted = np.empty_like(action.values)
    for fold, (train, test) in enumerate(action.folds()):
        shown = np.random.default_rng(fold).permutation(train)[:LABELS]
        network = MLPClassifier(HIDDEN, "tanh", learning_rate_init=RATE, max_iter=UPDATES, tol=0, random_state=fold)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # it is stopped early on purpose
            network.fit(features[shown], action.values[shown])
        predicted[test] = network.predict(features[test])
    return above(action.score(predicted), action)


def signal(features: Floats, known: Floats, groups: Indices) -> float:
    """The share of the variance of features (n, dim) that ``known`` (n, numbers) explains linearly.

    Rows whose ``groups`` (n,), their episodes, are the same are on the same side of every split.
    """
    predicted = cross_val_predict(Ridge(RIDGE), known, features, cv=GroupKFold(), groups=groups)
    return max(0.0, float(r2_score(features, predicted, multioutput="variance_weighted")))


def symbols(store: FrameStore, rows: Indices) -> Floats:
    """What is in every cell and what is carried, one-hot; or the classes of all labels as steps. (n, numbers)."""
    if store.atlas is None:
        columns = np.stack([store.column(name)[rows] for name in store.labels], axis=1)[..., None]
        return np.concatenate([columns >= 0, columns >= label_edges(store).numpy()], axis=2).reshape(len(rows), -1)
    cells = store.codes(rows).reshape(len(rows), -1, 3).astype(int) @ (1, CLASSES[0], CLASSES[0] * CLASSES[1])
    encoder = OneHotEncoder(drop="first", sparse_output=False)
    return encoder.fit_transform(np.column_stack([cells, store.column("carrying")[rows]]))
