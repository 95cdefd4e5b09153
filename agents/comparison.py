"""What a comparison is: its tasks, frames, arms and seeds, and what each of its runs starts from."""

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.recipes import RECIPES
from agents.train import TrainConfig
from rlpre import PretrainConfig, RlpreError
from rlpre.device import resolve_device
from rlpre.encoders import find_architecture
from rlpre.errors import at_least, lookup
from rlpre.loop import kept
from rlpre.objectives import parse_objective
from rlpre.report.comparison.results import Metric
from rlpre.study import Cell

DECIDED = ("env", "agent", "encoder", "seed", "steps")  # settings of a run that differ from run to run
# settings younger than some studies, which know nothing of them: told only where they change something
YOUNGER = {"distinct": None, "step": None, "whitened": False, "each_seed": False, "probe": 0, "collapse": "warn"}
YOUNGER |= {"past": "", "backbone": asdict(TrainConfig().backbone)}
WHITENED, CAUSAL = "whitened", "causal"  # checkpoints below another one


@dataclass(frozen=True)
class Offline:
    """Frames to pretrain on."""

    sources: tuple[str, ...]  # environments
    steps: int  # transitions to collect
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects them, see envs.collect
    distinct: int | None = None  # cut to whole episodes with exactly so many different frames; None: all


@dataclass(frozen=True)
class Arm:
    """An agent of a comparison: a recipe, and how its encoder was pretrained."""

    agent: str  # a name in RECIPES
    objective: str = ""  # empty for agents that start from fresh weights
    data: str = ""  # a name in the comparison's data; empty for its first
    step: int | None = None  # of the pretraining, the encoder as it was then (0: as it started); None: at the end
    whitened: bool = False  # whether its features are whitened over the frames
    past: str = ""  # the objective by which a sequence encoder over it was pretrained, where the agent starts from one


@dataclass(frozen=True)
class Comparison:
    """Everything that a comparison's numbers depend on, but for the seeds."""

    environments: tuple[str, ...]  # where agents are trained
    steps: tuple[int, ...]  # environment steps of a run in each of them, or one number for all
    data: dict[str, Offline]  # offline frames by name
    arms: dict[str, Arm]  # by name, in reading order; the baseline among them
    answer: str  # the arm that "how many steps did pretraining save?" is about, named before the run
    baseline: str = "scratch"  # the arm that the others are compared with
    seeds: int = 3  # runs of every arm in every environment
    first_seed: int = 0  # recipes were tuned on seeds from 100 on
    threshold: float = 0.8  # return to reach
    each_seed: bool = False  # every seed pretrains encoders of its own, instead of all runs sharing one
    probe: int = (
        0  # transitions to collect in every environment, on which frozen encoders are measured; 0: they are not
    )
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sequence: PretrainConfig = field(default_factory=lambda: PretrainConfig(batch=32, steps=500))  # of train.backbone
    train: TrainConfig = field(default_factory=TrainConfig)


def check(comparison: Comparison) -> None:
    """Refuses at once what would fail half-way.

    Raises:
        RlpreError: for unknown names, numbers that are too small, a missing device, or an arm whose agent and objective
            do not go together.
    """
    at_least(comparison, seeds=1, first_seed=0, probe=0)
    for name in DECIDED:
        if getattr(comparison.train, name) != getattr(TrainConfig, name):
            raise RlpreError(f"train.{name} is decided by the comparison itself: leave it out")
    budgets(comparison)
    Metric(dict.fromkeys(comparison.arms, 0), comparison.answer, comparison.baseline)
    find_architecture(comparison.pretrain.encoder)
    resolve_device(comparison.pretrain.device)
    fresh = (comparison.train.architecture, comparison.train.features)
    pretrained = (comparison.pretrain.encoder, comparison.pretrain.features)
    if fresh != pretrained:
        raise RlpreError(f"arms differ in architecture, {fresh} fresh and {pretrained} pretrained: give train the same")
    for name, data in comparison.data.items():
        if data.distinct is not None and data.distinct < 1:
            raise RlpreError(f"data {name!r} would hold {data.distinct} different frames: ask for at least 1")
    for name, arm in comparison.arms.items():
        _check_arm(comparison, name, arm)
        for environment in comparison.environments:
            train_config(comparison, Path(), Cell(environment, name, comparison.first_seed)).check()


def _check_arm(comparison: Comparison, name: str, arm: Arm) -> None:
    if lookup("agent", arm.agent, RECIPES).remembers_already != bool(arm.past):
        wrong = "starts from no sequence encoder: leave out" if arm.past else "starts from a sequence encoder: give it"
        raise RlpreError(f"arm {name!r}: agent {arm.agent!r} {wrong} past, by which one is pretrained")
    if arm.past:
        parse_objective(arm.past, "sequence")
    if arm.objective:
        parse_objective(arm.objective, "vision")
        lookup("data", data_of(comparison, arm), comparison.data)
    elif arm.whitened or arm.past or arm.step is not None:
        raise RlpreError(f"arm {name!r} has no pretraining to take step, whitened or past from: give it an objective")
    if arm.step is not None and not 0 <= arm.step <= comparison.pretrain.steps:
        raise RlpreError(
            f"arm {name!r} starts from step {arm.step}, but pretraining has {comparison.pretrain.steps}: choose one"
        )


def budgets(comparison: Comparison) -> dict[str, int]:
    """Environment steps of a run by environment.

    Raises:
        RlpreError: if there are more or fewer numbers than environments.
    """
    environments, steps = comparison.environments, comparison.steps
    if len(steps) not in (1, len(environments)):
        raise RlpreError(f"{len(steps)} numbers of steps for {len(environments)} environments: give one for each")
    return dict(zip(environments, steps * (len(environments) // len(steps)), strict=True))


def configuration(comparison: Comparison) -> dict[str, Any]:
    """What a directory's results depend on, JSON-like; seeds may be added later, and the metric says the baseline."""
    settings = _told(asdict(comparison))
    remembers = any(arm.past for arm in comparison.arms.values())
    for free in ("seeds", "first_seed", "baseline", *(() if remembers else ("sequence",))):
        del settings[free]
    return settings


def _told(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without the younger ones that are as if they were not there."""
    told = {name: _told(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in told.items() if name not in YOUNGER or value != YOUNGER[name]}


def train_config(comparison: Comparison, home: Path, cell: Cell) -> TrainConfig:
    """The configuration of one run of a comparison whose results directory is ``home``."""
    arm = comparison.arms[cell.arm]
    encoder = str(home / encoder_path(comparison, arm, cell.seed)) if arm.objective else ""
    steps = budgets(comparison)[cell.environment]
    return replace(
        comparison.train, env=cell.environment, agent=arm.agent, encoder=encoder, seed=cell.seed, steps=steps
    )


def data_of(comparison: Comparison, arm: Arm) -> str:
    """The name of the frames that an arm's encoder is pretrained on."""
    return arm.data or next(iter(comparison.data))


def encoder_cell(comparison: Comparison, arm: Arm, seed: int) -> Cell:
    """The cell whose run directory holds the encoder of an arm's run."""
    own = seed - comparison.first_seed if comparison.each_seed else 0
    return Cell("encoders", f"{arm.objective}@{data_of(comparison, arm)}", comparison.pretrain.seed + own)


def encoder_path(comparison: Comparison, arm: Arm, seed: int) -> Path:
    """The checkpoint that an arm's run starts from, relative to the comparison's directory."""
    return variant(encoder_cell(comparison, arm, seed).path, arm)


def variant(pretrained: Path, arm: Arm) -> Path:
    """The checkpoint of an arm below the directory of its pretraining."""
    path = pretrained if arm.step is None else kept(pretrained, arm.step)
    path = path / WHITENED if arm.whitened else path
    return path / arm.past / CAUSAL if arm.past else path


def seeds(comparison: Comparison) -> range:
    """Those of every arm in every environment."""
    return range(comparison.first_seed, comparison.first_seed + comparison.seeds)
