"""FrameStore: offline frames and trajectories on disk, memory-mapped, sampled so that rare frames are not drowned."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor

from rlpre import actions, framewriter
from rlpre.actions import ActionSpace
from rlpre.errors import RlpreError, lookup
from rlpre.files import sha256
from rlpre.framewriter import ATLAS, FrameWriter
from rlpre.sampling import Balanced, Indices, Pairs
from rlpre.tiles import TileAtlas


def digests(frames: npt.NDArray[np.uint8]) -> Iterator[bytes]:
    """16 bytes for each of (n, ...) frames, the same for identical frames."""
    for frame in frames.reshape(len(frames), -1):
        yield hashlib.blake2b(frame.data, digest_size=16).digest()


class FrameStore:
    """A directory of episodes, read through memory maps.

    Row t holds the frame o_t, the action taken at it, and the reward, terminated and truncated that the action caused.
    An episode of T actions has T + 1 rows; the last one holds the frame it ended on and action -1 (NaN where actions
    are vectors). An episode that was cut by the end of collecting has neither terminated nor truncated set. Frames
    without actions (films, folders of images) have action -1 everywhere; their episodes are sequences.

    Grid-world frames are kept as tile codes, (rows, columns, 3) bytes, and decoded to pixels in the batch through the
    `TileAtlas` in the directory; other frames are kept as pixels.

    Attributes:
        path: the directory.
        manifest: what `manifest.json` holds: spaces, specification, versions, counts, SHA-256 of every file.
        space: the decoded frames, ``Box(0, 255, (C, H, W), uint8)``.
        action_space: ``Discrete``, ``Box`` (vectors), or None: frames without actions.
        cell: pixels per cell: the tile size, or 1 if frames are kept as pixels.
        palette: the palette that frames are decoded with.
        tasks: names of the values of column "task".
        labels: names of the integer label columns (-1 = unknown).
        missions: texts of the values of column "mission" (-1 = none); empty if no episode was told anything.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = framewriter.read_manifest(path)
        if not self.manifest["shards"]:
            raise RlpreError(f"{path} holds no complete shard of frames yet: collect into it first")
        self.space = spaces.Box(0, 255, tuple(self.manifest["space"]["shape"]), np.uint8)
        self.action_space: ActionSpace = actions.restore(self.manifest["action_space"])
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
        tables, row = [np.load(file) for file in rows], framewriter.row_type(self.manifest)
        self._columns = {
            name: np.concatenate([_read(table, name) for table in tables], dtype=row[name].base)
            for name in row.names or ()
        }

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
            RlpreError: if a store is there already or the spaces cannot be kept.
        """
        return framewriter.create(Path(path), space, action_space, spec, atlas, palette, tasks, labels)

    @staticmethod
    def extend(path: str | Path) -> FrameWriter:
        """Opens a store, complete or interrupted, for appending."""
        return FrameWriter(Path(path))

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __reduce__(self) -> tuple[type["FrameStore"], tuple[Path]]:
        """Travels to other processes as its path, not as its frames."""
        return FrameStore, (self.path,)

    def __repr__(self) -> str:
        return f"FrameStore({str(self.path)!r}, {len(self):,} frames {self.space.shape}, tasks {self.tasks})"

    @cached_property
    def hash(self) -> str:
        """SHA-256 over the hashes of all shards and of what decodes them: the identity of the data."""
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

        They are: action int64, reward float64, three flags bool, task and mission int32, labels int16.

        Where actions are vectors, "action" is (N, *action_space.shape) of the space's dtype.
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
                "that does without, or frames collected with discrete actions"
            )
        return int(self.action_space.n)

    @cached_property
    def acted(self) -> npt.NDArray[np.bool_]:
        """(N,): rows at which an action was taken; nowhere in a store without actions."""
        return actions.taken(self.column("action"))

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
            RlpreError: if the store keeps pixels.
        """
        if not self.atlas:
            raise RlpreError(
                f"{self.path} keeps pixels, not tile codes: use frames() or a store collected from MiniGrid"
            )
        return self._gather(indices)

    def frames(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Pixels (B, C, H, W) uint8."""
        raw = self._gather(indices)
        return self.atlas.decode(raw, self.palette) if self.atlas else raw

    def read(self, indices: npt.ArrayLike) -> Tensor:
        """What to ship to a device, uint8: codes (B, rows, columns, 3) of a tile store, else pixels (B, C, H, W)."""
        return torch.from_numpy(self._gather(indices))

    def decode(self, raw: Tensor) -> Tensor:
        """Pixels (B, C, H, W) uint8 of what `read` gave, on the device of ``raw``."""
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
        """Share in [0, 1] of the steps from row to row of an episode at which the frame does not change."""
        inside = self.episode[1:] == self.episode[:-1]
        same = self.ids[1:] == self.ids[:-1]
        return float(np.mean(same[inside])) if inside.any() else 0.0

    @cached_property
    def _balanced(self) -> Balanced:
        return Balanced(np.arange(len(self)), self.ids)

    def sample(self, batch: int, rng: np.random.Generator) -> Indices:
        """Draws rows with replacement, (batch,) int64, each with weight (occurrences of its frame) ** -0.5.

        So a frame that occurs 1,000 times is drawn 32 times as often as one that occurs once: neither drowned, as by
        uniform rows, nor blown up to equality.
        """
        return self._balanced.draw(batch, rng)

    def pairs(self, k: int) -> Pairs:
        """A sampler of two different frames at most ``k`` steps apart in one episode.

        Raises:
            RlpreError: if k < 1 or no frame of the store changes within k steps.
        """
        return Pairs(self.ids, self.episode, self.column("action"), k, where=str(self.path))


def _read(table: npt.NDArray[np.void], name: str) -> npt.NDArray[Any]:
    """A column of a shard; those of formats 1 and 2 have no missions."""
    known = table.dtype.names or ()
    column: npt.NDArray[Any] = table[name] if name in known else np.full(len(table), framewriter.NO_MISSION)
    return column
