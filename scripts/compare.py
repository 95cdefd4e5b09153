"""Compare agents: ``python scripts/compare.py quick`` collects, pretrains, trains every arm, and reports."""

import json
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

import envs
import rlpre
from agents.habits import Habits
from agents.presets import PRESETS
from cli import Where, run
from rlpre import PretrainConfig, RlpreError
from rlpre.compare.arms import Arm
from rlpre.compare.compare import COLLECTED, ENCODERS, ComparisonResult
from rlpre.compare.runner import restore
from rlpre.compare.train import find_algorithm
from rlpre.errors import lookup

READOUTS: dict[str, dict[str, Any]] = {
    "whiten": {"whiten": True},
    "soft": {"whiten": True, "power": 0.5},
    "map": {"whiten": "map"},
}


@dataclass(frozen=True)
class Own:
    """A comparison on your own environment; controls are added, see `rlpre.compare`."""

    env: str = ""  # Gymnasium id, or package:function of a function (n_envs, seed) -> VecEnv
    arm: tyro.conf.UseAppendAction[tuple[str, ...]] = ()  # NAME=MODE[:DIRECTORY|OBJECTIVE][,whiten|soft|map], repeated
    steps: int = 100_000  # environment steps of a run
    seeds: int = 3  # runs of every arm
    algo: str = "ppo"  # an algorithm of SB3 or sb3-contrib
    algo_kwargs: str = "{}"  # its arguments as JSON
    n_envs: int = 8  # environments of a run that are stepped together
    frames: int | Path = COLLECTED  # store of frames, or number of transitions to collect with random actions
    threshold: float = 0.8  # return to reach
    answer: str | None = None  # the arm that the headline is about; default the first
    eval_every: int | None = None  # environment steps between evaluations; default a twentieth of a run
    eval_episodes: int = 16  # episodes per evaluation
    deterministic: bool = False  # whether evaluations take the most likely actions
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)

    def run(self, out: Path, workers: int | None, executor: Executor | None) -> ComparisonResult:
        """Runs the comparison in ``out``, or goes on with one that was interrupted."""
        if not self.env or not self.arm:
            raise RlpreError("name your environment and at least one arm: --env ID|MODULE:FUNCTION --arm NAME=MODE")
        arms = dict(map(_arm, self.arm))
        if len(arms) < len(self.arm):
            raise RlpreError(f"two arms have one name among {', '.join(self.arm)}: give each its own")
        settings = {**vars(self), "make_env": envs.find(self.env), "arms": arms}
        settings |= {"algorithm": find_algorithm(self.algo), "algorithm_kwargs": _json(self.algo_kwargs)}
        for name in ("env", "arm", "algo", "algo_kwargs"):
            del settings[name]
        return rlpre.compare(**settings, out=out, workers=workers, executor=executor)


def _arm(text: str) -> tuple[str, Arm]:
    name, given, rest = text.partition("=")
    if not given:
        raise RlpreError(f"arm {text!r} has no mode: give NAME=MODE, such as mine=frozen:runs/encoders/a")
    rest, *options = rest.split(",")
    if len(options) > 1:
        raise RlpreError(f"arm {name!r} has options {', '.join(options)}: give whiten, soft or map")
    mode, _, encoder = rest.partition(":")
    readout = lookup(f"option of arm {name!r}", *options, READOUTS) if options else {}
    return name, Arm(mode, encoder or None, **readout)


def _json(text: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise RlpreError(f"--algo-kwargs is no JSON object ({error}): write '{{\"n_steps\": 128}}'") from error


PURPOSES = {
    "headroom": "Could any encoder save steps on seven clean levels?",
    "study": "Distracting DoorKey-5x5: an encoder, a clone, and both; `make study` runs it.",
    "quick": "One small clean room.",
    "full": "Four harder clean levels.",
    "ablation": "The frames, the objective, or the part that trains: what matters?",
    "why": "Is it the start or the conditioning of the features?",
    "eyes": "Levels with a drifting picture behind the cells.",
    "doom": "ViZDoom's Basic.",
    "clean": "The features of `eyes` on clean levels.",
    "held-out": "Pictures and a level that pretraining did not show.",
    "scaling": "Do more frames help?",
    "many": "One encoder for seven levels.",
    "memory": "What do the last 16 frames add to one?",
    "habits": "PPO from policies cloned from the frames' actions.",
    "own": "Your own environment.",
}
Comparison = tyro.extras.subcommand_type_from_defaults({**PRESETS, "habits": Habits(), "own": Own()}, PURPOSES)


def main(
    comparison: Annotated[Comparison, tyro.conf.arg(name="")],
    out: Path = Path("runs/compare"),
    published: Path | None = None,
    where: tyro.conf.OmitArgPrefixes[Where] = Where(),  # noqa: B008 (frozen)
) -> None:
    """Measures how many environment steps pretraining saves.

    Args:
        comparison: a preset whose settings can be changed, or your own environment.
        out: results directory; an interrupted comparison there goes on.
        published: directory of a published comparison, such as results/habits; its runs count as finished.
        where: processes of this machine, or a cluster.
    """
    if published:
        restore(out, published, again=[ENCODERS])
    with where.executor() as executor:
        result = comparison.run(out, where.workers, executor)
    print(result.text)
    print(f"page: {result.page}   numbers: {result.path}/summary.json   tensorboard --logdir {result.path}")


if __name__ == "__main__":
    run(main)
