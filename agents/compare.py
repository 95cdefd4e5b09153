"""The main job: collect frames, pretrain encoders, train every arm on every seed, report."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import envs
from agents.film import film
from agents.recipes import RECIPES
from agents.train import TrainConfig, train
from rlpre import FrameStore, PretrainConfig, RlpreError, pretrain
from rlpre.device import resolve_device
from rlpre.encoders import find_architecture
from rlpre.errors import at_least
from rlpre.objectives import parse_objective
from rlpre.report.compare import report
from rlpre.report.facts import FILM
from rlpre.report.results import Metric
from rlpre.study import Cell, StudyResult, run_study

Report = Callable[[int], None]
DECIDED = ("env", "agent", "encoder", "seed", "steps")  # settings of a run that differ from run to run


@dataclass(frozen=True)
class Arm:
    """An agent of a comparison: a recipe, and the objective that pretrained its encoder."""

    agent: str  # a name in RECIPES
    objective: str = ""  # empty for agents that start from fresh weights


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison's numbers depend on, but for the seeds."""

    environments: tuple[str, ...]  # where agents are trained
    steps: tuple[int, ...]  # environment steps of a run in each of them, or one number for all
    sources: tuple[str, ...]  # where offline frames are collected
    frames: int  # transitions to collect
    behaviour: str  # who collects them, see envs.collect
    arms: dict[str, Arm]  # by name, in reading order; "scratch" among them
    answer: str  # the arm that "how many steps did pretraining save?" is about, named before the run
    seeds: int = 3  # runs of every arm in every environment
    first_seed: int = 0  # recipes were tuned on seeds from 100 on
    threshold: float = 0.8  # return to reach
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def compare(comparison: Comparison, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a comparison in ``out``, or goes on with one that was interrupted.

    Args:
        comparison: what to run.
        out: receives ``frames/``, ``encoders/<objective>/`` and ``runs/`` (the study with its report).
        workers: runs at a time on one machine; default one per core.
        executor: where encoders and runs are trained, such as `rlpre.cluster.cluster`; default processes of this
            machine. Machines must see ``out`` under the same path: workers write there and read each other's encoders.

    Returns:
        The answer and the tables, for a terminal.

    Raises:
        RlpreError: for unknown names, a directory of another comparison, or a failed run.
    """
    check(comparison)
    out = out.resolve()  # workers may have been started elsewhere
    settings = configuration(comparison)
    frames = envs.collect(
        comparison.sources,
        out / "frames",
        comparison.frames,
        seed=comparison.pretrain.seed,
        behaviour=comparison.behaviour,
        view=comparison.train.view,
        tile_size=comparison.train.tile_size,
        palette=comparison.train.palette,
    )
    objectives = dict.fromkeys(arm.objective for arm in comparison.arms.values() if arm.objective)
    cells = [encoder_cell(comparison, objective) for objective in objectives]
    work = partial(pretrain_cell, frames.path, comparison.pretrain)
    where: dict[str, Any] = {"executor": executor, "workers": workers}
    _succeed(run_study(out, cells, work, settings, {"encoders": comparison.pretrain.steps}, keep=True, **where))
    seeds = range(comparison.first_seed, comparison.first_seed + comparison.seeds)
    # trainable arms take longest: started first, they leave no core idle at the end
    arms = sorted(comparison.arms, key=lambda name: RECIPES[comparison.arms[name].agent].encoded_once)
    cells = [Cell(env, name, seed) for env in comparison.environments for name in arms for seed in seeds]
    offline = {name: len(frames) if arm.objective else 0 for name, arm in comparison.arms.items()}
    metric = Metric(offline, comparison.answer, threshold=comparison.threshold)
    settings["metric"] = asdict(metric)
    work = partial(train_cell, comparison, out)
    result = run_study(out / "runs", cells, work, settings, budgets(comparison), **where)
    text = report(out / "runs") if result.done else ""
    _succeed(result)
    return f"{text}\noffline: {len(frames):,} frames, {frames.distinct:,} distinct, of {', '.join(frames.tasks)}"


def check(comparison: Comparison) -> None:
    """Refuses at once what would fail half-way.

    Raises:
        RlpreError: for unknown names, numbers that are too small, a missing device, or an arm whose agent and objective
            do not go together.
    """
    at_least(comparison, seeds=1, first_seed=0)
    for name in DECIDED:
        if getattr(comparison.train, name) != getattr(TrainConfig, name):
            raise RlpreError(f"train.{name} is decided by the comparison itself: leave it out")
    budgets(comparison)
    Metric(dict.fromkeys(comparison.arms, 0), comparison.answer)
    find_architecture(comparison.pretrain.encoder)
    resolve_device(comparison.pretrain.device)
    fresh = (comparison.train.architecture, comparison.train.features)
    pretrained = (comparison.pretrain.encoder, comparison.pretrain.features)
    if fresh != pretrained:
        raise RlpreError(f"arms differ in architecture, {fresh} fresh and {pretrained} pretrained: give train the same")
    for name, arm in comparison.arms.items():
        if arm.objective:
            parse_objective(arm.objective)
        for environment in comparison.environments:
            train_config(comparison, Path(), Cell(environment, name, comparison.first_seed)).check()


def budgets(comparison: Comparison) -> dict[str, int]:
    """Environment steps of a run by environment.

    Raises:
        RlpreError: if there are more or fewer numbers than environments.
    """
    environments, steps = comparison.environments, comparison.steps
    if len(steps) not in (1, len(environments)):
        raise RlpreError(f"{len(steps)} numbers of steps for {len(environments)} environments: give one for each")
    return dict(zip(environments, steps * (len(environments) // len(steps)), strict=True))


def configuration(comparison: Comparison) -> dict[str, Any]:
    """What a directory's results depend on, JSON-like; seeds may be added later."""
    settings = asdict(comparison)
    for free in ("seeds", "first_seed"):
        del settings[free]
    return settings


def pretrain_cell(frames: Path, config: PretrainConfig, cell: Cell, out: Path, report: Report) -> None:
    """Pretrains the encoder that ``cell.arm`` names as an objective."""
    pretrain(FrameStore.open(frames), out=out, config=replace(config, objective=cell.arm), report=report)


def train_cell(comparison: Comparison, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Trains one arm on one seed; the final policy of the first seed is filmed."""
    config = train_config(comparison, home, cell)
    policy = train(config, out, report)
    if cell.seed == comparison.first_seed:
        film(policy, config, out / FILM)


def train_config(comparison: Comparison, home: Path, cell: Cell) -> TrainConfig:
    """The configuration of one run of a comparison whose results directory is ``home``."""
    arm = comparison.arms[cell.arm]
    encoder = str(home / encoder_cell(comparison, arm.objective).path) if arm.objective else ""
    steps = budgets(comparison)[cell.environment]
    return replace(
        comparison.train, env=cell.environment, agent=arm.agent, encoder=encoder, seed=cell.seed, steps=steps
    )


def encoder_cell(comparison: Comparison, objective: str) -> Cell:
    """The cell whose run directory holds the encoder that ``objective`` pretrained."""
    return Cell("encoders", objective, comparison.pretrain.seed)


def _succeed(result: StudyResult) -> None:
    if result.failed:
        cell, error = next(iter(result.failed.items()))
        raise RlpreError(f"{len(result.failed)} runs failed, {cell} with: {error}; the same command tries them again")
