"""Studies of exposure bias whose policies are chains with known rates."""

from dataclasses import asdict
from pathlib import Path

import numpy as np

from rlpre.files import write_json
from rlpre.measure.exposure import Context, Switches, save_contexts
from rlpre.report.exposure.results import Question
from rlpre.study import Cell

EPISODES, STEPS = 200, 16
QUESTION = Question(
    arms={"clone": "clone", "observation only": "clone", "dagger": "correction", "ppo": "correction"}
    | {"more labels": "control"},
    horizons={"BabyAI-Near-v0": 6, "BabyAI-Far-v0": 14},
)


def walk(
    after_right: float, after_wrong: float, alive: np.ndarray, success: np.ndarray, rng: np.random.Generator
) -> Context:
    """A context of a policy that errs with one rate after a right step and with another after a wrong one."""
    dice = rng.random(alive.shape)
    wrong = np.zeros(alive.shape, bool)
    for t in range(alive.shape[1]):
        wrong[:, t] = dice[:, t] < (np.where(wrong[:, t - 1], after_wrong, after_right) if t else after_right)
    costly = wrong & (rng.random(alive.shape) < 0.8)  # the other errors are as good as the expert's action
    return Context(wrong, np.where(wrong, 1.5, 0.1), costly, alive, success)


def write_policy(study: Path, cell: Cell, error: float, stay: float, solved: float, switches: bool = False) -> Path:
    """A run whose policy errs with ``error``, and on its own goes on erring with ``stay``; it solves a share."""
    rng, run = np.random.default_rng([cell.seed, *cell.arm.encode()]), study / cell.path
    layouts = np.random.default_rng(7).integers(3, STEPS, EPISODES)  # the expert's lengths, of all policies
    success = rng.random(EPISODES) < solved
    short = np.arange(STEPS) < layouts[:, None]
    long = np.arange(STEPS) < np.where(success, np.minimum(layouts + 2, STEPS), STEPS)[:, None]
    solves = np.ones(EPISODES, bool)
    contexts = {
        "EE": walk(error, error, short, solves, rng),
        "EO": walk(error, (error + stay) / 2, short, solves, rng),
        "OE": walk(error, (error + stay) / 2, long, success, rng),
        "OO": walk(error, stay, long, success, rng),
    }
    steps = np.array([0, 2, 4, 8, 16])
    share = (solved + (1 - solved) * steps / 16)[:, None]
    turns = Switches(
        steps, rng.random((5, EPISODES)) < 1 - 0.1 * steps[:, None] / 16, rng.random((5, EPISODES)) < share
    )
    save_contexts(run / "contexts.npz", contexts, turns if switches else None)
    write_json(run / "done.json", {**asdict(cell), "seconds": 90.0, "threads": 1})
    return run


def write_exposure(
    study: Path, policies: dict[str, tuple[float, float, float]], level: str = "BabyAI-Far-v0", seeds: int = 3
) -> Path:
    """A study of policies (error, stay, solved); those called clone have switch curves."""
    for arm, rates in policies.items():
        for seed in range(seeds):
            write_policy(study, Cell(level, arm, seed), *rates, switches=arm == "clone")
    write_json(study / "study.json", {"exposure": asdict(QUESTION)})
    return study
