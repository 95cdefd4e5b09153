"""FrameStore: offline frames and trajectories on disk, memory-mapped, sampled so that rare frames are seen too."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from rlpre.data.tiles import TileAtlas
from rlpre.data.writer import (
    ATLAS,
    COLUMNS,
    FORMAT,
    MANIFEST,
    ActionSpace,
    FrameWriter,
    check_action_space,
    has_action,
    read_manifest,
    space_from_json,
    space_to_json,
)
from rlpre.errors import RlpreError, lookup
from rlpre.utils import sha256, write_json

Indices = npt.NDArray[np.int64]


class FrameStore:
    """A directory of episodes, read through memory maps.

    Row t holds a frame, the action taken at it, and the reward, terminated and truncated that the action caused. An
    episode of T actions has T + 1 rows; the last one holds the final frame and action -1 (NaN in vectors). An episode
    that the end of the collection cut is neither terminated nor truncated. Frames without actions (films, folders of
    images) have action -1 everywhere; their episodes are sequences. Frames of grid worlds are stored as tile codes,
    (rows, columns, 3) bytes, and decoded batch by batch through the `TileAtlas` in the directory.

    Attributes:
        path: the directory.
        manifest: the content of `manifest.json`: spaces, specification, versions, counts, SHA-256 of every file.
        space: the decoded frames, ``Box(0, 255, (C, H, W), uint8)``.
        action_space: ``Discrete``, ``Box`` (vectors), or None: frames without actions.
        cell: pixels per cell: the tile size, or 1 if frames are stored as pixels.
        palette: the palette that frames are decoded with.
        tasks: names of the values of column "task".
        labels: names of the integer label columns (-1 = unknown).
        missions: texts of the values of column "mission" (-1 = none); empty if no episode has a mission.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_manifest(path)
        if not self.manifest["shards"]:
            raise RlpreError(f"{path} holds no complete shard of frames yet: collect into it first")
        self.space = spaces.Box(0, 255, tuple(self.manifest["space"]["shape"]), np.uint8)
        self.action_space: ActionSpace = space_from_json(self.manifest["action_space"])
        self.cell: int = self.manifest["cell"]
        self.palette: str = self.manifest["palette"]
        self.tasks: list[str] = self.manifest["tasks"]
        self.labels: list[str] = self.manifest["labels"]
        self.missions: list[str] = self.manifest["missions"]
        self.atlas = TileAtlas.load(path / ATLAS) if self.manifest["atlas_sha256"] else None
        frames, rows = zip(
            *([path / file["name"] for file in s["files"]] for s in self.manifest["shards"]), strict=True
        )
        # plain arrays over the maps: indexing np.memmap itself costs several times more
        self._shards = [np.asarray(np.load(file, mmap_mode="r")) for file in frames]
        self._starts = np.cumsum([0, *map(len, self._shards)])
        table = np.concatenate([np.load(file) for file in rows])
        self._columns = {name: np.ascontiguousarray(table[name]) for name in table.dtype.names or ()}

    @classmethod
    def open(cls, path: str | Path) -> "FrameStore":
        """Opens a store; an interrupted one opens with all its complete shards.

        Raises:
            RlpreError: if there is no manifest, no complete shard, or a file that is missing or truncated.
        """
        return cls(Path(path))

    @staticmethod
    def create(
        path: str | Path,
        *,
        space: spaces.Box,
        action_space: ActionSpace,
        spec: Mapping[str, Any],
        atlas: TileAtlas | None = None,
        palette: str = "day",
        tasks: Sequence[str] = ("default",),
        labels: Sequence[str] = (),
    ) -> FrameWriter:
        """Makes an empty store and returns its writer.

        Args:
            path: a directory without a store.
            space: the decoded frames, (C, H, W) uint8.
            action_space: ``Discrete`` from 0, ``Box`` of floats, or None for frames without actions.
            spec: how the frames are made; kept in the manifest, JSON values only.
            atlas: given, frames are appended as tile codes (rows, columns, 3); else as pixels.
            palette: palette of the atlas to decode with.
            tasks: names of the values of column "task".
            labels: names of integer label columns.

        Raises:
            RlpreError: if a store is there already, the spaces cannot be stored, or a label is called like a column.
        """
        path, cell = Path(path), atlas.tile_size if atlas else 1
        if (path / MANIFEST).exists():
            raise RlpreError(f"{path} already holds a frame store: extend it or choose another directory")
        check_action_space(action_space)
        if taken := {*labels} & {"action", *COLUMNS}:
            raise RlpreError(f"label {taken.pop()!r} is the name of another column: rename it or leave it out")
        if space.dtype != np.uint8 or len(space.shape) != 3:
            raise RlpreError(f"frames are (channels, height, width) uint8, not {space}: convert them first")
        if any(side % cell for side in space.shape[1:]):
            raise RlpreError(f"frames {space.shape} are not made of tiles of {cell} x {cell} pixels: check tile_size")
        if atlas:
            path.mkdir(parents=True, exist_ok=True)
            atlas.save(path / ATLAS)
        frame_shape = (space.shape[1] // cell, space.shape[2] // cell, 3) if atlas else space.shape
        content = {
            "format": FORMAT,
            "space": {"shape": list(space.shape), "dtype": "uint8", "low": 0, "high": 255},
            "action_space": space_to_json(action_space),
            "frame_shape": list(frame_shape),
            "cell": cell,
            "palette": palette,
            "tasks": list(tasks),
            "labels": list(labels),
            "missions": [],
            "spec": dict(spec),
            "versions": {name: importlib.metadata.version(name) for name in ("rlpre", "numpy", "gymnasium")},
            "atlas_sha256": sha256(path / ATLAS) if atlas else None,
            "shards": [],
        }
        write_json(path / MANIFEST, content)
        return FrameWriter(path)

    @staticmethod
    def extend(path: str | Path) -> FrameWriter:
        """Opens a store, complete or interrupted, for appending."""
        return FrameWriter(Path(path))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type["FrameStore"], tuple[Path]]:
        """Pickles the path, not the frames."""
        return FrameStore, (self.path,)

    def __repr__(self) -> str:
        return f"FrameStore({str(self.path)!r}, {len(self):,} frames {self.space.shape}, tasks {self.tasks})"

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the hashes of all shards and of everything that decodes them: the identity of the data."""
        shards = [file["sha256"] for shard in self.manifest["shards"] for file in shard["files"]]
        decoding = [self.manifest[key] for key in ("space", "palette", "atlas_sha256")] + self.missions
        return hashlib.sha256(json.dumps([shards, decoding]).encode()).hexdigest()

    def verify(self) -> None:
        """Reads every file and compares its SHA-256 with the manifest.

        Raises:
            RlpreError: naming the first file whose content changed.
        """
        files = [file for shard in self.manifest["shards"] for file in shard["files"]]
        if self.atlas:
            files.append({"name": ATLAS, "sha256": self.manifest["atlas_sha256"]})
        for file in files:
            if sha256(self.path / file["name"]) != file["sha256"]:
                raise RlpreError(f"{self.path / file['name']} does not match its SHA-256: restore it or collect again")

    def column(self, name: str) -> npt.NDArray[Any]:
        """One value per row, (N,).

        These are: action int64 (vectors: (N, *action_space.shape) of the space's dtype), reward float64, terminated,
        truncated and episode_start bool, task and mission int32, labels int16.
        """
        return lookup("column", name, self._columns)

    @property
    def num_actions(self) -> int:
        """Actions are 0 .. num_actions - 1.

        Raises:
            RlpreError: if the store holds vectors or no actions.
        """
        if not isinstance(self.action_space, spaces.Discrete):
            raise RlpreError(
                f"{self.path} holds no discrete actions (its action space is {self.action_space}): choose an objective "
                "that needs none, or frames collected with discrete actions"
            )
        return int(self.action_space.n)

    @cached_property
    def acted(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: rows at which an action was taken; all False in a store without actions."""
        return has_action(self.column("action"))

    @cached_property
    def episode(self) -> Indices:
        """(N,) int64: the running number of each row's episode, from 0."""
        return np.cumsum(self.column("episode_start"), dtype=np.int64) - 1

    def _gather(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        index = np.asarray(indices, np.int64).reshape(-1)
        if len(index) and (index.min() < 0 or index.max() >= len(self)):
            raise RlpreError(
                f"frame indices of {self.path} lie in 0..{len(self) - 1}, got {index.min()}..{index.max()}"
            )
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index, self._starts, sorter=order)
        result = np.empty((len(index), *self.manifest["frame_shape"]), np.uint8)
        for shard in np.flatnonzero(np.diff(bounds)):
            at = order[bounds[shard] : bounds[shard + 1]]
            result[at] = self._shards[shard][index[at] - self._starts[shard]]
        return result

    def codes(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Tile codes (B, rows, columns, 3) uint8: type, colour, state and flags of every cell.

        Raises:
            RlpreError: if the store holds pixels.
        """
        if not self.atlas:
            raise RlpreError(f"{self.path} holds pixels, not tile codes: use frames(), or frames of MiniGrid")
        return self._gather(indices)

    def frames(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Pixels (B, C, H, W) uint8."""
        raw = self._gather(indices)
        return self.atlas.decode(raw, self.palette) if self.atlas else raw

    def read(self, indices: npt.ArrayLike) -> Tensor:
        """Frames as stored, uint8: codes (B, rows, columns, 3) of a tile store, else pixels (B, C, H, W)."""
        return torch.from_numpy(self._gather(indices))

    def decode(self, raw: Tensor) -> Tensor:
        """Pixels (B, C, H, W) uint8 of frames from `read`, on the device of ``raw``."""
        return self.atlas.decode_torch(raw, self.palette) if self.atlas else raw

    @cached_property
    def ids(self) -> Indices:
        """One number per row, (N,) int64: the same for identical frames, 0..distinct-1 by first appearance."""
        seen: dict[bytes, int] = {}
        numbers = (seen.setdefault(digest, len(seen)) for shard in self._shards for digest in digests(shard))
        return np.fromiter(numbers, np.int64, len(self))

    @cached_property
    def distinct(self) -> int:
        """How many different frames the store holds."""
        return int(self.ids.max()) + 1

    @cached_property
    def unchanged(self) -> float:
        """Share in [0, 1] of the steps between rows of an episode at which the frame does not change."""
        inside = self.episode[1:] == self.episode[:-1]
        same = self.ids[1:] == self.ids[:-1]
        return float(np.mean(same[inside])) if inside.any() else 0.0

    @cached_property
    def _balanced(self) -> "Balanced":
        return Balanced(np.arange(len(self)), self.ids)

    def sample(self, batch: int, rng: np.random.Generator) -> Indices:
        """Draws rows with replacement, (batch,) int64, each with weight (occurrences of its frame) ** -0.5.

        A frame that occurs 1,000 times is drawn 32 times as often as one that occurs once, not 1,000 times.
        """
        return self._balanced.draw(batch, rng)

    def pairs(self, k: int) -> "Pairs":
        """A sampler of two different frames at most ``k`` steps apart in one episode.

        Raises:
            RlpreError: if k < 1 or no frame of the store changes within k steps.
        """
        return Pairs(self, k)


class Balanced:
    """Draws from ``rows`` with weight (occurrences of the row's frame among them) ** -0.5."""

    def __init__(self, rows: Indices, ids: Indices) -> None:
        weights = np.bincount(ids)[ids] ** -0.5
        self.rows, self.cumulative = rows, np.cumsum(weights)

    def draw(self, batch: int, rng: np.random.Generator) -> Indices:
        """Rows (batch,) int64, with replacement."""
        points = rng.random(batch) * self.cumulative[-1]
        place = np.searchsorted(self.cumulative, points, side="right")
        drawn: Indices = self.rows[np.minimum(place, len(self.rows) - 1)]  # rounding can give the sum itself
        return drawn


class Pairs:
    """Samples (anchor, later, actions): later = anchor + j, 1 <= j <= k, same episode, another frame.

    Anchors are balanced as in `FrameStore.sample`, counted among possible anchors; j is uniform among those allowed.

    Made by `FrameStore.pairs`.
    """

    def __init__(self, store: FrameStore, k: int) -> None:
        if k < 1:
            raise RlpreError(f"pairs are k >= 1 steps apart, got k={k}: choose for example k=5")
        ids, episode, action = store.ids, store.episode, store.column("action")
        allowed = np.zeros((len(ids), k), bool)
        for j in range(1, min(k, len(ids) - 1) + 1):
            allowed[:-j, j - 1] = (episode[j:] == episode[:-j]) & (ids[j:] != ids[:-j])
        rows = np.flatnonzero(allowed.any(axis=1))
        if not len(rows):
            raise RlpreError(
                f"no frame of {store.path} changes within {k} steps of an episode: collect other behaviour"
            )
        if action.dtype.kind == "f":
            action = action.reshape(len(action), -1).astype(np.float32)
        self._allowed, self._action = allowed, action
        self._anchors = Balanced(rows, ids[rows])

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Indices, Indices, npt.NDArray[Any]]:
        """Draws pairs.

        Returns:
            Anchor rows and later rows, both (batch,) int64, and the actions between them: (batch, k) int64, -1 from
            the later row on, or (batch, k, dims) float32, 0 from there on.
        """
        anchor = self._anchors.draw(batch, rng)
        rank = self._allowed[anchor].cumsum(axis=1)
        chosen = np.floor(rng.random(batch) * rank[:, -1]).astype(np.int64) + 1
        later = anchor + 1 + (rank == chosen[:, None]).argmax(axis=1)
        rows = anchor[:, None] + np.arange(rank.shape[1])
        actions = self._action[np.minimum(rows, len(self._action) - 1)]
        actions[rows >= later[:, None]] = 0 if actions.dtype.kind == "f" else -1
        return anchor, later, actions


def digests(frames: npt.NDArray[np.uint8]) -> Iterator[bytes]:
    """16 bytes for each of (n, ...) frames, the same for identical frames."""
    for frame in frames.reshape(len(frames), -1):
        yield hashlib.blake2b(frame.data, digest_size=16).digest()


def resume_store(out: Path, spec: Mapping[str, Any], **arguments: Any) -> FrameWriter:
    """The writer of a new store, or of an interrupted one with the same specification, made by `FrameStore.create`.

    Raises:
        RlpreError: if ``out`` holds a store of another specification; it names the first difference.
    """
    if not (out / MANIFEST).exists():
        return FrameStore.create(out, spec=spec, **arguments)
    writer = FrameStore.extend(out)
    there, here = writer.manifest["spec"], json.loads(json.dumps(spec))
    for key in {**here, **there}:
        if there.get(key) != here.get(key):
            raise RlpreError(
                f"{out} belongs to another collection: {key} is {there.get(key)!r} there and {here.get(key)!r} here: "
                "choose another directory"
            )
    return writer


@contextmanager
def new_store(out: Path, **arguments: Any) -> Iterator[FrameWriter]:
    """Yields a writer, made by `FrameStore.create`; the store appears at ``out`` if the block ends without an error.

    Raises:
        RlpreError: if ``out`` exists and is not an empty directory.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlpreError(f"{out} is there already: choose another directory for the frames")
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of a killed import
    try:
        with FrameStore.create(part, **arguments) as writer:
            yield writer
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


whole = new_store  # ALIAS
