"""Charts for a web page: inline SVG that takes the page's font and colour of text, and needs nothing else."""

import io
import re
from collections.abc import Callable

from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDE, HALF, SMALL = (6.4, 3.3), (4.6, 2.7), (3.5, 2.3)  # inches
WIDTH, ARROW = 140, 5  # pixels of a strip


def stroke(colour: str, dashes: str) -> Markup:
    """A piece of line for a legend."""
    pattern = {"-": "", "--": "6 3", ":": "2 3"}[dashes]
    return Markup(
        '<svg class="swatch" viewBox="0 0 24 4" aria-hidden="true"><path d="M0 2H24" stroke="{}" stroke-width="3" '
        'stroke-dasharray="{}"/></svg>'
    ).format(_themed(colour), pattern)


def bar(low: float, value: float, high: float, label: str) -> Markup:
    """A value and its interval on an axis from -1 to 1; arrows where the interval goes on."""

    def place(at: float) -> float:
        return ARROW + (WIDTH - 2 * ARROW) * (min(max(at, -1), 1) + 1) / 2

    line = f"M{place(low):.1f} 0H{place(high):.1f}"
    if low < -1:
        line += f"M{ARROW} {-ARROW}L0 0L{ARROW} {ARROW}"
    if high > 1:
        line += f"M{WIDTH - ARROW} {-ARROW}L{WIDTH} 0L{WIDTH - ARROW} {ARROW}"
    return Markup(
        '<svg class="strip" viewBox="-1 -8 {} 16" role="img" aria-label="{}"><path d="{}"/>'
        '<circle cx="{:.1f}" r="4"/></svg>'
    ).format(WIDTH + 2, label, line, place(value))


def svg(size: tuple[float, float], label: str, draw: Callable[[Axes], None]) -> Markup:
    """What ``draw`` draws, ``size`` in inches; ``label`` is for those who cannot see it, and unlike on one page."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 8, "axes.linewidth": 0.5}):
        figure = Figure(figsize=size)
        figure.set_layout_engine("constrained")
        axes = figure.subplots()
        for patch in (figure.patch, axes.patch):
            patch.set_visible(False)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return _inline(text.getvalue(), label)


def _inline(svg: str, label: str) -> Markup:
    """What a page needs of matplotlib's SVG: no header, sizes, name spaces or ids of groups, and themed colours."""
    body = svg[svg.index("<svg") :]
    (box,) = re.findall(r'viewBox="([^"]+)"', body)
    body = re.sub(r"^<svg[^>]*>", "", body)
    body = re.sub(r"<defs>\s*<style.*?</defs>", "", body, flags=re.DOTALL)  # it would style the whole page
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r" font-family: [^;\"]*;?", "", body)
    opening = Markup('<svg class="chart" viewBox="{}" role="img" aria-label="{}">').format(box, label)
    return opening + Markup(_themed(body))


def _themed(text: str) -> str:
    """Black as the colour of the page's text, which is light on a dark page."""
    return text.replace("#000000", "currentColor").replace("#404040", "currentColor")
