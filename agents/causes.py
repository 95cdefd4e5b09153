"""Why a comparison came out as it did: features of frozen encoders, two causes taken apart, frames, and overlap.

The runs of a comparison measure their encoders on frames of the environments (`measure`); `sections` turns the rows
into parts of the report.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from numpy.typing import NDArray

from envs.minigrid.overlap import STEPS, overlaps
from rlpre import FrameStore, RlpreError
from rlpre.compare.arms import ARM_MODES
from rlpre.compare.runner import Measurements, Run, read_study
from rlpre.compare.summary import SECONDS, Curves, read_results
from rlpre.compare.train import Training, make_venv, starting_encoder
from rlpre.data.store import MANIFEST
from rlpre.encoders.encoder import WHITENED as PREFIX
from rlpre.evaluation import page
from rlpre.evaluation.health import conditioning
from rlpre.evaluation.overlap import ALIKE, CELLS
from rlpre.evaluation.page import Section, Table, show_interval
from rlpre.evaluation.probes import linear_probe, read
from rlpre.evaluation.stats import FEWEST, Floats, Interval, geometric_mean_interval, mean_interval
from rlpre.objectives import make_reader
from rlpre.utils import read_json, write_json

TARGETS, OVERLAP = "targets", "overlap.json"  # below a comparison's directory
ROWS = 2048  # frames over which features are measured
FEWEST_SIZES = 3  # numbers of frames that make a curve
UPDATES, WHITENED, FRAMES, CONDITION = "updates", "whitened", "different frames", "condition number"
PROBE = "probe "  # before a label, in the names of measurements

Known = Mapping[str, Mapping[str, Sequence[float]]]  # arm -> measurement -> values of its runs


def measure(home: Path, first_seed: int | None, run: Run, training: Training) -> Measurements:
    """Measures the encoder of a run that never changes it: how well conditioned its features are, and what they hold.

    Args:
        home: directory of the comparison, with ``targets/<environment>`` (frames with labels).
        first_seed: the only seed to measure if all seeds share one pretrained encoder; None if they do not.
        run: the run.
        training: its settings.
    """
    if ARM_MODES[training.mode].trainable:
        return {}
    venv = make_venv(training.make_env, 1, run.seed)
    encoder = starting_encoder(training, venv).eval()
    venv.close()
    vision = getattr(encoder, "frames", encoder)
    if vision.pretraining and first_seed not in (None, run.seed):
        return {}
    frames = FrameStore.open(home / TARGETS / run.task)
    reader = make_reader(frames, encoder)
    rows = frames.sample(ROWS, np.random.default_rng(0))
    found = conditioning(torch.from_numpy(read(encoder, reader, rows)))
    stores = [FrameStore.open(path.parent) for path in (home / "frames").glob(f"*/{MANIFEST}")]
    seen = {store.hash: store.distinct for store in stores}.get(vision.pretraining.get("frames"))
    return {
        UPDATES: vision.pretraining.get("step", 0),
        WHITENED: float(vision.architecture.startswith(PREFIX)),
        CONDITION: found.number,
        "dimensions": found.dimensions,
        **({} if seen is None else {FRAMES: seen}),
        **{PROBE + label: score for label, score in linear_probe(encoder, reader).items()},
    }


def sections(environments: Sequence[str], home: Path) -> list[Section]:
    """What the rows and the frames of a comparison say about its causes; what was not measured is left out."""
    results = read_results(home)
    known: dict[str, dict[str, dict[str, list[float]]]] = {}
    for row in results.rows:
        if row.task in results.tasks and row.step is None and row.metric != SECONDS:
            known.setdefault(row.task, {}).setdefault(row.arm, {}).setdefault(row.metric, []).append(row.value)
    text, blocks = [], []
    for task, name in page.short_names(known).items():
        arms = {arm: known[task][arm] for arm in results.metric.arms if arm in known[task]}
        found = take_apart(results.tasks[task], arms, results.metric.threshold)
        text += [f"{name}: {cause_sentence(found)}."] if found else []
        sizes = arms_by_size(arms)
        if len(sizes) >= FEWEST_SIZES:
            picture = draw_sizes(results.tasks[task], arms, sizes, results.metric.threshold)
            blocks.append(page.Figure(f"More frames: {name}", picture, "Dotted: an encoder that has seen none."))
        blocks.append(feature_table(name, arms))
    return ([Section("Causes", text, blocks)] if blocks else []) + overlap_section(environments, home)


@dataclass(frozen=True)
class TwoWay:
    """The effects of two causes on steps to a threshold; each seed is its own control.

    Attributes:
        first: how many times fewer steps with the first cause than without, geometric mean over the second; above 1 it
            saves steps.
        second: the same of the second cause.
        interaction: the first cause's factor without the second one / with it; 1: the effects multiply.
        difference: steps that the first cause saves without the second one - with it; 0: the effects add up.
        censored: runs that never reached the threshold and count as the budget, which makes effects look smaller.
    """

    first: Interval
    second: Interval
    interaction: Interval
    difference: Interval
    censored: int


def two_way(steps: Floats, reached: NDArray[np.bool_]) -> TwoWay:
    """Takes apart the steps of runs with neither cause, one of them, or both.

    Gradient descent from an error e0 at a rate 1 / kappa (kappa: the condition number) reaches an error e after
    kappa * log(e0 / e) steps. A better start reduces the logarithm, better conditioning divides the product. So effects
    that multiply (``interaction`` 1) agree with this explanation, effects that add up (``difference`` 0) do not.

    Args:
        steps: (2, 2, seeds) to the threshold, by first cause, second cause, and seed.
        reached: (2, 2, seeds) whether the threshold was reached.

    Raises:
        RlpreError: for another shape, or steps that are not positive.
    """
    if steps.shape[:-1] != (2, 2) or not steps.shape[-1] or steps.shape != reached.shape:
        raise RlpreError(f"steps are {steps.shape} and reached {reached.shape}: give (2, 2, seeds) of both")
    if not (np.isfinite(steps) & (steps > 0)).all():
        raise RlpreError("steps are positive numbers: give the budget for runs that never reach the threshold")
    logs = np.log(steps)
    first, second = (logs[0] - logs[1]).mean(0), (logs[:, 0] - logs[:, 1]).mean(0)
    interaction = logs[0, 0] - logs[1, 0] - logs[0, 1] + logs[1, 1]
    difference = steps[0, 0] - steps[1, 0] - steps[0, 1] + steps[1, 1]
    ratios = (geometric_mean_interval(np.exp(of)) for of in (first, second, interaction))
    return TwoWay(*ratios, mean_interval(difference), int((~reached).sum()))


def take_apart(arms: Mapping[str, Curves], known: Known, threshold: float) -> TwoWay | None:
    """Pretraining (first) and whitening (second), if one arm has neither, one has each, and one has both."""
    seen = {arm: of for arm, of in known.items() if FRAMES in of}
    corners = {(of[UPDATES][0] > 0, of[WHITENED][0] > 0): arms[arm] for arm, of in seen.items()}
    if len(corners) < 4 or len(seen) > 4:
        return None
    runs = [corners[trained, white] for trained in (False, True) for white in (False, True)]
    seeds = sorted(set.intersection(*(set(of.seeds) for of in runs)))
    if not seeds:
        return None
    times = [[part[[of.seeds.index(seed) for seed in seeds]] for part in of.times(threshold)] for of in runs]
    steps, reached = (np.stack(parts).reshape(2, 2, -1) for parts in zip(*times, strict=True))
    return two_way(np.maximum(steps, 1), reached)


def cause_sentence(found: TwoWay) -> str:
    """The causes in words."""
    difference = show_interval(found.difference, "{:,.0f}".format)
    censored = f"; {found.censored} runs never got there and count as their budget" if found.censored else ""
    return (
        f"pretraining divides the steps by {show_interval(found.first)}, whitening by {show_interval(found.second)}; "
        f"{_together(found)} (pretraining's factor without whitening / with it: {show_interval(found.interaction)}; "
        f"steps that it saves without - with: {difference}){censored}"
    )


def _together(found: TwoWay) -> str:
    if found.interaction.low is None:
        return f"fewer than {FEWEST} seeds do not tell how they act together"
    multiply = found.interaction.low <= 1 <= found.interaction.high
    add = found.difference.low <= 0 <= found.difference.high
    return {
        (True, True): "whether their effects multiply or add up is not known",
        (True, False): "their effects multiply and do not add up",
        (False, True): "their effects add up and do not multiply",
        (False, False): "their effects neither multiply nor add up",
    }[multiply, add]


def feature_table(name: str, known: Known) -> Table:
    """The measured encoders of one environment."""
    labels = list(dict.fromkeys(metric for of in known.values() for metric in of if metric.startswith(PROBE)))
    head = ["arm", UPDATES, FRAMES, WHITENED, CONDITION, "dimensions", *(of.removeprefix(PROBE) for of in labels)]
    rows = [
        [
            arm,
            f"{of[UPDATES][0]:.0f}",
            f"{of[FRAMES][0]:,.0f}" if FRAMES in of else "-",
            "yes" if of[WHITENED][0] else "no",
            show_interval(geometric_mean_interval(of[CONDITION]), page.thousands),
            f"{np.mean(of['dimensions']):.0f}",
            *(f"{np.mean(of[label]):.2f}" if label in of else "-" for label in labels),
        ]
        for arm, of in known.items()
    ]
    note = (
        "On frames of levels that no encoder was pretrained in. Condition number: largest variance of the features / "
        "smallest, over the directions in which they vary. The other columns are scores of linear probes."
    )
    return Table(head, rows, f"Frozen encoders on {name}", note)


def arms_by_size(known: Known) -> dict[int, str]:
    """Arms that differ only in the number of different frames of one pretraining, by that number."""
    trained = {arm: of for arm, of in known.items() if of[UPDATES][0] > 0 and not of[WHITENED][0]}
    return dict(sorted((int(of[FRAMES][0]), arm) for arm, of in trained.items()))


def draw_sizes(arms: Mapping[str, Curves], known: Known, sizes: Mapping[int, str], threshold: float) -> Figure:
    """Probes, and steps to the threshold, against the number of different frames."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    probes, times = figure.subplots(1, 2)
    unseen: Mapping[str, Sequence[float]] = next((of for of in known.values() if FRAMES not in of), {})
    labels = [metric for metric in known[sizes[min(sizes)]] if metric.startswith(PROBE)]
    for label, colour in zip(labels, page.COLOURS, strict=False):
        points = [mean_interval(known[arm][label]) for arm in sizes.values()]
        page.draw_curve(probes, list(sizes), points, colour, marker="o", label=label.removeprefix(PROBE))
        if label in unseen:
            probes.axhline(np.mean(unseen[label]), color=colour, linestyle=":", linewidth=1)
    steps = {arm: mean_interval(np.maximum(of.times(threshold)[0], 1), logarithmic=True) for arm, of in arms.items()}
    pretrained = [steps.pop(arm) for arm in sizes.values()]
    page.draw_curve(times, list(sizes), pretrained, page.COLOURS[0], marker="o", label="pretrained")
    for (arm, of), colour, dashes in zip(steps.items(), page.CONTROLS, page.DASHES, strict=False):
        times.axhline(of.value, color=colour, linestyle=dashes, label=arm)
        if of.low is not None and of.high is not None:
            times.axhspan(of.low, of.high, color=colour, alpha=0.1, linewidth=0)
    times.yaxis.set_major_formatter(EngFormatter(sep=""))
    times.set_ylim(0, 1.1 * max(of.steps[-1] for of in arms.values()))
    for panel, what in ((probes, "probe score"), (times, f"steps to {threshold:g}")):
        panel.set(xscale="log", xlabel=FRAMES, ylabel=what)
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        page.plain_axes(panel)
        panel.legend(frameon=False, fontsize="small")
    return figure


def overlap_section(environments: Sequence[str], home: Path) -> list[Section]:
    """How much of what agents meet the frames of a comparison hold; measured once."""
    stores = {name: home / "frames" / name for name in read_study(home)["frames"]}
    if not (home / OVERLAP).exists():
        found = {name: _overlap(FrameStore.open(path), environments) for name, path in stores.items()}
        write_json(home / OVERLAP, found)
    text = [
        "How much of what an agent meets do the offline frames hold already? Shares of the steps (layouts: of the "
        "episodes) of fresh episodes, half at random and half by a noisy expert where there is one. Where they are "
        "high, the results show speed on what was seen, not generalisation."
    ]
    blocks = []
    for name, tasks in read_json(home / OVERLAP).items():
        if isinstance(tasks, str):
            text.append(f"{name}: not measured, {tasks}.")
            continue
        rows = {task: shares(of) for task, of in tasks.items()}
        why_unknown = next((of["why_unknown"] for of in tasks.values() if of["why_unknown"]), "")
        note = f"States and layouts are not known: {why_unknown}." if why_unknown else ""
        cells = [[task, *of.values()] for task, of in rows.items()]
        blocks.append(Table(["task", *next(iter(rows.values()))], cells, name, note))
    return [Section("Seen before", text, blocks)] if stores else []


def shares(overlap: Mapping[str, Any]) -> dict[str, str]:
    """The shares of an `Overlap` (as JSON) by heading; likeness only if an encoder judged it."""
    found = {name: overlap[name] for name in ("state", "layout", "observation")}
    for cells, share in zip_longest(range(1, CELLS + 1), overlap["near"]):
        found[f"{cells} cell{'s' * (cells > 1)} apart"] = share
    if overlap["alike"]:
        found[f"cosine {ALIKE}"] = overlap["alike"]
    return {name: show_interval(Interval(**share)) if share else "-" for name, share in found.items()}


def _overlap(store: FrameStore, environments: Sequence[str]) -> dict[str, Any] | str:
    """The overlap by environment, or why it cannot be measured."""
    if "environments" not in store.manifest["spec"]:
        return "these are no levels of MiniGrid or BabyAI"
    try:
        steps = min(STEPS, store.manifest["spec"]["steps"])
        return {task: asdict(of) for task, of in overlaps(store, environments, steps).items()}
    except RlpreError as error:
        return str(error)
