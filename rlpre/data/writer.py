"""Writing frame stores: rows are appended in shards, each complete or absent, and listed in a manifest."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rlpre.errors import RlpreError
from rlpre.utils import atomic, read_json, sha256, write_json

ActionSpace = spaces.Discrete | spaces.Box | None  # None: frames without actions

FORMAT = 3
MANIFEST, ATLAS = "manifest.json", "atlas.npz"
COLUMNS = {"reward": "f8", "terminated": "?", "truncated": "?", "episode_start": "?", "task": "i4", "mission": "i4"}
UNKNOWN = -1  # a label without a known value, a row without a mission
SHARD_ROWS, SHARD_BYTES = 65_536, 128 * 2**20


def check_action_space(space: object) -> None:
    """Raises an `RlpreError` unless ``space`` is ``Discrete`` from 0, a ``Box`` of float vectors, or None."""
    discrete = isinstance(space, spaces.Discrete) and space.start == 0
    vector = isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and bool(space.shape)
    if not (discrete or vector or space is None):
        raise RlpreError(
            f"a frame store holds discrete actions 0..n-1, vectors of floats (Box) or no actions, not {space}: wrap "
            "the environment or convert the actions"
        )


def space_to_json(space: ActionSpace) -> dict[str, Any] | None:
    """The action space as JSON values."""
    if isinstance(space, spaces.Discrete):
        return {"n": int(space.n)}
    if space is None:
        return None
    bounds = {"low": space.low.tolist(), "high": space.high.tolist()}
    return {"shape": list(space.shape), "dtype": str(space.dtype), **bounds}


def space_from_json(content: dict[str, Any] | None) -> ActionSpace:
    """The action space that `space_to_json` described."""
    if content is None:
        return None
    if "n" in content:
        return spaces.Discrete(content["n"])
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


def row_dtype(manifest: Mapping[str, Any]) -> np.dtype[np.void]:
    """The structured dtype of a row without its frame: the action, the fixed columns, then one int16 per label."""
    action = action_dtype(space_from_json(manifest["action_space"]))
    return np.dtype([("action", action), *COLUMNS.items(), *((name, "i2") for name in manifest["labels"])])


def read_manifest(path: Path) -> dict[str, Any]:
    """Reads the manifest of the store at ``path`` and checks the size of every file that it lists.

    Raises:
        RlpreError: if the manifest is missing, damaged or of another format, or a shard is missing or truncated.
    """
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


class FrameWriter:
    """Appends episodes to a store; made by `FrameStore.create` and `FrameStore.extend`.

    Rows wait in memory until they fill a shard, or until `flush`. If the process dies, the written shards stay
    readable. As a context manager the writer flushes at the end, unless the block raised.

    Attributes:
        path: the directory of the store.
        manifest: the content of `manifest.json`.
        action_space: of the store.
        shard_rows: rows of a full shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.manifest: dict[str, Any] = read_manifest(path)
        self.action_space = space_from_json(self.manifest["action_space"])
        self._frame_shape = tuple(self.manifest["frame_shape"])
        self._dtype = row_dtype(self.manifest)
        self._frames: list[npt.NDArray[np.uint8]] = []
        self._rows: list[npt.NDArray[np.void]] = []
        self._missions = {text: number for number, text in enumerate([None, *self.manifest["missions"]], UNKNOWN)}
        self.shard_rows = max(1, min(SHARD_ROWS, SHARD_BYTES // int(np.prod(self._frame_shape))))

    def append(self, frames: npt.NDArray[np.uint8], **columns: npt.ArrayLike) -> None:
        """Appends complete episodes: T + 1 rows for T actions; the last row's action is -1, or NaN for vectors.

        In a store without actions every action is -1, and the rows may continue the last episode.

        Args:
            frames: (n, rows, columns, 3) uint8 codes for a tile store, else (n, C, H, W) uint8 pixels.
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
        rows, missions = np.empty(len(frames), self._dtype), np.empty(len(frames), object)
        _fill(missions, "mission", columns.pop("mission", np.array(None)))
        names = [name for name in self._dtype.names or () if name != "mission"]
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
        ranges = {"task": (0, len(self.manifest["tasks"]))}
        if isinstance(self.action_space, spaces.Discrete):
            ranges["action"] = (-1, int(self.action_space.n))
        for name, (low, high) in ranges.items():
            if rows[name].min() < low or rows[name].max() >= high:
                raise RlpreError(f"column {name!r} of {self.path} must lie in {low}..{high - 1}: check the values")

    def flush(self) -> None:
        """Writes the waiting rows as one shard, then the manifest.

        Raises:
            RlpreError: if the disk is full; the shards already written stay, and the waiting rows still wait.
        """
        if not self._rows:
            return
        shards = self.manifest["shards"]
        parts: dict[str, Sequence[npt.NDArray[Any]]] = {"frames": self._frames, "rows": self._rows}
        files = [_write_array(self.path / f"{name}-{len(shards):05d}.npy", arrays) for name, arrays in parts.items()]
        shards = [*shards, {"rows": sum(map(len, self._rows)), "files": files}]
        manifest = {**self.manifest, "missions": list(self._missions)[1:], "shards": shards}
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
