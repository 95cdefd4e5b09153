"""The scoreboard: in minutes, how much of what supervision adds to fresh weights does each objective add?

Every objective is pretrained on the same frames of a world. Linear probes then ask its encoder, on frames of other
episodes, for what a policy must know. Fresh weights are the control and `supervised`, which reads the symbols, is the
ceiling. Every encoder is read twice: its output and its feature map, both whitened (`rlpre.whiten`).

    gap closed = (score - score of fresh) / (score of supervised - score of fresh)

The score is the mean over `GROUPS` of what the probes score above chance, from 0 to 1. Of every arm the readout counts
that has the higher mean score over the seeds. Seeds draw weights, batches and shifts; the frames are the same.
"""

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

import envs
import rlpre
from agents.scoreboard_report import CONDITION, FEW, FRESH, GROUPS, NUMBERS, READOUTS, SCORE, SUPERVISED, report
from rlpre import FrameStore, PretrainConfig, RlpreError, pretrain
from rlpre.compare.runner import Measurements, Run, run_study, succeed
from rlpre.data.store import UNKNOWN, Indices
from rlpre.data.tiles import AGENT_SHIFT
from rlpre.errors import at_least, lookup
from rlpre.evaluation.health import conditioning
from rlpre.evaluation.probes import Factor, Floats, cross_score, distinct_rows, fresh, label_efficiency, sparsity
from rlpre.features import encode
from rlpre.objectives import make_reader, parse_objective
from rlpre.objectives.losses import AUGMENTATIONS
from rlpre.objectives.symbols import BACKGROUND
from rlpre.pretrain import first_encoder

FRAMES, PROBES = "frames", "probes"  # in a study's directory
DISCOUNT = 0.99  # of the return; SB3's default
DOOR_STATE = 0b11  # the bits of a cell's flags that hold the state of a door
QUANTITIES = ("distance", "return")  # groups that are numbers; the others are classes
SPARSE = ("carried", "door")  # groups that sparse probes are fitted to, which takes long for many classes
LABELS = 200  # of the score with few labels

OBJECTIVES = ("change", "inverse@none", "change+inverse@none", "inverse", "forward", "temporal", "temporal+inverse")
OBJECTIVES += ("contrastive", "jigsaw")

Report = Callable[[int], None]


@dataclass(frozen=True)
class Scoreboard:
    """Everything that decides the numbers of a scoreboard."""

    worlds: tyro.conf.Positional[tuple[str, ...]] = ("MiniGrid-DoorKey-6x6-v0",)  # ids of grid worlds
    objectives: tuple[str, ...] = OBJECTIVES  # each with "@none" if frames are not to be shifted
    view: str = "partial"  # see `envs.make`, also for the next two
    strength: float | None = None  # of view "distract": weight of the pictures, 0 to 1; default 0.5
    pictures: str | None = None  # of view "distract": "train", "test" or a folder; default "train"
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects the frames to pretrain on, see `envs.collect`
    frames: int = 60_000  # to pretrain on
    probes: int = 20_000  # of the expert with noise, to probe on
    rows: int = 2500  # distinct frames among them that a probe reads
    seeds: int = 5  # each has weights, batches and shifts of its own
    first_seed: int = 0  # settings were tuned on seeds from 100 on
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
    for free in ("worlds", "objectives", "seeds", "first_seed"):  # more can be added later
        del settings[free]
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    for world in study.worlds:
        envs.collect(world, out / FRAMES / world, study.frames, 0, study.behaviour, **study.look)
        envs.collect(world, out / PROBES / world, study.probes, 1, "expert:0.3", **study.look)
    runs = [Run(world, arm, seed) for world in study.worlds for arm in study.arms for seed in seeds]
    steps = dict.fromkeys(study.worlds, study.pretrain.steps)
    configuration = {"study": "scoreboard", **settings}
    work = partial(measure, study, out)
    succeed(run_study(out / "runs", runs, work, configuration, steps, executor=executor, workers=workers, keep=True))
    return report(out / "runs", study.worlds, study.arms, LABELS)


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
    """Makes the encoder of a run, or goes on with it, and scores both readouts."""
    frames, asked = (FrameStore.open(home / part / run.task) for part in (FRAMES, PROBES))
    if run.arm == FRESH:
        encoder = fresh(first_encoder(frames, None, study.pretrain), run.seed)
    else:
        config = replace(study.pretrain, **recipe(run.arm), seed=run.seed)
        encoder = pretrain(frames, out=out, config=config, report=report).encoder
    rows = distinct_rows(make_reader(asked, encoder), study.rows, seed=0)
    measured = {CONDITION: conditioning(encode(encoder, asked, rows)).number}
    for readout in READOUTS:
        features = encode(rlpre.whiten(encoder, frames, features=readout), asked, rows).numpy()
        measured |= {f"{readout}/{name}": value for name, value in scores(features, factors(asked, rows)).items()}
    return measured


def factors(store: FrameStore, rows: Indices) -> dict[str, list[Factor]]:
    """What a policy must know, by group in `GROUPS`, for those of ``rows`` (n,) where it is known.

    Factors that do not vary, or have too few examples, are left out. Frames of an episode share its level (and its
    background): they are on the same side of every split.
    """
    codes, episode = store.codes(rows).reshape(len(rows), -1, 3).astype(int), store.episode[rows]
    kinds = np.where(codes[..., 2] >> AGENT_SHIFT, OBJECT_TO_IDX["empty"], codes[..., 0])
    asked: dict[str, dict[str, npt.NDArray[Any]]] = {name: {} for name in GROUPS}
    asked["cells"] = {f"cell {number}": kind for number, kind in enumerate(kinds.T)}
    for kind in range(BACKGROUND, kinds.max() + 1):
        there = kinds == kind
        asked["place"][IDX_TO_OBJECT[kind]] = np.where(there.any(1), there.argmax(1), kinds.shape[1])
    door = kinds == OBJECT_TO_IDX["door"]
    state = codes[np.arange(len(rows)), door.argmax(1), 2] & DOOR_STATE
    labels = {"carried": "carrying", "distance": "distance", "action": "expert"}
    asked |= {name: {label: store.column(label)[rows]} for name, label in labels.items()}
    asked |= {"door": {"door": np.where(door.any(1), state, UNKNOWN)}, "return": {"return": returns(store)[rows]}}
    found: dict[str, list[Factor]] = {}
    for name, labels_of in asked.items():
        found[name] = []
        for label, values in labels_of.items():
            with suppress(RlpreError):
                found[name].append(Factor.from_labels(label, values, episode, quantity=name in QUANTITIES))
    return {name: group for name, group in found.items() if group}


def returns(store: FrameStore) -> npt.NDArray[np.float64]:
    """The discounted return from every row to the end of its episode, (N,)."""
    value, reward = np.zeros(len(store)), store.column("reward")
    for row in np.flatnonzero(store.acted)[::-1]:
        value[row] = reward[row] + DISCOUNT * value[row + 1]
    return value


def scores(features: Floats, groups: dict[str, list[Factor]]) -> dict[str, float]:
    """By group the mean score above chance of its probes, in [0, 1], and `SCORE`, the mean over the groups.

    `FEW` is the mean over all factors except cells with `LABELS` labels, or with all, if there are fewer. `NUMBERS` is
    the geometric mean over the factors of `SPARSE` of the number of features that suffice; of all, if fewer do not.
    """

    def above(score: float, factor: Factor) -> float:
        return max(0.0, (score - factor.chance) / (1 - factor.chance))

    def few(factor: Factor) -> float:
        labels = min(LABELS, len(factor.folds()[0][0]))
        given = {"": features[factor.places]}
        return float(label_efficiency(given, factor, counts=(labels,), seeds=1).scores[""].mean())

    found = {
        name: float(np.mean([above(cross_score(features[each.places], each), each) for each in group]))
        for name, group in groups.items()
    }
    shown = [each for name, group in groups.items() if name != "cells" for each in group]
    found[FEW] = float(np.mean([above(few(each), each) for each in shown]))
    found[SCORE] = float(np.mean([found[name] for name in groups]))
    sparse = [each for name in SPARSE for each in groups.get(name, ())]
    needed = [sparsity(features[each.places], each).smallest["features"] or features.shape[1] for each in sparse]
    return {**found, NUMBERS: float(np.exp(np.mean(np.log(needed))))}
