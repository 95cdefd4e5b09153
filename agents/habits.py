"""The study of policies that are cloned from frames: how good are they at the start, and what does PPO make of them?"""

from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from stable_baselines3 import PPO

import envs
from agents.presets import BEST, CHANGE, MIXED, AgentConfig, Data, Preset
from rlpre import (
    Arm,
    Clone,
    CloneConfig,
    EncodedVecEnv,
    Encoder,
    InputSpec,
    PretrainConfig,
    clone,
    fuse,
    start_from,
    whiten,
)
from rlpre.compare.compare import ComparisonResult
from rlpre.compare.report import report
from rlpre.compare.runner import FORMAT, ROWS, STUDY, Row
from rlpre.compare.summary import Metric, read_results, save_rows
from rlpre.errors import RlpreError, lookup
from rlpre.utils import atomic, write_json

BUDGETS = {  # environment steps of a run; in pilots or by the zoo's table scratch does not solve those with a million
    "MiniGrid-DoorKey-6x6-v0": 200_000,
    "MiniGrid-DoorKey-8x8-v0": 1_000_000,
    "MiniGrid-LavaCrossingS9N1-v0": 500_000,
    "MiniGrid-MultiRoom-N4-S5-v0": 1_000_000,
    "MiniGrid-MultiRoom-N6-v0": 1_000_000,
    "MiniGrid-KeyCorridorS3R3-v0": 1_000_000,
    "MiniGrid-BlockedUnlockPickup-v0": 1_000_000,
    "VizdoomMyWayHome-v1": 1_000_000,
}
NOISY = "noise-30"  # the demonstrator of most arms, and of the threshold
NOISE = {"noise-0": "expert", NOISY: "expert:0.3", "noise-60": "expert:0.6"}
MEDIOCRE, DAGGER = "mediocre", "dagger"
ALONE = {"scratch": Arm("scratch"), "fresh-map": Arm("random", whiten="map")}  # without a clone
FEW = 300  # labels of the mediocre agent, which is a clone itself
READOUTS = {  # the last one is the answer, the first one what it is compared with
    "projection": Arm("random", whiten=True, data="mixed"),
    "map": Arm("random", whiten="map", data="mixed"),
    "supervised": Arm("frozen", "supervised", whiten=True, power=0.5, data="mixed"),
    "change-map": Arm("frozen", "change", whiten="map", data="mixed"),
    "change": Arm("frozen", "change", whiten=True, power=0.5, data="mixed"),
}
Part = Literal["labels", "players", "features"]


@dataclass(frozen=True)
class Habits:
    """Clones, and PPO that starts from them, on levels whose expert can be asked."""

    part: Part = "labels"  # how many labels; who demonstrates, and what is asked; or which features (clones alone)
    environments: tuple[str, ...] = tuple(BUDGETS)  # may be run one by one, with the same --out
    only: tuple[str, ...] = ()  # arms to run now; default all
    steps: int | None = None  # environment steps of a run; default those of each environment
    seeds: int = 5  # runs of every arm
    first_seed: int = 0  # settings were chosen on seeds from 100 on
    labels: tuple[int, ...] = (300, 1_000, 3_000, 10_000)  # that a clone learns from
    compared: int = 3_000  # labels where something else is compared
    demonstrations: int = 40_000  # steps of each demonstrator, from which labels are drawn
    clone: CloneConfig = field(default_factory=CloneConfig)
    pretrain: PretrainConfig = field(default_factory=lambda: PretrainConfig(steps=1000, checkpoint_every=1000))
    encoders: PretrainConfig = field(default_factory=lambda: CHANGE)  # the same, of part "features"
    train: AgentConfig = field(default_factory=lambda: AgentConfig(eval_every=4096, eval_episodes=32))

    def run(self, out: Path, workers: int | None = None, executor: Executor | None = None) -> ComparisonResult:
        """Runs what is missing in ``out``, then reports on all environments that have been run there."""
        for env in self.environments:
            self.preset(env, out).run(out / "parts" / self.part / env, workers, executor)
        return joined(out / self.part, sorted((out / "parts" / self.part).iterdir()), self.part == "features")

    def preset(self, env: str, out: Path) -> Preset:
        """The comparison on one environment."""
        if self.part == "labels" and self.compared not in self.labels:
            raise RlpreError(f"compared is {self.compared}, labels are {self.labels}: give one of them")
        if self.part == "features" and self.steps:
            raise RlpreError("part 'features' has clones alone, which take no steps: leave out steps")
        steps = self.train.eval_every if self.part == "features" else self.steps or lookup("level", env, BUDGETS)
        data = {
            name: Data((env,), self.demonstrations, behaviour) for name, behaviour in self.players(env, out).items()
        }
        arms = {"labels": self.label_arms, "players": self.player_arms, "features": self.feature_arms}[self.part]()
        return Preset(
            environments=(env,),
            steps=(steps,),
            data=data,
            arms=arms,
            answer=next(name for name, arm in reversed(arms.items()) if arm.clone),
            baseline=next(iter(arms)),
            seeds=self.seeds,
            first_seed=self.first_seed,
            demonstrator=NOISY,
            only=self.only,
            pretrain=self.encoders if self.part == "features" else self.pretrain,
            each_seed=self.part == "features",
            train=self.train,
        )

    def players(self, env: str, out: Path) -> dict[str, str]:
        """The behaviours that this part needs, by name; the first is that of most arms. Agents are made now."""
        if self.part == "features":
            return {NOISY: NOISE[NOISY], "mixed": MIXED}
        if self.part == "labels":
            return {NOISY: NOISE[NOISY]}
        agents = {labels: out / "players" / env / f"{labels}.zip" for labels in (FEW, self.compared)}
        for labels, path in agents.items():
            if not path.exists():
                self.make_agent(env, path, labels)
        taught = f"0.5*{NOISE[NOISY]} + 0.5*agent:{agents[self.compared]}"
        return {NOISY: NOISE[NOISY], **NOISE, MEDIOCRE: f"agent:{agents[FEW]}", DAGGER: taught}

    def make_agent(self, env: str, path: Path, labels: int) -> None:
        """Saves an agent on pixels that has only been cloned, from so many labels."""
        look, seed = self.train.look, self.pretrain.seed
        frames = envs.collect(env, path.parent / "frames", self.demonstrations, seed, NOISE[NOISY], **look)
        torch.manual_seed(seed)
        encoder = whiten(Encoder("cnn", InputSpec(frames.space.shape)), frames, seed, features="map")
        policy = clone(frames, encoder, out=path.with_suffix(""), config=self.clone, limit=labels, seed=seed)
        model = PPO("MlpPolicy", EncodedVecEnv(self.train.make_env(env)(1, seed), encoder), seed=seed)
        start_from(model, policy, value_first=0, kl=0)
        with atomic(path) as temporary:
            fuse(model, encoder, as_model=True).save(temporary)

    def label_arms(self) -> dict[str, Arm]:
        """Clones of ever more labels, alone and with PPO; the same of what the expert advised there; PPO alone."""
        arms = dict(ALONE)
        for labels in self.labels:
            config = replace(self.clone, limit=labels)
            arms |= _alone_and_tuned(name := f"cloned-{labels}", config, NOISY)
            arms[f"{name}+frozen, no KL"] = Arm("random", whiten="map", clone=Clone(config, start={"kl": 0}))
            arms |= _alone_and_tuned(f"advised-{labels}", replace(config, labels="expert"), NOISY)
        config = replace(self.clone, limit=self.compared)
        arms["cloned+frozen, no KL"] = arms.pop(f"cloned-{self.compared}+frozen, no KL")
        arms["cloned+finetuned"] = Arm("finetuned", BEST, whiten="map", clone=Clone(config))
        return {**arms, "cloned+frozen": arms.pop(f"cloned-{self.compared}+frozen")}

    def player_arms(self) -> dict[str, Arm]:
        """Clones of several demonstrators, and of an expert's advice to a clone (DAgger); PPO alone."""
        arms = dict(ALONE)
        config = replace(self.clone, limit=self.compared)
        for player in (*NOISE, MEDIOCRE):
            arms |= _alone_and_tuned(player, config, player)
        arms |= _alone_and_tuned("noise-60-weighted", replace(config, weights="return"), "noise-60")
        return arms | _alone_and_tuned(DAGGER, replace(config, labels="expert"), DAGGER)

    def feature_arms(self) -> dict[str, Arm]:
        """Clones alone, by what the policy reads and the number of labels."""
        return {
            f"{name}-{labels}": replace(arm, clone=Clone(replace(self.clone, limit=labels), NOISY, tuned=False))
            for name, arm in READOUTS.items()
            for labels in sorted(self.labels)
        }


def _alone_and_tuned(name: str, config: CloneConfig, player: str) -> dict[str, Arm]:
    arm = partial(Arm, "random", whiten="map")
    return {name: arm(clone=Clone(config, player, tuned=False)), f"{name}+frozen": arm(clone=Clone(config, player))}


def joined(out: Path, parts: list[Path], by_labels: bool) -> ComparisonResult:
    """One report on several comparisons, each of other tasks.

    Args:
        out: receives the report.
        parts: directories of the comparisons.
        by_labels: whether curves are drawn over the number of labels, the end of an arm's name, instead of environment
            steps; steps to the threshold are then labels.
    """
    results = [read_results(part) for part in parts]
    metric = results[0].metric
    for other in results[1:]:  # of other environments, perhaps with other numbers of labels
        both = metric.labels.keys() & other.metric.labels.keys()
        if differ := sorted(arm for arm in both if metric.labels[arm] != other.metric.labels[arm]):
            raise RlpreError(f"arm {differ[0]!r} has other numbers of labels in {out.parent}: give another directory")
        metric = replace(
            metric,
            arms={**metric.arms, **other.metric.arms},
            labels={**metric.labels, **other.metric.labels},
            thresholds={**metric.thresholds, **other.metric.thresholds},
        )
    rows = [row for each in results for row in each.rows]
    if by_labels:
        starts = [_by_labels(row) for row in rows if row.metric == "return" and row.step == 0]
        rows = sorted(starts, key=lambda row: row.step or 0)
        names = list(dict.fromkeys(arm.rpartition("-")[0] for arm in metric.arms))
        frames = {name: next(n for arm, n in metric.arms.items() if arm.rpartition("-")[0] == name) for name in names}
        metric = Metric(frames, names[-1], names[0], metric.threshold, thresholds=metric.thresholds, unit="labels")
    write_json(out / STUDY, {"format": FORMAT, "study": "habits", "metric": asdict(metric)})
    save_rows(rows, out / ROWS)
    return ComparisonResult(out, report(out))


def _by_labels(row: Row) -> Row:
    name, _, labels = row.arm.rpartition("-")
    return replace(row, arm=name, step=int(labels))
