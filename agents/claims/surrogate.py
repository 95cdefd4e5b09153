"""Claim 11: a surrogate that was pretrained on a simple system needs fewer points of a complex one.

Heat transfer: from a smooth tube (Gnielinski [0]) to one with ribs (Webb, Eckert and Goldstein [1]). Worlds: the
expected return of a random walk, by pose and room, from small empty rooms to a large one.

[0] Gnielinski 1976, "New equations for heat and mass transfer in turbulent pipe and channel flow".
[1] Webb, Eckert and Goldstein 1971, "Heat transfer and friction in tubes with repeated-rib roughness". It holds for
    roughness Reynolds numbers above 35, pitches of 10 to 40 rib heights, and Prandtl numbers of 0.71 to 37.6.
"""

import copy
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from agents.claims.claim import Claim, Verdict, judge
from agents.claims.curves import draw_curves
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval

Points = tuple[np.ndarray, np.ndarray]  # inputs (n, d) in [-1, 1], targets (n,)
System = Callable[[int, np.random.Generator], Points]

COUNTS, LABELS = (4, 8, 16, 32), 8  # points of the complex system, and at which number the figure is measured
DRAWS = 6  # of these points for each seed
MANY, STEPS, WIDTH, RATE = 500, 300, 32, 1e-2
SMALL, LARGE = (5, 6, 7), (16,)  # sides of the rooms, with their walls
ACTIONS = 7  # of which two turn, one goes forward, and the others do nothing in an empty room


def measure(directory: Path, seeds: int, shuffled: bool = False) -> Verdict:
    """The fall of the error (log10 RMSE) by pretraining; ``shuffled`` permutes the targets of pretraining."""
    heat = -np.log10([errors(smooth_tube, ribbed_tube, COUNTS, seed, shuffled) for seed in range(seeds)])
    sides = partial(rooms, SMALL), partial(rooms, LARGE)
    worlds = -np.log10([errors(*sides, (LABELS,), seed, shuffled) for seed in range(seeds)])[:, :, 0]
    scratch, permuted, pretrained = heat[:, :, COUNTS.index(LABELS)].T
    over = mean_interval(worlds[:, 2] - worlds[:, 1])
    measured = (
        f"fall of log10 RMSE of ln Nu in a ribbed tube, at {LABELS} points, after pretraining on a smooth one; over "
        f"scratch {show_interval(mean_interval(pretrained - scratch))}; of the expected return in a large room, after "
        f"small ones, {show_interval(over)}"
    )
    arms = {"pretrained": heat[:, 2], "permuted": heat[:, 1], "scratch": heat[:, 0]}
    picture = draw_curves(COUNTS, {name: 10**-each for name, each in arms.items()}, "points", "RMSE of ln Nu", "xy")
    return judge(pretrained, permuted, 0.1, measured, "permuted, -log10 RMSE", picture)


def errors(simple: System, other: System, counts: tuple[int, ...], seed: int, shuffled: bool) -> list[list[float]]:
    """Root mean squared errors on the other system: from scratch, pretrained on permuted targets, and pretrained."""
    rng = np.random.default_rng(seed)
    x, y = simple(MANY, rng)
    pool, test = other(DRAWS * max(counts), rng), other(MANY, rng)
    torch.manual_seed(seed)
    fresh = network(x.shape[1])
    starts = fresh, tuned(fresh, x, rng.permutation(y)), tuned(fresh, x, rng.permutation(y) if shuffled else y)

    def mean_error(start: nn.Sequential, n: int) -> float:
        parts = [slice(draw * n, (draw + 1) * n) for draw in range(DRAWS)]
        return float(np.mean([error(tuned(start, pool[0][part], pool[1][part]), test) for part in parts]))

    return [[mean_error(start, n) for n in counts] for start in starts]


def network(inputs: int) -> nn.Sequential:
    """A surrogate with fresh weights."""
    return nn.Sequential(nn.Linear(inputs, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 1))


def tuned(start: nn.Sequential, x: np.ndarray, y: np.ndarray) -> nn.Sequential:
    """A copy of a surrogate, fitted to points."""
    model = copy.deepcopy(start)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    inputs, targets = (torch.tensor(values, dtype=torch.float32) for values in (x, y))
    for _ in range(STEPS):
        loss = (model(inputs)[:, 0] - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


@torch.no_grad()
def error(model: nn.Sequential, points: Points) -> float:
    """The root mean squared error."""
    x, y = (torch.tensor(values, dtype=torch.float32) for values in points)
    return float((model(x)[:, 0] - y).square().mean().sqrt())


def flow(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inputs (n, 4) in [-1, 1], for ln Re, ln Pr, rib height and rib pitch; Re in [2e4, 1e5] and Pr in [0.71, 20]."""
    x = rng.uniform(-1, 1, (n, 4))
    low, high = np.log([[2e4, 0.71], [1e5, 20]])
    return x, *np.exp(low + (x[:, :2] + 1) / 2 * (high - low)).T


def smooth_tube(n: int, rng: np.random.Generator) -> Points:
    """Inputs and ln Nu by Gnielinski [0]; there are no ribs, and their inputs are 0."""
    x, re, pr = flow(n, rng)
    f = (0.79 * np.log(re) - 1.64) ** -2 / 8
    return x * [1, 1, 0, 0], np.log(f * (re - 1000) * pr / (1 + 12.7 * f**0.5 * (pr ** (2 / 3) - 1)))


def ribbed_tube(n: int, rng: np.random.Generator) -> Points:
    """Inputs and ln Nu by Webb et al. [1]; ribs are .02 to .04 diameters high, 10 to 40 heights apart."""
    x, re, pr = flow(n, rng)
    height, pitch = 0.03 + 0.01 * x[:, 2], 25 + 15 * x[:, 3]
    rough = 0.95 * pitch**0.53
    f = (rough - 2.5 * np.log(2 * height) - 3.75) ** -2  # half of Fanning's friction factor
    stanton = f / (1 + f**0.5 * (4.5 * (height * re * f**0.5) ** 0.28 * pr**0.57 - rough))
    return x, np.log(stanton * re * pr)


def rooms(sides: tuple[int, ...], n: int, rng: np.random.Generator) -> Points:
    """Poses as shares of the room, headings and the side, (n, 7); and the expected returns."""
    drawn = []
    for side in rng.choice(sides, n).tolist():
        y, x = divmod(int(rng.integers((side - 2) ** 2 - 1)), side - 2)  # the goal is in the last cell
        heading = rng.integers(4)
        inputs = [2 * x / (side - 3) - 1, 2 * y / (side - 3) - 1, *np.eye(4)[heading], np.log(side / max(LARGE))]
        drawn.append((inputs, random_walk(side)[heading, y, x]))
    inputs, targets = zip(*drawn, strict=True)
    return np.array(inputs), np.array(targets)


@cache
def random_walk(side: int) -> np.ndarray:
    """The exact expected return of random actions in MiniGrid's empty room, (headings, rows, columns)."""
    cells, limit = side - 2, 4 * side**2
    value = np.zeros((4, cells, cells))
    for step in range(limit, 0, -1):
        value[:, -1, -1] = 1 - 0.9 * step / limit  # MiniGrid's reward for the goal, reached by this step
        walls = np.pad(value, ((0, 0), (1, 1), (1, 1)), "edge")  # a wall leaves the agent where it is
        moves = walls[0, 1:-1, 2:], walls[1, 2:, 1:-1], walls[2, 1:-1, :-2], walls[3, :-2, 1:-1]  # right, down, ..
        turns = np.roll(value, 1, 0) + np.roll(value, -1, 0)
        value = (turns + np.stack(moves) + (ACTIONS - 3) * value) / ACTIONS
    return value


CLAIM = Claim(
    11,
    "A surrogate pretrained on a simple system predicts a complex one from few points.",
    measure,
    "the same pretraining with permuted targets, which teaches no more than their mean and spread",
)
