"""`compare`: how many environment steps does an encoder save, on any environment?"""

import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm

from rlpre.compare.arms import Architecture, Arm, check_arm, variant
from rlpre.compare.runner import Measurements, Run, read_rows, run_study, succeed
from rlpre.compare.train import (
    MakeEnv,
    Preparation,
    Report,
    Training,
    described,
    find_env,
    make_venv,
    prepare,
    train,
)
from rlpre.device import resolve_device
from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.frames import FrameStore
from rlpre.loop import PretrainConfig
from rlpre.sources import collect

Frames = FrameStore | str | Path | Callable[[], FrameStore]
Measure = Callable[[Run, Training], Measurements]

ENCODERS, FRAMES = "encoders", "frames"  # below a comparison's directory; the first is also a task of its rows
CONTROLS = {"scratch": Arm("scratch"), "fresh": Arm("random", whiten=True)}
COLLECTED = 20_000  # transitions in each task, if no frames are given
SHARED = ("algorithm", "algorithm_kwargs", "n_envs", "eval_every", "eval_episodes", "deterministic")  # by all runs
MEMORY = PretrainConfig(batch=32, steps=500)


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison.

    Attributes:
        path: its directory.
        text: the report for a terminal.
    """

    path: Path
    text: str

    @property
    def page(self) -> Path:
        """The report as one HTML file."""
        return self.path / "report.html"

    @property
    def rows(self) -> list[dict[str, Any]]:
        """Every measured value: study, task, arm, seed, metric, value, step (None if it is no point of a curve)."""
        return [asdict(row) for row in read_rows(self.path)]


def compare(
    make_env: str | MakeEnv | Mapping[str, str | MakeEnv],
    arms: Mapping[str, Arm],
    steps: int | Mapping[str, int],
    seeds: int | Sequence[int] = 3,
    out: str | Path = "runs/compare",
    *,
    algorithm: type[BaseAlgorithm] = PPO,
    algorithm_kwargs: Mapping[str, Any] | None = None,
    n_envs: int = 8,
    frames: int | Frames | Mapping[str, Frames] = COLLECTED,
    pretrain: PretrainConfig | None = None,
    pretrain_memory: PretrainConfig = MEMORY,
    pretrain_each_seed: bool = True,
    controls: bool = True,
    answer: str | None = None,
    baseline: str = "scratch",
    threshold: float = 0.8,
    eval_every: int | None = None,
    eval_episodes: int = 16,
    deterministic: bool = False,
    measure: Measure | None = None,
    sections: Callable[[Path], Sequence[Any]] | None = None,
    executor: Executor | None = None,
    workers: int | None = None,
) -> ComparisonResult:
    """Trains agents that differ only in their encoder, and reports how many environment steps each of them needs.

    An interrupted comparison goes on where it stopped; more seeds may be added later. Each run is deterministic.

    Args:
        make_env: a function ``(n_envs, seed) -> VecEnv``, "module:function", or a Gymnasium id; or several by task
            name. Observations are uint8 images, or a Dict with one. Worker processes must be able to import a function.
        arms: by name, in reading order.
        steps: environment steps of each run, for all tasks or by task.
        seeds: number of runs of each arm on each task, or the seeds themselves.
        out: receives the report (``report.html``, ``report.png``, ``summary.json``, ``tensorboard/``), ``frames/``,
            ``encoders/`` and a directory for each run, ``<task>/<arm>/seed-<seed>``, see `rlpre.compare.train.train`.
        algorithm: of SB3 or sb3-contrib.
        algorithm_kwargs: its arguments; ``policy_kwargs`` among them are SB3's own, such as ``{"net_arch": [64, 64]}``.
        n_envs: environments that a run steps together.
        frames: to pretrain on and to whiten over: a store, its directory, or a function that makes it, or several by
            name; or the number of transitions to collect with random actions in each task, for encoders of that task.
        pretrain: settings of pretraining by an objective; its encoder and features are those of fresh weights too.
        pretrain_memory: settings of pretraining sequence encoders.
        pretrain_each_seed: whether every seed pretrains encoders of its own, or all seeds share one.
        controls: adds the arms "scratch" and "fresh" (fresh weights, frozen and whitened), unless there are such names.
        answer: the arm that the headline is about; default the first.
        baseline: the arm that all others are compared with.
        threshold: the return to reach.
        eval_every: environment steps between evaluations; default a twentieth of the shortest run.
        eval_episodes: episodes of an evaluation.
        deterministic: whether evaluations take the most likely action instead of sampling one.
        measure: called at the start of each run as ``measure(run, training)``; adds measurements to the rows. Worker
            processes must be able to import it.
        sections: called as ``sections(out)`` after the runs; returns further sections of the page.
        executor: where runs are executed, such as `rlpre.compare.executors.cluster`; default processes of this
            machine. Workers on other machines must see ``out`` under the same path.
        workers: runs at a time on one machine; default one per core.

    Raises:
        RlpreError: for unknown names or settings that do not fit, a directory of another comparison, or a failed run.

    Example:
        >>> arms = {"pretrained": Arm("frozen", "temporal+inverse", whiten=True)}
        >>> compare("CarRacing-v3", arms, 200_000, seeds=5, out="runs/cars", threshold=800)  # doctest: +SKIP
    """
    from rlpre.compare.report import report  # imports matplotlib and scipy

    out, pretrain = Path(out).resolve(), pretrain or PretrainConfig()
    tasks = {name: find_env(each) for name, each in _named(make_env, "comparison").items()}
    budgets = {task: steps if isinstance(steps, int) else lookup("task", task, steps) for task in tasks}
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    metric = {"answer": answer or next(iter(arms), ""), "baseline": baseline, "threshold": threshold}
    arms = {**(CONTROLS if controls else {}), **arms}
    shortest = min(budgets.values())
    shared = Training(
        next(iter(tasks.values())),
        seed=min(seeds, default=-1),
        steps=shortest,
        algorithm=algorithm,
        algorithm_kwargs=algorithm_kwargs or {},
        n_envs=n_envs,
        eval_every=max(n_envs, shortest // 20) if eval_every is None else eval_every,
        eval_episodes=eval_episodes,
        deterministic=deterministic,
    )
    names = tasks if isinstance(frames, int) else _named(frames, FRAMES)
    _check(shared, tasks, arms, names, pretrain, metric)
    _check_picklable(executor, tasks, algorithm_kwargs, measure)
    used = any(arm.reads_frames for arm in arms.values())
    stores = _open(frames, tasks, out / FRAMES, pretrain.seed) if used else {}
    encoders = Encoders(out, _on_disk(arms, out), stores, seeds, pretrain, pretrain_memory, pretrain_each_seed)
    trainings = encoders.trainings(shared, tasks, budgets)
    preparations = encoders.preparations(tasks)
    configuration = {
        "study": "comparison",
        "tasks": {task: {"make_env": described(tasks[task]), "steps": budgets[task]} for task in tasks},
        "arms": {name: described(replace(arm, encoder=arm.given or arm.encoder)) for name, arm in arms.items()},
        "frames": {name: store.hash for name, store in stores.items()},
        "pretrain": {**asdict(pretrain), "memory": asdict(pretrain_memory), "each_seed": pretrain_each_seed},
        "train": {name: described(getattr(shared, name)) for name in SHARED},
        "metric": {"arms": encoders.offline(tasks), "controls": encoders.controls(baseline), **metric},
    }
    lengths = {**budgets, ENCODERS: pretrain.steps + pretrain_memory.steps}
    study = partial(run_study, out, configuration=configuration, steps=lengths, executor=executor, workers=workers)
    if preparations:
        succeed(study(list(preparations), partial(prepare, preparations), keep=True))
    result = study(list(trainings), partial(_run, trainings, measure))
    text = report(out, sections(out) if sections else ()) if result.done else ""
    succeed(result)
    return ComparisonResult(out, text)


@dataclass(frozen=True)
class Encoders:
    """Which encoder each run starts from, and how it is made.

    If ``each_seed``, the n-th seed of the agents pretrains with the n-th seed from ``pretrain.seed`` on.
    """

    out: Path
    arms: Mapping[str, Arm]
    stores: Mapping[str, FrameStore]
    seeds: Sequence[int]
    pretrain: PretrainConfig
    pretrain_memory: PretrainConfig
    each_seed: bool

    def trainings(
        self, shared: Training, tasks: Mapping[str, MakeEnv], budgets: Mapping[str, int]
    ) -> dict[Run, Training]:
        """The settings of every run, in the order of their start: encoders that learn take longest."""
        ordered = sorted(self.arms, key=lambda name: self.arms[name].frozen)
        return {
            Run(task, name, seed): self._training(
                replace(shared, make_env=tasks[task], seed=seed, steps=budgets[task], film=seed == min(self.seeds)),
                name,
                task,
            )
            for task, name, seed in product(tasks, ordered, self.seeds)
        }

    def preparations(self, tasks: Iterable[str]) -> dict[Run, Preparation]:
        """The runs that make encoders."""
        users: dict[Run, dict[str, str]] = {}
        for seed, task, name in product(self.seeds, tasks, self.arms):
            if source := self._source(name, task, seed):
                users.setdefault(source, {})[name] = task
        return {source: self._preparation(source.seed, using) for source, using in users.items()}

    def offline(self, tasks: Iterable[str]) -> dict[str, int]:
        """The number of frames that formed the encoder of each arm."""
        return {
            name: max(len(self.stores[self._data(arm, task)]) for task in tasks) if arm.reads_frames else 0
            for name, arm in self.arms.items()
        }

    def controls(self, baseline: str) -> list[str]:
        """The arms whose encoders no pretraining formed, but for the baseline."""
        return [name for name, arm in self.arms.items() if (arm.fresh or arm.step == 0) and name != baseline]

    def _data(self, arm: Arm, task: str) -> str:
        """The name of an arm's frames: those of the task, if they were collected there."""
        return arm.data or (task if task in self.stores else next(iter(self.stores)))

    def _source(self, name: str, task: str, seed: int) -> Run | None:
        """The run that makes the encoder of an agent; None if nothing has to be made."""
        arm = self.arms[name]
        if not arm.reads_frames:
            return None
        number = seed - min(self.seeds) if self.each_seed or arm.fresh else 0
        return Run(ENCODERS, f"{arm.objective or name}@{self._data(arm, task)}", self.pretrain.seed + number)

    def _training(self, shared: Training, name: str, task: str) -> Training:
        arm, source = self.arms[name], self._source(name, task, shared.seed)
        start = None if arm.fresh else _directory(arm)
        return replace(
            shared,
            mode="frozen" if arm.fresh and arm.whiten else arm.mode,
            encoder=variant(self.out / source.path, arm) if source else start,
            architecture=_architecture(arm, self.arms, self.pretrain),
            memory=None if arm.memory_objective else arm.memory,
            policy_kwargs=arm.policy_kwargs,
            algorithm_kwargs={**shared.algorithm_kwargs, **arm.algorithm_kwargs},
        )

    def _preparation(self, seed: int, using: Mapping[str, str]) -> Preparation:
        (name, task), *_ = using.items()
        arm = self.arms[name]
        return Preparation(
            frames=self.stores[self._data(arm, task)].path,
            arms=tuple(self.arms[user] for user in using),
            pretrain=replace(self.pretrain, seed=seed),
            memory=replace(self.pretrain_memory, seed=seed),
            objective=arm.objective,
            start=None if arm.fresh else _directory(arm),
            architecture=_architecture(arm, self.arms, self.pretrain),
        )


def _run(
    trainings: Mapping[Run, Training], measure: Measure | None, run: Run, out: Path, report: Report
) -> Measurements:
    measured = measure(run, trainings[run]) if measure else {}
    return {**measured, **train(trainings[run], out, report)}


def _named(given: Any, name: str) -> Mapping[str, Any]:
    """What was given by name; a single thing gets ``name``, or its own if it is one."""
    if isinstance(given, Mapping):
        return given
    return {given if isinstance(given, str) and "/" not in given and ":" not in given else name: given}


def _check(
    shared: Training,
    tasks: Mapping[str, MakeEnv],
    arms: Mapping[str, Arm],
    names: Collection[str],
    pretrain: PretrainConfig,
    metric: Mapping[str, Any],
) -> None:
    """Refuses at once what would fail later."""
    for arm in (metric["answer"], metric["baseline"]):
        lookup("arm", arm, arms)
    shared.check()
    resolve_device(pretrain.device)
    for make in tasks.values():
        venv = make_venv(make, 1, 0)
        for name, arm in arms.items():
            check_arm(name, arm, names, pretrain.steps, venv, _architecture(arm, arms, pretrain))
        venv.close()


def _check_picklable(executor: Executor | None, *parts: Any) -> None:
    """Refuses functions that worker processes of this machine cannot import."""
    try:
        pickle.dumps(parts if executor is None else None)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RlpreError(
            f"worker processes cannot import what they need ({error}): define functions in a module"
        ) from error


def _architecture(arm: Arm, arms: Mapping[str, Arm], pretrain: PretrainConfig) -> Architecture:
    """That of fresh weights: of the arm's own encoder, of those that are pretrained, or of the first one given."""
    pretrained = any(other.objective for other in arms.values())
    for other in (arm, *(() if pretrained else arms.values())):
        if (given := other.given) is not None:
            return Architecture.of(given)
    return Architecture(pretrain.encoder, {} if pretrain.features is None else {"features": pretrain.features})


def _open(
    frames: int | Frames | Mapping[str, Frames], tasks: Mapping[str, MakeEnv], home: Path, seed: int
) -> dict[str, FrameStore]:
    """The frames by name, or those collected in each task."""
    stores = {}
    if not isinstance(frames, int):
        for name, each in _named(frames, FRAMES).items():
            stores[name] = each() if callable(each) else each if isinstance(each, FrameStore) else FrameStore.open(each)
        return stores
    for task, make in tasks.items():
        venv = make_venv(make, 8, seed)
        stores[task] = collect(venv, home / task, frames, seed=seed)
        venv.close()
    return stores


def _on_disk(arms: Mapping[str, Arm], out: Path) -> dict[str, Arm]:
    """The arms, with encoders that were given as objects saved to directories."""
    saved = {}
    for name, arm in arms.items():
        if isinstance(arm.encoder, Encoder | SequenceEncoder):
            path = out / "given" / name
            arm = replace(arm, encoder=path if path.exists() else arm.encoder.save(path))
        saved[name] = arm
    return saved


def _directory(arm: Arm) -> Path | None:
    """The checkpoint directory that an arm was given."""
    return None if arm.encoder is None or arm.objective else Path(str(arm.encoder)).resolve()
