"""A diagnosis as one picture."""

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure, FigureBase

from rlpre.files import atomic
from rlpre.measure.diagnosis import Diagnosis
from rlpre.report.colours import COLOURS, CONTROLS
from rlpre.report.probes import invariance_panels, label_panel

WIDTH = 14.0  # inches
LINE = 150  # letters of the headline
BASES = dict(zip(("features", "rotated", "pca"), (COLOURS[0], CONTROLS[1], CONTROLS[2]), strict=True))


def draw_diagnosis(found: Diagnosis, title: str, lead: str, path: Path) -> None:
    """Draws as PNG the advice, then label efficiency, then in how few dimensions labels are found and invariances.

    Args:
        found: what was measured; what was not is left out.
        title: the encoder's name.
        lead: the advice.
        path: of the picture.
    """
    rows = [draw for draw, there in ((_labels, found.findings.efficiency), (_below, found.sparse)) if there]
    figure = Figure(figsize=(WIDTH, 1.4 + 3.6 * len(rows)), dpi=110, layout="constrained")
    figure.suptitle(f"{title}\n{textwrap.fill(lead, LINE)}", x=0.01, ha="left", fontsize="large")
    for draw, part in zip(rows, figure.subfigures(max(len(rows), 1), 1, squeeze=False).ravel(), strict=False):
        draw(part, found)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png")


def _labels(figure: FigureBase, found: Diagnosis) -> None:
    curves = found.findings.efficiency
    panels = figure.subplots(1, len(curves), squeeze=False)[0]
    for panel, (label, of) in zip(panels, curves.items(), strict=True):
        label_panel(panel, of)
        panel.set_title(label, fontweight="bold")
    panels[0].legend(frameon=False)


def _below(figure: FigureBase, found: Diagnosis) -> None:
    if found.invariances is None:
        _sparse(figure.subplots(), found)
        return
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=[1, 3])[0]
    _sparse(left.subplots(), found)
    invariance_panels(right, found.invariances)


def _sparse(panel: Axes, found: Diagnosis) -> None:
    places = np.arange(len(found.sparse))[::-1]
    for at, (basis, colour) in enumerate(BASES.items()):
        enough = [of.smallest[basis] or np.nan for of in found.sparse.values()]
        panel.plot(enough, places + 0.15 * (1 - at), "o", color=colour, label=basis)
    panel.set_yticks(places, list(found.sparse))
    panel.set(
        xscale="log", xlim=(0.8, 1.25 * max(of.dim for of in found.sparse.values())), ylim=(-0.6, places[0] + 0.6)
    )
    panel.set_title("features that are enough", fontsize="small")
    panel.legend(frameon=False, fontsize="small", loc="upper left")
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)
