"""Was the advice right? Encoders of comparisons are diagnosed where agents used them, and the agents' curves judge."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import envs
from agents.compare import RUNS
from agents.comparison import Arm, Comparison, Offline, data_of, encoder_path
from agents.recipes import Backbone
from agents.train import EVALUATION_SEED, PPOConfig, TrainConfig
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError
from rlpre.files import read_json
from rlpre.measure.advice import ANCHOR, FINE_TUNE, FREEZE, SCRATCH, Contest, advise
from rlpre.measure.diagnosis import examine
from rlpre.measure.stats import Floats
from rlpre.report.comparison.results import Runs, load_runs
from rlpre.report.facts import FRAMES
from rlpre.study import STUDY

AGENTS = {"scratch": SCRATCH, "frozen": FREEZE, "anchored": ANCHOR, "finetuned": FINE_TUNE}
STEPS = 4000  # to collect in every environment


def contests(studies: Iterable[Path], out: Path, steps: int = STEPS) -> list[Contest]:
    """Advice on every encoder of finished comparisons in every environment, and what became of the ways to use it.

    Learning curves choose nothing here: the advice is asked of frames alone, fresh ones of each environment.

    Args:
        studies: directories of comparisons.
        out: receives the frames, ``frames/<study>/<data>/<environment>``.
        steps: to collect in each environment, as the frames of the pretraining were.

    Returns:
        One for each environment and encoder that agents used in one way at least, where scratch and they have run on
        the same seeds.

    Raises:
        RlpreError: if a directory holds no comparison, or no finished run.
    """
    return [contest for study in studies for contest in _contests(study, out, steps)]


def _contests(study: Path, out: Path, steps: int) -> list[Contest]:
    comparison, found = restore(study), []
    by_environment: dict[str, list[Runs]] = {}
    for runs in load_runs(study / RUNS):
        by_environment.setdefault(runs.environment, []).append(runs)
    for environment, every in by_environment.items():
        for arm, areas in _encoders(comparison, every).items():
            data = data_of(comparison, arm)
            store = FrameStore.open(study / FRAMES / data)
            target = _target(comparison, environment, data, out / FRAMES / study.name, steps)
            encoder = Encoder.load(study / encoder_path(comparison, arm, comparison.first_seed))
            advice = advise(examine(encoder, target, store).evidence)
            found.append(Contest(environment, _name(arm, data), advice.way, areas, advice.reasons))
    return found


def _name(arm: Arm, data: str) -> str:
    return f"{arm.objective}@{data}" + ("" if arm.step is None else f":{arm.step}") + ", whitened" * arm.whitened


def _encoders(comparison: Comparison, every: list[Runs]) -> dict[Arm, dict[str, Floats]]:
    """Areas by way of every encoder, named by an arm without an agent; scratch among the ways."""
    known = {runs.arm: comparison.arms[runs.arm] for runs in every}
    scratch = next((runs for runs in every if known[runs.arm] == Arm("scratch")), None)
    found: dict[Arm, dict[str, Floats]] = {}
    for runs in every:
        arm = known[runs.arm]
        if scratch and arm.objective and arm.agent in AGENTS and runs.seeds == scratch.seeds:
            ways = found.setdefault(replace(arm, agent=""), {SCRATCH: scratch.areas})
            ways[AGENTS[arm.agent]] = runs.areas
    return found


def _target(comparison: Comparison, environment: str, data: str, out: Path, steps: int) -> FrameStore:
    behaviour = comparison.data[data].behaviour
    first = next(name for name, of in comparison.data.items() if of.behaviour == behaviour)  # collected once for all
    look = {name: getattr(comparison.train, name) for name in ("view", "tile_size", "palette")}
    seed = EVALUATION_SEED + comparison.pretrain.seed  # of worlds that nothing was pretrained in
    return envs.collect(environment, out / first / environment, steps, seed, behaviour, **look)


def restore(study: Path) -> Comparison:
    """The comparison that a directory belongs to, but for its number of seeds.

    Raises:
        RlpreError: if it is of none.
    """
    settings: dict[str, Any] = read_json(study / STUDY)
    try:
        train = _train_config(settings["train"])
        data = {name: Offline(**{**of, "sources": tuple(of["sources"])}) for name, of in settings["data"].items()}
        arms = {name: Arm(**of) for name, of in settings["arms"].items()}
        pretrain = {key: PretrainConfig(**settings[key]) for key in ("pretrain", "sequence") if key in settings}
        parts = {"data": data, "arms": arms, "train": train, **pretrain}
        lists = {name: tuple(settings[name]) for name in ("environments", "steps")}
        return Comparison(**{**settings, **parts, **lists})
    except (KeyError, TypeError) as error:
        raise RlpreError(f"{study / STUDY} is not of a comparison ({error}): give a directory of compare.py") from error


def _train_config(settings: dict[str, Any]) -> TrainConfig:
    kinds = {"ppo": PPOConfig, "backbone": Backbone}
    return TrainConfig(**{**settings, **{key: kind(**settings[key]) for key, kind in kinds.items() if key in settings}})
