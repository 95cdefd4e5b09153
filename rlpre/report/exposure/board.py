"""A study of exposure bias in TensorBoard: curves by step of the episode, with bands in the custom-scalars tab."""

import shutil
from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from rlpre.measure.exposure import CONTEXTS
from rlpre.measure.stats import Interval
from rlpre.report.exposure.figures import Figures, Results
from rlpre.report.words import short_names

ENDS = ("", "_low", "_high")


def log_exposure(results: Results, directory: Path) -> None:
    """Writes TensorBoard events that replace those of an earlier report.

    Args:
        results: what to write.
        directory: receives one TensorBoard run per arm and context, ``<arm>/<context>``, with the scalars
            ``<level>/regret error``, ``<level>/error`` and ``<level>/nll`` (``_low`` and ``_high`` of each) at every
            step of the episode, and in OO ``<level>/AccErr`` of regret errors.
    """
    shutil.rmtree(directory, ignore_errors=True)
    arms = dict.fromkeys(arm for of in results.values() for arm in of)
    with SummaryWriter(str(directory)) as board:
        board.add_custom_scalars(_layout(results))
    for arm in arms:
        for context in CONTEXTS:
            with SummaryWriter(str(directory / arm / context)) as board:
                for level, of in results.items():
                    if arm in of:
                        _log_context(board, level, of[arm], context)


def _layout(results: Results) -> dict[str, dict[str, list[object]]]:
    return {
        name: {f"{name}: regret errors, 95 % interval": ["Margin", [f"{level}/regret error{end}" for end in ENDS]]}
        for level, name in short_names(results).items()
    }


def _log_context(board: SummaryWriter, level: str, figures: Figures, context: str) -> None:
    for measure, curves in figures.curves.items():
        _log_curve(board, f"{level}/{measure}", curves[context])
    if context == "OO":
        _log_curve(board, f"{level}/AccErr", figures.accumulated["regret error"])


def _log_curve(board: SummaryWriter, tag: str, curve: list[Interval]) -> None:
    for step, point in enumerate(curve, start=1):
        for end, value in zip(ENDS, (point.value, point.low, point.high), strict=True):
            if value is not None and np.isfinite(value):
                board.add_scalar(f"{tag}{end}", value, step)
