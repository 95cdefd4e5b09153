"""Few labels: how well is the expert's action told on a task, after a few labelled frames of it?"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import envs
from rlpre import Encoder, FrameStore, RlpreError
from rlpre.device import resolve_device, ship
from rlpre.errors import at_least
from rlpre.frames import digests
from rlpre.pretrain import quiet
from rlpre.sb3.modes import Mode

POOL, HELD_OUT = "pool", "held-out"  # the stores of a task: of layouts for training, and for tests
HALVES = 10  # layouts for tests are the multiples of 5; every other one of them validates
LABELS, VALIDATION, TEST = "labels", "validation", "test"  # the parts of its frames
CHUNK = 512


@dataclass(frozen=True)
class LabelsConfig:
    """Everything that decides a score, together with the task, the encoder and the seed."""

    labels: int = 300  # frames of the task whose expert action is told
    episodes: int = 200  # of the expert, to label frames of, and as many to score on
    noise: float = 0.3  # probability of a random action in them, so that the advice shows how to recover
    steps: int = 400  # gradient steps
    batch: int = 32  # labelled frames a gradient step
    lr: float = 2e-3  # AdamW for the head, and for an encoder with fresh weights; others learn at the mode's share
    weight_decay: float = 1e-2  # AdamW's default
    device: str = "auto"  # "cpu", "cuda", ...

    def check(self) -> None:
        """Refuses what could not be measured.

        Raises:
            RlpreError: for a number out of range or a missing device.
        """
        at_least(self, labels=2, episodes=2, noise=0, steps=1, batch=1)
        resolve_device(self.device)


@dataclass(frozen=True)
class Task:
    """Different frames of a task with the expert's action: none is in two parts, nor is a layout.

    Attributes:
        frames: part -> (n, C, H, W) uint8.
        actions: part -> (n,) int64.
        number: of actions.
    """

    frames: dict[str, np.ndarray]
    actions: dict[str, np.ndarray]
    number: int


def record(env: str, home: Path, config: LabelsConfig, look: dict[str, Any]) -> None:
    """Records a task's demonstrations below ``home``, or what is missing of them."""
    for name, part in ((POOL, "train"), (HELD_OUT, "test")):
        envs.demonstrations(env, home / env / name, config.episodes, 0, config.noise, part, **look)


@lru_cache(maxsize=4)
def load(env: str, home: Path) -> Task:
    """What was recorded of a task, in three parts.

    Raises:
        RlpreError: if a part has no frame of its own, or only one action.
    """
    pool, held_out = (FrameStore.open(home / env / name) for name in (POOL, HELD_OUT))
    rows = {LABELS: (pool, _first(pool))}
    known, fresh = set(_digests(*rows[LABELS])), _first(held_out)
    fresh = fresh[[digest not in known for digest in _digests(held_out, fresh)]]
    later = held_out.column("layout")[fresh] % HALVES > 0
    rows |= {VALIDATION: (held_out, fresh[~later]), TEST: (held_out, fresh[later])}
    actions = {part: store.column("expert")[of].astype(np.int64) for part, (store, of) in rows.items()}
    for part, wanted in actions.items():
        if len(np.unique(wanted)) < 2:
            raise RlpreError(
                f"{env} has {len(wanted)} frames of its own for the {part} with {len(np.unique(wanted))} "
                "different expert actions: record more episodes, or choose a task with more layouts"
            )
    return Task({part: store.frames(of) for part, (store, of) in rows.items()}, actions, pool.num_actions)


def score(
    encoder: Encoder,
    mode: Mode,
    task: Task,
    part: str,
    config: LabelsConfig,
    seed: int,
    report: Callable[[int], None] = quiet,
) -> float:
    """Learns the expert's action from a few labelled frames, and counts how often it is right on others.

    Args:
        encoder: to start from; it is changed. Its features are standardised over the labelled frames, whoever made it.
        mode: frozen, or trained together with the linear head.
        task: the frames.
        part: to score on.
        config: settings.
        seed: draws the labelled frames, the head and the batches.
        report: called with the number of gradient steps so far.

    Returns:
        Balanced accuracy in [0, 1]: the mean over actions of the share that is told right.

    Raises:
        RlpreError: if the task has fewer frames to label.
    """
    rng, device = np.random.default_rng(seed), resolve_device(config.device)
    if len(task.actions[LABELS]) < config.labels:
        raise RlpreError(
            f"labels={config.labels}, but only {len(task.actions[LABELS])} frames can be labelled: ask fewer"
        )
    chosen = rng.permutation(len(task.actions[LABELS]))[: config.labels]
    actions, inputs = (ship(of[LABELS][chosen], device) for of in (task.actions, task.frames))
    asked = ship(task.frames[part], device)
    encoder = encoder.to(device).eval()
    encoder.standardise(_answers(encoder, inputs))
    torch.manual_seed(seed)
    head = nn.Linear(encoder.num_features, task.number).to(device)
    groups: list[dict[str, Any]] = [{"params": head.parameters()}]
    if mode.trainable:
        model: nn.Module = nn.Sequential(encoder, head)
        groups.append({"params": encoder.parameters(), "lr": mode.lr_scale * config.lr})
    else:
        model, inputs, asked = head, _answers(encoder, inputs), _answers(encoder, asked)
    optimizer = torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay)
    weight = 1 / torch.bincount(actions, minlength=task.number).clamp_min(1)  # what is scored is balanced too
    for step in range(config.steps):
        rows = ship(rng.integers(len(actions), size=config.batch), device)
        loss = F.cross_entropy(model(inputs[rows]), actions[rows], weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        report(step + 1)
    return balanced_accuracy(task.actions[part], _answers(model, asked).argmax(1).cpu().numpy())


def balanced_accuracy(wanted: np.ndarray, answers: np.ndarray) -> float:
    """The mean over the classes that are wanted of the share of answers that are right; both (n,)."""
    return float(np.mean([(answers[wanted == kind] == kind).mean() for kind in np.unique(wanted)]))


def _first(store: FrameStore) -> np.ndarray:
    """The first row of every different frame for which the expert has advice."""
    rows = np.flatnonzero(store.column("expert") >= 0)
    return rows[np.unique(store.ids[rows], return_index=True)[1]]


def _digests(store: FrameStore, rows: np.ndarray) -> list[bytes]:
    return list(digests(store.read(rows).numpy()))


@torch.no_grad()
def _answers(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(chunk) for chunk in inputs.split(CHUNK)])
