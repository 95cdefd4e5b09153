"""Timing two ways of doing the same work, side by side."""

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from rlpre.report.tables import aligned

HEADER = ["ours / stock", "stock", "ours", "unit", "ratio", "min..max", "aim", "met"]


@dataclass(frozen=True)
class Row:
    """How fast our way is against the stock way."""

    what: str  # our way / the stock way
    stock: float  # median, in ``unit``
    ours: float  # median, in ``unit``
    unit: str
    ratio: float  # how many times faster ours is: median over rounds
    low: float  # smallest ratio of a round
    high: float  # largest
    aim: str = ""  # empty where the row only explains another one
    met: bool | None = None  # whether the median reaches the aim


def compare(
    what: str,
    stock: Sequence[float],
    ours: Sequence[float],
    work: int,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Makes a row of the seconds that both ways took.

    Args:
        what: our way / the stock way.
        stock: seconds of a run, round by round.
        ours: seconds of a run in the same rounds.
        work: how many things one run does.
        unit: things per second such as "steps/s", or microseconds per thing such as "us/frame".
        at_least: aim for the ratio.
        at_most: aim for our number.
    """
    ratios = np.divide(stock, ours)
    medians = np.array([np.median(stock), np.median(ours)])
    theirs, own = (medians / work * 1e6 if unit.startswith("us/") else work / medians).tolist()
    ratio, low, high = float(np.median(ratios)), float(ratios.min()), float(ratios.max())
    aim, met = "", None
    if at_least is not None:
        aim, met = f"ratio >= {at_least:g}", ratio >= at_least
    elif at_most is not None:
        aim, met = f"ours <= {at_most:g}", own <= at_most
    return Row(what, theirs, own, unit, ratio, low, high, aim, met)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, with everything it left to a GPU."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def interleave(
    ways: dict[str, Callable[[], object]], device: torch.device, rounds: int = 5
) -> dict[str, Sequence[float]]:
    """Seconds of each way in each round.

    All ways run in turn in every round, so that a machine that slows down slows all of them; a round before the first
    warms up and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work, device))
    return {name: times[1:] for name, times in seconds.items()}


def wait(device: torch.device) -> None:
    """Waits until a GPU has done everything it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    return aligned([HEADER, *map(_cells, rows)])


def hardware(device: torch.device) -> dict[str, str | int]:
    """What the figures depend on beside the software."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": named[0] if named else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _cells(row: Row) -> list[str]:
    numbers = [f"{number:,.1f}" if number < 100 else f"{number:,.0f}" for number in (row.stock, row.ours)]
    verdict = "" if row.met is None else "yes" if row.met else "no"
    spread = f"{row.low:.2f}..{row.high:.2f}"
    return [row.what, *numbers, row.unit, f"{row.ratio:.2f}", spread, row.aim, verdict]
