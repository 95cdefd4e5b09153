"""How many steps could an encoder save? ``python scripts/headroom.py ENV...``, before anything is pretrained."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import tyro

from agents.presets import PRESETS, AgentConfig
from cli import Where, run
from rlpre.compare.arms import ORACLE, TRANSPLANT, Arm
from rlpre.compare.report import answers, headroom
from rlpre.compare.summary import ALL, Record, Results, read_results
from rlpre.errors import RlpreError
from rlpre.evaluation.page import Table, aligned, sentence, short_names, show_interval, show_ratio, thousands

KNOWN = PRESETS["headroom"]


def main(
    envs: Annotated[tuple[str, ...], tyro.conf.Positional] = (),
    steps: tuple[int, ...] = (),
    seeds: int = KNOWN.seeds,
    threshold: float = KNOWN.threshold,
    oracle: bool = True,
    transplant: bool = True,
    out: Path = Path("runs/headroom"),
    train: AgentConfig = KNOWN.train,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Compares agents that learn from pixels with oracles, which learn from the environment's true state.

    Args:
        envs: ids of `envs.make_vec`, or environments of your own that put their true state into ``info["state"]``:
            Gymnasium ids or module:function. Default: the levels of our own table.
        steps: environment steps of a run, one number for all environments or one for each. Default: 100,000; our own
            table has its own.
        seeds: runs of every arm.
        threshold: return to reach.
        oracle: whether to compare with agents that learn from the true state; not all environments tell it.
        transplant: whether to freeze the encoders that the agents have learned from pixels, and to learn once more.
        out: results directory; interrupted runs there go on.
        train: how agents see their levels and learn.
        where: processes of this machine, or a cluster.
    """
    bounds = [mode for mode, wanted in {ORACLE: oracle, TRANSPLANT: transplant}.items() if wanted]
    if not bounds:
        raise RlpreError("oracle and transplant are both False: scratch has nothing to be compared with, keep one")
    arms = {"scratch": Arm("scratch"), **{mode: Arm(mode) for mode in bounds}}
    preset = replace(KNOWN, arms=arms, answer=bounds[0], seeds=seeds, threshold=threshold, train=train)
    if envs:
        preset = replace(preset, environments=tuple(dict.fromkeys(envs)), steps=steps or (100_000,))
    elif steps:
        raise RlpreError("the levels of our own table have steps of their own: name environments, or leave out steps")
    with where.executor() as executor:
        preset.run(out, where.workers, executor)
    results = read_results(out)
    task = ALL if len(results.tasks) > 1 else next(iter(results.tasks))
    print(headroom(results, task) or sentence(str(answers(results)[task])), end="\n\n")
    print(aligned(table(results)))
    print(f"\npage: {out}/report.html   numbers: {out}/summary.json")


def table(results: Results) -> Table:
    """The steps of each arm on each task, and how many times those of each other arm scratch needs."""
    metric, rows = results.metric, []
    others = [arm for arm in metric.arms if arm != metric.baseline]
    for task, name in short_names(results.tasks).items():
        records = [results.record(task, metric.baseline, None)]
        records += [results.record(task, arm, metric.baseline) for arm in others]
        ratios = [show_ratio(record.ratio) if record and record.ratio else "-" for record in records[1:]]
        rows.append([name, *map(_steps, records), *ratios])
    head = [f"{arm}, steps to {metric.goal()}" for arm in (metric.baseline, *others)]
    return Table(["task", *head, *(f"{metric.baseline} / {arm}" for arm in others)], rows)


def _steps(record: Record | None) -> str:
    censored = record and record.reached < record.n
    return show_interval(record.steps, thousands, ">=" * bool(censored)) if record and record.steps else "-"


if __name__ == "__main__":
    run(main)
