"""A part of a store with exactly so many different frames."""

from pathlib import Path

import numpy as np

from rlpre.data.store import MANIFEST, UNKNOWN, FrameStore, end_values, new_store
from rlpre.errors import RlpreError


def take_distinct(frames: FrameStore, out: str | Path, count: int, seed: int = 0) -> FrameStore:
    """Whole episodes of a store, in random order, up to its ``count``-th different frame, at which the last one is cut.

    Called again it opens what is there. With one seed, a smaller part lies within a larger one but for that cut.

    Args:
        frames: to take from.
        out: the directory of the new store.
        count: how many different frames.
        seed: of the order.

    Raises:
        RlpreError: if ``frames`` hold fewer, or something else stands at ``out``.
    """
    out = Path(out)
    spec = {**frames.manifest["spec"], "taken_from": frames.hash, "distinct": count, "order": seed}
    if (out / MANIFEST).exists():
        store = FrameStore.open(out)
        if store.manifest["spec"] != spec:
            raise RlpreError(f"{out} holds other frames than {count:,} different ones of {frames.path}: choose another")
        return store
    starts = np.flatnonzero(np.diff(frames.episode, prepend=-1))
    episodes = np.split(np.arange(len(frames)), starts[1:])
    order = np.random.default_rng(seed).permutation(len(episodes))
    rows = np.concatenate([episodes[episode] for episode in order])
    _, first = np.unique(frames.ids[rows], return_index=True)
    if not 1 <= count <= len(first):
        raise RlpreError(f"{frames.path} holds {len(first):,} different frames, not {count:,}: collect more steps")
    _write(frames, rows[: np.sort(first)[count - 1] + 1], out, spec)
    return FrameStore.open(out)


def _write(frames: FrameStore, rows: np.ndarray, out: Path, spec: dict[str, object]) -> None:
    """Appends the rows, whole episodes but for the last one."""
    missions = np.array([*frames.missions, None], object)  # -1: none
    ends = end_values(frames.action_space) | dict.fromkeys(frames.labels, UNKNOWN)
    names = ["action", "reward", "terminated", "truncated", "episode_start", "task", *frames.labels]
    with new_store(
        out,
        space=frames.space,
        action_space=frames.action_space,
        spec=spec,
        atlas=frames.atlas,
        palette=frames.palette,
        tasks=frames.tasks,
        labels=frames.labels,
    ) as writer:
        for episode in np.split(rows, np.flatnonzero(frames.column("episode_start")[rows])[1:]):
            columns = {name: frames.column(name)[episode] for name in names}
            if episode[-1] == rows[-1]:
                for name, value in ends.items():
                    columns[name][-1] = value
            mission = missions[frames.column("mission")[episode]]
            writer.append(frames.read(episode).numpy(), mission=mission, **columns)
