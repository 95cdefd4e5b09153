"""What the frozen encoders of a comparison give where the agents act: how well conditioned it is, and what it tells."""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agents.comparison import Comparison, Offline, configuration, data_of, seeds, train_config
from agents.recipes import RECIPES
from agents.train import EVALUATION_SEED, starting_encoder, worlds
from rlpre import FrameStore
from rlpre.files import write_json
from rlpre.measure.conditioning import conditioning
from rlpre.measure.probe import linear_probe, read
from rlpre.objectives import READERS
from rlpre.report.comparison.features import KNOWN, Features
from rlpre.report.facts import FEATURES, FRAMES
from rlpre.study import Cell, StudyResult, run_study

TARGETS = "targets"  # frames of the environments, of worlds that no encoder was pretrained in
ROWS = 2048  # of them, whose features' covariance is taken


def measure_features(comparison: Comparison, out: Path, where: dict[str, Any]) -> StudyResult:
    """Measures the encoder of every arm that never changes it, on frames of every environment; see `Features`.

    Args:
        comparison: what to measure; nothing if it asks for no probe.
        out: of the comparison; receives ``features/`` and ``targets/<environment>/``.
        where: the executor and the workers.
    """
    if not comparison.probe:
        return StudyResult((), {})
    look = {name: getattr(comparison.train, name) for name in ("view", "tile_size", "palette")}
    for env in comparison.environments:
        frames = out / TARGETS / env
        seed = EVALUATION_SEED + comparison.pretrain.seed
        envs.collect(env, frames, comparison.probe, seed=seed, behaviour=Offline.behaviour, **look)
    frozen = [name for name, arm in comparison.arms.items() if RECIPES[arm.agent].encoded_once]
    cells = [
        Cell(env, name, seed)
        for env in comparison.environments
        for name in frozen
        for seed in seeds(comparison)
        if seed == comparison.first_seed or comparison.each_seed or not comparison.arms[name].objective
    ]
    steps = dict.fromkeys(comparison.environments, 1)
    work = partial(features_cell, comparison, out)
    return run_study(out / FEATURES, cells, work, configuration(comparison), steps, **where)


def features_cell(comparison: Comparison, home: Path, cell: Cell, out: Path, report: Callable[[int], None]) -> None:
    """Measures the encoder that a run starts from."""
    arm, config = comparison.arms[cell.arm], train_config(comparison, home, cell)
    venv = worlds(replace(config, ppo=replace(config.ppo, n_envs=1)), cell.seed)
    encoder = starting_encoder(config, RECIPES[arm.agent], venv).eval()
    venv.close()
    frames = FrameStore.open(home / TARGETS / cell.environment)
    reader = READERS[encoder.kind](frames, encoder, None, encoder.device)
    rows = frames.sample(ROWS, np.random.default_rng(0))
    found = conditioning(torch.from_numpy(read(encoder, reader, rows)))
    updates, distinct = 0, None
    if arm.objective:
        updates = comparison.pretrain.steps if arm.step is None else arm.step
        distinct = FrameStore.open(home / FRAMES / data_of(comparison, arm)).distinct
    known = Features(updates, arm.whitened, distinct, found.number, found.dimensions, linear_probe(encoder, reader))
    write_json(out / KNOWN, asdict(known))
