"""The main job: collect frames, pretrain encoders, train every arm on every seed, report."""

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

import envs
from agents.comparison import (
    Arm,
    Comparison,
    Offline,
    budgets,
    check,
    configuration,
    data_of,
    encoder_cell,
    seeds,
    train_config,
    variant,
)
from agents.features import measure_features
from agents.film import film
from agents.recipes import RECIPES, Backbone
from agents.train import train
from envs.overlap import STEPS, overlaps
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError, pretrain, whiten
from rlpre.files import write_json
from rlpre.report.comparison.overlap import OVERLAP
from rlpre.report.comparison.report import report
from rlpre.report.comparison.results import Metric
from rlpre.report.facts import FILM, FRAMES
from rlpre.sources.distinct import take_distinct
from rlpre.study import Cell, StudyResult, run_study, succeed

__all__ = ["Arm", "Comparison", "Offline", "compare"]

Report = Callable[[int], None]
RUNS = "runs"  # the study of agents, below a comparison's directory
POOLS = "pools"  # frames of which others are a part


def compare(comparison: Comparison, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a comparison in ``out``, or goes on with one that was interrupted.

    Args:
        comparison: what to run.
        out: receives ``frames/<data>/``, what of each environment they hold (``overlap.json``),
            ``encoders/<objective>@<data>/`` and ``runs/`` (the study with its report).
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
    measure_overlap(comparison, stores, out)
    succeed(pretrain_encoders(comparison, out, where))
    succeed(measure_features(comparison, out, where))
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
    arms = [arm for arm in comparison.arms.values() if arm.objective]
    cells = list(dict.fromkeys(encoder_cell(comparison, arm, seed) for seed in seeds(comparison) for arm in arms))
    steps = comparison.pretrain.steps + any(arm.past for arm in arms) * comparison.sequence.steps
    work = partial(pretrain_cell, comparison, out)
    return run_study(out, cells, work, configuration(comparison), {"encoders": steps}, keep=True, **where)


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
    cells = [Cell(env, name, seed) for env in comparison.environments for name in ordered for seed in seeds(comparison)]
    settings = {**configuration(comparison), "metric": asdict(metric)}
    return run_study(out / RUNS, cells, partial(train_cell, comparison, out), settings, budgets(comparison), **where)


def collect(comparison: Comparison, name: str, out: Path) -> FrameStore:
    """Collects the offline frames of that name, or what is missing of them."""
    data, path = comparison.data[name], out / FRAMES / name
    alike = [other for other, of in comparison.data.items() if replace(of, distinct=data.distinct) == data]
    look = comparison.train
    frames = envs.collect(
        data.sources,
        path if data.distinct is None else out / POOLS / alike[0],
        data.steps,
        seed=comparison.pretrain.seed,
        behaviour=data.behaviour,
        view=look.view,
        tile_size=look.tile_size,
        palette=look.palette,
    )
    return frames if data.distinct is None else take_distinct(frames, path, data.distinct, comparison.pretrain.seed)


def measure_overlap(comparison: Comparison, stores: dict[str, FrameStore], out: Path) -> None:
    """Writes, once, how much of what agents will meet each data set holds, or why that cannot be told."""
    if (out / OVERLAP).exists():
        return
    found: dict[str, Any] = {}
    for name, store in stores.items():
        steps = min(STEPS, comparison.data[name].steps)
        try:
            tasks = overlaps(store, comparison.environments, steps)
            found[name] = {task: asdict(of) for task, of in tasks.items()}
        except RlpreError as error:
            found[name] = str(error)
    write_json(out / OVERLAP, found)


def pretrain_cell(comparison: Comparison, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Pretrains the encoder that ``cell.arm`` names as objective and data, and what the arms make of it."""
    objective, _, data = cell.arm.partition("@")
    arms = [arm for arm in comparison.arms.values() if (arm.objective, data_of(comparison, arm)) == (objective, data)]
    frames, config = FrameStore.open(home / FRAMES / data), replace(comparison.pretrain, seed=cell.seed)
    steps = {arm.step for arm in arms if arm.step is not None}
    pretrain(frames, out=out, config=config, report=report, keep=steps, objective=objective)
    for arm in dict.fromkeys(replace(arm, agent="", past="") for arm in arms if arm.whitened):
        plain = Encoder.load(variant(out, replace(arm, whitened=False)))
        whiten(plain, frames, cell.seed).save(variant(out, arm))
    for arm in dict.fromkeys(replace(arm, agent="") for arm in arms if arm.past):
        settings = replace(comparison.sequence, seed=cell.seed, objective=arm.past)
        start = Encoder.load(variant(out, replace(arm, past="")))
        path, backbone = variant(out, arm), comparison.train.backbone
        remember(backbone, start, frames, path, settings, lambda done: report(config.steps + done))


def remember(
    backbone: Backbone, vision: Encoder, frames: FrameStore, path: Path, config: PretrainConfig, report: Report
) -> None:
    """Pretrains a sequence encoder over one of frames, below which ``path`` gets the one that can act."""
    torch.manual_seed(config.seed)
    start = backbone.build(vision, frames.num_actions, objective=config.objective)
    pretrain(frames, encoder=start, out=path.parent, config=config, report=report).encoder.causal_copy().save(path)


def train_cell(comparison: Comparison, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Trains one arm on one seed; the final policy of the first seed is filmed."""
    config = train_config(comparison, home, cell)
    policy = train(config, out, report)
    if cell.seed == comparison.first_seed:
        film(policy, config, out / FILM)
