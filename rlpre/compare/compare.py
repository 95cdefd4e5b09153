"""`compare`: how many environment steps does an encoder save, on any environment?"""

import math
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from numbers import Real
from pathlib import Path
from typing import Any, cast

import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv

from rlpre.compare.arms import ORACLE, TRANSPLANT, Arm, check_arm, fresh_config, fresh_encoder, variant
from rlpre.compare.runner import DONE, Measurements, Run, StudyResult, read_rows, run_study, succeed
from rlpre.compare.train import (
    MakeEnv,
    Preparation,
    Report,
    Training,
    described,
    find_algorithm,
    find_env,
    make_venv,
    prepare,
    train,
    trained_encoder,
)
from rlpre.data.adapters import as_vec_env
from rlpre.data.collect import collect
from rlpre.data.store import FrameStore
from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.encoders.encoder import CONFIG
from rlpre.errors import RlpreError, lookup
from rlpre.pretrain import PretrainConfig
from rlpre.sb3.clone import episode_returns, labelled
from rlpre.sb3.state import StatelessVecEnv, has_state, tells_state
from rlpre.utils import read_json, resolve_device

Frames = FrameStore | str | Path | Callable[[], FrameStore]
Measure = Callable[[Run, Training], Measurements]

ENCODERS, FRAMES, GIVEN = "encoders", "frames", "given"  # below a comparison's directory; the first is a task of rows
CONTROLS = {
    "scratch": Arm("scratch"),
    "fresh": Arm("random", whiten=True),
    "fresh-map": Arm("random", whiten="map"),
    "oracle": Arm(ORACLE),
}
THRESHOLD = 0.8  # the return to reach, and the one beside that of a `Demonstrator`
COLLECTED = 20_000  # transitions in each task, if no frames are given
SHARED = ("algorithm", "algorithm_kwargs", "n_envs", "eval_every", "eval_episodes", "deterministic")  # by all runs
MEMORY = PretrainConfig(batch=32, steps=500)
LATER = ("clone", "auxiliary", "power")  # settings of arms that are younger than published studies


@dataclass(frozen=True)
class Demonstrator:
    """A threshold for each task: a share of the mean return of whoever played the frames, in complete episodes.

    Attributes:
        share: of that mean.
        data: name of the frames; default those that the first arm with a clone learns from.
    """

    share: float = 0.9
    data: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.share, int | float) or not 0 < self.share < math.inf:
            raise RlpreError(f"Demonstrator({self.share!r}): give a share of the mean return, such as 0.9")

    def of(self, frames: FrameStore) -> float:
        """The threshold.

        Raises:
            RlpreError: if no episode is complete, or the mean is not positive, so that it has no share.
        """
        complete = np.unique(frames.episode[frames.column("terminated") | frames.column("truncated")])
        mean = float(episode_returns(frames)[complete].mean()) if len(complete) else 0.0
        if not mean > 0:
            raise RlpreError(
                f"the mean return of the {len(complete)} complete episodes of {frames.path} is {mean:.3g}, of which no "
                "share can be the threshold: give a number"
            )
        return self.share * mean


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
        """Every measured value: study, task, arm, seed, metric, value, and step for points of a curve."""
        return [asdict(row) for row in read_rows(self.path)]

    def table(self) -> list[dict[str, Any]]:
        """The results as flat records, as in ``summary.json``: one for each task, arm, and arm it is compared with."""
        return list(read_json(self.path / "summary.json")["records"])

    def ratio(self, arm: str, over: str = "scratch", task: str | None = None) -> dict[str, Any]:
        """The record of one arm compared with another: how many times fewer steps, with its interval.

        Args:
            arm: name.
            over: the baseline, or a control.
            task: name; default all tasks together.

        Raises:
            RlpreError: if there is no such record.
        """
        names = list(dict.fromkeys(record["task"] for record in self.table()))
        wanted = (task or names[-1], arm, over)
        for record in self.table():
            if (record["task"], record["arm"], record["over"]) == wanted:
                return record
        raise RlpreError(f"{self.path} compares no arm {arm!r} with {over!r} on {wanted[0]!r}: see table()")


def compare(
    make_env: str | MakeEnv | Mapping[str, str | MakeEnv],
    arms: Mapping[str, Arm],
    steps: int | Mapping[str, int],
    seeds: int | Sequence[int] = 3,
    out: str | Path = "runs/compare",
    *,
    algorithm: str | type[BaseAlgorithm] = PPO,
    algorithm_kwargs: Mapping[str, Any] | None = None,
    zero_value: bool = True,
    n_envs: int = 8,
    frames: int | Frames | Mapping[str, Frames] = COLLECTED,
    pretrain: PretrainConfig | None = None,
    pretrain_memory: PretrainConfig = MEMORY,
    pretrain_each_seed: bool = True,
    controls: bool = True,
    answer: str | None = None,
    baseline: str = "scratch",
    threshold: float | Demonstrator = THRESHOLD,
    eval_every: int | None = None,
    eval_episodes: int = 16,
    deterministic: bool = False,
    measure: Measure | None = None,
    sections: Callable[[Path], Sequence[Any]] | None = None,
    only: Collection[str] = (),
    executor: Executor | None = None,
    workers: int | None = None,
) -> ComparisonResult:
    """Trains agents that differ only in their encoder, and reports how many environment steps each of them needs.

    An interrupted comparison goes on where it stopped; more seeds may be added later. Each run is deterministic.

    Args:
        make_env: a function ``(n_envs, seed) -> VecEnv`` (or a Gymnasium ``VectorEnv``, or an EnvPool),
            "module:function", or a Gymnasium id; or several by task name. Observations are uint8 images, or a Dict with
            one. Worker processes must be able to import a function.
        arms: by name, in reading order.
        steps: environment steps of each run, for all tasks or by task.
        seeds: number of runs of each arm on each task, or the seeds themselves.
        out: receives the report (``report.html``, ``report.png``, ``summary.json``, ``tensorboard/``), ``frames/``,
            ``encoders/`` and a directory for each run, ``<task>/<arm>/seed-<seed>``, see `rlpre.compare.train.train`.
        algorithm: of SB3 or sb3-contrib, or its name.
        algorithm_kwargs: its arguments; ``policy_kwargs`` among them are SB3's own, such as ``{"net_arch": [64, 64]}``.
        zero_value: whether values start at 0, if the algorithm has a value head, see `rlpre.sb3.zero_value`.
        n_envs: environments that a run steps together.
        frames: to pretrain on and to whiten over: a store, its directory, or a function that makes it, or several by
            name; or the number of transitions to collect with random actions in each task, for encoders of that task.
        pretrain: settings of pretraining by an objective; its encoder and features are those of fresh weights too.
        pretrain_memory: settings of pretraining sequence encoders.
        pretrain_each_seed: whether every seed pretrains encoders of its own, or all seeds share one.
        controls: adds the arms "scratch", "fresh" (fresh weights, frozen and whitened), "fresh-map" (their whitened
            feature map, if the architecture has one) and "oracle" (if each environment puts its true state into
            ``info["state"]``), unless there are such names. If there is an oracle, a key "state" of Dict observations
            is hidden from all other arms.
        answer: the arm that the headline is about; default the first.
        baseline: the arm that all others are compared with.
        threshold: the return to reach; or `Demonstrator`, then 0.8 is reported beside it.
        eval_every: environment steps between evaluations; default a twentieth of the shortest run. If an arm has a
            clone, all agents are also evaluated before their first step.
        eval_episodes: episodes of an evaluation.
        deterministic: whether evaluations take the most likely action instead of sampling one.
        measure: called at the start of each run as ``measure(run, training)``; adds measurements to the rows. Worker
            processes must be able to import it.
        sections: called as ``sections(out)`` after the runs; returns further sections of the page.
        only: names of the arms to run now; a later call runs the others. Default: all.
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

    if not isinstance(arms, Mapping) or not all(isinstance(arm, Arm) for arm in arms.values()):
        raise RlpreError(f"arms are {arms!r}: give a dict by name, such as {{'mine': rlpre.Arm('frozen', DIRECTORY)}}")
    out, pretrain = Path(out).resolve(), pretrain or PretrainConfig()
    tasks = {name: find_env(each) for name, each in _named(make_env, "comparison").items()}
    if not tasks:
        raise RlpreError("there are no environments: give at least one")
    budgets, seeds, frames = _budgets(tasks, steps), _seeds(seeds), _whole("frames", frames)
    shortest = min(budgets.values())
    shared = Training(
        next(iter(tasks.values())),
        seed=min(seeds, default=-1),
        steps=shortest,
        algorithm=find_algorithm(algorithm) if isinstance(algorithm, str) else algorithm,
        algorithm_kwargs=algorithm_kwargs or {},
        zero_value=zero_value,
        n_envs=n_envs,
        eval_every=max(n_envs, shortest // 20) if eval_every is None else eval_every,
        eval_episodes=eval_episodes,
        deterministic=deterministic,
        eval_start=any(arm.clone for arm in arms.values()),
        auxiliary=next((arm.auxiliary for arm in arms.values() if arm.auxiliary), {}),  # each run has that of its arm
    )
    shared.check()
    resolve_device(pretrain.device)
    asked = {"answer": answer or next(iter(arms), ""), "baseline": baseline}
    arms = {**(_controls(tasks, arms, pretrain) if controls else {}), **arms}
    for name in (*asked.values(), *only):
        lookup("arm", name, arms)
    donor = _donor(arms, baseline)
    names = tasks if isinstance(frames, int) else _named(frames, FRAMES)
    fresh = {task: _check_arms(tasks[task], arms, names, pretrain) for task in tasks}
    _check_importable(executor, tasks, algorithm_kwargs, measure)
    reading = isinstance(threshold, Demonstrator) or any(arm.uses_frames or arm.clone for arm in arms.values())
    stores = _open(frames, tasks, out / FRAMES, pretrain.seed, _used(names, tasks, arms, threshold)) if reading else {}
    _check_stores(stores, arms, fresh)
    memory, each_seed = pretrain_memory, pretrain_each_seed
    plan = _Plan(out, tasks, budgets, seeds, arms, shared, fresh, stores, pretrain, memory, each_seed)
    configuration = plan.configuration(plan.metric(asked, threshold))
    plan = replace(plan, arms={name: _saved(arm, out / GIVEN / name) for name, arm in arms.items()})
    independent, transplants = plan.stages([name for name in _longest_first(arms) if name in only or not only])
    lengths = plan.lengths()
    study = partial(run_study, out, configuration=configuration, steps=lengths, executor=executor, workers=workers)
    results = [independent.run(out, study, measure)]
    if transplants.trainings and not results[0].failed:
        _transplant(out, transplants.trainings, donor, shared.algorithm)
        results.append(transplants.run(out, study, measure))
    text = report(out, sections(out) if sections else ()) if results[0].done else ""
    succeed(*results)
    return ComparisonResult(out, text)


@dataclass(frozen=True)
class _Plan:
    """What `compare` was asked for, with names looked up, defaults filled in and frames opened."""

    out: Path
    tasks: Mapping[str, MakeEnv]
    steps: Mapping[str, int]  # by task
    seeds: Sequence[int]
    arms: Mapping[str, Arm]  # with the controls
    shared: Training  # what all runs have in common
    fresh: Mapping[str, Mapping[str, dict[str, Any]]]  # configurations of fresh encoders, by task and arm
    stores: Mapping[str, FrameStore]
    pretrain: PretrainConfig
    memory: PretrainConfig
    each_seed: bool  # whether every seed pretrains encoders of its own

    @property
    def oracles(self) -> list[str]:
        return [name for name, arm in self.arms.items() if arm.mode == ORACLE]

    def data(self, arm: Arm, task: str) -> str:
        """The name of an arm's frames: those of the task, if they were collected there."""
        return arm.data or (task if task in self.stores else next(iter(self.stores)))

    def cloned(self, arm: Arm, task: str) -> str:
        """The name of the frames that an arm's clones learn from."""
        assert arm.clone
        return arm.clone.data or self.data(arm, task)

    def metric(self, asked: Mapping[str, str], threshold: float | Demonstrator) -> dict[str, Any]:
        """What the report needs to know of the arms, and the threshold."""
        arms = self.arms.items()
        offline = {
            name: max(len(self.stores[self.data(arm, task)]) for task in self.tasks) if arm.uses_frames else 0
            for name, arm in arms
        }
        untrained = [name for name, arm in arms if (arm.fresh or arm.step == 0) and not arm.clone]
        metric = {"arms": offline, "controls": [name for name in untrained if name != asked["baseline"]], **asked}
        labels = {
            name: max(len(labelled(self.stores[self.cloned(arm, task)], arm.clone.config)) for task in self.tasks)
            for name, arm in arms
            if arm.clone
        }
        metric |= self._goal(threshold) | ({"labels": labels} if labels else {})
        return metric | ({ORACLE: self.oracles[0]} if self.oracles else {})

    def _goal(self, threshold: float | Demonstrator) -> dict[str, Any]:
        if not isinstance(threshold, Demonstrator):
            return {"threshold": threshold}
        first = next((arm for arm in self.arms.values() if arm.clone), None)
        thresholds = {}
        for task in self.tasks:
            data = threshold.data or (self.cloned(first, task) if first else "")
            if not data:
                raise RlpreError("Demonstrator() is the player of the frames that an arm clones: name them, data=...")
            thresholds[task] = threshold.of(lookup("data", data, self.stores))
        return {"threshold": THRESHOLD, "thresholds": thresholds}

    def configuration(self, metric: dict[str, Any]) -> dict[str, Any]:
        """All that decides the results, as JSON; a directory holds the runs of one configuration."""
        tasks = {task: {"make_env": described(self.tasks[task]), "steps": self.steps[task]} for task in self.tasks}
        zero = {"zero_value": True} if self.shared.zero_value else {}
        return {
            "study": "comparison",
            "tasks": tasks,
            "arms": {name: _described(arm) for name, arm in self.arms.items()},
            "frames": {name: store.hash for name, store in self.stores.items()},
            "pretrain": {**asdict(self.pretrain), "memory": asdict(self.memory), "each_seed": self.each_seed},
            "train": {name: described(getattr(self.shared, name)) for name in SHARED} | zero,  # as in published studies
            "metric": metric,
        }

    def lengths(self) -> dict[str, int]:
        """Steps of a run by task, those of pretraining too."""
        remembers = any(arm.memory_objective for arm in self.arms.values())
        return {**self.steps, ENCODERS: self.pretrain.steps + remembers * self.memory.steps}

    def stages(self, names: Iterable[str]) -> tuple["_Stage", "_Stage"]:
        """The runs of these arms; in the second stage are those that wait for the agents whose encoders they take."""
        stages = _Stage(), _Stage()
        for task, name, seed in product(self.tasks, names, self.seeds):
            run, arm = Run(task, name, seed), self.arms[name]
            transplant = arm.mode == TRANSPLANT
            stage, start = stages[transplant], _transplanted(self.out, run) if transplant else _directory(arm)
            if arm.reads_frames:
                source = stage.sources[run] = self._source(run)
                shared = stage.preparations[source].arms if source in stage.preparations else {}
                stage.preparations[source] = self._preparation(run, source, start, {**shared, run.arm: arm})
                start = variant(self.out / source.path, arm)
            stage.trainings[run] = self._training(run, start)
        return stages

    def _source(self, run: Run) -> Run:
        """The preparation of the encoder that a run starts from; several runs may share it."""
        arm, transplant = self.arms[run.arm], self.arms[run.arm].mode == TRANSPLANT
        where = run.task if transplant else self.data(arm, run.task)
        place = run.seed if self.each_seed or arm.fresh or transplant else 0
        return Run(ENCODERS, f"{arm.objective or run.arm}@{where}", self.pretrain.seed + place)

    def _preparation(self, run: Run, source: Run, start: Path | None, arms: dict[str, Arm]) -> Preparation:
        return Preparation(
            frames=self._frames(run),
            pretrain=replace(self.pretrain, seed=source.seed),
            memory=replace(self.memory, seed=source.seed),
            objective=self.arms[run.arm].objective,
            start=start,
            fresh=self.fresh[run.task][run.arm],
            arms=arms,
        )

    def _training(self, run: Run, start: Path | None) -> Training:
        arm, make_env = self.arms[run.arm], self.tasks[run.task]
        return replace(
            self.shared,
            make_env=partial(_without_state, make_env) if self.oracles and arm.mode != ORACLE else make_env,
            seed=run.seed,
            steps=self.steps[run.task],
            mode=arm.policy_mode,
            encoder=start,
            fresh=self.fresh[run.task][run.arm],
            memory=None if arm.memory_objective else arm.memory,
            clone=arm.clone,
            demonstrations=self.stores[self.cloned(arm, run.task)].path.resolve() if arm.clone else None,
            policy_kwargs=arm.policy_kwargs,
            algorithm_kwargs={**self.shared.algorithm_kwargs, **arm.algorithm_kwargs},
            auxiliary=arm.auxiliary and {**arm.auxiliary, "frames": self._frames(run)},
            film=run.seed == min(self.seeds),
        )

    def _frames(self, run: Run) -> Path:
        """The directory of the frames of a run's arm."""
        return self.stores[self.data(self.arms[run.arm], run.task)].path.resolve()


@dataclass(frozen=True)
class _Stage:
    """Runs that may start together, and what makes the encoders that they start from."""

    preparations: dict[Run, Preparation] = field(default_factory=dict)
    trainings: dict[Run, Training] = field(default_factory=dict)
    sources: dict[Run, Run] = field(default_factory=dict)  # training -> preparation

    def run(self, out: Path, study: Callable[..., StudyResult], measure: Measure | None) -> StudyResult:
        """Makes the encoders that unfinished agents start from, then trains these agents."""
        waiting = [run for run in self.sources if not (out / run.path / DONE).exists()]
        todo = {self.sources[run] for run in waiting}
        for run in waiting:  # earlier arms may have needed another variant of the encoder
            if not (cast(Path, self.trainings[run].encoder) / CONFIG).exists():
                (out / self.sources[run].path / DONE).unlink(missing_ok=True)
        if todo:
            runs = [run for run in self.preparations if run in todo]
            succeed(study(runs, partial(prepare, self.preparations), keep=True))
        return study(list(self.trainings), partial(_run, self.trainings, measure))


def _run(
    trainings: Mapping[Run, Training], measure: Measure | None, run: Run, out: Path, report: Report
) -> Measurements:
    measured = measure(run, trainings[run]) if measure else {}
    return {**measured, **train(trainings[run], out, report)}


def _without_state(make_env: MakeEnv, n_envs: int, seed: int) -> VecEnv:
    venv = as_vec_env(make_env(n_envs, seed))
    return StatelessVecEnv(venv) if has_state(venv.observation_space) else venv


def _controls(tasks: Mapping[str, MakeEnv], arms: Mapping[str, Arm], pretrain: PretrainConfig) -> dict[str, Arm]:
    """`CONTROLS`, without those that a task does not allow."""
    controls = dict(CONTROLS)
    for make_env in tasks.values():
        venv = make_venv(make_env, 1, 0)
        config = fresh_config(CONTROLS["fresh-map"], arms.values(), pretrain, venv.observation_space)
        if len(fresh_encoder(config, 0).stages) < 2:
            controls.pop("fresh-map", None)
        if not tells_state(venv):
            controls.pop("oracle", None)
        venv.close()
    return controls


def _donor(arms: Mapping[str, Arm], baseline: str) -> str:
    """The arm whose agents learn the encoders that are transplanted; empty if there are no transplants."""
    for name in (baseline, *arms):
        if arms[name].mode == "scratch" and not arms[name].memory:
            return name
    for name, arm in arms.items():
        if arm.mode == TRANSPLANT:
            raise RlpreError(f"arm {name!r} takes the encoder of an agent trained from scratch: add Arm('scratch')")
    return ""


def _transplant(out: Path, runs: Iterable[Run], donor: str, algorithm: type[BaseAlgorithm]) -> None:
    """Saves the encoders that these runs take from the finished agents of the arm ``donor``."""
    for run in runs:
        if not (out / run.path / DONE).exists():
            trained_encoder(out / replace(run, arm=donor).path, algorithm).save(_transplanted(out, run))


def _transplanted(out: Path, run: Run) -> Path:
    """Where the encoder that a run takes from another agent is saved."""
    return out / GIVEN / run.arm / run.task / str(run.seed)


def _whole(name: str, given: Any) -> Any:
    """A number as int, also 1e5 or NumPy's; whatever is no number stays."""
    if isinstance(given, bool) or not isinstance(given, Real):
        return given
    if not float(given).is_integer():
        raise RlpreError(f"{name} is {given}: give a whole number")
    return int(float(given))


def _budgets(tasks: Iterable[str], steps: Any) -> dict[str, int]:
    """The environment steps of a run by task."""
    steps = _whole("steps", steps)
    by_task = dict.fromkeys(tasks, steps) if isinstance(steps, int) else steps
    return {task: _whole("steps", lookup("task", task, by_task)) for task in tasks}


def _seeds(given: Any) -> Sequence[int]:
    count = _whole("seeds", given)
    seeds = range(count) if isinstance(count, int) else [_whole("a seed", seed) for seed in count]
    if not seeds:
        raise RlpreError("there are no seeds: give at least 1")
    return seeds


def _named(given: Any, name: str) -> Mapping[str, Any]:
    """What was given by name; a single thing gets ``name``, or its own if it is a Gymnasium id."""
    if isinstance(given, Mapping):
        return given
    return {given if isinstance(given, str) and "/" not in given and ":" not in given else name: given}


def _check_arms(
    make_env: MakeEnv, arms: Mapping[str, Arm], data: Collection[str], pretrain: PretrainConfig
) -> dict[str, dict[str, Any]]:
    """Refuses arms whose runs would fail; returns the configuration of a fresh encoder for each arm."""
    venv = make_venv(make_env, 1, 0)
    configs = {name: fresh_config(arm, arms.values(), pretrain, venv.observation_space) for name, arm in arms.items()}
    for name, arm in arms.items():
        check_arm(name, arm, data, pretrain.steps, venv, fresh_encoder(configs[name], 0))
    venv.close()
    return configs


def _check_importable(executor: Executor | None, *parts: Any) -> None:
    """Refuses functions that worker processes of this machine cannot import."""
    try:
        pickle.dumps(None if executor else parts)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise RlpreError(f"worker processes cannot import a function ({error}): define it in a module") from error


def _used(names: Collection[str], tasks: Collection[str], arms: Mapping[str, Arm], threshold: Any) -> set[str]:
    """Those of the frames' names that runs on these tasks need."""
    asked = {arm.data for arm in arms.values()} | {arm.clone.data for arm in arms.values() if arm.clone}
    without = [] if set(tasks) <= set(names) else [next(iter(names))]  # for tasks without frames of their own
    return {*asked, *tasks, *without, *([threshold.data] if isinstance(threshold, Demonstrator) else [])}


def _open(
    frames: Any, tasks: Mapping[str, MakeEnv], home: Path, seed: int, used: Collection[str]
) -> dict[str, FrameStore]:
    """The frames by name, or those collected in each task; a function is called only if its frames are used."""
    stores = {}
    if isinstance(frames, int):
        for task, make_env in tasks.items():
            venv = make_venv(make_env, 8, seed)
            stores[task] = collect(venv, home / task, frames, seed=seed, task=task)
            venv.close()
        return stores
    for name, each in _named(frames, FRAMES).items():
        if callable(each) and name not in used:
            continue
        stores[name] = each() if callable(each) else each if isinstance(each, FrameStore) else FrameStore.open(each)
    return stores


def _check_stores(
    stores: Mapping[str, FrameStore], arms: Mapping[str, Arm], fresh: Mapping[str, Mapping[str, dict[str, Any]]]
) -> None:
    """Refuses frames of another shape than the encoder that they form."""
    for task, configs in fresh.items():
        for name, arm in arms.items():
            store = stores.get(arm.data or (task if task in stores else next(iter(stores), "")))
            shape = list(store.space.shape) if store else []
            if store and arm.reads_frames and not arm.given and (own := list(configs[name]["input"]["shape"])) != shape:
                raise RlpreError(f"arm {name!r} reads frames {own}, {store.path} holds {shape}: collect others")


def _described(arm: Arm) -> dict[str, Any]:
    """An arm as JSON; without the settings added later, unless they are used."""
    found: dict[str, Any] = described(replace(arm, encoder=arm.given or arm.encoder))
    return {name: value for name, value in found.items() if name not in LATER or value not in (None, {})}


def _longest_first(arms: Mapping[str, Arm]) -> list[str]:
    """The arms whose encoders learn take longest: started first, they leave no core idle at the end."""
    return sorted(arms, key=lambda name: arms[name].frozen)


def _saved(arm: Arm, path: Path) -> Arm:
    """The arm; an encoder that it was given as an object is saved to ``path``."""
    if not isinstance(arm.encoder, Encoder | SequenceEncoder):
        return arm
    return replace(arm, encoder=path if path.exists() else arm.encoder.save(path))


def _directory(arm: Arm) -> Path | None:
    """The checkpoint directory that an arm was given to start from."""
    return None if arm.encoder is None or arm.objective or arm.fresh else Path(str(arm.encoder)).resolve()
