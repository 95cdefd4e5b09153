"""A comparison in TensorBoard: curves with bands in the custom-scalars tab, and every run in the hparams tab."""

import shutil
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from rlpre.report.comparison.results import Figures, Metric, Results
from rlpre.report.words import short_names
from rlpre.study import Cell


def log_comparison(results: Results, metric: Metric, directory: Path) -> None:
    """Writes TensorBoard events that replace those of an earlier report.

    Args:
        results: what to write.
        metric: what it answers.
        directory: receives one TensorBoard run per arm with the scalars ``compare/<environment>/return`` (and
            ``return_low``, ``return_high``), and one per finished run, ``hparams/<environment>/<arm>/seed-<seed>``.
    """
    shutil.rmtree(directory, ignore_errors=True)
    arms = [arm for arm in metric.arms if any(arm in of for of in results.values())]
    for arm in arms:
        with SummaryWriter(str(directory / arm)) as board:
            if arm == arms[0]:  # the tab gathers the layouts of all runs: one is enough
                board.add_custom_scalars(_layout(results))
            for environment, of in results.items():
                if arm in of:
                    _log_curve(board, f"compare/{environment}", of[arm])
    with SummaryWriter(str(directory / "hparams")) as board:
        for of in results.values():
            for figures in of.values():
                _log_runs(board, figures)


def _layout(results: Results) -> dict[str, dict[str, list[object]]]:
    bands = ("return", "return_low", "return_high")
    return {
        name: {f"{name}: IQM and 95 % interval": ["Margin", [f"compare/{environment}/{band}" for band in bands]]}
        for environment, name in short_names(results).items()
    }


def _log_curve(board: SummaryWriter, tag: str, figures: Figures) -> None:
    for step, point in zip(figures.runs.steps, figures.curve, strict=True):
        board.add_scalar(f"{tag}/return", point.value, step)
        if point.low is not None and point.high is not None:
            board.add_scalar(f"{tag}/return_low", point.low, step)
            board.add_scalar(f"{tag}/return_high", point.high, step)


def _log_runs(board: SummaryWriter, figures: Figures) -> None:
    runs = figures.runs
    for seed, area, final, step in zip(runs.seeds, runs.areas, runs.finals, figures.reached_at, strict=True):
        settings = {
            "environment": runs.environment,
            "arm": runs.arm,
            "seed": seed,
            "offline_frames": figures.offline_frames,
        }
        found = {
            "final/area": float(area),
            "final/return": float(final),
            "final/steps_to_threshold": int(runs.steps[-1]) if step is None else step,  # the budget if it never did
            "final/reached": float(step is not None),
        }
        board.add_hparams(settings, found, run_name=str(Cell(runs.environment, runs.arm, seed)))
