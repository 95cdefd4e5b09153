"""Writing a frame store: append-only shards, each whole or absent, and a manifest replaced after each of them."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlpre import actions
from rlpre.actions import ActionSpace
from rlpre.errors import RlpreError
from rlpre.files import atomic, read_json, sha256, write_json
from rlpre.tiles import TileAtlas

FORMAT = 3
READABLE = (1, 2, 3)  # 1: discrete actions only, rewards in float32; 2: no missions
MANIFEST, ATLAS = "manifest.json", "atlas.npz"
COLUMNS = {"reward": "f8", "terminated": "?", "truncated": "?", "episode_start": "?", "task": "i4", "mission": "i4"}
NO_MISSION = -1
SHARD_ROWS, SHARD_BYTES = 65_536, 128 * 2**20


def row_type(manifest: Mapping[str, Any]) -> np.dtype[np.void]:
    """The structured dtype of a row without its frame: the action, the fixed columns, then one int16 per label."""
    action = actions.column_type(actions.restore(manifest["action_space"]))
    return np.dtype([("action", action), *COLUMNS.items(), *((name, "i2") for name in manifest["labels"])])


class FrameWriter:
    """Appends episodes to a store directory; made by `FrameStore.create` and `FrameStore.extend`.

    Rows wait in memory until a shard is full (or `flush`); a process that dies leaves every written shard readable.
    As a context manager it flushes at the end, unless the block raised.

    Attributes:
        path: the directory.
        manifest: what `manifest.json` holds.
        frame_shape: of what is appended.
        action_space: of the store.
        shard_rows: rows that make a shard full.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_manifest(path)
        self.frame_shape = tuple(self.manifest["frame_shape"])
        self.action_space = actions.restore(self.manifest["action_space"])
        self._dtype = row_type(self.manifest)
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._missions = {text: number for number, text in enumerate([None, *self.manifest["missions"]], NO_MISSION)}
        self.shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(self.frame_shape))))

    @property
    def pending(self) -> int:
        """Rows appended but not yet on disk."""
        return sum(map(len, self._rows))

    def append(self, frames: npt.NDArray[np.uint8], **columns: npt.ArrayLike) -> None:
        """Appends whole episodes: T + 1 rows for T actions; the last row's action is -1, or NaN for vectors.

        In a store without actions every action is -1, and what is appended may go on with the last episode.

        Args:
            frames: (n, rows, columns, 3) uint8 codes for a tile store, else (n, C, H, W) uint8 pixels.
            **columns: one array (n,) or scalar per column: action (vectors: (n, ...)), reward, terminated, truncated,
                episode_start, task, and every label of the store; mission, if the agent was told one: texts, None in
                rows without.

        Raises:
            RlpreError: if shapes, dtypes, names or the episode structure are wrong, or the disk is full.
        """
        if frames.dtype != np.uint8 or frames.shape[1:] != self.frame_shape or not len(frames):
            raise RlpreError(
                f"{self.path} holds frames (n, {', '.join(map(str, self.frame_shape))}) uint8 and got "
                f"{frames.shape} {frames.dtype}: append the shape that the store was created with"
            )
        rows, told = np.empty(len(frames), self._dtype), np.empty(len(frames), object)
        _fill(told, "mission", columns.pop("mission", np.array(None)))
        names = [name for name in self._dtype.names or () if name != "mission"]
        if set(columns) != set(names):
            wrong = ", ".join(sorted(set(columns) ^ set(names)))
            raise RlpreError(f"columns of {self.path} are {', '.join(names)}: missing or unknown: {wrong}")
        for name, values in columns.items():
            _fill(rows[name], name, values)
        self._check_episodes(rows)
        if not {type(text) for text in told} <= {str, type(None)}:
            raise RlpreError(f"missions of {self.path} are texts: append str, or None where there is none")
        rows["mission"] = [self._missions.setdefault(text, len(self._missions) - 1) for text in told]
        self._frames.append(frames.copy())
        self._rows.append(rows)
        if self.pending >= self.shard_rows:
            self.flush()

    def _check_episodes(self, rows: npt.NDArray[np.void]) -> None:
        start, taken = rows["episode_start"], actions.taken(rows["action"])
        if self.action_space is None:
            if taken.any() or not (start[0] or self._rows or self.manifest["shards"]):
                raise RlpreError(f"{self.path} holds no actions: append action -1, and episode_start in the first row")
        elif not start[0] or not np.array_equal(taken, ~np.append(start[1:], True)):
            raise RlpreError(
                "append takes whole episodes: each starts with episode_start and ends with a row of action "
                f"{actions.missing(self.action_space)}, and no other row has that action"
            )
        ranges = {"task": (0, len(self.manifest["tasks"]))}
        if isinstance(self.action_space, spaces.Discrete):
            ranges["action"] = (-1, int(self.action_space.n))
        for name, (low, high) in ranges.items():
            if rows[name].min() < low or rows[name].max() >= high:
                raise RlpreError(
                    f"column {name!r} of {self.path} must lie in {low}..{high - 1}: check what is appended"
                )

    def flush(self) -> None:
        """Writes the waiting rows as one shard, then the manifest.

        Raises:
            RlpreError: if the disk is full; the shards already written stay, and the waiting rows still wait.
        """
        if not self._rows:
            return
        shards, rows = self.manifest["shards"], self.pending
        parts: dict[str, Sequence[npt.NDArray[Any]]] = {"frames": self._frames, "rows": self._rows}
        files = [_write_array(self.path / f"{name}-{len(shards):05d}.npy", arrays) for name, arrays in parts.items()]
        shards = [*shards, {"rows": rows, "files": files}]
        manifest = {**self.manifest, "format": FORMAT, "missions": list(self._missions)[1:], "shards": shards}
        write_json(self.path / MANIFEST, manifest)
        self.manifest = manifest
        self._frames, self._rows = [], []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.flush()


def create(
    path: Path,
    space: spaces.Box,
    action_space: ActionSpace,
    spec: Mapping[str, Any],
    atlas: TileAtlas | None,
    palette: str,
    tasks: Sequence[str],
    labels: Sequence[str],
) -> FrameWriter:
    """Makes the directory, the atlas file and an empty manifest; see `FrameStore.create`."""
    if (path / MANIFEST).exists():
        raise RlpreError(f"{path} already holds a frame store: extend it or choose another directory")
    actions.check(action_space)
    _check_space(space, cell := atlas.tile_size if atlas else 1)
    if atlas:
        path.mkdir(parents=True, exist_ok=True)
        atlas.save(path / ATLAS)
    frame_shape = (space.shape[1] // cell, space.shape[2] // cell, 3) if atlas else space.shape
    content = {
        "format": FORMAT,
        "space": {"shape": list(space.shape), "dtype": "uint8", "low": 0, "high": 255},
        "action_space": actions.describe(action_space),
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


def _fill(column: npt.NDArray[Any], name: str, values: npt.ArrayLike) -> None:
    """Copies ``values`` into the column, whole numbers and flags exactly."""
    values = np.asarray(values)
    if values.ndim and values.shape != column.shape:
        raise RlpreError(f"column {name!r} has shape {values.shape}: expected {column.shape}, as the frames")
    with np.errstate(invalid="ignore"):  # NaN as a whole number: refused below
        column[...] = values
    if column.dtype.kind in "ib" and not (column == values).all():
        raise RlpreError(f"column {name!r} is {column.dtype} and cannot hold what is appended: convert it first")


def _check_space(space: spaces.Box, cell: int) -> None:
    if space.dtype != np.uint8 or len(space.shape) != 3:
        raise RlpreError(f"frames are (channels, height, width) uint8, not {space}: wrap the environment to give that")
    if any(side % cell for side in space.shape[1:]):
        raise RlpreError(
            f"a frame of shape {space.shape} is not made of whole tiles of {cell} pixels: check the tile size"
        )


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest and checks that every file it names has its size.

    Raises:
        RlpreError: if the manifest is missing, damaged or of another format, or a shard is missing or truncated.
    """
    content: dict[str, Any] = read_json(path / MANIFEST)
    if not isinstance(content, dict) or content.get("format") not in READABLE:
        raise RlpreError(f"{path / MANIFEST} is not a frame store of format 1 to {FORMAT}: collect the frames again")
    content.setdefault("missions", [])
    for shard in content["shards"]:
        for file in shard["files"]:
            found = path / file["name"]
            size = found.stat().st_size if found.exists() else 0
            if size != file["bytes"]:
                raise RlpreError(f"{found} has {size} bytes instead of {file['bytes']}: restore it or collect again")
    return content


def _write_array(path: Path, parts: Sequence[npt.NDArray[Any]]) -> dict[str, Any]:
    """Writes the parts as one .npy file, atomically, and returns its manifest entry."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
    with atomic(path) as temporary:
        with open(temporary, "wb") as file:
            # numpy's own writer reports a full disk without its reason
            np.lib.format.write_array_header_1_0(file, header)
            for part in parts:
                file.write(part.data)
        digest, size = sha256(temporary), temporary.stat().st_size
    return {"name": path.name, "bytes": size, "sha256": digest}
