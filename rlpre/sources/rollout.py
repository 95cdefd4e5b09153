"""Playing environments into a frame store: whole episodes, on disk shard by shard."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from rlpre import actions
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore, digests
from rlpre.framewriter import MANIFEST, FrameWriter
from rlpre.sources.layout import Frames

Columns = dict[str, npt.NDArray[Any]]
Rows = tuple[Frames, Columns]
UNKNOWN = -1  # a label that nobody knows
CHUNK = 4096


class Player(Protocol):
    """Acts, and says what a store keeps of the environments' current states.

    Attributes:
        labels: names of the integer label columns.
    """

    labels: Sequence[str]

    def frames(self, observed: Any) -> Frames:
        """What is stored of the observations, (n_envs, ...)."""
        ...

    def known(self) -> npt.NDArray[np.int16]:
        """The labels, (n_envs, len(labels)); asked once a step."""
        ...

    def act(self, observed: Any, known: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
        """Actions (n_envs, ...) for the observations and what `known` gave for them."""
        ...

    def end(self, env: int, info: dict[str, Any]) -> Frames:
        """The frame on which an environment's episode ended; its next one has begun."""
        ...


def segments(tasks: int, steps: int, n_envs: int, most: int) -> list[tuple[int, int]]:
    """(task, steps of each environment) per segment, none of more than ``most`` transitions if that can be."""
    longest, total = max(1, most // n_envs), -(-steps // n_envs)
    return [(task, min(longest, total - start)) for task in range(tasks) for start in range(0, total, longest)]


def seeds(seed: int, number: int) -> tuple[int, int]:
    """Of the worlds and of who acts in them, for the stretch of this number; near seeds share nothing."""
    worlds, player = (np.random.SeedSequence([seed, number]).generate_state(2) >> 1).tolist()
    return worlds, player


def begin(out: Path, spec: Mapping[str, Any], **arguments: Any) -> FrameWriter:
    """The writer of a new store, or of one that was begun with the same specification.

    Args:
        out: the directory.
        spec: as in `FrameStore.create`.
        **arguments: the others of `FrameStore.create`.

    Raises:
        RlpreError: naming the first difference, if ``out`` belongs to another specification.
    """
    if not (out / MANIFEST).exists():
        return FrameStore.create(out, spec=spec, **arguments)
    writer = FrameStore.extend(out)
    found, wanted = writer.manifest["spec"], json.loads(json.dumps(spec))
    for key in {**wanted, **found}:
        if found.get(key) != wanted.get(key):
            raise RlpreError(
                f"{out} belongs to another collection: {key} is {found.get(key)!r} there and {wanted.get(key)!r} here: "
                "choose another directory"
            )
    return writer


class Recorder:
    """Plays and appends what was played; a bar and a census of distinct and unchanged frames on the way.

    An episode that goes on waits in memory, but no longer than a shard: then it is cut and goes on as another.

    Args:
        writer: of the store; what it holds already counts.
        steps: transitions in all, for the bar.
    """

    def __init__(self, writer: FrameWriter, steps: int) -> None:
        self.writer = writer
        self.seen: set[bytes] = set()
        self.transitions = self.unchanged = 0
        if writer.manifest["shards"]:
            store = FrameStore.open(writer.path)
            for start in range(0, len(store), CHUNK):
                self.seen.update(digests(store.read(np.arange(start, min(start + CHUNK, len(store)))).numpy()))
            self.transitions = int(store.acted.sum())
            self.unchanged = round(store.unchanged * self.transitions)
        self._waiting: dict[int, tuple[Frames, Columns]] = {}
        self.bar = tqdm(
            total=steps,
            initial=self.transitions,
            unit="step",
            desc=writer.path.name,
            postfix=self.census,
            disable=None,
        )

    @property
    def census(self) -> dict[str, str]:
        """For the bar."""
        if not self.transitions:
            return {}
        return {"distinct": f"{len(self.seen):,}", "unchanged": f"{self.unchanged / self.transitions:.0%}"}

    def play(self, venv: VecEnv, player: Player, observed: Any, length: int, last: bool, task: int = 0) -> Any:
        """Plays ``length`` steps of each environment and puts the episodes that ended on disk.

        Args:
            venv: the environments.
            player: who acts.
            observed: the observations that they start from.
            length: steps.
            last: cuts every episode at the end; else those that go on wait for the next call.
            task: value of the column.

        Returns:
            The observations after the last step.
        """
        space = self.writer.action_space
        frames = np.empty((length, *player.frames(observed).shape), np.uint8)
        steps = frames.shape[:2]
        known = np.empty((*steps, len(player.labels)), np.int16)
        action = np.empty(steps, actions.column_type(space))
        reward, done, truncated = np.empty(steps), np.zeros(steps, bool), np.zeros(steps, bool)
        mission = np.empty(steps, object)
        ends: list[dict[int, Frames]] = [{} for _ in range(venv.num_envs)]
        for t in range(length):
            frames[t], known[t] = player.frames(observed), player.known()
            mission[t] = _missions(venv)
            action[t] = player.act(observed, known[t])
            observed, reward[t], done[t], infos = venv.step(action[t])
            for env in np.flatnonzero(done[t]).tolist():
                truncated[t, env] = infos[env].get("TimeLimit.truncated", False)
                ends[env][t] = player.end(env, infos[env])
            self.bar.update(venv.num_envs)
        columns = {"action": action, "reward": reward, "terminated": done & ~truncated, "truncated": truncated}
        columns |= {label: known[..., i] for i, label in enumerate(player.labels)} | {"mission": mission}
        for env, frame in enumerate(player.frames(observed)):
            mine = {name: column[:, env] for name, column in columns.items()}
            whole = self._whole(env, frames[:, env], mine, ends[env], frame, last)
            if whole:
                rows, kept = whole
                self._count(rows, kept["action"])
                self.writer.append(rows, task=task, **kept)
        self.writer.flush()
        self.bar.set_postfix(self.census)
        return observed

    def _whole(
        self, env: int, frames: Frames, columns: Columns, ends: dict[int, Frames], now: Frames, last: bool
    ) -> Rows | None:
        """The rows of the episodes that ended, if any; the steps of the one that goes on wait."""
        if env in self._waiting:
            before, earlier = self._waiting.pop(env)
            frames = np.concatenate([before, frames])
            columns = {name: np.concatenate([earlier[name], column]) for name, column in columns.items()}
            ends = {t + len(before): frame for t, frame in ends.items()}
        whole = max(ends, default=-1) + 1
        rest = len(frames) - whole
        if rest and (last or rest >= self.writer.shard_rows):
            whole, ends = len(frames), {**ends, len(frames) - 1: now}
        elif rest:
            self._waiting[env] = (
                frames[whole:].copy(),
                {name: column[whole:].copy() for name, column in columns.items()},
            )
        return (
            episodes(frames[:whole], {name: column[:whole] for name, column in columns.items()}, ends)
            if whole
            else None
        )

    def _count(self, frames: Frames, action: npt.NDArray[Any]) -> None:
        marks = list(digests(frames))
        taken = np.flatnonzero(actions.taken(action)).tolist()
        self.seen.update(marks)
        self.transitions += len(taken)
        self.unchanged += sum(marks[row] == marks[row + 1] for row in taken)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def episodes(frames: Frames, columns: Columns, ends: Mapping[int, Frames]) -> Rows:
    """Rows of one environment: behind each end, a row with the frame that the episode ended on.

    Args:
        frames: (T, ...) at which actions were taken, the last of them just before an end.
        columns: (T, ...) each: action, reward, terminated, truncated, mission, and labels.
        ends: the frame that followed, by the number of the step that ended an episode.
    """
    after = np.array(list(ends)) + 1
    start = np.zeros(len(frames), bool)
    start[[0, *after[after < len(frames)]]] = True
    blank = {"reward": 0.0, "terminated": False, "truncated": False, "mission": columns["mission"][after - 1]}
    rows = {
        name: np.insert(column, after, blank.get(name, _unknown(column)), axis=0) for name, column in columns.items()
    }
    rows["episode_start"] = np.insert(start, after, False)
    return np.insert(frames, after, list(ends.values()), axis=0), rows


def _missions(venv: VecEnv) -> list[str | None]:
    """What each environment's agent was told at its reset, if it was a text."""
    # SB3's wrappers do not pass these infos on
    told = (info.get("mission") for info in venv.unwrapped.reset_infos)
    return [text if isinstance(text, str) else None for text in told]


def _unknown(column: npt.NDArray[Any]) -> float:
    return float("nan") if column.dtype.kind == "f" else UNKNOWN
