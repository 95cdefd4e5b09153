"""What probes found, as tables (see ``rlpre.report.tables.aligned`` and ``piped``) and pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase
from matplotlib.ticker import EngFormatter

from rlpre.files import atomic
from rlpre.measure.invariance import Invariances
from rlpre.measure.labels import Efficiency
from rlpre.measure.signal import Signal
from rlpre.measure.sparse import Sparsity
from rlpre.report.colours import COLOURS, CONTROLS
from rlpre.report.tables import Rows
from rlpre.report.words import show_interval, show_ratio

COLUMNS = 3
LOST = 0.3  # of a score: the colours' end


def sparse_rows(found: Mapping[str, Sparsity]) -> Rows:
    """One row a label: what all features tell, and how many are enough, in each basis."""
    bases = list(next(iter(found.values())).smallest)
    rows = [["label", "chance", "all features", *(f"enough: {name}" for name in bases)]]
    for label, of in found.items():
        smallest = [f"{of.smallest[name] or '-'} of {of.dim}" for name in bases]
        rows.append([label, f"{of.chance:.2f}", f"{of.dense:.2f}", *smallest])
    return rows


def signal_rows(found: Mapping[str, Signal]) -> Rows:
    """One row a label: signal strength, and the accuracy it predicts beside the one observed."""
    rows = [["label", "d'", "a / sigma", "predicted", "observed"]]
    for label, of in found.items():
        numbers = (2 * of.strength, of.strength, of.predicted, of.observed)
        rows.append([label, *(f"{number:.2f}" for number in numbers)])
    return rows


def label_rows(found: Mapping[str, Efficiency]) -> Rows:
    """One row a label and source of features; fewer than three seeds give no intervals, and it says so."""
    rows = [["label", "features", "with most labels", "area", "threshold", "labels to it", "reached", "baseline / it"]]
    for label, of in found.items():
        for name, curve in of.curves.items():
            seeds = len(curve.scores)
            needed = show_interval(curve.labels, "{:.0f}".format, "" if curve.reached == seeds else ">=")
            scores = [show_interval(curve.curve[-1]), show_interval(curve.area), f"{of.threshold:.2f}", needed]
            ratio = "-" if curve.ratio is None else show_ratio(curve.ratio)
            rows.append([label, name, *scores, f"{curve.reached}/{seeds}", ratio])
    return rows


def invariance_rows(found: Invariances) -> Rows:
    """One row a change: how far features move, then scores on changed frames: as asked, and as learnt anew."""
    labels = list(found.plain)
    rows = [["frames", "moved", "moved (fresh)", "ignored", *labels]]
    rows.append(["plain (fresh weights)", "-", "-", "-", *(f"{found.fresh[label]:.2f}" for label in labels)])
    rows.append(["plain", "-", "-", "-", *(f"{found.plain[label]:.2f}" for label in labels)])
    for name, of in found.changes.items():
        ignored = "learnt" if of.learnt else "no"
        scores = [f"{of.asked[label]:.2f}, anew {of.relearnt[label]:.2f}" for label in labels]
        rows.append([name, f"{of.moved:.2f}", f"{of.fresh:.2f}", ignored, *scores])
    return rows


def draw_label_curves(found: Mapping[str, Efficiency], path: Path) -> None:
    """Draws the score of every source against the number of labels as PNG, one panel a label."""
    columns = min(COLUMNS, len(found))
    lines = -(-len(found) // columns)
    figure = Figure(figsize=(4.4 * columns, 1 + 3.2 * lines), dpi=150, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).ravel()
    for panel, (label, of) in zip(panels, found.items(), strict=False):
        label_panel(panel, of)
        panel.set_title(label, fontweight="bold")
    for empty in panels[len(found) :]:
        empty.remove()
    handles, names = panels[0].get_legend_handles_labels()
    title = "band: 95 % interval over draws of labels; dotted: threshold; grey: chance"
    figure.legend(handles, names, title=title, loc="outside lower center", ncols=COLUMNS, frameon=False)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def label_panel(panel: Axes, of: Efficiency) -> None:
    """Draws the score of every source against the number of labels."""
    others = [name for name in of.curves if name != of.baseline]
    colours = {of.baseline: CONTROLS[0], **{name: COLOURS[at % len(COLOURS)] for at, name in enumerate(others)}}
    for name, curve in of.curves.items():
        panel.plot(of.counts, [point.value for point in curve.curve], color=colours[name], linewidth=1.8, label=name)
        ends = np.array([(point.low, point.high) for point in curve.curve], dtype=np.float64)  # None becomes NaN
        panel.fill_between(of.counts, *ends.T, color=colours[name], alpha=0.13, linewidth=0)
    panel.axhline(of.threshold, color="#404040", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.axhline(of.chance, color=CONTROLS[2], linewidth=0.8)
    low = min(float(curve.scores.mean(0).min()) for curve in of.curves.values())
    panel.set(
        xscale="log", xlabel="labels", ylabel="held-out score", ylim=(max(min(low, of.chance), -0.2) - 0.05, 1.02)
    )
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)


def draw_invariances(found: Invariances, path: Path) -> None:
    """Draws as PNG how far each change of frames moves features, and what probes lose by it."""
    width, height = 3.2 + 0.75 * (2 + 2 * len(found.plain)), 1.6 + 0.36 * len(found.changes)
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    invariance_panels(figure, found)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def invariance_panels(figure: FigureBase, found: Invariances) -> None:
    """Draws the same into a figure or a part of one."""
    labels, names = list(found.plain), list(found.changes)
    of = found.changes.values()
    moved = np.array([[each.fresh, each.moved] for each in of])
    lost = [
        np.array([[scores[label] - found.plain[label] for label in labels] for scores in asked])
        for asked in ([each.asked for each in of], [each.relearnt for each in of])
    ]
    panels = figure.subplots(1, 3, width_ratios=[2, len(labels), len(labels)], sharey=True)
    _heat(panels[0], moved, "Greys", (0, 1), ["fresh", "this"], "features move\n1: as far as another frame")
    _heat(
        panels[1],
        lost[0],
        "RdBu",
        (-LOST, LOST),
        labels,
        "score on changed frames - on plain ones,\nlearnt on plain ones",
    )
    _heat(
        panels[2],
        lost[1],
        "RdBu",
        (-LOST, LOST),
        labels,
        "score on changed frames - on plain ones,\nlearnt on changed ones",
    )
    panels[0].set_yticks(range(len(names)), names)


def _heat(
    panel: Axes, values: np.ndarray, colours: str, ends: tuple[float, float], names: list[str], title: str
) -> None:
    panel.imshow(values, cmap=colours, vmin=ends[0], vmax=ends[1], aspect="auto")
    middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2
    for (row, column), value in np.ndenumerate(values):
        dark = value > middle + 0.5 * half or (ends[0] < 0 and value < middle - 0.5 * half)
        panel.text(
            column, row, f"{value:z.2f}", ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    panel.set_xticks(range(len(names)), names, rotation=30, ha="right")
    panel.set_title(title, fontsize="small")
    panel.tick_params(length=0)
