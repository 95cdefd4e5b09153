"""The study of exposure bias: clone an expert, correct the clones, ask every policy in the four contexts, report."""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

import envs
from agents.clone import CloneConfig, clone
from agents.contexts import contexts, switch_curves
from agents.corrections import CORRECTIONS, Budget, correct
from agents.policy import SequencePolicy
from agents.recipes import Backbone
from agents.starts import BASELINE, CLONES, PRETRAINED, PROTOCOL, RANDOM, fresh_vision
from agents.tuning import Tuning, tune
from envs.experts import expert_for
from envs.trials import Trial, expert, play, test_seeds
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError, pretrain
from rlpre.device import resolve_device
from rlpre.encoders import Vocabulary
from rlpre.errors import at_least, lookup
from rlpre.loop import STANDARD_ROWS
from rlpre.measure.exposure import save_contexts
from rlpre.measure.probe import encode
from rlpre.objectives import parse_objective
from rlpre.report.exposure.report import report
from rlpre.report.exposure.results import CLONE, CONTROL, CORRECTION, RECORD, Question
from rlpre.study import Cell, StudyResult, run_study, succeed

Report = Callable[[int], None]
FRAMES, DEMONSTRATIONS, ENCODERS, RUNS = "frames", "demonstrations", "encoders", "runs"  # below a study's directory
CONTROLS = ("more-labels", "more-steps", "ppo-scratch")
PERCENT = 100  # of a cell's work, for the progress bar
BEHAVIOUR = "0.5*random + 0.5*expert:0.3"  # that the frames to pretrain on show


@dataclass(frozen=True)
class Level:
    """What is spent on a level, and how far it is measured."""

    demonstrations: int  # episodes of the expert that a clone learns from
    horizon: int  # steps over which errors are added up; about as many as the expert needs
    episodes: int  # for tests, the same for every policy
    labels: int  # further steps that the expert labels, for corrections that ask it
    steps: int  # environment steps of reinforcement learning


@dataclass(frozen=True)
class Exposure:
    """Everything that a study's numbers depend on, but for the seeds."""

    levels: dict[str, Level]
    tunings: dict[str, Tuning]  # corrections and controls by reinforcement learning, by name
    corrections: tuple[str, ...] = tuple(name for name in CORRECTIONS if name != BASELINE)  # supervised ones
    clones: tuple[str, ...] = PROTOCOL
    seeds: int = 4  # each draws demonstrations, weights, batches and worlds of its own
    first_seed: int = 0  # settings were tuned on seeds from 100 on
    switches: tuple[int, ...] = (25, 50, 100)  # percent of the horizon after which the baseline and the expert switch
    frames: int = 30_000  # transitions of all levels to pretrain the encoder of frames on
    steps: int = 500  # further gradient steps of supervised corrections
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    sequence: PretrainConfig = field(default_factory=lambda: PretrainConfig(batch=32, steps=1000))  # where a clone asks
    backbone: Backbone = field(default_factory=Backbone)
    clone: CloneConfig = field(default_factory=CloneConfig)


def expose(study: Exposure, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a study in ``out``, or goes on with one that was interrupted.

    Args:
        study: what to run.
        out: receives ``frames/``, ``demonstrations/``, ``encoders/`` and ``runs/`` (the policies with their report).
        workers: runs at a time on one machine; default one per core.
        executor: where they run, such as `rlpre.cluster.cluster`; default processes of this machine.

    Returns:
        The tables and the verdicts, for a terminal.

    Raises:
        RlpreError: for unknown names, a directory of another study, or a failed run; what does not depend on it has run
            by then.
    """
    check(study)
    out = out.resolve()  # workers may have been started elsewhere
    where: dict[str, Any] = {"executor": executor, "workers": workers}
    succeed(prepare(study, out, where))
    cloned = clone_experts(study, out, where)
    corrected = correct_clones(study, out, cloned, where)
    text = report(out / RUNS) if cloned.done else ""
    succeed(cloned, corrected)
    return text


def prepare(study: Exposure, out: Path, where: dict[str, Any]) -> StudyResult:
    """Records each level's demonstrations for each seed, and makes the two encoders of frames, once."""
    envs.collect(list(study.levels), out / FRAMES, study.frames, study.pretrain.seed, BEHAVIOUR)
    cells = [encoder_cell(study, name) for name in (PRETRAINED, RANDOM)]
    cells += [Cell(DEMONSTRATIONS, level, seed) for level in study.levels for seed in _seeds(study)]
    steps = {ENCODERS: study.pretrain.steps, DEMONSTRATIONS: PERCENT}
    return run_study(out, cells, partial(prepare_cell, study, out), configuration(study), steps, keep=True, **where)


def clone_experts(study: Exposure, out: Path, where: dict[str, Any]) -> StudyResult:
    """Clones the expert of each level with each seed, in all arms of ``study.clones``."""
    cells = [Cell(level, arm, seed) for level in study.levels for arm in study.clones for seed in _seeds(study)]
    steps = dict.fromkeys(study.levels, study.clone.steps)
    return run_study(out / RUNS, cells, partial(clone_cell, study, out), configuration(study), steps, **where)


def correct_clones(study: Exposure, out: Path, cloned: StudyResult, where: dict[str, Any]) -> StudyResult:
    """Corrects the baseline's clones, those that there are."""
    starts = [cell for cell in cloned.done if cell.arm == BASELINE]
    # reinforcement learning takes longest: started first, it leaves no core idle at the end
    cells = [replace(start, arm=arm) for arm in (*study.tunings, *study.corrections) for start in starts]
    steps = dict.fromkeys(study.levels, PERCENT)
    return run_study(out / RUNS, cells, partial(correct_cell, study, out), configuration(study), steps, **where)


def prepare_cell(study: Exposure, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Records demonstrations, or makes an encoder of frames."""
    if cell.environment == DEMONSTRATIONS:
        envs.demonstrations(cell.arm, out, study.levels[cell.arm].demonstrations, cell.seed)
        return
    frames = FrameStore.open(home / FRAMES)
    if cell.arm == PRETRAINED:
        pretrain(frames, out=out, config=study.pretrain, report=report)
        return
    torch.manual_seed(cell.seed)
    encoder = fresh_vision(study.pretrain, frames.space)
    rows = frames.sample(STANDARD_ROWS, np.random.default_rng(cell.seed))
    encoder.standardise(encode(encoder, frames, rows))  # as pretraining does: the weights alone differ
    encoder.save(out)


def clone_cell(study: Exposure, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Clones the expert and measures the clone."""
    start, store = CLONES[cell.arm], _demonstrations(home, cell)
    vision, frames = Encoder.load(home / encoder_cell(study, start.vision).path), FrameStore.open(home / FRAMES)
    torch.manual_seed(cell.seed)
    # one vocabulary for all arms: that of what any of them learns from
    encoder = start.build(study.backbone, vision, store.num_actions, Vocabulary.of([*store.missions, *frames.missions]))
    if start.objective:
        config = replace(study.sequence, objective=start.objective, seed=cell.seed)
        encoder = pretrain(frames, encoder=encoder, out=out / PRETRAINED, config=config).encoder.causal_copy()
    policy = clone(store, encoder, out, replace(study.clone, seed=cell.seed), report)
    measure(study, policy, cell, out)


def correct_cell(study: Exposure, home: Path, cell: Cell, out: Path, report: Report) -> None:
    """Corrects one clone and measures what it has become."""
    level, start = study.levels[cell.environment], home / RUNS / replace(cell, arm=BASELINE).path
    policy = SequencePolicy.load(start, str(resolve_device(study.clone.device)))
    if cell.arm in study.tunings:
        percent = _percent(report, level.steps)
        tuning = study.tunings[cell.arm]
        policy = tune(policy, cell.environment, out, level.steps, cell.seed, tuning, percent)
    else:
        budget, config = Budget(level.labels, study.steps), replace(study.clone, seed=cell.seed)
        percent = _percent(report, study.steps)
        policy = correct(cell.arm, policy, _demonstrations(home, cell), out, budget, config, percent)
    measure(study, policy, cell, out)


def measure(study: Exposure, policy: SequencePolicy, cell: Cell, out: Path) -> None:
    """Asks a policy in the four contexts, and the baseline also in episodes in which it and the expert switch."""
    level, settings = cell.environment, study.levels[cell.environment]
    seeds = test_seeds(level, settings.episodes)
    found = contexts(policy, level, seeds, demonstrated(level, settings.episodes))
    curves = None
    if cell.arm == BASELINE:
        steps = sorted({settings.horizon * percent // PERCENT for percent in study.switches})
        curves = switch_curves(policy, level, seeds, steps)
    save_contexts(out / RECORD, found, curves)


@lru_cache(maxsize=8)
def demonstrated(level: str, episodes: int) -> Sequence[Trial]:
    """The expert's trials of a level's test episodes, played once in each process."""
    return play(level, test_seeds(level, episodes), expert())


def question(study: Exposure) -> Question:
    """What the study asks, fixed before it runs."""
    kinds = {arm: CORRECTION if CLONES[arm].objective else CLONE for arm in study.clones}
    kinds |= {arm: CONTROL if arm in CONTROLS else CORRECTION for arm in (*study.corrections, *study.tunings)}
    return Question(kinds, {name: level.horizon for name, level in study.levels.items()}, BASELINE)


def configuration(study: Exposure) -> dict[str, Any]:
    """What a directory's results depend on, JSON-like; seeds may be added later."""
    settings = asdict(study)
    for free in ("seeds", "first_seed"):
        del settings[free]
    del settings["pretrain"]["collapse"]  # it decides no weights
    return {**settings, "exposure": asdict(question(study))}


def check(study: Exposure) -> None:
    """Refuses at once what would fail half-way.

    Raises:
        RlpreError: for unknown names, numbers out of range, a missing device, or a level without an expert.
    """
    at_least(study, seeds=1, first_seed=0, frames=1)
    if not study.levels:
        raise RlpreError("the study has no level: give at least one, such as BabyAI-PutNextLocal-v0")
    for name in study.clones:
        lookup("clone", name, CLONES)
    if both := sorted(set(study.corrections) & set(study.tunings)):
        raise RlpreError(f"{both[0]!r} names a correction and a tuning: give the tuning another name")
    for tuning in study.tunings.values():
        tuning.check()
    rounds = max((lookup("correction", name, CORRECTIONS).rounds for name in study.corrections), default=1)
    at_least(study, steps=rounds)
    for level in study.levels.values():
        at_least(level, demonstrations=2, episodes=1, labels=rounds, steps=1)
    question(study)
    if study.clone.seed != CloneConfig.seed:
        raise RlpreError("clone.seed is decided by the study itself: leave it out, or set first_seed")
    study.clone.check()
    parse_objective(study.pretrain.objective)
    resolve_device(study.pretrain.device)
    for name in study.levels:
        _check_world(study, name)


def _check_world(study: Exposure, name: str) -> None:
    world = envs.make(name)
    world.reset(seed=0)
    if expert_for(world) is None:
        raise RlpreError(f"there is no expert for {name}: choose a level of BabyAI that its bot can solve")
    vision = fresh_vision(study.pretrain, world.observation_space)
    CLONES[BASELINE].build(study.backbone, vision, int(world.action_space.n), None)


def encoder_cell(study: Exposure, name: str) -> Cell:
    """The cell whose run directory holds an encoder of frames."""
    return Cell(ENCODERS, name, study.pretrain.seed)


def _demonstrations(home: Path, cell: Cell) -> FrameStore:
    return FrameStore.open(home / Cell(DEMONSTRATIONS, cell.environment, cell.seed).path)


def _seeds(study: Exposure) -> range:
    return range(study.first_seed, study.first_seed + study.seeds)


def _percent(report: Report, total: int) -> Report:
    return lambda done: report(min(PERCENT, PERCENT * done // total))
