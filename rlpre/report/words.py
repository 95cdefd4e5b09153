"""How reports say things: figures with their intervals, names, sentences."""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rlpre.measure.stats import FEWEST, Interval, StepsRatio

FAMILIES = ("MiniGrid-", "BabyAI-")  # say nothing that the rest of an environment's name does not


@dataclass(frozen=True)
class Answer:
    """An answer in one sentence.

    Attributes:
        verdict: what it comes to, in a word or two.
        claim: what the sentence says.
        facts: the numbers behind it; may be empty.
    """

    verdict: str
    claim: str
    facts: str

    def __str__(self) -> str:
        return f"{self.claim}: {self.facts}." if self.facts else f"{self.claim}."


def show_interval(figure: Interval, form: Callable[[float], str] = "{:.2f}".format, bound: str = "") -> str:
    """A figure with its interval; a bound leaves one end open."""
    if figure.low is None or figure.high is None:
        return f"{bound}{form(figure.value)} (n<{FEWEST})"
    low = "0" if bound == "<=" else form(figure.low)
    high = "inf" if bound == ">=" else form(figure.high)
    return f"{bound}{form(figure.value)} [{low}, {high}]"


def show_ratio(saved: StepsRatio) -> str:
    """A ratio with its interval."""
    if saved.baseline_reached + saved.treated_reached == 0:
        return "? (none reach)"
    return show_interval(saved.ratio, bound=saved.bound)


def show(figure: Interval, form: Callable[[float], str] = "{:.2f}".format) -> str:
    """A figure with its interval; "-" if it is not known, "?" if its interval is not, whatever the number of seeds."""
    if math.isnan(figure.value):
        return "-"
    return f"{form(figure.value)} (?)" if figure.low is None and figure.n >= FEWEST else show_interval(figure, form)


def percent(share: float) -> str:
    """A share in per cent."""
    return f"{100 * share:.0f} %"


def signed(figure: Interval) -> str:
    """A change with its interval."""
    return show(figure, "{:+.2f}".format)


def thousands(count: float) -> str:
    """Three digits: 0.5k, 12.3k, 1.2M."""
    return f"{count / 1000:.3g}k" if count < 999_500 else f"{count / 1e6:.3g}M"


def short_names(environments: Iterable[str]) -> dict[str, str]:
    """Names for pictures, without family and version: "MiniGrid-DoorKey-5x5-v0" is "DoorKey-5x5"."""
    short = {}
    for environment in environments:
        name = re.sub(r"-v\d+$", "", environment.rsplit("/", 1)[-1])
        for family in FAMILIES:
            name = name.removeprefix(family)
        short[environment] = name
    names = list(short.values())
    return {environment: name if names.count(name) == 1 else environment for environment, name in short.items()}


def sentence(text: str) -> str:
    """With a capital."""
    return text[:1].upper() + text[1:]
