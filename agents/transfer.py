"""The study of transfer: pretrain on right and wrong sources, start agents on other tasks from every checkpoint."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agents import few_labels
from agents.few_labels import TEST, VALIDATION, LabelsConfig
from agents.recipes import RECIPES
from agents.train import TrainConfig, train
from envs.experts import expert_for
from rlpre import Encoder, FrameStore, InputSpec, PretrainConfig, RlpreError, pretrain
from rlpre.device import resolve_device
from rlpre.errors import at_least, lookup
from rlpre.files import write_json
from rlpre.loop import kept
from rlpre.measure.stats import area_under_curve
from rlpre.objectives import parse_objective
from rlpre.report.comparison.results import EVALUATIONS
from rlpre.report.transfer.report import SCORE, SCRATCH, Question, arm, choosing, load_scores, report
from rlpre.sb3.modes import MODES
from rlpre.sources.rollout import begin
from rlpre.study import Cell, StudyResult, run_study, succeed

Report = Callable[[int], None]
FRAMES, DEMONSTRATIONS, ENCODERS, RUNS = "frames", "demonstrations", "encoders", "runs"  # below a study's directory
DECIDED = {"pretrain": ("steps", "seed"), "train": ("env", "agent", "encoder", "seed")}  # settings that it varies
AGENTS = dict.fromkeys(("frozen", "finetuned"))  # recipes of agents that start from a checkpoint


@dataclass(frozen=True)
class Source:
    """Frames to pretrain on, which can be wrong on purpose."""

    environments: tuple[str, ...]
    steps: int  # transitions to collect
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects them, see envs.collect
    palette: str = "day"  # that they are drawn in
    shuffled: bool = False  # whether the actions are dealt out anew among all steps


@dataclass(frozen=True)
class Transfer:
    """Everything that a study's numbers depend on, but for the seeds that test."""

    sources: dict[str, Source]
    tasks: tuple[str, ...]
    measure: str = "labels"  # what is scored, a name in MEASURES
    agent: str = "frozen"  # the recipe of agents that start from a checkpoint; the others learn from scratch
    ladder: tuple[int, ...] = (
        0,
        50,
        200,
        1000,
    )  # steps after which the encoder of a pretraining is kept; the last ends it
    validation: int = 3  # seeds that choose a checkpoint
    seeds: int = 5  # further ones that test it; every seed pretrains for itself
    first_seed: int = 0  # settings were tuned on seeds from 100 on
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)  # for measure "labels"
    train: TrainConfig = field(default_factory=TrainConfig)  # for measure "rl"; and how all worlds look

    @property
    def choosers(self) -> range:
        """The seeds that choose."""
        return range(self.first_seed, self.first_seed + self.validation)

    @property
    def testers(self) -> range:
        """The seeds that test."""
        return range(self.choosers.stop, self.choosers.stop + self.seeds)

    @property
    def look(self) -> dict[str, Any]:
        """How the tasks' worlds are seen."""
        return {name: getattr(self.train, name) for name in ("view", "tile_size", "palette")}


def transfer(study: Transfer, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a study in ``out``, or goes on with one that was interrupted.

    Args:
        study: what to run.
        out: receives ``frames/``, ``demonstrations/``, ``encoders/`` and ``runs/`` (the scores with their report).
        workers: cells at a time on one machine; default one per core.
        executor: where they run, such as `rlpre.cluster.cluster`; default processes of this machine.

    Returns:
        The tables and the verdicts, for a terminal.

    Raises:
        RlpreError: for unknown names, a directory of another study, or a failed cell.
    """
    check(study)
    out = out.resolve()  # workers may have been started elsewhere
    where: dict[str, Any] = {"executor": executor, "workers": workers}
    for name in study.sources:
        collect(study, name, out)
    if study.measure == "labels":
        for task in study.tasks:
            few_labels.record(task, out / DEMONSTRATIONS, study.labels, study.look)
    succeed(pretrain_ladders(study, out, where))
    every = {(task, name) for task in study.tasks for name in (SCRATCH, *_arms(study))}
    succeed(score(study, out, every, study.choosers, where))
    succeed(score(study, out, chosen(study, out), study.testers, where))
    return report(out / RUNS)


def collect(study: Transfer, name: str, out: Path) -> FrameStore:
    """Collects the frames of a source, or what is missing of them."""
    source, place = study.sources[name], out / FRAMES / name
    look = {**study.look, "palette": source.palette}
    right = place.with_name(f"{name}-right") if source.shuffled else place
    store = envs.collect(source.environments, right, source.steps, study.first_seed, source.behaviour, **look)
    return shuffle_actions(store, place, study.first_seed) if source.shuffled else store


def shuffle_actions(store: FrameStore, out: Path, seed: int) -> FrameStore:
    """Copies a store but deals its actions out anew among all steps: right frames, right shares, wrong causes."""
    spec = {"shuffled": store.hash, "seed": seed}
    kind = {name: getattr(store, name) for name in ("space", "action_space", "atlas", "palette", "tasks", "labels")}
    writer = begin(out, spec, **kind)
    if not writer.manifest["shards"]:
        columns = {name: store.column(name) for name in ("reward", "terminated", "truncated", "episode_start", "task")}
        columns |= {name: store.column(name) for name in store.labels}
        action = store.column("action").copy()
        action[store.acted] = np.random.default_rng(seed).permutation(action[store.acted])
        writer.append(store.read(np.arange(len(store))).numpy(), action=action, **columns)
        writer.flush()
    return FrameStore.open(out)


def pretrain_ladders(study: Transfer, out: Path, where: dict[str, Any]) -> StudyResult:
    """Pretrains on every source with every seed, and keeps the rungs."""
    seeds = (*study.choosers, *study.testers)
    cells = [Cell(ENCODERS, name, seed) for name in study.sources for seed in seeds]
    steps = {ENCODERS: max(study.ladder)}
    return run_study(out, cells, partial(pretrain_cell, study, out), configuration(study), steps, keep=True, **where)


def pretrain_cell(study: Transfer, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Pretrains on one source with one seed."""
    config = replace(study.pretrain, steps=max(study.ladder), seed=cell.seed)
    pretrain(FrameStore.open(home / FRAMES / cell.arm), out=out, config=config, report=report, keep=study.ladder)


def score(
    study: Transfer, out: Path, arms: set[tuple[str, str]], seeds: Sequence[int], where: dict[str, Any]
) -> StudyResult:
    """Scores agents of (task, arm) with every seed."""
    ordered = sorted(arms, key=lambda pair: (pair[1] != SCRATCH, pair))  # these learn to see, which takes longest
    cells = [Cell(task, name, seed) for task, name in ordered for seed in seeds]
    work = partial(score_cell, study, out)
    amount = study.train.steps if study.measure == "rl" else study.labels.steps
    return run_study(out / RUNS, cells, work, configuration(study), dict.fromkeys(study.tasks, amount), **where)


def chosen(study: Transfer, out: Path) -> set[tuple[str, str]]:
    """(task, arm) of scratch, and of the best rung by validation and the last one of every source."""
    scores, asked = load_scores(out / RUNS), question(study)
    pairs = {(task, SCRATCH) for task in study.tasks}
    for source in study.sources:
        for task, ladder in choosing(scores, asked, source).items():
            pairs |= {(task, arm(source, step)) for step in (ladder.best, ladder.last)}
    return pairs


def score_cell(study: Transfer, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Scores one agent."""
    source, _, step = cell.arm.partition("@")
    start = None if cell.arm == SCRATCH else kept(home / Cell(ENCODERS, source, cell.seed).path, int(step))
    found = MEASURES[study.measure](study, home, cell, start, out, report)
    write_json(out / SCORE, {"score": found})


def by_labels(study: Transfer, home: Path, cell: Cell, start: Path | None, out: Path, report: Report) -> float:
    """Balanced accuracy of the expert's action after a few labelled frames; each half of the seeds has its layouts."""
    part = VALIDATION if cell.seed in study.choosers else TEST
    task = few_labels.load(cell.environment, home / DEMONSTRATIONS)
    if start is None:
        torch.manual_seed(cell.seed)
        encoder = _fresh(study, task.frames[part].shape[1:])
    else:
        encoder = Encoder.load(start)
    mode = MODES[SCRATCH if start is None else RECIPES[study.agent].mode]
    return few_labels.score(encoder, mode, task, part, study.labels, cell.seed, report)


def by_rl(study: Transfer, home: Path, cell: Cell, start: Path | None, out: Path, report: Report) -> float:
    """The mean height of PPO's learning curve; each seed has worlds of its own to learn and to be evaluated in."""
    agent, encoder = (SCRATCH, "") if start is None else (study.agent, str(start))
    train(replace(study.train, env=cell.environment, agent=agent, encoder=encoder, seed=cell.seed), out, report)
    with np.load(out / EVALUATIONS) as file:
        return float(area_under_curve(file["timesteps"], file["results"].mean(axis=1)))


Measure = Callable[[Transfer, Path, Cell, Path | None, Path, Report], float]
MEASURES: dict[str, Measure] = {"labels": by_labels, "rl": by_rl}
UNITS = {"labels": "balanced accuracy of the expert's action", "rl": "mean height of the learning curve"}


def question(study: Transfer) -> Question:
    """What the study asks, fixed before it runs."""
    return Question(tuple(study.sources), study.tasks, study.ladder, tuple(study.choosers), UNITS[study.measure])


def configuration(study: Transfer) -> dict[str, Any]:
    """What a directory's results depend on, JSON-like; seeds that test may be added later."""
    settings = asdict(study)
    del settings["seeds"], settings["train"]["backbone"]  # no agent of a study remembers
    return {**settings, "transfer": asdict(question(study))}


def check(study: Transfer) -> None:
    """Refuses at once what would fail half-way.

    Raises:
        RlpreError: for unknown names, numbers out of range, a missing device, or worlds that an encoder cannot share.
    """
    lookup("measure", study.measure, MEASURES)
    lookup("agent", study.agent, AGENTS)
    at_least(study, validation=1, seeds=1, first_seed=0)
    if not study.sources or not study.tasks:
        raise RlpreError("a study of transfer needs sources and tasks: give at least one of each")
    if not any(study.ladder) or min(study.ladder) < 0:
        raise RlpreError(f"the ladder is {study.ladder}: give steps of pretraining, at least one above 0")
    for part, names in DECIDED.items():
        settings = getattr(study, part)
        for name in names:
            if getattr(settings, name) != getattr(type(settings), name):
                raise RlpreError(f"{part}.{name} is decided by the study itself: leave it out")
    parse_objective(study.pretrain.objective)
    resolve_device(study.pretrain.device)
    study.labels.check()
    for task in study.tasks:
        _check_task(study, task)


def _check_task(study: Transfer, task: str) -> None:
    replace(study.train, env=task).check()
    world = envs.make(task, **study.look)
    world.reset(seed=0)
    if study.measure == "labels" and expert_for(world) is None:
        raise RlpreError(f"there is no expert for {task}: choose another task, or measure 'rl'")
    _fresh(study, world.observation_space.shape)
    for name, source in study.sources.items():
        for env in source.environments:
            seen = envs.make(env, **study.look).observation_space.shape
            if seen != world.observation_space.shape:
                raise RlpreError(
                    f"source {name!r} shows frames {seen} of {env}, task {task} frames "
                    f"{world.observation_space.shape}, which its encoders have never seen: choose one shape"
                )


def _fresh(study: Transfer, shape: tuple[int, ...]) -> Encoder:
    arguments = {} if study.pretrain.features is None else {"features": study.pretrain.features}
    return Encoder(study.pretrain.encoder, InputSpec(shape), **arguments)


def _arms(study: Transfer) -> list[str]:
    return [arm(source, step) for source in study.sources for step in study.ladder]
