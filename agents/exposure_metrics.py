"""Exposure bias: what a policy gets wrong in the expert's contexts and in its own.

At every step of the same test episodes a policy is asked for an action in four contexts, which cross whose states it
sees with whose actions are in its history. An expert labels every step:

================  ========================  ===========================
.                 expert's action history   learner's action history
================  ========================  ===========================
expert's states   EE (teacher-forced)       EO
learner's states  OE                        OO (the learner acts alone)
================  ========================  ===========================

In EO the history holds what the policy itself would have done, in OE what the expert would have done in the learner's
states. Exposure bias is the excess OO - EE of errors per episode.

Actions are sampled from the policy, in all contexts and while it plays, as they are when it learns by reinforcement. A
greedy policy that sees only a part of the world turns in circles (on GoToObjMazeS5 a clone succeeded in 22 % of the
episodes, with sampling in 63 %). Sampling adds errors, but to all contexts alike. The k-th episode has the same random
numbers in every context and for every policy, which pairs them.

**Intervals.** Seeds and test episodes are crossed: an easy layout is easy for all seeds, so that more seeds do not
average its luck away. Seeds are resampled with all their episodes, and episodes, the same for all seeds, with all
seeds; the two variances add up [2], each corrected by n / (n - 1). The interval is Student's with Satterthwaite's
degrees of freedom. Measured coverage of the nominal 95 % at 3, 5 and 10 seeds and 100 episodes: .93 to .97 whether
layouts, seeds or both differ, .99 if only chance does; a bootstrap that redraws episodes for each seed: .73 to 1.00.
scipy has no such interval, and most numbers are no means but rates and slopes.

References:
    [0] Ross and Bagnell 2010, Efficient reductions for imitation learning.
        https://proceedings.mlr.press/v9/ross10a.html
    [1] Arora et al. 2022, Why exposure bias matters. https://arxiv.org/abs/2204.01171
    [2] Owen 2007, The pigeonhole bootstrap. https://doi.org/10.1214/07-AOAS122
"""

import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.cloning import NONE, PolicyActor, SequencePolicy, episode_rng, sample
from envs.minigrid.render import atlas
from envs.minigrid.trials import ExpertActor, Trial, choice_regrets, play
from rlpre.compare.runner import Measurements
from rlpre.errors import RlpreError
from rlpre.evaluation.stats import FEWEST, Floats, Interval, student
from rlpre.utils import atomic, to_device

Bools = NDArray[np.bool_]

CONTEXTS = ("EE", "EO", "OE", "OO")
EE, EO, OE, OO = range(4)
# Columns of `Record.table`.
ERROR, REGRET, NLL, RUNNING, AFTER_ERROR, RECOVERED = range(6)
MEASURES = {"regret error": REGRET, "error": ERROR}
CHUNK = 512  # frames encoded at a time
SEED = 0  # of the sampling in test episodes
SMALL = 0.3  # the slope is fitted up to so many errors per episode, while they can still grow
FEWEST_POINTS = 3  # of that fit
RESAMPLES = 1000
KNOWN = 0.9  # share of the resamples in which a number must be defined
CURES, REDUCES, NOTHING, HARMS, NO_VERDICT = "cures", "reduces", "no effect", "harms", "no verdict"


@dataclass(frozen=True)
class Record:
    """What one policy did in the four contexts, on E test episodes of at most T steps.

    The episodes are the same for all policies on a level. An episode in which the expert fails or loses its plan is
    dropped: it keeps its place, but has no running step.

    Attributes:
        wrong: (4, E, T) bool, the policy's action is not the expert's.
        nll: (4, E, T) -log p of the expert's action, in nats.
        regret: (4, E, T) by how many steps the policy's action raises the expert's cost to go. Above 0 the action is a
            regret error: several actions can be as good as the expert's.
        running: (4, E, T) bool, False after the end of the episode, where the other arrays do not count.
        success: (4, E) bool, whether the episode that these states are from reached its goal.
        switch_steps: (K,) int64, steps after which one player takes over from the other; empty if not measured.
        learner_first: (K, E) bool, success if the learner plays first: can the expert repair what it did?
        expert_first: (K, E) bool, success if the expert plays first: does a good start help the learner?
    """

    wrong: Bools
    nll: Floats
    regret: Floats
    running: Bools
    success: Bools
    switch_steps: NDArray[np.int64]
    learner_first: Bools
    expert_first: Bools

    def __post_init__(self) -> None:
        if not np.isfinite(self.nll[self.running]).all():
            raise RlpreError("the log-likelihood of an expert's action is not finite: look at the policy's logits")
        if not self.kept.any():
            raise RlpreError("all test episodes were dropped: choose a level that the expert solves")

    @property
    def kept(self) -> Bools:
        """(E,) the episodes that were not dropped."""
        return np.asarray(self.running.any(axis=-1).all(axis=0))

    def table(self, steps: int) -> Floats:
        """(E, 4, 6, steps) by episode and context, 0 after the end of an episode.

        Columns: an error; a regret error; the nll; 1 if the episode runs; 1 if it runs and the step before was an
        error; 1 if in addition this step is right.
        """
        before = np.pad(self.wrong, ((0, 0), (0, 0), (1, 0)))[..., :-1]
        columns = (self.wrong, self.wrong & (self.regret > 0), self.nll, self.running, before, before & ~self.wrong)
        counts = np.where(self.running[:, :, None], np.stack(columns, axis=2).astype(np.float64), 0.0)[..., :steps]
        padded = np.pad(counts, ((0, 0), (0, 0), (0, 0), (0, steps - counts.shape[-1])))
        return padded.transpose(1, 0, 2, 3)

    def measurements(self, steps: int) -> Measurements:
        """Means over the episodes up to ``steps``: success and nll, errors per episode, and errors at each step."""
        means = self.table(steps)[self.kept].mean(axis=0)
        found: dict[str, float | list[tuple[int, float]]] = {}
        for row, name in enumerate(CONTEXTS):
            found[f"success {name}"] = float(self.success[row, self.kept].mean())
            found[f"nll {name}"] = float(means[row, NLL].sum() / means[row, RUNNING].sum())
            for measure, column in MEASURES.items():
                found[f"{measure}s {name}"] = float(means[row, column].sum())
                found[f"{measure} {name}"] = list(enumerate(means[row, column].tolist(), start=1))
        return found

    def save(self, path: Path) -> None:
        """Writes the arrays as one ``.npz`` file."""
        with atomic(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **vars(self))

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Reads what `save` wrote."""
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**file)
        except (OSError, zipfile.BadZipFile, TypeError, ValueError, EOFError) as error:
            raise RlpreError(
                f"{path} cannot be read ({error}): delete {path.parent} and run the study again"
            ) from error


def record(
    policy: SequencePolicy,
    level: str,
    demonstrated: Sequence[Trial],
    switches: Sequence[int] = (),
) -> Record:
    """Measures a policy in the four contexts.

    Args:
        policy: to measure.
        level: a registered id.
        demonstrated: the expert's trials; the policy plays the same seeds.
        switches: steps after which learner and expert take over from each other.
    """
    seeds = [trial.seed for trial in demonstrated]
    own = play(level, seeds, policy.actor(SEED))
    kept = np.array([a.success and not a.lost and not b.lost for a, b in zip(demonstrated, own, strict=True)])
    steps = max(len(trial.actions) for trial in demonstrated)
    wrong, nll, regret, running, success = [], [], [], [], []
    for learner, trials in ((False, demonstrated), (True, own)):
        advice, taken = (_padded([getattr(trial, name) for trial in trials], steps) for name in ("advice", "actions"))
        inputs = _inputs(policy, trials, steps)
        histories = (advice, taken if learner else None)
        chosen, logs = zip(*(_answers(policy, *inputs, history) for history in histories), strict=True)
        regret += list(_regrets(level, trials, chosen, kept))
        wrong += [choice != advice for choice in chosen]
        nll += [-np.take_along_axis(log, np.maximum(advice, 0)[..., None], axis=-1)[..., 0] for log in logs]
        running += 2 * [(taken != NONE) & kept[:, None]]
        success += 2 * [np.array([trial.success for trial in trials]) & kept]
    turns = [
        np.array(
            [[trial.success for trial in play(level, seeds, _Relay(policy.actor(SEED), k, first))] for k in switches],
            bool,
        ).reshape(len(switches), len(seeds))
        for first in (True, False)
    ]
    arrays = (np.stack(each) for each in (wrong, nll, regret, running, success))
    return Record(*arrays, np.array(switches, np.int64), *turns)


class _Relay:
    """The learner or the expert acts for ``k`` steps of an episode, then the other one.

    The policy sees every frame, and every action that was taken.
    """

    def __init__(self, learner: PolicyActor, k: int, learner_begins: bool) -> None:
        self.learner, self.k, self.learner_begins = learner, k, learner_begins
        self.expert, self.time = ExpertActor(), np.zeros(0, np.int64)

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self.time = np.where(starts, 0, self.time + 1) if len(self.time) else np.zeros(len(frames), np.int64)
        own, experts = (actor.act(frames, missions, advice, starts) for actor in (self.learner, self.expert))
        self.learner.taken = np.where((self.time < self.k) == self.learner_begins, own, experts)
        return self.learner.taken


def _padded(arrays: Sequence[np.ndarray], steps: int, fill: int = NONE) -> np.ndarray:
    """(E, steps): the first steps of E arrays (T,)."""
    rows = np.full((len(arrays), steps), fill)
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array[:steps]
    return rows


@torch.inference_mode()
def _inputs(policy: SequencePolicy, trials: Sequence[Trial], steps: int) -> tuple[Tensor, Tensor | None]:
    """Features (E, steps, F) of the frames, each distinct frame encoded once, and the encoded missions (E, L)."""
    encoder = policy.encoder
    lengths = [len(trial.actions) for trial in trials]
    codes, place = np.unique(np.concatenate([trial.codes[:-1] for trial in trials]), axis=0, return_inverse=True)
    tiles = atlas(encoder.frames.input.shape[1] // codes.shape[1])
    chunks = (to_device(tiles.decode(codes[at : at + CHUNK]), encoder.device) for at in range(0, len(codes), CHUNK))
    features = torch.cat([encoder.encode_frames(chunk) for chunk in chunks])
    rows = _padded(np.split(place.reshape(-1), np.cumsum(lengths)[:-1]), steps, fill=0)
    mission = None
    if encoder.vocabulary:
        mission = to_device(encoder.vocabulary.encode([trial.mission for trial in trials]), encoder.device)
    return features[to_device(rows, encoder.device)], mission


@torch.inference_mode()
def _answers(
    policy: SequencePolicy, features: Tensor, mission: Tensor | None, history: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Sampled actions (E, T) and log-probabilities (E, T, A), given the actions taken (E, T); None: those sampled."""
    state, token = policy.encoder.begin(len(features)), torch.full((len(features),), NONE, device=features.device)
    given, rng = None if history is None else to_device(history, features.device), episode_rng(SEED)
    choices, logs = [], []
    for t in range(features.shape[1]):
        logits, state = policy.step(features[:, t], token, mission, state)
        uniform = rng.draw(np.full(len(features), t == 0), policy.encoder.actions)
        choices.append(sample(logits, to_device(uniform, features.device)))
        logs.append(logits.log_softmax(-1))
        token = choices[-1] if given is None else given[:, t]
    return torch.stack(choices, dim=1).cpu().numpy(), torch.stack(logs, dim=1).cpu().numpy()


def _regrets(level: str, trials: Sequence[Trial], chosen: Sequence[np.ndarray], kept: np.ndarray) -> np.ndarray:
    """(2, E, T) regrets of the choices in two contexts with the same states; NaN where no step counts."""
    costs = np.full((len(chosen), *chosen[0].shape), np.nan)
    episodes = np.flatnonzero(kept).tolist()
    asked = [np.stack([choice[e, : len(trials[e].actions)] for choice in chosen]) for e in episodes]
    for e, cost in zip(episodes, choice_regrets(level, [trials[e] for e in episodes], asked), strict=True):
        costs[:, e, : cost.shape[1]] = cost
    return costs


Records = Mapping[int, Record]  # by seed, of one arm on one level
Numbers = dict[str, list[Interval]]


def stack(records: Iterable[Record], horizon: int) -> tuple[Floats, Floats, Bools]:
    """Records of S seeds, cut at a horizon of T steps.

    Returns:
        (S, E, 4, 6, T) tables, see `Record.table`; (S, E, 2 + 2 K) success in EE and OO, then with a switch after each
        of K steps, learner first, expert first; (S, E) whether an episode was kept.
    """
    each = list(records)
    success = [np.concatenate([one.success[[EE, OO]], one.learner_first, one.expert_first]).T for one in each]
    tables = np.stack([one.table(horizon) for one in each])
    return tables, np.stack(success).astype(np.float64), np.stack([one.kept for one in each])


def numbers(records: Records, horizon: int, rng: np.random.Generator) -> Numbers:
    """Everything that is reported of one arm, by name; curves have an interval for each step, all others have one."""
    tables, success, kept = stack(records.values(), horizon)
    found = estimate(tables, kept, _errors, rng) | estimate(success, kept, _successes, rng)
    shares = {name for name in found if "success" in name or "recovery" in name or " first" in name}
    return found | {name: [one.within(-(name == "success gap"), 1) for one in found[name]] for name in shares}


def _successes(means: Floats) -> dict[str, Floats]:
    """From means (..., 2 + 2 K): success in EE (the expert's) and OO, their gap, and with a switch."""
    ee, oo, turns = means[..., :1], means[..., 1:2], means[..., 2:]
    learner, expert = np.split(turns, 2, axis=-1)
    return {
        "success EE": ee,
        "success OO": oo,
        "success gap": ee - oo,
        "learner first": learner,
        "expert first": expert,
    }


def _errors(means: Floats) -> dict[str, Floats]:
    """Named numbers (..., J) from means (..., 4, 6, T); NaN where undefined.

    Errors are added up in two ways. Padded: an episode that has ended makes no more errors; these are errors per
    episode. Alive: the share of errors among the episodes that still run; late steps then show only hard episodes.
    """
    running, sums, found = means[..., RUNNING, :], means.sum(axis=-1), dict[str, Floats]()
    nll, recovery = ratio(sums[..., NLL], sums[..., RUNNING]), ratio(sums[..., RECOVERED], sums[..., AFTER_ERROR])
    common = (running > 0).all(axis=-2, keepdims=True)  # later steps cannot be compared
    for measure, column in MEASURES.items():
        errors = means[..., column, :]
        rates, free, forced = ratio(errors, running), errors[..., OO, :], errors[..., EE, :]
        alive = np.where(common, rates, 0.0).sum(axis=-1)
        ee, eo, oe, oo = np.moveaxis(sums[..., column], -1, 0)
        totals = {
            **dict(zip(CONTEXTS, (ee, eo, oe, oo), strict=True)),
            "excess": oo - ee,
            "percent": 100 * ratio(oo - ee, ee),  # excess in % of EE [1]
            "interaction": oo - eo - oe + ee,
            "excess alive": alive[..., OO] - alive[..., EE],
            "slope": slope(free, forced),
        }
        found |= {f"{measure} {name}": total[..., None] for name, total in totals.items()}
        found |= {f"{measure} {name} by step": rates[..., row, :] for row, name in enumerate(CONTEXTS)}
        found[f"{measure} accumulated"] = accumulated(free, forced)
    for row, name in enumerate(CONTEXTS):  # recovery: P(right at t + 1 | wrong at t)
        found |= {f"nll {name}": nll[..., row, None], f"recovery {name}": recovery[..., row, None]}
    return found


def accumulated(free: Floats, forced: Floats) -> Floats:
    """AccErr(l) [1]: the errors of OO up to step l over the mean error of a step of EE up to l.

    It is l if errors do not accumulate, and at most l^2, if every error ruins all later steps [0]; NaN as long as EE
    made no error. ``free`` and ``forced`` (..., T) are the errors of OO and EE at each step.
    """
    return ratio(free.cumsum(axis=-1), forced.cumsum(axis=-1)) * np.arange(1, free.shape[-1] + 1)


def slope(free: Floats, forced: Floats) -> Floats:
    """The growth d log AccErr(l) / d log l, fitted by least squares while OO has made fewer than `SMALL` errors.

    1: errors do not grow with time, however many they are; 2: they grow as fast as possible; NaN with fewer than
    `FEWEST_POINTS` points.
    """
    found = accumulated(free, forced)
    used = (found > 0) & (free.cumsum(axis=-1) < SMALL)
    x = np.ma.masked_array(np.broadcast_to(np.log(np.arange(1, free.shape[-1] + 1)), used.shape), ~used)
    y = np.ma.masked_array(np.log(found, out=np.zeros_like(found), where=used), ~used)
    x = x - x.mean(axis=-1, keepdims=True)
    fitted = ratio(np.ma.filled((x * y).sum(axis=-1), 0.0), np.ma.filled((x * x).sum(axis=-1), 0.0))
    return np.where(used.sum(axis=-1) >= FEWEST_POINTS, fitted, np.nan)


def ratio(above: Floats, below: Floats) -> Floats:
    """Above / below; NaN where ``below`` is not positive."""
    return np.asarray(np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0))


def estimate(
    values: NDArray[np.floating[Any]],
    kept: Bools,
    statistic: Callable[[Floats], dict[str, Floats]],
    rng: np.random.Generator,
) -> Numbers:
    """Functions of means over seeds and episodes, with intervals (see the top of this file).

    Args:
        values: (seeds, episodes, ...) to average. Include two policies to compare them pair by pair.
        kept: (seeds, episodes) the values that count; some of each seed.
        statistic: maps means (resamples, ...) to named numbers (resamples, J), NaN where undefined.
        rng: the source of the resampling; the same state gives the same numbers.

    Returns:
        J intervals for each name. They have no ends with fewer than `FEWEST` seeds or episodes, or if a number is
        undefined in one resample in ten.
    """
    flat = np.where(kept[..., None], values.reshape(*kept.shape, -1), 0.0)
    sums = [(flat.sum(axis, np.float64), kept.sum(axis)) for axis in (1, 0)]  # of each seed, of each episode

    def evaluate(weights: Floats, sums: Floats, counts: NDArray[np.int64]) -> dict[str, Floats]:
        means = (weights @ sums) / (weights @ counts)[:, None]
        return statistic(means.reshape(-1, *values.shape[2:]))

    found = {name: number[0] for name, number in evaluate(np.ones((1, kept.shape[0])), *sums[0]).items()}
    if min(kept.shape) < FEWEST:
        margins = {name: np.full(len(number), np.nan) for name, number in found.items()}
    else:
        drawn = [evaluate(_drawn(n, rng), *each) for n, each in zip(kept.shape, sums, strict=True)]
        margins = {name: _margins([one[name] for one in drawn], kept.shape) for name in found}

    def interval(value: float, margin: float) -> Interval:
        ends = (value - margin, value + margin) if np.isfinite(margin) else (None, None)
        return Interval(value, *ends, len(kept))

    return {name: list(map(interval, found[name].tolist(), margins[name].tolist())) for name in found}


def _drawn(n: int, rng: np.random.Generator) -> Floats:
    """(resamples, n) how often each of n is drawn."""
    drawn = rng.integers(n, size=(RESAMPLES, n)) + n * np.arange(RESAMPLES)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES * n).reshape(RESAMPLES, n).astype(np.float64)


def _margins(resampled: Sequence[Floats], sizes: tuple[int, ...]) -> Floats:
    """(J,) half the width of each interval, from the numbers (resamples, J) of each bootstrap, and its size."""
    variances = []
    for each, n in zip(resampled, sizes, strict=True):
        variance = np.ma.masked_invalid(each).var(axis=0).filled(np.nan)
        variances.append(np.where(np.isfinite(each).mean(axis=0) > KNOWN, variance, np.nan) * n / (n - 1))
    parts = [variance**2 / (n - 1) for variance, n in zip(variances, sizes, strict=True)]
    total = np.sum(variances, axis=0)
    freedom = np.divide(total**2, sum(parts), out=np.full_like(total, min(sizes) - 1), where=total > 0)
    return np.asarray(student(freedom) * np.sqrt(total))


@dataclass(frozen=True)
class Change:
    """What a correction changed against the clone, pair by pair of seed and episode.

    Attributes:
        before: the clone's excess, in regret errors per episode.
        excess: the change of the excess.
        free: the change of OO.
        forced: the change of EE.
        success: the change of the share of successes when the policy acts alone.
    """

    before: Interval
    excess: Interval
    free: Interval
    forced: Interval
    success: Interval

    @property
    def removed(self) -> float | None:
        """The share of the clone's excess that is gone: the smaller fall, of OO or of the excess. None without excess.

        A correction that improves the policy everywhere lowers OO and leaves the excess. One that makes it worse in the
        expert's contexts lowers the excess and leaves OO. Neither is a cure.
        """
        if not above(self.before):
            return None
        return max(0.0, -max(self.free.value, self.excess.value) / self.before.value)

    @property
    def verdict(self) -> str:
        """The first that holds, by a rule that was fixed before anything was measured.

        - *no verdict*: too few seeds for intervals;
        - *harms*: success falls, or OO rises and success does not;
        - *no effect*: the clone shows no excess, or OO and the excess do not both fall;
        - *cures*: at least half of the clone's excess is removed; *reduces*: less.

        A number rises or falls if its 95 % interval excludes 0.
        """
        if any(number.low is None for number in (self.before, self.excess, self.free, self.success)):
            return NO_VERDICT
        if below(self.success) or (above(self.free) and not above(self.success)):
            return HARMS
        if self.removed is None or not (below(self.free) and below(self.excess)):
            return NOTHING
        return CURES if self.removed >= 0.5 else REDUCES


def above(number: Interval) -> bool:
    """Whether the interval lies above 0."""
    return number.low is not None and number.low > 0


def below(number: Interval) -> bool:
    """Whether the interval lies below 0."""
    return number.high is not None and number.high < 0


def change(treated: Records, clone: Records, horizon: int, rng: np.random.Generator) -> Change | None:
    """What ``treated`` changed against ``clone``, over the seeds and episodes that both have; None without any."""
    seeds = sorted(set(treated) & set(clone))
    if not seeds:
        return None
    parts = (stack([records[seed] for seed in seeds], horizon) for records in (treated, clone))
    (tables, success, kept), (before, success_before, kept_before) = parts
    errors, errors_before = (each[..., REGRET, :].sum(axis=-1) for each in (tables, before))
    rise = errors - errors_before
    columns = (
        errors_before[..., OO] - errors_before[..., EE],
        rise[..., OO] - rise[..., EE],
        rise[..., OO],
        rise[..., EE],
        success[..., 1] - success_before[..., 1],
    )
    found = estimate(np.stack(columns, axis=-1), kept & kept_before, lambda means: {"columns": means}, rng)
    return Change(*found["columns"])
