"""What a study of exposure bias asked and recorded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rlpre.errors import RlpreError, lookup
from rlpre.files import read_json
from rlpre.measure.exposure import Sample, Switches, load_contexts
from rlpre.measure.stats import Floats
from rlpre.study import DONE, STUDY, finished_runs

RECORD = "contexts.npz"
CLONE, CORRECTION, CONTROL = "clone", "correction", "control"
KINDS = dict.fromkeys((CLONE, CORRECTION, CONTROL))


@dataclass(frozen=True)
class Question:
    """What a study asks. It stands under "exposure" in the study's configuration, so that no result can choose it.

    Attributes:
        arms: every arm, in reading order, and its kind. "clone": a policy cloned from demonstrations; "correction" and
            "control": they start from the baseline's demonstrations or policy and are judged against it.
        horizons: level -> the steps over which errors are added up.
        baseline: the clone that the others are compared with.
    """

    arms: Mapping[str, str]
    horizons: Mapping[str, int]
    baseline: str = "clone"

    def __post_init__(self) -> None:
        lookup("arm", self.baseline, self.arms)
        for kind in self.arms.values():
            lookup("kind of arm", kind, KINDS)
        for level, horizon in self.horizons.items():
            if horizon < 1:
                raise RlpreError(f"the horizon of {level} is {horizon} steps: it must be at least 1")


@dataclass(frozen=True)
class Runs:
    """The finished runs of one arm on one level.

    Attributes:
        sample: their contexts, up to the horizon.
        switches: by seed the switch curves of those that have them.
        seconds: (runs,) wall-clock.
    """

    level: str
    arm: str
    sample: Sample
    switches: Mapping[int, Switches]
    seconds: Floats


def load_question(directory: Path) -> Question:
    """The question of a study directory.

    Raises:
        RlpreError: if there is none, or it does not fit together.
    """
    configuration = read_json(directory / STUDY)
    if "exposure" not in configuration:
        raise RlpreError(f"{directory / STUDY} does not say what is asked: put an exposure entry in its configuration")
    return Question(**configuration["exposure"])


def find_runs(directory: Path, question: Question) -> dict[str, dict[str, dict[int, Path]]]:
    """The run directories of a study by level, arm and seed, in the question's order.

    Runs of other arms that recorded no contexts (demonstrations, encoders) are no part of the answer.

    Raises:
        RlpreError: if there is none, or an arm or level is not in the question.
    """
    found: dict[str, dict[str, dict[int, Path]]] = {}
    for cell, run in finished_runs(directory).items():
        if cell.arm in question.arms or (run / RECORD).exists():
            lookup("arm", cell.arm, question.arms)
            lookup("level", cell.environment, question.horizons)
            found.setdefault(cell.environment, {}).setdefault(cell.arm, {})[cell.seed] = run
    if not found:
        raise RlpreError(f"{directory} holds no finished run with {RECORD}: run the study first")
    return {
        level: {arm: found[level][arm] for arm in question.arms if arm in found[level]}
        for level in question.horizons
        if level in found
    }


def load_runs(level: str, arm: str, paths: Mapping[int, Path], horizon: int) -> Runs:
    """Reads what was recorded of one arm on one level, up to a horizon in steps.

    Raises:
        RlpreError: if a record is missing or damaged, its episodes were all dropped, or the seeds were not measured on
            the same number of episodes.
    """
    contexts, switches, episodes = {}, {}, dict[int, Path]()
    for seed, run in paths.items():
        contexts[seed], turns = load_contexts(run / RECORD)
        kept = np.all([context.kept for context in contexts[seed].values()], axis=0)
        episodes.setdefault(len(kept), run)
        if not kept.any():
            raise RlpreError(f"{run} dropped all its episodes: give {level} an expert that solves it")
        if turns is not None:
            switches[seed] = turns
    if len(episodes) > 1:
        each = " and ".join(f"{run} on {count}" for count, run in episodes.items())
        raise RlpreError(f"{each} episodes were measured: measure all runs of {level} on the same")
    seconds = np.array([read_json(run / DONE)["seconds"] for run in paths.values()], dtype=np.float64)
    return Runs(level, arm, Sample.gather(contexts, horizon), switches, seconds)
