"""Scores by steps of pretraining, as a picture and in TensorBoard."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.utils.tensorboard import SummaryWriter

from rlpre.files import atomic
from rlpre.measure import stats
from rlpre.measure.stats import Floats, Interval
from rlpre.measure.transfer import Ladder
from rlpre.report.colours import COLOURS, CONTROLS, DASHES
from rlpre.report.words import short_names

Validation = Mapping[str, Mapping[str, Ladder]]  # source -> task -> scores


def draw_ladders(validation: Validation, score: str, path: Path) -> None:
    """Draws as PNG, in one panel for each task, the mean score by steps of pretraining of every source, and scratch."""
    tasks = short_names(next(iter(validation.values())))
    figure = Figure(figsize=(4.4 * len(tasks), 4.0), dpi=150)
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    for panel, (task, name) in zip(figure.subplots(1, len(tasks), squeeze=False)[0], tasks.items(), strict=True):
        panel.set_title(name, fontweight="bold")
        _draw_task(panel, {source: of[task] for source, of in validation.items()})
        panel.set(xlabel="steps of pretraining", ylabel=score)
    title = "mean over the seeds that choose\nbars and band: 95 % interval; grey dots: seeds of scratch"
    figure.legend(*panel.get_legend_handles_labels(), title=title, loc="outside lower center", ncols=4, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def log_ladders(validation: Validation, directory: Path) -> None:
    """Writes TensorBoard events that replace those of an earlier report.

    Args:
        validation: what to write.
        directory: receives one TensorBoard run per source, and one for scratch, a level line, with the scalars
            ``transfer/<task>/score`` (and ``score_low``, ``score_high``) by steps of pretraining.
    """
    shutil.rmtree(directory, ignore_errors=True)
    for source, of in validation.items():
        with SummaryWriter(str(directory / source)) as board:
            for task, ladder in of.items():
                for step, scores in ladder.rungs.items():
                    _log(board, task, _mean(scores), step)
    with SummaryWriter(str(directory / "scratch")) as board:
        for task, ladder in of.items():
            for step in ladder.rungs:
                _log(board, task, _mean(ladder.scratch), step)


def _draw_task(panel: Axes, ladders: Mapping[str, Ladder]) -> None:
    first = next(iter(ladders.values()))
    places = np.arange(len(first.rungs))  # of equal distance: a ladder grows in ratios, and begins at 0
    scratch = _mean(first.scratch)
    panel.axhline(scratch.value, color=CONTROLS[0], linewidth=1.5, label="scratch")
    panel.plot(np.full(len(first.scratch), -0.4), first.scratch, ".", color=CONTROLS[1])
    if scratch.low is not None and scratch.high is not None:
        panel.axhspan(scratch.low, scratch.high, color=CONTROLS[0], alpha=0.08, linewidth=0)
    for number, (source, ladder) in enumerate(ladders.items()):
        colour, dashes = COLOURS[number % len(COLOURS)], DASHES[number // len(COLOURS) % len(DASHES)]
        means = [_mean(ladder.rungs[step]) for step in sorted(ladder.rungs)]
        at = places + 0.08 * (number - (len(ladders) - 1) / 2)  # beside each other
        panel.plot(at, [mean.value for mean in means], dashes, color=colour, marker="o", markersize=4, label=source)
        ends = np.array([(mean.low, mean.high) for mean in means], dtype=np.float64)  # None becomes NaN
        panel.vlines(at, *ends.T, color=colour, linewidth=1)
    every = np.concatenate([first.scratch, *(of for ladder in ladders.values() for of in ladder.rungs.values())])
    margin = 0.1 * float(np.ptp(every)) or 0.1
    panel.set(xticks=places, xticklabels=sorted(first.rungs), ylim=(every.min() - margin, every.max() + margin))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)


def _mean(scores: Floats) -> Interval:
    return stats.interval(scores[:, None], np.random.default_rng(0), stats.mean)


def _log(board: SummaryWriter, task: str, mean: Interval, step: int) -> None:
    for name, value in (("score", mean.value), ("score_low", mean.low), ("score_high", mean.high)):
        if value is not None:
            board.add_scalar(f"transfer/{task}/{name}", value, step)
