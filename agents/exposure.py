"""The study of exposure bias: clone an expert, correct the clones, measure every policy in four contexts, report."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import torch
from gymnasium import spaces

import envs
from agents.cloning import CloneConfig, Report, SequencePolicy, clone
from agents.corrections import CORRECTIONS, Tuning, correct, tune
from agents.exposure_metrics import record
from agents.exposure_report import BASELINE, CLONE, CONTROL, CORRECTION, RECORD, report
from agents.presets import PPOConfig
from envs.minigrid.experts import expert_for
from envs.minigrid.trials import ExpertActor, Trial, layout_seeds, play
from rlpre import Encoder, FrameStore, InputSpec, PretrainConfig, RlpreError, pretrain, whiten
from rlpre.compare.arms import Backbone
from rlpre.compare.runner import Measurements, Run, StudyResult, run_study, succeed
from rlpre.encoders import Vocabulary
from rlpre.errors import at_least, lookup
from rlpre.features import encode
from rlpre.objectives import parse_objective
from rlpre.pretrain import STANDARD_ROWS
from rlpre.utils import resolve_device

FRAMES, DEMONSTRATIONS, ENCODERS, RUNS = "frames", "demonstrations", "encoders", "runs"  # in a study's directory
PRETRAINED, RANDOM, FRESH_MAP = "pretrained", "random", "fresh-map"  # vision encoders; the last is a whitened map
CONTROLS = ("more-labels", "more-steps", "ppo-scratch")
PERCENT = 100  # of a run's work, for the progress bar
BEHAVIOUR = "0.5*random + 0.5*expert:0.3"  # of the agents that record the frames for pretraining


@dataclass(frozen=True)
class Start:
    """The sequence encoder that a clone starts from."""

    vision: str = ""  # encodes the frames; empty: that of the study
    previous_action: bool = True  # whether tokens hold the previous action
    objective: str = ""  # pretrains the sequence encoder on trajectories; empty: no pretraining


CLONES = {
    BASELINE: Start(),
    "clone-observation": Start(previous_action=False),
    "clone-random": Start(RANDOM),
    "clone-random-observation": Start(RANDOM, previous_action=False),
    "clone-autoregressive": Start(objective="autoregressive"),
    "clone-masked": Start(objective="masked"),
}
PROTOCOL = tuple(name for name, start in CLONES.items() if not start.objective)


@dataclass(frozen=True)
class Level:
    """The budget of a level, and how it is measured."""

    demonstrations: int  # episodes of the expert that a clone learns from
    horizon: int  # steps over which errors are added up; about as many as the expert needs
    episodes: int  # for tests, the same for every policy
    labels: int  # further steps that the expert labels, for corrections that ask it
    steps: int  # environment steps of PPO


@dataclass(frozen=True)
class Exposure:
    """Everything that decides the numbers of a study."""

    levels: dict[str, Level]
    tunings: dict[str, Tuning]  # corrections and controls by PPO, by name
    corrections: tuple[str, ...] = tuple(CORRECTIONS)  # supervised ones
    clones: tuple[str, ...] = PROTOCOL
    seeds: int = 4  # each draws demonstrations, weights, batches and layouts of its own
    first_seed: int = 0  # settings were tuned on seeds from 100 on
    vision: str = PRETRAINED  # encodes the frames of all clones but those that are "random"
    switches: tuple[int, ...] = (25, 50, 100)  # percent of the horizon after which clone and expert switch
    frames: int = 30_000  # transitions, of all levels together, to pretrain the vision encoder on
    noise: float = 0.0  # probability of a random action in demonstrations
    previous_action: bool = True  # whether tokens hold the previous action, unless a clone is one of observations
    steps: int = 500  # further gradient steps of supervised corrections
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)  # of the vision encoder
    sequence: PretrainConfig = field(default_factory=lambda: PretrainConfig(batch=32, steps=1000))  # of clones with one
    backbone: Backbone = field(default_factory=Backbone)
    clone: CloneConfig = field(default_factory=CloneConfig)

    @property
    def arms(self) -> dict[str, str]:
        """Every arm and its kind, in reading order."""
        kinds = {arm: CORRECTION if CLONES[arm].objective else CLONE for arm in self.clones}
        return kinds | {arm: CONTROL if arm in CONTROLS else CORRECTION for arm in (*self.corrections, *self.tunings)}


def expose(study: Exposure, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a study, or resumes it; a failed run is reported after all runs that do not depend on it.

    Args:
        study: what to run.
        out: receives ``frames/``, ``demonstrations/``, ``encoders/`` and ``runs/`` (the policies and the report).
        workers: runs at a time on one machine; default one per core.
        executor: where they run; default processes of this machine.

    Returns:
        The report as text.
    """
    check(study)
    out = out.resolve()  # workers may have another working directory
    settings = asdict(study)
    for free in ("seeds", "first_seed"):  # more seeds can be added later
        del settings[free]
    del settings["pretrain"]["collapse"]  # does not change the weights
    configuration = {"study": "exposure", **settings}
    execute = partial(run_study, configuration=configuration, executor=executor, workers=workers)
    seeds = range(study.first_seed, study.first_seed + study.seeds)

    envs.collect(list(study.levels), out / FRAMES, study.frames, study.pretrain.seed, BEHAVIOUR)
    runs = [encoder_run(study, name) for name in (study.vision, RANDOM)]
    runs += [Run(DEMONSTRATIONS, level, seed) for level in study.levels for seed in seeds]
    steps = {ENCODERS: study.pretrain.steps, DEMONSTRATIONS: PERCENT}
    succeed(execute(out, runs, partial(prepare, study, out), steps=steps, keep=True))

    runs = [Run(level, arm, seed) for level in study.levels for arm in study.clones for seed in seeds]
    steps = dict.fromkeys(study.levels, study.clone.steps)
    cloned: StudyResult = execute(out / RUNS, runs, partial(clone_expert, study, out), steps=steps)

    starts = [run for run in cloned.done if run.arm == BASELINE]
    runs = [replace(start, arm=arm) for arm in (*study.tunings, *study.corrections) for start in starts]  # PPO is slow
    steps = dict.fromkeys(study.levels, PERCENT)
    corrected = execute(out / RUNS, runs, partial(correct_clone, study, out), steps=steps)

    horizons = {name: level.horizon for name, level in study.levels.items()}
    text = report(out / RUNS, study.arms, horizons) if cloned.done else ""
    succeed(cloned, corrected)
    return text


def prepare(study: Exposure, home: Path, run: Run, out: Path, report: Report) -> None:
    """Records demonstrations, or makes a vision encoder."""
    if run.task == DEMONSTRATIONS:
        envs.demonstrations(run.arm, out, study.levels[run.arm].demonstrations, run.seed, study.noise)
        return
    frames = FrameStore.open(home / FRAMES)
    if run.arm == PRETRAINED:
        pretrain(frames, out=out, config=study.pretrain, report=report)
        return
    torch.manual_seed(run.seed)
    encoder = fresh_vision(study.pretrain, frames.space)
    if run.arm == FRESH_MAP:
        whiten(encoder, frames, run.seed, features="map").save(out)
        return
    rows = frames.sample(STANDARD_ROWS, np.random.default_rng(run.seed))
    encoder.standardise(encode(encoder, frames, rows))  # as pretraining does, so that only the weights differ
    encoder.save(out)


def clone_expert(study: Exposure, home: Path, run: Run, out: Path, report: Report) -> Measurements:
    """Clones the expert and measures the clone."""
    start, store, frames = CLONES[run.arm], demonstrations(home, run), FrameStore.open(home / FRAMES)
    vision = Encoder.load(home / encoder_run(study, start.vision or study.vision).path)
    vocabulary = Vocabulary.from_missions([*store.missions, *frames.missions])  # the same for all arms
    remembers = study.previous_action and start.previous_action
    torch.manual_seed(run.seed)
    encoder = study.backbone.build(vision, store.num_actions, vocabulary, start.objective, remembers)
    if start.objective:
        config = replace(study.sequence, objective=start.objective, seed=run.seed)
        encoder = pretrain(frames, encoder=encoder, out=out / PRETRAINED, config=config).encoder.causal_copy()
    policy = clone(store, encoder, out, replace(study.clone, seed=run.seed), report)
    return measure(study, policy, run, out)


def correct_clone(study: Exposure, home: Path, run: Run, out: Path, report: Report) -> Measurements:
    """Corrects the baseline's clone of the same seed and measures the result."""
    level, start = study.levels[run.task], home / RUNS / replace(run, arm=BASELINE).path
    policy = SequencePolicy.load(start, str(resolve_device(study.clone.device)))

    def percent(total: int) -> Report:
        return lambda done: report(min(PERCENT, PERCENT * done // total))

    if run.arm in study.tunings:
        tuning = study.tunings[run.arm]
        policy = tune(policy, run.task, out, level.steps, run.seed, tuning, percent(level.steps))
    else:
        config = replace(study.clone, steps=study.steps, seed=run.seed)
        store = demonstrations(home, run)
        policy = correct(run.arm, policy, store, out, level.labels, config, percent(study.steps))
    return measure(study, policy, run, out)


def measure(study: Exposure, policy: SequencePolicy, run: Run, out: Path) -> Measurements:
    """Measures a policy in the four contexts, the baseline also in episodes in which clone and expert switch."""
    level = study.levels[run.task]
    switches = sorted({level.horizon * percent // PERCENT for percent in study.switches})
    experts = expert_trials(run.task, level.episodes)
    found = record(policy, run.task, experts, switches if run.arm == BASELINE else ())
    found.save(out / RECORD)
    return found.measurements(level.horizon)


@lru_cache(maxsize=8)
def expert_trials(level: str, episodes: int) -> Sequence[Trial]:
    """The expert's trials of a level's test episodes, played once in each process."""
    return play(level, layout_seeds(level, "test", episodes), ExpertActor())


def check(study: Exposure) -> None:
    """Refuses at once what would fail later: unknown names, numbers out of range, missing devices and experts."""
    at_least(study, seeds=1, first_seed=0, frames=1)
    if not study.levels:
        raise RlpreError("the study has no level: give at least one, such as BabyAI-PutNextLocal-v0")
    for name in study.clones:
        lookup("clone", name, CLONES)
    lookup("arm", BASELINE, study.arms)
    lookup("vision", study.vision, dict.fromkeys((PRETRAINED, RANDOM, FRESH_MAP)))
    if both := sorted(set(study.corrections) & set(study.tunings)):
        raise RlpreError(f"{both[0]!r} names a correction and a tuning: give the tuning another name")
    for tuning in study.tunings.values():
        tuning.check()
    rounds = max((lookup("correction", name, CORRECTIONS).rounds for name in study.corrections), default=1)
    at_least(study, steps=rounds)
    for level in study.levels.values():
        at_least(level, demonstrations=2, horizon=1, episodes=1, labels=rounds, steps=1)
    if study.clone.seed != CloneConfig.seed:
        raise RlpreError("clone.seed is decided by the study itself: leave it out, or set first_seed")
    study.clone.check()
    parse_objective(study.pretrain.objective)
    resolve_device(study.pretrain.device)
    for name in study.levels:
        world = envs.make(name)
        world.reset(seed=0)
        if expert_for(world) is None:
            raise RlpreError(f"there is no expert for {name}: choose a level of BabyAI that its bot can solve")
        study.backbone.build(fresh_vision(study.pretrain, world.observation_space), int(world.action_space.n))


def fresh_vision(config: PretrainConfig, frames: spaces.Box) -> Encoder:
    """A vision encoder with the fresh weights that pretraining starts from."""
    arguments = {} if config.features is None else {"features": config.features}
    return Encoder(config.encoder, InputSpec(frames.shape), **arguments)


def encoder_run(study: Exposure, name: str) -> Run:
    """The run whose directory holds a vision encoder."""
    return Run(ENCODERS, name, study.pretrain.seed)


def demonstrations(home: Path, run: Run) -> FrameStore:
    """The demonstrations that the clones of a run's level and seed learn from."""
    return FrameStore.open(home / Run(DEMONSTRATIONS, run.task, run.seed).path)


LONGEST = "BabyAI-KeyCorridorS3R3-v0"
BLOCKED = "BabyAI-BlockedUnlockPickup-v0"
MAZE = "BabyAI-GoToObjMazeS5-v0"
# demonstrations: enough for clones to accomplish some missions, and not all; horizon: the expert's mean length;
# labels: in pilots with fewer, the weights with the lowest held-out loss came early, so that more steps did not help
LEVELS = {
    LONGEST: Level(demonstrations=300, horizon=60, episodes=16, labels=20_000, steps=24_576),
    BLOCKED: Level(demonstrations=300, horizon=35, episodes=24, labels=50_000, steps=24_576),
    MAZE: Level(demonstrations=1000, horizon=30, episodes=24, labels=50_000, steps=24_576),
    "BabyAI-PutNextLocal-v0": Level(demonstrations=3000, horizon=12, episodes=48, labels=30_000, steps=24_576),
    "BabyAI-GoToLocal-v0": Level(demonstrations=1000, horizon=6, episodes=100, labels=5_000, steps=24_576),
}
SCRATCH = Tuning("scratch", value_first=0.0)
TUNINGS = {
    "ppo": Tuning(),
    "ppo-kl": Tuning(beta=0.2),
    "ppo-scratch": replace(SCRATCH, ppo=replace(SCRATCH.ppo, ent_coef=0.01)),
}
VISION = PretrainConfig(features=512, steps=1000, checkpoint_every=500)
LONG = PPOConfig(learning_rate=1e-3, n_epochs=4)  # with these, one pilot run solved MultiRoom-N4-S5 from a clone
SMALL = {"n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1}

EXPOSURES = {
    # tests that everything runs; learns nothing
    "smoke": Exposure(
        levels={"BabyAI-GoToLocal-v0": Level(demonstrations=20, horizon=6, episodes=3, labels=20, steps=64)},
        tunings={name: replace(tuning, ppo=replace(tuning.ppo, **SMALL)) for name, tuning in TUNINGS.items()},
        clones=(BASELINE, "clone-random-observation", "clone-masked"),
        seeds=1,
        switches=(50,),
        frames=320,
        steps=5,
        pretrain=PretrainConfig(features=16, steps=2, batch=16, checkpoint_every=2),
        sequence=PretrainConfig(steps=2, batch=8, checkpoint_every=2),
        backbone=Backbone(width=16, layers=1, window=8),
        clone=CloneConfig(steps=4, batch=4, check_every=2),
    ),
    "quick": Exposure(
        levels={BLOCKED: replace(LEVELS[BLOCKED], episodes=12, labels=5_000, steps=10_240)},
        tunings=TUNINGS,
        clones=(BASELINE,),
        seeds=3,
        switches=(50,),
        frames=10_000,
        steps=300,
        pretrain=replace(VISION, steps=150, checkpoint_every=150),
        clone=CloneConfig(steps=800),
    ),
    # does a policy gain from a pretrained sequence encoder, and from which objective? In a pilot, 3000 steps on 30,000
    # frames made held-out frames less likely than 1000 steps did; on 100,000 frames they made them much likelier
    "objectives": Exposure(
        levels={BLOCKED: LEVELS[BLOCKED]},
        tunings={},
        corrections=(),
        clones=(BASELINE, "clone-autoregressive", "clone-masked"),
        seeds=5,
        switches=(50,),
        frames=100_000,
        pretrain=VISION,
        sequence=PretrainConfig(batch=32, steps=3000),
    ),
    # does PPO cure it where PPO learns? About 3,000 labels: actions of an expert with noise. Features are those of
    # agents.habits, and no clone remembers: teacher forcing and acting alone differ in the states only
    "reinforced": Exposure(
        levels={
            "MiniGrid-DoorKey-6x6-v0": Level(160, horizon=13, episodes=48, labels=3_000, steps=204_800),
            "MiniGrid-MultiRoom-N4-S5-v0": Level(60, horizon=34, episodes=48, labels=3_000, steps=204_800),
        },
        tunings={name: replace(tuning, ppo=LONG) for name, tuning in TUNINGS.items()},
        corrections=(),
        clones=(BASELINE,),
        seeds=5,
        vision=FRESH_MAP,
        switches=(50,),
        frames=10_000,
        noise=0.3,
        previous_action=False,
        backbone=Backbone(layers=1, window=1),
        clone=CloneConfig(labels="action"),
    ),
    "full": Exposure(levels=LEVELS, tunings=TUNINGS, steps=1000, pretrain=VISION),
    # in "full", corrections cured the one level with five times as many labels as demonstrated steps; the others here
    "labels": Exposure(
        levels={LONGEST: replace(LEVELS[LONGEST], labels=90_000), MAZE: replace(LEVELS[MAZE], labels=150_000)},
        tunings={},
        corrections=("dart", "dagger", "more-labels"),
        clones=(BASELINE,),
        seeds=5,
        switches=(50,),
        steps=1000,
        pretrain=VISION,
    ),
}
