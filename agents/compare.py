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
from rlpre.errors import at_least, lookup
from rlpre.objectives import parse_objective
from rlpre.report.compare import report
from rlpre.report.facts import FILM, FRAMES
from rlpre.report.results import Metric
from rlpre.study import Cell, StudyResult, run_study, succeed

Report = Callable[[int], None]
RUNS = "runs"  # the study of agents, below a comparison's directory
DECIDED = ("env", "agent", "encoder", "seed", "steps")  # settings of a run that differ from run to run


@dataclass(frozen=True)
class Offline:
    """Frames to pretrain on."""

    sources: tuple[str, ...]  # environments
    steps: int  # transitions to collect
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects them, see envs.collect


@dataclass(frozen=True)
class Arm:
    """An agent of a comparison: a recipe, and how its encoder was pretrained."""

    agent: str  # a name in RECIPES
    objective: str = ""  # empty for agents that start from fresh weights
    data: str = ""  # a name in the comparison's data; empty for its first


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison's numbers depend on, but for the seeds."""

    environments: tuple[str, ...]  # where agents are trained
    steps: tuple[int, ...]  # environment steps of a run in each of them, or one number for all
    data: dict[str, Offline]  # offline frames by name
    arms: dict[str, Arm]  # by name, in reading order; the baseline among them
    answer: str  # the arm that "how many steps did pretraining save?" is about, named before the run
    baseline: str = "scratch"  # the arm that the others are compared with
    seeds: int = 3  # runs of every arm in every environment
    first_seed: int = 0  # recipes were tuned on seeds from 100 on
    threshold: float = 0.8  # return to reach
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


def compare(comparison: Comparison, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a comparison in ``out``, or goes on with one that was interrupted.

    Args:
        comparison: what to run.
        out: receives ``frames/<data>/``, ``encoders/<objective>@<data>/`` and ``runs/`` (the study with its report).
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
    where: dict[str, Any] = {"executor": executor, "workers": workers}
    stores = {name: collect(comparison, name, out) for name in comparison.data}
    succeed(pretrain_encoders(comparison, out, where))
    result = train_arms(comparison, out, {name: len(store) for name, store in stores.items()}, where)
    text = report(out / RUNS) if result.done else ""
    succeed(result)
    lines = (
        f"offline, {name}: {len(store):,} frames, {store.distinct:,} distinct, of {', '.join(store.tasks)}"
        for name, store in stores.items()
    )
    return "\n".join([text, *lines])


def pretrain_encoders(comparison: Comparison, out: Path, where: dict[str, Any]) -> StudyResult:
    """Pretrains every encoder that an arm starts from, once."""
    cells = list(dict.fromkeys(encoder_cell(comparison, arm) for arm in comparison.arms.values() if arm.objective))
    work, steps = partial(pretrain_cell, out, comparison.pretrain), {"encoders": comparison.pretrain.steps}
    return run_study(out, cells, work, configuration(comparison), steps, keep=True, **where)


def train_arms(comparison: Comparison, out: Path, frames: dict[str, int], where: dict[str, Any]) -> StudyResult:
    """Trains every arm in every environment on every seed.

    Args:
        comparison: what to run.
        out: of the comparison.
        frames: how many each of its data sets holds.
        where: the executor and the workers.
    """
    arms = comparison.arms
    offline = {name: frames[data_of(comparison, arm)] if arm.objective else 0 for name, arm in arms.items()}
    metric = Metric(offline, comparison.answer, comparison.baseline, comparison.threshold)
    # trainable arms take longest: started first, they leave no core idle at the end
    ordered = sorted(arms, key=lambda name: RECIPES[arms[name].agent].encoded_once)
    seeds = range(comparison.first_seed, comparison.first_seed + comparison.seeds)
    cells = [Cell(env, name, seed) for env in comparison.environments for name in ordered for seed in seeds]
    settings = {**configuration(comparison), "metric": asdict(metric)}
    return run_study(out / RUNS, cells, partial(train_cell, comparison, out), settings, budgets(comparison), **where)


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
    Metric(dict.fromkeys(comparison.arms, 0), comparison.answer, comparison.baseline)
    find_architecture(comparison.pretrain.encoder)
    resolve_device(comparison.pretrain.device)
    fresh = (comparison.train.architecture, comparison.train.features)
    pretrained = (comparison.pretrain.encoder, comparison.pretrain.features)
    if fresh != pretrained:
        raise RlpreError(f"arms differ in architecture, {fresh} fresh and {pretrained} pretrained: give train the same")
    for name, arm in comparison.arms.items():
        if lookup("agent", arm.agent, RECIPES).remembers_already:
            raise RlpreError(
                f"arm {name!r} starts from a sequence encoder, but encoders of frames are compared: train it alone"
            )
        if arm.objective:
            parse_objective(arm.objective)
            lookup("data", data_of(comparison, arm), comparison.data)
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
    """What a directory's results depend on, JSON-like; seeds may be added later, and the metric says the baseline."""
    settings = asdict(comparison)
    for free in ("seeds", "first_seed", "baseline"):
        del settings[free]
    return settings


def collect(comparison: Comparison, name: str, out: Path) -> FrameStore:
    """Collects the offline frames of that name, or what is missing of them."""
    data, look = comparison.data[name], comparison.train
    return envs.collect(
        data.sources,
        out / FRAMES / name,
        data.steps,
        seed=comparison.pretrain.seed,
        behaviour=data.behaviour,
        view=look.view,
        tile_size=look.tile_size,
        palette=look.palette,
    )


def pretrain_cell(home: Path, config: PretrainConfig, cell: Cell, out: Path, report: Report) -> None:
    """Pretrains the encoder that ``cell.arm`` names as objective and data."""
    objective, _, data = cell.arm.partition("@")
    pretrain(FrameStore.open(home / FRAMES / data), out=out, config=replace(config, objective=objective), report=report)


def train_cell(comparison: Comparison, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Trains one arm on one seed; the final policy of the first seed is filmed."""
    config = train_config(comparison, home, cell)
    policy = train(config, out, report)
    if cell.seed == comparison.first_seed:
        film(policy, config, out / FILM)


def train_config(comparison: Comparison, home: Path, cell: Cell) -> TrainConfig:
    """The configuration of one run of a comparison whose results directory is ``home``."""
    arm = comparison.arms[cell.arm]
    encoder = str(home / encoder_cell(comparison, arm).path) if arm.objective else ""
    steps = budgets(comparison)[cell.environment]
    return replace(
        comparison.train, env=cell.environment, agent=arm.agent, encoder=encoder, seed=cell.seed, steps=steps
    )


def data_of(comparison: Comparison, arm: Arm) -> str:
    """The name of the frames that an arm's encoder is pretrained on."""
    return arm.data or next(iter(comparison.data))


def encoder_cell(comparison: Comparison, arm: Arm) -> Cell:
    """The cell whose run directory holds the encoder of an arm."""
    return Cell("encoders", f"{arm.objective}@{data_of(comparison, arm)}", comparison.pretrain.seed)
