"""One document model for every report, and what all reports share: numbers in words, tables, colours, curves.

A report is a `Page`. `as_text` renders it for a terminal, `write_html` as one file that needs no network and no
scripts, light or dark as the reader's browser is.

Example:
    >>> saved = Interval(1.67, 1.01, 2.74, 3)
    >>> table = Table(["arm", "scratch / arm"], [["jigsaw", Toned(show_interval(saved), "good")]], title="Ratios")
    >>> page = Page("Did it pay?", "It saved 3k steps.", "good", sections=[Section("Arms", blocks=[table])])
    >>> print(as_text(page))
    It saved 3k steps.
    <BLANKLINE>
    ARMS
    <BLANKLINE>
    Ratios
    arm     scratch / arm
    -------------------------
    jigsaw  1.67 [1.01, 2.74]
"""

import base64
import io
import math
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.figure
import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from matplotlib import rc_context
from matplotlib.axes import Axes
from numpy.typing import ArrayLike

from rlpre.evaluation.stats import FEWEST, Interval, StepsRatio
from rlpre.utils import write_bytes

# Okabe and Ito 2008, distinct with any colour vision; controls are black and grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
CONTROLS = ("#000000", "#707070", "#A0A0A0")
DASHES = ("-", "--", ":")

SUPERFLUOUS = re.compile(r"^(MiniGrid|BabyAI)-|-v\d+$")  # the rest of an environment's name says enough
TEXT_WIDTH = 100


@dataclass(frozen=True)
class Toned:
    """A cell with a tone: "good", "bad", "soft", "strong" or "" for none."""

    text: str
    tone: str = ""


Cell = str | Toned


@dataclass(frozen=True)
class Table:
    """A table; cells such as "0.5 [0.4, 0.6]" show their interval small."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A picture: a matplotlib figure, which is embedded as SVG, or the bytes of a PNG or GIF; b"" for none.

    In SVG, black takes the colour of the page's text; text on a coloured ground needs another ink, such as "#111111".
    """

    title: str
    image: matplotlib.figure.Figure | bytes
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small figures side by side, as many to a line as the screen has room for."""

    figures: Sequence[Figure]
    title: str = ""
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: paragraphs, then blocks."""

    title: str
    text: Sequence[str] = ()
    blocks: Sequence[Table | Figure | Gallery] = ()


@dataclass(frozen=True)
class Provenance:
    """How results were made: package versions, git commits, and the configuration by dotted name."""

    versions: Sequence[str] = ()
    commits: Sequence[str] = ()
    configuration: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Page:
    """A report."""

    question: str  # that it answers
    answer: str  # one sentence, the headline
    tone: str = ""  # of the answer, as in `Toned`
    facts: Sequence[str] = ()  # sentences with the numbers behind the answer
    notices: Sequence[str] = ()  # warnings, such as failed runs, shown before the results
    sections: Sequence[Section] = ()
    provenance: Provenance | None = None  # shown at the end, in HTML only
    lead: str = ""  # a sentence to read before the answer


@dataclass(frozen=True)
class Answer:
    """An answer in one sentence: a verdict such as "not known", what the sentence says, and the numbers behind it."""

    verdict: str
    claim: str
    facts: str = ""

    def __str__(self) -> str:
        return f"{self.claim}: {self.facts}." if self.facts else f"{self.claim}."


def as_text(page: Page) -> str:
    """The page for a terminal, without figures and provenance."""
    parts = [
        "\n".join(map(_filled, filter(None, [page.lead, page.answer, *page.facts]))),
        "\n".join(map(_filled, page.notices)),
    ]
    for section in page.sections:
        tables = [block for block in section.blocks if isinstance(block, Table)]
        if tables or section.text:
            parts += [section.title.upper(), "\n".join(map(_filled, section.text))]
        for table in tables:
            parts += ["\n".join(filter(None, [table.title, aligned(table)])), _filled(table.note)]
    return "\n\n".join(filter(None, parts))


def aligned(table: Table) -> str:
    """The head and the rows of a table in columns of equal width, with a rule between them."""
    rows = [[cell.text if isinstance(cell, Toned) else cell for cell in row] for row in (table.head, *table.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def write_html(page: Page, path: Path) -> None:
    """Writes the page as one HTML file that holds everything it shows."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.globals |= {"image": _image, "cell": _cell, "slug": _slug}
    template = environment.from_string(Path(__file__).with_name("page.html").read_text())
    write_bytes(path, template.render(page=page).encode())


def show_interval(estimate: Interval, form: Callable[[float], str] = "{:.2f}".format, bound: str = "") -> str:
    """An estimate with its interval: "0.50 [0.40, 0.60]", or "-" for NaN.

    Args:
        estimate: "(n<3)" or "(?)" replaces an interval that it lacks.
        form: writes one number.
        bound: ">=" or "<=" if the estimate is a bound, which leaves one end open.
    """
    if math.isnan(estimate.value):
        return "-"
    if estimate.low is None or estimate.high is None:
        return f"{bound}{form(estimate.value)} " + (f"(n<{FEWEST})" if estimate.n < FEWEST else "(?)")
    low = "0" if bound == "<=" else form(estimate.low)
    high = "inf" if bound == ">=" else form(estimate.high)
    return f"{bound}{form(estimate.value)} [{low}, {high}]"


def show_ratio(ratio: StepsRatio) -> str:
    """A ratio with its interval, or why it has none."""
    if not ratio.known:
        return "? (none reach)"
    return show_interval(ratio.ratio, bound=ratio.bound).replace("(?)", "(all runs are equal, no interval)")


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f} %"


def signed(estimate: Interval) -> str:
    """A change with its interval: "+0.10 [+0.05, +0.15]"."""
    return show_interval(estimate, "{:+.2f}".format)


def thousands(count: float) -> str:
    """Three digits: 0.5k, 12.3k, 1.2M."""
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def short_names(environments: Iterable[str]) -> dict[str, str]:
    """Names without family and version by environment: "MiniGrid-DoorKey-5x5-v0" is "DoorKey-5x5"."""
    short = {environment: SUPERFLUOUS.sub("", environment.rsplit("/", 1)[-1]) for environment in environments}
    names = list(short.values())
    return {environment: name if names.count(name) == 1 else environment for environment, name in short.items()}


def sentence(text: str) -> str:
    """The text with a capital."""
    return text[:1].upper() + text[1:]


def plain_axes(panel: Axes) -> None:
    """Removes the frame at the top and right, and draws a faint grid."""
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(alpha=0.2)


def draw_curve(panel: Axes, at: ArrayLike, points: Sequence[Interval], colour: str, **line: Any) -> None:
    """Draws estimates as a line with a band where they have intervals; ``line`` goes to ``Axes.plot``."""
    panel.plot(at, [point.value for point in points], color=colour, **line)
    ends = np.array([(point.low, point.high) for point in points], dtype=np.float64)  # None becomes NaN
    panel.fill_between(at, *ends.T, color=colour, alpha=0.15, linewidth=0)


def as_png(figure: matplotlib.figure.Figure) -> bytes:
    """The figure as PNG."""
    content = io.BytesIO()
    figure.savefig(content, format="png")
    return content.getvalue()


def _filled(text: str) -> str:
    return textwrap.fill(text, TEXT_WIDTH)


def _slug(title: str) -> str:
    return re.sub(r"\W+", "-", title.lower())


def _cell(cell: Cell) -> Markup:
    """A table cell; an interval stands small under its value, long text may wrap."""
    text, tone = (cell.text, cell.tone) if isinstance(cell, Toned) else (cell, "")
    match = re.fullmatch(r"(\S+) (\[[^][]*\]|\([^()]*\))", text)
    words = " words" if len(text) > 40 and not match else ""
    content = Markup("{}<small>{}</small>").format(*match.groups()) if match else text
    return Markup('<td class="{}">{}').format(tone + words, content)


def _image(figure: Figure) -> Markup:
    if isinstance(figure.image, matplotlib.figure.Figure):
        return _svg(figure.image, figure.title)
    kind = "gif" if figure.image.startswith(b"GIF") else "png"
    source = f"data:image/{kind};base64,{base64.b64encode(figure.image).decode()}"
    return Markup('<img alt="{}" src="{}">').format(figure.title, source) if figure.image else Markup()


def _svg(figure: matplotlib.figure.Figure, label: str) -> Markup:
    """The figure as inline SVG in the font and the text colour of the page, without what only a file of its own needs.

    It has at least 62 pixels per inch: a wide figure scrolls on a phone.
    """
    text = io.StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "rlpre"}):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(text, format="svg", transparent=True, metadata=metadata)
    (box,) = re.findall(r'viewBox="([^"]+)"', text.getvalue())
    body = re.sub(r"^.*?<svg[^>]*>|<defs>\s*<style.*?</defs>", "", text.getvalue(), flags=re.DOTALL)
    body = re.sub(r'(<g) id="[^"]*"|( )font-family: [^;"]*;?', r"\1\2", body)
    body = re.sub(r"(font: [^;\"]*?px) [^;\"]*", r"\1 system-ui, sans-serif", body)
    body = body.replace("#000000", "currentColor").replace("#404040", "currentColor")
    opening = '<svg class="chart" style="min-width: {}px" viewBox="{}" role="img" aria-label="{}">'
    return Markup(opening).format(round(62 * figure.get_figwidth()), box, label) + Markup(body)
