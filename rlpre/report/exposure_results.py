"""What a study of exposure bias found: the figures of every policy with their intervals, and the verdicts."""

from collections.abc import Mapping
from dataclasses import dataclass

from rlpre.errors import RlpreError, lookup

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
