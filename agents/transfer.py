"""The study of transfer: pretrain on right and wrong sources, use every checkpoint on other tasks, report.

Sources can be wrong on purpose: drawn in other colours, or with actions that were shuffled.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import recall_score
from torch import Tensor, nn
from torch.nn import functional as F

import envs
from agents.presets import PPOConfig, TrainConfig
from agents.transfer_report import SCORE, SCRATCH, Design, arm_name, read_scores, report, selected
from envs.minigrid.experts import expert_for
from rlpre import Encoder, FrameStore, InputSpec, PretrainConfig, RlpreError, pretrain
from rlpre.compare.runner import Measurements, Run, run_study, succeed
from rlpre.compare.train import train
from rlpre.data.collect import resume_store
from rlpre.data.store import digests
from rlpre.errors import at_least, lookup
from rlpre.evaluation.stats import area_under_curve
from rlpre.objectives import parse_objective
from rlpre.pretrain import quiet, step_directory
from rlpre.sb3.policy import MODES, Mode
from rlpre.utils import resolve_device, to_device

FRAMES, DEMONSTRATIONS, ENCODERS, RUNS = "frames", "demonstrations", "encoders", "runs"  # in a study's directory
DECIDED = {"pretrain": ("steps", "seed"), "train": ("env", "agent", "encoder", "seed")}  # settings that the study sets
AGENTS = {name: MODES[name] for name in ("frozen", "finetuned")}  # that start from a checkpoint
LABELS, VALIDATION, TEST = "labels", "validation", "test"  # parts of a task's frames
CHUNK = 512

Report = Callable[[int], None]


@dataclass(frozen=True)
class LabelsConfig:
    """Settings of the measure "labels": how well the expert's action is predicted after a few labelled frames."""

    labels: int = 300  # labelled frames of the task
    episodes: int = 200  # of the expert, to label frames of, and as many to score on
    noise: float = 0.3  # probability of a random action in them, so that the expert shows how to recover
    steps: int = 400  # gradient steps
    batch: int = 32  # labelled frames per gradient step
    lr: float = 2e-3  # AdamW for the head, and for an encoder with fresh weights; others learn at the mode's share
    weight_decay: float = 1e-2  # AdamW's default
    device: str = "auto"  # "cpu", "cuda", ...


@dataclass(frozen=True)
class Source:
    """Frames to pretrain on, which can be wrong on purpose."""

    environments: tuple[str, ...]
    steps: int  # transitions to collect
    behaviour: str = "0.5*random + 0.5*expert:0.3"  # who collects them, see envs.collect
    palette: str = "day"  # colours of the frames
    shuffled: bool = False  # whether the actions are permuted among all steps


@dataclass(frozen=True)
class Transfer:
    """Everything that decides the numbers of a study."""

    sources: dict[str, Source]  # the first is the right one
    tasks: tuple[str, ...]
    measure: str = "labels"  # what is scored, a name in MEASURES
    agent: str = "frozen"  # a name in AGENTS; scratch is added
    checkpoints: tuple[int, ...] = (0, 50, 200, 1000)  # pretraining steps whose encoders are tested; the last ends it
    validation: int = 3  # seeds that choose a checkpoint
    seeds: int = 5  # further seeds that test it; every seed has a pretraining of its own
    first_seed: int = 0  # settings were tuned on seeds from 100 on
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    labels: LabelsConfig = field(default_factory=LabelsConfig)  # for measure "labels"
    train: TrainConfig = field(default_factory=TrainConfig)  # for measure "rl"; view, tile size and colours for both

    @property
    def validation_seeds(self) -> range:
        """The seeds that choose a checkpoint."""
        return range(self.first_seed, self.first_seed + self.validation)

    @property
    def test_seeds(self) -> range:
        """The seeds that test it."""
        return range(self.validation_seeds.stop, self.validation_seeds.stop + self.seeds)


def transfer(study: Transfer, out: Path, workers: int | None = None, executor: Executor | None = None) -> str:
    """Runs a study, or resumes it.

    Args:
        study: what to run.
        out: receives ``frames/``, ``demonstrations/``, ``encoders/`` and ``runs/`` (the scores and the report).
        workers: runs at a time on one machine; default one per core.
        executor: where they run; default processes of this machine.

    Returns:
        The report as text.
    """
    check(study)
    out = out.resolve()  # workers may have another working directory
    settings = asdict(study)
    del settings["seeds"], settings["train"]["backbone"]  # seeds can be added later; no agent has a backbone
    configuration = {"study": "transfer", **settings}
    execute = partial(run_study, configuration=configuration, executor=executor, workers=workers)
    for name in study.sources:
        collect(study, name, out)
    if study.measure == "labels":
        for task in study.tasks:
            record_labels(task, out / DEMONSTRATIONS, study.labels, study.train.look)

    seeds = (*study.validation_seeds, *study.test_seeds)
    runs = [Run(ENCODERS, name, seed) for name in study.sources for seed in seeds]
    steps = {ENCODERS: max(study.checkpoints)}
    succeed(execute(out, runs, partial(pretrain_source, study, out), steps=steps, keep=True))

    def score_all(pairs: set[tuple[str, str]], seeds: Sequence[int]) -> None:
        ordered = sorted(pairs, key=lambda pair: (pair[1] != SCRATCH, pair))  # scratch trains an encoder: the slowest
        runs = [Run(task, name, seed) for task, name in ordered for seed in seeds]
        steps = dict.fromkeys(study.tasks, study.train.steps if study.measure == "rl" else study.labels.steps)
        succeed(execute(out / RUNS, runs, partial(score, study, out), steps=steps))

    design = Design(tuple(study.sources), study.tasks, study.checkpoints, tuple(study.validation_seeds))
    names = [SCRATCH, *(arm_name(source, step) for source in design.sources for step in design.checkpoints)]
    score_all({(task, name) for task in study.tasks for name in names}, study.validation_seeds)
    score_all(selected(read_scores(out / RUNS), design), study.test_seeds)
    return report(out / RUNS, design, UNITS[study.measure])


def collect(study: Transfer, name: str, out: Path) -> FrameStore:
    """Collects the frames of a source, or what is missing of them."""
    source, place = study.sources[name], out / FRAMES / name
    view = {**study.train.look, "palette": source.palette}
    right = place.with_name(f"{name}-right") if source.shuffled else place
    store = envs.collect(source.environments, right, source.steps, study.first_seed, source.behaviour, **view)
    return shuffle_actions(store, place, study.first_seed) if source.shuffled else store


def shuffle_actions(store: FrameStore, out: Path, seed: int) -> FrameStore:
    """Copies a store and permutes its actions among all steps: right frames, right frequencies, wrong effects."""
    spec = {"shuffled": store.hash, "seed": seed}
    kind = {name: getattr(store, name) for name in ("space", "action_space", "atlas", "palette", "tasks", "labels")}
    writer = resume_store(out, spec, **kind)
    if not writer.manifest["shards"]:
        columns = {name: store.column(name) for name in ("reward", "terminated", "truncated", "episode_start", "task")}
        columns |= {name: store.column(name) for name in store.labels}
        action = store.column("action").copy()
        action[store.acted] = np.random.default_rng(seed).permutation(action[store.acted])
        writer.append(store.read(np.arange(len(store))).numpy(), action=action, **columns)
        writer.flush()
    return FrameStore.open(out)


def pretrain_source(study: Transfer, home: Path, run: Run, out: Path, report: Report) -> None:
    """Pretrains on one source with one seed and keeps the checkpoints."""
    config = replace(study.pretrain, steps=max(study.checkpoints), seed=run.seed)
    pretrain(FrameStore.open(home / FRAMES / run.arm), out=out, config=config, report=report, keep=study.checkpoints)


def score(study: Transfer, home: Path, run: Run, out: Path, report: Report) -> Measurements:
    """Scores one agent."""
    source, _, step = run.arm.partition("@")
    start = None if run.arm == SCRATCH else step_directory(home / Run(ENCODERS, source, run.seed).path, int(step))
    return {SCORE: MEASURES[study.measure](study, home, run, start, out, report)}


def by_labels(study: Transfer, home: Path, run: Run, start: Path | None, out: Path, report: Report) -> float:
    """Balanced accuracy of the expert's action after a few labelled frames; test seeds have layouts of their own."""
    part = VALIDATION if run.seed in study.validation_seeds else TEST
    task = load_task(run.task, home / DEMONSTRATIONS)
    torch.manual_seed(run.seed)
    encoder = Encoder.load(start) if start else fresh_encoder(study, task.frames[part].shape[1:])
    mode = MODES[study.agent if start else SCRATCH]
    return score_labels(encoder, mode, task, part, study.labels, run.seed, report)


def by_rl(study: Transfer, home: Path, run: Run, start: Path | None, out: Path, report: Report) -> float:
    """The mean height of PPO's learning curve; each seed has its own environments, also for evaluation."""
    agent, encoder = (study.agent, str(start)) if start else (SCRATCH, "")
    config = replace(study.train, env=run.task, agent=agent, encoder=encoder, seed=run.seed)
    measured = train(config.training(), out, report)
    return float(area_under_curve(*np.array(measured["return"]).T))


Measure = Callable[[Transfer, Path, Run, Path | None, Path, Report], float]
MEASURES: dict[str, Measure] = {"labels": by_labels, "rl": by_rl}
UNITS = {"labels": "balanced accuracy of the expert's action", "rl": "mean height of the learning curve"}


@dataclass(frozen=True)
class Task:
    """Distinct frames of a task with the expert's action; no two parts share a frame or a layout."""

    frames: dict[str, np.ndarray]  # part -> (n, C, H, W) uint8
    actions: dict[str, np.ndarray]  # part -> (n,) int64
    number: int  # of actions


def record_labels(env: str, home: Path, config: LabelsConfig, view: dict[str, Any]) -> None:
    """Records a task's demonstrations in ``home``, or what is missing of them."""
    for name, part in (("pool", "train"), ("held-out", "test")):
        envs.demonstrations(env, home / env / name, config.episodes, 0, config.noise, part, **view)


@lru_cache(maxsize=4)
def load_task(env: str, home: Path) -> Task:
    """The recorded demonstrations of a task, in three parts."""
    pool, held_out = (FrameStore.open(home / env / name) for name in ("pool", "held-out"))

    def distinct(store: FrameStore) -> np.ndarray:
        rows = np.flatnonzero(store.column("expert") >= 0)
        return rows[np.unique(store.ids[rows], return_index=True)[1]]

    labels, fresh = distinct(pool), distinct(held_out)
    known = set(digests(pool.read(labels).numpy()))
    fresh = fresh[[digest not in known for digest in digests(held_out.read(fresh).numpy())]]
    test = held_out.column("layout")[fresh] % 10 > 0  # test layouts are the multiples of 5
    rows = {LABELS: (pool, labels), VALIDATION: (held_out, fresh[~test]), TEST: (held_out, fresh[test])}
    actions = {part: store.column("expert")[at].astype(np.int64) for part, (store, at) in rows.items()}
    for part, experts in actions.items():
        if len(np.unique(experts)) < 2:
            raise RlpreError(
                f"{env} has {len(experts)} frames of its own for the {part} with {len(np.unique(experts))} "
                "different expert actions: record more episodes, or choose a task with more layouts"
            )
    return Task({part: store.frames(at) for part, (store, at) in rows.items()}, actions, pool.num_actions)


def score_labels(
    encoder: Encoder, mode: Mode, task: Task, part: str, config: LabelsConfig, seed: int, report: Report = quiet
) -> float:
    """Learns the expert's action from a few labelled frames and scores it on others.

    Args:
        encoder: to start from; it is changed. Its features are standardised over the labelled frames.
        mode: frozen, or trained together with the linear head.
        task: the frames.
        part: to score on.
        config: settings.
        seed: of the labelled frames, the head and the batches.
        report: called with the number of gradient steps so far.

    Returns:
        Balanced accuracy in [0, 1]: the mean over actions of the share that is predicted right.
    """
    rng, device = np.random.default_rng(seed), resolve_device(config.device)
    if len(task.actions[LABELS]) < config.labels:
        raise RlpreError(
            f"labels={config.labels}, but only {len(task.actions[LABELS])} frames can be labelled: ask for fewer"
        )
    chosen = rng.permutation(len(task.actions[LABELS]))[: config.labels]
    actions, inputs = (to_device(values[LABELS][chosen], device) for values in (task.actions, task.frames))
    questions = to_device(task.frames[part], device)
    encoder = encoder.to(device).eval()
    encoder.standardise(_in_chunks(encoder, inputs))
    torch.manual_seed(seed)
    head = nn.Linear(encoder.num_features, task.number).to(device)
    groups: list[dict[str, Any]] = [{"params": head.parameters()}]
    if mode.trainable:
        model: nn.Module = nn.Sequential(encoder, head)
        groups.append({"params": encoder.parameters(), "lr": mode.lr_scale * config.lr})
    else:
        model, inputs, questions = head, _in_chunks(encoder, inputs), _in_chunks(encoder, questions)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    weight = 1 / torch.bincount(actions, minlength=task.number).clamp_min(1)  # the score is balanced too
    for step in range(config.steps):
        rows = to_device(rng.integers(len(actions), size=config.batch), device)
        loss = F.cross_entropy(model(inputs[rows]), actions[rows], weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(step + 1)
    answers = _in_chunks(model, questions).argmax(1).cpu().numpy()
    kinds = np.unique(task.actions[part])
    return float(recall_score(task.actions[part], answers, labels=kinds, average="macro", zero_division=0))


@torch.no_grad()
def _in_chunks(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(chunk) for chunk in inputs.split(CHUNK)])


def check(study: Transfer) -> None:
    """Refuses at once what would fail later: unknown names, numbers out of range, frames of different shapes."""
    lookup("measure", study.measure, MEASURES)
    lookup("agent", study.agent, AGENTS)
    at_least(study, validation=1, seeds=1, first_seed=0)
    if not study.sources or not study.tasks:
        raise RlpreError("a study of transfer needs sources and tasks: give at least one of each")
    if not any(study.checkpoints) or min(study.checkpoints) < 0:
        raise RlpreError(f"checkpoints is {study.checkpoints}: give steps of pretraining, at least one above 0")
    for part, names in DECIDED.items():
        settings = getattr(study, part)
        for name in names:
            if getattr(settings, name) != getattr(type(settings), name):
                raise RlpreError(f"{part}.{name} is decided by the study itself: leave it out")
    parse_objective(study.pretrain.objective)
    resolve_device(study.pretrain.device)
    at_least(study.labels, labels=2, episodes=2, noise=0, steps=1, batch=1)
    resolve_device(study.labels.device)
    for task in study.tasks:
        _check_task(study, task)


def _check_task(study: Transfer, task: str) -> None:
    replace(study.train, env=task).training()
    world = envs.make(task, **study.train.look)
    world.reset(seed=0)
    shape = world.observation_space.shape
    if study.measure == "labels" and expert_for(world) is None:
        raise RlpreError(f"there is no expert for {task}: choose another task, or measure 'rl'")
    fresh_encoder(study, shape)
    for name, source in study.sources.items():
        for env in source.environments:
            other = envs.make(env, **study.train.look).observation_space.shape
            if other != shape:
                raise RlpreError(
                    f"source {name!r} has frames {other} of {env}, but task {task} has frames {shape}: give both one "
                    "shape"
                )


def fresh_encoder(study: Transfer, shape: tuple[int, ...]) -> Encoder:
    """An encoder with the architecture of the pretraining and fresh weights."""
    arguments = {} if study.pretrain.features is None else {"features": study.pretrain.features}
    return Encoder(study.pretrain.encoder, InputSpec(shape), **arguments)


ROOMS = ("MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-6x6-v0", "MiniGrid-Unlock-v0", "MiniGrid-MultiRoom-N2-S4-v0")


def sources(steps: int) -> dict[str, Source]:
    """The right source, in the colours of the tasks, and two wrong ones: other colours, and shuffled actions."""
    return {
        "day": Source(ROOMS, steps),
        "night": Source(ROOMS, steps, palette="night"),
        "shuffled": Source(ROOMS, steps, shuffled=True),
    }


TRANSFERS = {
    # tests that everything runs; learns nothing
    "smoke": Transfer(
        sources={"day": Source(("MiniGrid-DoorKey-6x6-v0",), 320)},
        tasks=("MiniGrid-DoorKey-8x8-v0",),
        checkpoints=(0, 2, 4),
        validation=1,
        seeds=1,
        pretrain=PretrainConfig(features=16, batch=16),
        labels=LabelsConfig(labels=10, episodes=20, steps=4),
        train=TrainConfig(
            features=16, steps=64, eval_every=32, eval_episodes=2, ppo=PPOConfig(n_envs=4, n_steps=8, batch_size=16)
        ),
    ),
    "quick": Transfer(
        sources=sources(12_000),
        tasks=("MiniGrid-DoorKey-8x8-v0", "MiniGrid-KeyCorridorS3R1-v0"),
        checkpoints=(0, 50, 200),
        pretrain=PretrainConfig(batch=64),
    ),
    "full": Transfer(
        sources=sources(60_000),
        tasks=("MiniGrid-DoorKey-6x6-v0", "MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-SimpleCrossingS9N1-v0"),
        measure="rl",
        checkpoints=(0, 50, 200, 1000, 4000),
        train=TrainConfig(steps=81_920, eval_every=4096, eval_episodes=16),
    ),
}
