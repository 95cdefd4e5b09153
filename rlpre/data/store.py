"""FrameStore: offline frames and trajectories on disk, written in shards, memory-mapped, and sampled."""

import hashlib
import importlib.metadata
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from torch import Tensor
from tqdm import tqdm

from rlpre.data.backgrounds import DistractingAtlas
from rlpre.data.tiles import TileAtlas
from rlpre.errors import RlpreError, lookup
from rlpre.utils import as_json, atomic, read_json, sha256, write_json

Frames = npt.NDArray[np.uint8]
Indices = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]
Raw = TypeVar("Raw", Frames, Tensor)
ActionSpace = spaces.Discrete | spaces.Box | None  # None: frames without actions

FORMAT = 3
MANIFEST, ATLAS = "manifest.json", "atlas.npz"
COLUMNS = {"reward": "f8", "terminated": "?", "truncated": "?", "episode_start": "?", "task": "i4", "mission": "i4"}
UNKNOWN = -1  # a label without a known value, a row without a mission
SHARD_ROWS, SHARD_BYTES = 65_536, 128 * 2**20


def shard_rows(frame_shape: Sequence[int]) -> int:
    """Rows of a full shard."""
    return max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(frame_shape))))


def frame_space(shape: Sequence[int]) -> spaces.Box:
    """Frames of a shape (C, H, W)."""
    return spaces.Box(0, 255, tuple(shape), np.uint8)


def space_to_json(space: object) -> dict[str, Any] | None:
    """The action space as JSON values.

    Raises:
        RlpreError: unless it is ``Discrete`` from 0, a ``Box`` of float vectors, or None.
    """
    if isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and space.shape:
        bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
        return {"shape": list(space.shape), "dtype": str(space.dtype), **bounds}
    if isinstance(space, spaces.Discrete) and space.start == 0:
        return {"n": int(space.n)}
    if space is None:
        return None
    raise RlpreError(
        f"a frame store holds discrete actions 0..n-1, vectors of floats (Box) or no actions, not {space}: wrap the "
        "environment or convert the actions"
    )


def space_from_json(content: dict[str, Any] | None) -> ActionSpace:
    """The action space that `space_to_json` described."""
    if content is None or "n" in content:
        return spaces.Discrete(content["n"]) if content else None
    dtype = np.dtype(content["dtype"])
    low, high = (np.array(content[name], dtype) for name in ("low", "high"))
    return spaces.Box(low, high, tuple(content["shape"]), dtype.type)


def action_dtype(space: ActionSpace) -> np.dtype[Any]:
    """The dtype of one row's action; a sub-array for vectors."""
    return np.dtype((space.dtype, space.shape)) if isinstance(space, spaces.Box) else np.dtype(np.int64)


def end_values(space: ActionSpace) -> dict[str, float]:
    """The columns in the last row of an episode, where no action is taken: action -1 (NaN in vectors), reward 0."""
    no_action = float("nan") if isinstance(space, spaces.Box) else -1
    return {"action": no_action, "reward": 0.0, "terminated": False, "truncated": False}


def has_action(action: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """(N,) bool: the rows of an action column, (N,) numbers or (N, ...) vectors, at which an action was taken."""
    known = action >= 0 if action.dtype.kind == "i" else ~np.isnan(action)
    return np.asarray(known.reshape(len(action), -1).all(axis=1))


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store; refuses another format, and files that are missing or truncated."""
    content: dict[str, Any] = read_json(path / MANIFEST)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise RlpreError(f"{path / MANIFEST} is not a frame store of format {FORMAT}: collect the frames again")
    for shard in content["shards"]:
        for entry in shard["files"]:
            file = path / entry["name"]
            size = file.stat().st_size if file.exists() else 0
            if size != entry["bytes"]:
                raise RlpreError(f"{file} has {size} bytes instead of {entry['bytes']}: restore it or collect again")
    return content


class FrameStore:
    """A directory of episodes, read through memory maps.

    Row t holds a frame, the action taken at it, and the reward, terminated and truncated that the action caused. An
    episode of T actions has T + 1 rows; the last one holds the final frame and action -1 (NaN in vectors). An episode
    that the end of the collection cut is neither terminated nor truncated. Frames without actions have action -1
    everywhere. Frames of grid worlds are stored as tile codes, and decoded batch by batch through a `TileAtlas`; with
    pictures behind the cells (`DistractingAtlas`), the codes have a row more than the grid.

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
        self.space = frame_space(self.manifest["space"]["shape"])
        self.action_space: ActionSpace = space_from_json(self.manifest["action_space"])
        self.cell: int = self.manifest["cell"]
        self.palette: str = self.manifest["palette"]
        self.tasks: list[str] = self.manifest["tasks"]
        self.labels: list[str] = self.manifest["labels"]
        self.missions: list[str] = self.manifest["missions"]
        self._grid = slice(self.space.shape[1] // self.cell)
        kind = DistractingAtlas if self.manifest["frame_shape"][0] > self._grid.stop else TileAtlas
        self.atlas: TileAtlas | None = kind.load(path / ATLAS) if self.manifest["atlas_sha256"] else None
        files = ([path / file["name"] for file in shard["files"]] for shard in self.manifest["shards"])
        frames, rows = zip(*files, strict=True)
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
    def given(frames: "FrameStore | str | Path") -> "FrameStore":
        """The store itself, or that of a directory; an `RlpreError` for anything else."""
        if isinstance(frames, str | Path):
            return FrameStore.open(frames)
        if not isinstance(frames, FrameStore):
            raise RlpreError(f"frames are {type(frames).__name__}: give what rlpre.collect returned, or its directory")
        return frames

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
    ) -> "FrameWriter":
        """Makes an empty store and returns its writer.

        Args:
            path: a directory without a store.
            space: the decoded frames, (C, H, W) uint8.
            action_space: ``Discrete`` from 0, ``Box`` of floats, or None for frames without actions.
            spec: how the frames are made; kept in the manifest, JSON values only.
            atlas: frames are appended as its codes, (rows + atlas.extra_rows, columns, 3); else as pixels.
            palette: palette of the atlas to decode with.
            tasks: names of the values of column "task".
            labels: names of integer label columns.

        Raises:
            RlpreError: if a store is there already, the spaces cannot be stored, or a label is called like a column.
        """
        path, cell = Path(path), atlas.tile_size if atlas else 1
        if (path / MANIFEST).exists():
            raise RlpreError(f"{path} already holds a frame store: extend it or choose another directory")
        actions = space_to_json(action_space)
        if taken := {*labels} & {"action", *COLUMNS}:
            raise RlpreError(f"label {taken.pop()!r} is the name of another column: rename it or leave it out")
        if space.dtype != np.uint8 or len(space.shape) != 3:
            raise RlpreError(f"frames are (channels, height, width) uint8, not {space}: convert them first")
        if any(side % cell for side in space.shape[1:]):
            raise RlpreError(f"frames {space.shape} are not made of tiles of {cell} x {cell} pixels: check tile_size")
        if atlas:
            path.mkdir(parents=True, exist_ok=True)
            atlas.save(path / ATLAS)
        rows, columns = (side // cell for side in space.shape[1:])
        frame_shape = [rows + atlas.extra_rows, columns, 3] if atlas else list(space.shape)
        content = {
            "format": FORMAT,
            "space": {"shape": list(space.shape), "dtype": "uint8", "low": 0, "high": 255},
            "action_space": actions,
            "frame_shape": frame_shape,
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
    def extend(path: str | Path) -> "FrameWriter":
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
        """Reads every file; an `RlpreError` names the first one that does not match its SHA-256 in the manifest."""
        files = [file for shard in self.manifest["shards"] for file in shard["files"]]
        if self.atlas:
            files.append({"name": ATLAS, "sha256": self.manifest["atlas_sha256"]})
        for file in files:
            if sha256(self.path / file["name"]) != file["sha256"]:
                raise RlpreError(f"{self.path / file['name']} does not match its SHA-256: restore it or collect again")

    def column(self, name: str) -> npt.NDArray[Any]:
        """One value per row, (N,).

        Action is int64 (vectors: (N, *action_space.shape) of the space's dtype), reward float64, terminated, truncated
        and episode_start bool, task and mission int32, labels int16.
        """
        return lookup("column", name, self._columns)

    @property
    def num_actions(self) -> int:
        """Actions are 0 .. num_actions - 1; an `RlpreError` if the store holds vectors or no actions."""
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
            limits = f"0..{len(self) - 1}, got {index.min()}..{index.max()}"
            raise RlpreError(f"frame indices of {self.path} lie in {limits}")
        order = np.argsort(index, kind="stable")
        bounds = np.searchsorted(index, self._starts, sorter=order)
        result = np.empty((len(index), *self.manifest["frame_shape"]), np.uint8)
        for shard in np.flatnonzero(np.diff(bounds)):
            at = order[bounds[shard] : bounds[shard + 1]]
            result[at] = self._shards[shard][index[at] - self._starts[shard]]
        return result

    def codes(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Tile codes (B, rows, columns, 3) uint8 of every cell; an `RlpreError` if the store holds pixels."""
        if not self.atlas:
            raise RlpreError(f"{self.path} holds pixels, not tile codes: use frames(), or frames of MiniGrid")
        return self.grid(self._gather(indices))

    def grid(self, raw: Raw) -> Raw:
        """The codes (..., rows, columns, 3) of the cells of raw rows; leaves out a row that holds the background."""
        return raw[..., self._grid, :, :]

    def frames(self, indices: npt.ArrayLike) -> npt.NDArray[np.uint8]:
        """Pixels (B, C, H, W) uint8."""
        raw = self._gather(indices)
        return self.atlas.decode(raw, self.palette) if self.atlas else raw

    def read(self, indices: npt.ArrayLike) -> Tensor:
        """Frames as stored, uint8: codes of a tile store, with backgrounds if it has any, else pixels (B, C, H, W)."""
        return torch.from_numpy(self._gather(indices))

    def decode(self, raw: Tensor) -> Tensor:
        """Pixels (B, C, H, W) uint8 of frames from `read`, on the device of ``raw``."""
        return self.atlas.decode_torch(raw, self.palette) if self.atlas else raw

    @cached_property
    def ids(self) -> Indices:
        """One number per row, (N,) int64: the same for identical frames, 0..distinct-1 by first appearance."""
        return self._numbered(self._shards)

    @cached_property
    def grid_ids(self) -> Indices:
        """Like `ids`, but the same for frames of a tile store that differ in their backgrounds alone."""
        return self._numbered(map(self.grid, self._shards)) if self.atlas and self.atlas.extra_rows else self.ids

    def _numbered(self, shards: Iterable[Frames]) -> Indices:
        seen: dict[bytes, int] = {}
        numbers = (seen.setdefault(digest, len(seen)) for shard in shards for digest in digests(shard))
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
    def _weights(self) -> npt.NDArray[np.float64]:
        return cumulative_weights(self.ids)

    def sample(self, batch: int, rng: np.random.Generator) -> Indices:
        """Draws rows with replacement, (batch,) int64, each with weight (occurrences of its frame) ** -0.5.

        A frame that occurs 1,000 times is drawn 32 times as often as one that occurs once, not 1,000 times.
        """
        return draw(self._weights, batch, rng)

    def pairs(self, k: int) -> "Pairs":
        """A sampler of two different frames at most ``k`` steps apart in one episode; k must be at least 1."""
        return Pairs(self, k)


class FrameWriter:
    """Appends episodes to a store; made by `FrameStore.create` and `FrameStore.extend`.

    Rows wait in memory until they fill a shard, or until `flush`. If the process dies, the written shards stay
    readable. As a context manager the writer flushes at the end, unless the block raised.

    Attributes:
        manifest: the content of `manifest.json`.
        action_space: of the store.
        row_dtype: structured dtype of a row without its frame: action, the fixed columns, then one int16 per label.
        shard_rows: rows of a full shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_manifest(path)
        self.action_space = space_from_json(self.manifest["action_space"])
        self._frame_shape = tuple(self.manifest["frame_shape"])
        labels = [(name, "i2") for name in self.manifest["labels"]]
        self.row_dtype = np.dtype([("action", action_dtype(self.action_space)), *COLUMNS.items(), *labels])
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._missions = {text: number for number, text in enumerate([None, *self.manifest["missions"]], UNKNOWN)}
        self.shard_rows = shard_rows(self._frame_shape)

    def append(self, frames: npt.NDArray[np.uint8], **columns: npt.ArrayLike) -> None:
        """Appends complete episodes: T + 1 rows for T actions; the last row's action is -1, or NaN for vectors.

        In a store without actions every action is -1, and the rows may continue the last episode.

        Args:
            frames: (n, rows, columns, 3) uint8 codes for a tile store, with the row of the background if its atlas has
                pictures, else (n, C, H, W) uint8 pixels.
            **columns: one array (n,) or scalar per column: action (vectors: (n, ...)), reward, terminated, truncated,
                episode_start, task, and every label of the store. Optional: mission, a text per row, or None.

        Raises:
            RlpreError: if shapes, dtypes, names or the episode structure are wrong, or the disk is full.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self._frame_shape or not len(frames):
            raise RlpreError(
                f"{self.path} holds frames (n, {', '.join(map(str, self._frame_shape))}) uint8 and got "
                f"{frames.shape} {frames.dtype}: append the shape that the store was created with"
            )
        rows, missions = np.empty(len(frames), self.row_dtype), np.empty(len(frames), object)
        _fill(missions, "mission", columns.pop("mission", np.array(None)))
        names = [name for name in self.row_dtype.names or () if name != "mission"]
        if set(columns) != set(names):
            wrong = ", ".join(sorted(set(columns) ^ set(names)))
            raise RlpreError(f"columns of {self.path} are {', '.join(names)}: missing or unknown: {wrong}")
        for name, values in columns.items():
            _fill(rows[name], name, values)
        self._check_episodes(rows)
        if not {type(text) for text in missions} <= {str, type(None)}:
            raise RlpreError(f"missions of {self.path} are texts: append str, or None where there is none")
        rows["mission"] = [self._missions.setdefault(text, len(self._missions) - 1) for text in missions]
        self._frames.append(frames.copy())
        self._rows.append(rows)
        if sum(map(len, self._rows)) >= self.shard_rows:
            self.flush()

    def _check_episodes(self, rows: npt.NDArray[np.void]) -> None:
        start, acted = rows["episode_start"], has_action(rows["action"])
        if self.action_space is None:
            if acted.any() or not (start[0] or self._rows or self.manifest["shards"]):
                raise RlpreError(f"{self.path} holds no actions: append action -1, and episode_start in the first row")
        elif not start[0] or not np.array_equal(acted, ~np.append(start[1:], True)):
            raise RlpreError(
                "append takes complete episodes: each starts with episode_start and ends with a row of action "
                f"{end_values(self.action_space)['action']}, and no other row has that action"
            )
        most = np.iinfo(np.int16).max + 1
        ranges = {"task": (0, len(self.manifest["tasks"])), **dict.fromkeys(self.manifest["labels"], (UNKNOWN, most))}
        if isinstance(self.action_space, spaces.Discrete):
            ranges["action"] = (-1, int(self.action_space.n))
        for name, (low, high) in ranges.items():
            if rows[name].min() < low or rows[name].max() >= high:
                raise RlpreError(f"column {name!r} of {self.path} must lie in {low}..{high - 1}: check the values")

    def flush(self) -> None:
        """Writes the waiting rows as one shard, then the manifest; on a full disk (`RlpreError`) they still wait."""
        if not self._rows:
            return
        shards = self.manifest["shards"]
        if read_json(self.path / MANIFEST)["shards"] != shards:
            raise RlpreError(f"another process writes {self.path} too: let it end, then make this call again")
        files = [
            _write_array(self.path / f"frames-{len(shards):05d}.npy", self._frames),
            _write_array(self.path / f"rows-{len(shards):05d}.npy", self._rows),
        ]
        shards = [*shards, {"rows": sum(map(len, self._rows)), "files": files}]
        manifest = {**self.manifest, "missions": list(self._missions)[1:], "shards": shards}
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest
        self._frames, self._rows = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.flush()


def _fill(column: npt.NDArray[Any], name: str, values: npt.ArrayLike) -> None:
    """Copies ``values`` into the column; refuses values that integers or flags cannot hold exactly."""
    values = np.asarray(values)
    if values.ndim and values.shape != column.shape:
        raise RlpreError(f"column {name!r} has shape {values.shape}: expected {column.shape}, as the frames")
    with np.errstate(invalid="ignore"):  # NaN in a column of integers is refused below
        column[...] = values
    if column.dtype.kind in "ib" and not (column == values).all():
        raise RlpreError(f"column {name!r} is {column.dtype} and cannot hold the given values: convert them first")


def _write_array(path: Path, parts: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
    """Writes the parts as one .npy file, atomically, and returns its manifest entry."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            # not np.save, which hides why a full disk failed
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(part.data)
        digest, size = sha256(temporary), temporary.stat().st_size
    return {"name": path.name, "bytes": size, "sha256": digest}


def cumulative_weights(ids: Indices) -> npt.NDArray[np.float64]:
    """(N,) sums of (occurrences of the row's frame) ** -0.5, for `draw`."""
    return np.cumsum(np.bincount(ids)[ids] ** -0.5)


def draw(weights: npt.NDArray[np.float64], batch: int, rng: np.random.Generator) -> Indices:
    """Places (batch,) int64 in cumulative weights (N,), drawn with replacement."""
    places: Indices = np.searchsorted(weights, rng.random(batch) * weights[-1], side="right")
    return places.clip(max=len(weights) - 1)  # rounding can give the sum itself


class Pairs:
    """Samples (anchor, later, actions): later = anchor + j, 1 <= j <= k, same episode, another frame.

    Anchors are weighted as in `FrameStore.sample`, counted among possible anchors; j is uniform among those allowed.
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
        self._allowed, self._action, self._rows = allowed, action, rows
        self._weights = cumulative_weights(ids[rows])

    def sample(self, batch: int, rng: np.random.Generator) -> tuple[Indices, Indices, npt.NDArray[Any]]:
        """Draws pairs.

        Returns:
            Anchor rows and later rows, both (batch,) int64, and the actions between them: (batch, k) int64, -1 from
            the later row on, or (batch, k, dims) float32, 0 from there on.
        """
        anchor = self._rows[draw(self._weights, batch, rng)]
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
    """The writer of a new store, made by `FrameStore.create`, or of an interrupted one of the same ``spec``.

    Raises:
        RlpreError: if ``out`` holds a store of another specification, and it names the first difference, or of other
            tiles or pictures.
    """
    if not (out / MANIFEST).exists():
        return FrameStore.create(out, spec=spec, **arguments)
    writer = FrameStore.extend(out)
    there, here = writer.manifest["spec"], as_json(spec)
    for key in {**here, **there}:
        if there.get(key) != here.get(key):
            raise RlpreError(
                f"{out} belongs to another collection: {key} is {there.get(key)!r} there and {here.get(key)!r} here: "
                "choose another directory"
            )
    atlas = arguments.get("atlas")
    if atlas and not atlas.equals(type(atlas).load(out / ATLAS)):
        raise RlpreError(f"the tiles or pictures of {out} are others than those here: choose another directory")
    return writer


@contextmanager
def new_store(out: Path, **arguments: Any) -> Iterator[FrameWriter]:
    """Yields the writer of a store that appears at ``out``, absent or an empty directory, when the block has ended."""
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


def fill_store(out: Path, rows: Iterable[Mapping[str, Any]], total: int, **arguments: Any) -> FrameStore:
    """A `new_store` of ``rows``, the arguments of each call of `FrameWriter.append`, ``total`` in all."""
    bar = tqdm(total=total, unit="frame", desc=out.name, disable=None)
    with new_store(out, **arguments) as writer, bar:
        for piece in rows:
            writer.append(**piece)
            bar.update(len(piece["frames"]))
    return FrameStore.open(out)
