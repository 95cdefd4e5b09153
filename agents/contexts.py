"""The four contexts of exposure bias: whose states a policy sees, and whose actions it is told.

Choices are drawn from the policy, in all contexts and while it plays, as they are when it learns by reinforcement. A
greedy policy that sees a part of the world turns in circles: of a clone's wrong actions on GoToObjMazeS5, 77 % were
taken in states of world and expert in which it had erred before in the same episode; it succeeded in 22 %, drawn in
63 %. Drawing adds errors of its own (label smoothing alone: 4 % with seven actions), to all contexts alike, so that the
excess is free of them. The k-th episode has the same luck in every context and for every policy, which pairs them.

What the contexts mean is said in `rlpre.measure.exposure`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from agents.policy import NONE, PolicyActor, SequencePolicy, dice, draw
from envs import atlas
from envs.choices import choice_regrets
from envs.trials import Trial, expert, play
from rlpre.device import ship
from rlpre.errors import RlpreError
from rlpre.measure.exposure import Context, Switches

CHUNK = 512  # frames encoded at a time
SEED = 0  # of the luck in test episodes


def contexts(
    policy: SequencePolicy,
    level: str,
    seeds: Sequence[int],
    demonstrated: Sequence[Trial] | None = None,
    *,
    regret: bool = True,
) -> dict[str, Context]:
    """What a policy does in the four contexts EE, EO, OE and OO, on the same episodes.

    ====  =============================================  ======================================================
    name  frames                                         action tokens
    ====  =============================================  ======================================================
    EE    the expert's                                   the expert's
    EO    the expert's                                   what the policy itself would have done, step after step
    OE    the policy's own, as it plays the episodes     what the expert would have done in each of these states
    OO    the policy's own                               what it did
    ====  =============================================  ======================================================

    Args:
        policy: to measure.
        level: that the seeds are of.
        seeds: of the resets, see `envs.trials.test_seeds`.
        demonstrated: the expert's trials of these seeds, so that they are not played again for each policy.
        regret: also measures what each wrong choice costs, which takes most of the time; else it is NaN.

    Returns:
        By name, arrays of one shape: as many steps as the expert's longest trial. An episode in which the expert fails
        or loses its plan has no living step in any.

    Raises:
        RlpreError: if ``demonstrated`` are trials of other seeds.
    """
    demonstrated = play(level, seeds, expert()) if demonstrated is None else demonstrated
    if [trial.seed for trial in demonstrated] != list(seeds):
        raise RlpreError("the expert's trials are of other seeds than the policy's: play them on the same")
    own = play(level, seeds, policy.actor(SEED))
    kept = np.array([a.success and not a.lost and not b.lost for a, b in zip(demonstrated, own, strict=True)])
    steps = max(len(trial.actions) for trial in demonstrated)
    result = {}
    for states, trials in (("E", demonstrated), ("O", own)):
        advice, done = (_padded([getattr(trial, name) for trial in trials], steps) for name in ("advice", "actions"))
        inputs = _inputs(policy, trials, steps)
        told = (advice, None if states == "E" else done)
        chosen, logs = zip(*(_replies(policy, *inputs, tokens) for tokens in told), strict=True)
        costs = _regrets(level, trials, chosen, kept) if regret else np.full((2, *advice.shape), np.nan)
        alive = (done != NONE) & kept[:, None]
        success = np.array([trial.success for trial in trials]) & kept
        for tokens, choice, log, cost in zip("EO", chosen, logs, costs, strict=True):
            nll = -np.take_along_axis(log, np.maximum(advice, 0)[..., None], axis=-1)[..., 0]
            result[states + tokens] = Context(choice != advice, nll, cost, alive, success)
    return result


def switch_curves(policy: SequencePolicy, level: str, seeds: Sequence[int], steps: Sequence[int]) -> Switches:
    """Success when the policy plays ``k`` steps and then the expert, and the reverse, for every ``k`` of ``steps``.

    Whoever acts, the policy sees every frame and is told every action that was done.
    """
    learner_first, expert_first = (
        np.array([[t.success for t in play(level, seeds, _Relay(policy.actor(SEED), k, begins))] for k in steps])
        for begins in (True, False)
    )
    return Switches(np.array(steps), learner_first, expert_first)


class _Relay:
    """The first acts for ``k`` steps of an episode, then the other: a policy and the expert."""

    def __init__(self, learner: PolicyActor, k: int, learner_begins: bool) -> None:
        self.learner, self.k, self.learner_begins = learner, k, learner_begins
        self.expert, self.time = expert(), np.zeros(0, np.int64)

    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        self.time = np.where(starts, 0, self.time + 1) if len(self.time) else np.zeros(len(frames), np.int64)
        own, experts = (actor.act(frames, missions, advice, starts) for actor in (self.learner, self.expert))
        self.learner.taken = np.where((self.time < self.k) == self.learner_begins, own, experts)
        return self.learner.taken


def _padded(arrays: Sequence[np.ndarray], steps: int, fill: int = NONE) -> np.ndarray:
    """(E, steps): the first steps of arrays (T,), one below the other."""
    rows = np.full((len(arrays), steps), fill)
    for row, array in zip(rows, arrays, strict=True):
        row[: len(array)] = array[:steps]
    return rows


@torch.inference_mode()
def _inputs(policy: SequencePolicy, trials: Sequence[Trial], steps: int) -> tuple[Tensor, Tensor | None]:
    """Features (E, steps, F) of the frames, each distinct one encoded once, and the encoded missions (E, L)."""
    encoder = policy.encoder
    lengths = [len(trial.actions) for trial in trials]
    codes, place = np.unique(np.concatenate([trial.codes[:-1] for trial in trials]), axis=0, return_inverse=True)
    tiles = atlas(encoder.frames.input.shape[1] // codes.shape[1])
    chunks = (ship(tiles.decode(codes[at : at + CHUNK]), encoder.device) for at in range(0, len(codes), CHUNK))
    features = torch.cat([encoder.encode_frames(chunk) for chunk in chunks])
    rows = _padded(np.split(place.reshape(-1), np.cumsum(lengths)[:-1]), steps, fill=0)
    mission = None
    if encoder.vocabulary:
        mission = ship(encoder.vocabulary.encode([trial.mission for trial in trials]), encoder.device)
    return features[ship(rows, encoder.device)], mission


@torch.inference_mode()
def _replies(
    policy: SequencePolicy, features: Tensor, mission: Tensor | None, tokens: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """What a policy draws (E, T) and its log-probabilities (E, T, A), told ``tokens`` (E, T); None: what it drew."""
    state, told = policy.encoder.begin(len(features)), torch.full((len(features),), NONE, device=features.device)
    given, luck = None if tokens is None else ship(tokens, features.device), dice(SEED)
    choices, logs = [], []
    for t in range(features.shape[1]):
        logits, state = policy.step(features[:, t], told, mission, state)
        rolled = luck.roll(np.full(len(features), t == 0), policy.encoder.actions)
        choices.append(draw(logits, ship(rolled, features.device)))
        logs.append(logits.log_softmax(-1))
        told = choices[-1] if given is None else given[:, t]
    return torch.stack(choices, dim=1).cpu().numpy(), torch.stack(logs, dim=1).cpu().numpy()


def _regrets(level: str, trials: Sequence[Trial], chosen: Sequence[np.ndarray], kept: np.ndarray) -> np.ndarray:
    """(2, E, T) what the choices of two contexts cost along the same trials; NaN where there is no step."""
    costs = np.full((len(chosen), *chosen[0].shape), np.nan)
    episodes = np.flatnonzero(kept).tolist()
    asked = [np.stack([choice[e, : len(trials[e].actions)] for choice in chosen]) for e in episodes]
    for e, cost in zip(episodes, choice_regrets(level, [trials[e] for e in episodes], asked), strict=True):
        costs[:, e, : cost.shape[1]] = cost
    return costs
