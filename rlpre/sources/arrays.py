"""Frames in NumPy arrays, in memory or in .npy and .npz files."""

import math
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from tqdm import tqdm

from rlpre import actions
from rlpre.actions import ActionSpace
from rlpre.errors import RlpreError, lookup
from rlpre.frames import FrameStore
from rlpre.framewriter import COLUMNS
from rlpre.sources.layout import Frames, channels_first, layout_of
from rlpre.sources.whole import rows_at_once, whole

Columns = dict[str, npt.NDArray[Any]]
Head = tuple[tuple[int, ...], bool, np.dtype[Any]]
NAMES = ("action", "reward", "terminated", "truncated", "episode_start")


def from_arrays(
    source: npt.NDArray[np.uint8] | str | Path,
    out: str | Path,
    *,
    key: str | None = None,
    layout: str | None = None,
    action_space: ActionSpace = None,
    action: npt.ArrayLike | None = None,
    reward: npt.ArrayLike | None = None,
    terminated: npt.ArrayLike | None = None,
    truncated: npt.ArrayLike | None = None,
    episode_start: npt.ArrayLike | None = None,
) -> FrameStore:
    """Makes a store of an array of frames; files are read piece by piece.

    Row t of every column belongs to frame t, as in `FrameStore`: the action taken at it, and the reward and the flags
    that the action caused. The last row of an episode holds the frame that it ended on and action -1 (NaN in vectors).
    Where it holds an action instead, the frame that this led to is not there: it is left out with its reward and flags,
    and a warning says so.

    Args:
        source: uint8 (N, C, H, W), (N, H, W, C) or (N, H, W): an array, a .npy file, or a .npz file, whose arrays
            "action", "reward", "terminated", "truncated" and "episode_start", where they are there, are read too.
        out: the directory of the store; it appears when all is read.
        key: the array of a .npz file that holds the frames; default "frames", or the only one that could.
        layout: "CHW", "HWC" or "HW", where the shape does not tell the channels.
        action_space: default: ``Discrete`` up to the largest number, or an unbounded ``Box``.
        action: (N,) whole numbers or (N, ...) floats; without, the frames are sequences without actions.
        reward: (N,).
        terminated: (N,) flags.
        truncated: (N,) flags.
        episode_start: (N,) flags; default: behind every row without an action, or, if there is none, behind every row
            that is terminated or truncated.

    Raises:
        RlpreError: if the file cannot be read, there is no such key, the frames are not uint8 or not images, a column
            has another length, the rows are not whole episodes, or something stands at ``out``.
    """
    found = _open(source, key)
    _check(found)
    given = zip(NAMES, (action, reward, terminated, truncated, episode_start), strict=True)
    columns = found.columns | {name: np.asarray(values) for name, values in given if values is not None}
    n, layout = found.shape[0], layout_of(found.shape[1:], found.name, layout)
    for name, values in columns.items():
        if values.shape[:1] != (n,):
            raise RlpreError(
                f"column {name!r} of {found.name} has shape {values.shape}: expected {n} rows, one a frame"
            )
    action_space, columns = _episodes(columns, n, action_space, found.name)
    shape = channels_first(np.empty((0, *found.shape[1:]), np.uint8), layout).shape[1:]
    spec = {"arrays": found.name, "layout": layout}
    acted = action_space is not None
    bounds = np.append(np.flatnonzero(columns["episode_start"]), n) if acted else np.arange(n + 1)
    with (
        whole(Path(out), space=spaces.Box(0, 255, shape, np.uint8), action_space=action_space, spec=spec) as writer,
        tqdm(total=n, unit="frame", desc=Path(out).name, disable=None) as bar,
    ):
        sizes = _sizes(bounds, rows_at_once(writer))
        for end, frames in zip(np.cumsum(sizes), found.pieces(sizes), strict=True):
            part = slice(end - len(frames), end)
            rows = {name: values[part] for name, values in columns.items()}
            writer.append(channels_first(frames, layout), task=0, **rows)
            bar.update(len(frames))
    return FrameStore.open(out)


class _Found(NamedTuple):
    name: str  # for messages
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    pieces: Callable[[Sequence[int]], Iterator[Frames]]  # the frames in order, so many at a time
    columns: Columns


def _open(source: npt.NDArray[Any] | str | Path, key: str | None) -> _Found:
    where = str(source) if isinstance(source, str | Path) else "the array"
    if key is not None and not where.endswith(".npz"):
        raise RlpreError(f"{where} is no .npz file, so there is no array {key!r} in it: leave the key out")
    if not isinstance(source, str | Path):
        return _sliced(np.asarray(source), where)
    path = Path(source)
    try:
        loaded = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return _sliced(loaded, where)
        with loaded:
            heads = {name: _head(path, name) for name in loaded.files}
            columns = {name: loaded[name] for name in NAMES if name in heads}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RlpreError(f"{path} cannot be read as a .npy or .npz file ({error}): save it with numpy") from error
    name = _key(path, key, heads)
    where, (shape, fortran, dtype) = f"{name!r} of {path}", heads[name]
    if fortran:  # its rows do not follow each other in the file
        with np.load(path, allow_pickle=False) as loaded:
            return _sliced(loaded[name], where)._replace(columns=columns)
    return _Found(where, shape, dtype, lambda sizes: _streamed(path, name, sizes), columns)


def _sliced(array: npt.NDArray[Any], name: str) -> _Found:
    def pieces(sizes: Sequence[int]) -> Iterator[Frames]:
        return (array[end - size : end] for end, size in zip(np.cumsum(sizes), sizes, strict=True))

    return _Found(name, array.shape, array.dtype, pieces, {})


def _streamed(path: Path, name: str, sizes: Sequence[int]) -> Iterator[Frames]:
    """One array of an archive, compressed or not, without ever holding it whole."""
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        shape = _header(file)[0][1:]
        for size in sizes:
            try:
                yield np.frombuffer(file.read(size * math.prod(shape)), np.uint8).reshape(size, *shape)
            except (ValueError, EOFError, zlib.error, zipfile.BadZipFile) as error:
                raise RlpreError(f"{name!r} of {path} is damaged ({error}): restore it or save it again") from error


def _head(path: Path, name: str) -> Head:
    with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
        return _header(file)


def _header(file: IO[bytes]) -> Head:
    """(shape, whether in Fortran's order, dtype) of an array; leaves the file at its first byte."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)


def _key(path: Path, key: str | None, heads: Mapping[str, Head]) -> str:
    could = [name for name, (shape, _, dtype) in heads.items() if dtype == np.uint8 and len(shape) in (3, 4)]
    key = key or ("frames" if "frames" in heads else could[0] if len(could) == 1 else None)
    if key is None:
        raise RlpreError(f"{path} holds {', '.join(heads) or 'no arrays'}: name the array of frames with key=...")
    lookup("array", key, heads)
    return key


def _check(found: _Found) -> None:
    if found.dtype != np.uint8:
        ways = {"f": "if they lie in [0, 1], by (255 * frames).round().astype(np.uint8)"}
        way = ways.get(found.dtype.kind, "by frames.astype(np.uint8)")
        raise RlpreError(f"frames are uint8 in 0..255 and {found.name} holds {found.dtype}: convert them, {way}")
    if len(found.shape) not in (3, 4) or not all(found.shape):
        raise RlpreError(
            f"frames are (N, C, H, W), (N, H, W, C) or (N, H, W) and {found.name} has shape {found.shape}: reshape it"
        )


def _episodes(columns: Columns, n: int, space: ActionSpace, where: str) -> tuple[ActionSpace, Columns]:
    """All columns of the rows, and the action space."""
    rows: Columns = {name: np.zeros(n, dtype) for name, dtype in COLUMNS.items() if name in NAMES} | columns
    taken = np.zeros(n, bool)
    if "action" in columns:
        space, rows["action"] = _actions(columns["action"], space, where)
        taken = actions.taken(rows["action"])
    else:
        space, rows["action"] = None, np.full(n, -1)
    if "episode_start" not in columns:
        ended = ~taken if taken.any() and not taken.all() else (rows["terminated"] != 0) | (rows["truncated"] != 0)
        rows["episode_start"] = np.append(True, ended[:-1])
    if not rows["episode_start"][0]:
        raise RlpreError(f"the first row of {where} must begin an episode: set episode_start[0]")
    last = np.append(rows["episode_start"][1:], True) != 0
    if space is None:
        return space, rows
    if left_out := int((last & taken).sum()):
        warnings.warn(
            f"the frame after the last action of {left_out:,} episodes of {where} is not there: those actions are left "
            "out, with their rewards and flags",
            stacklevel=3,
        )
    blank = {"action": actions.missing(space), "reward": 0.0, "terminated": False, "truncated": False}
    for name, value in blank.items():
        rows[name] = rows[name].copy()
        rows[name][last] = value
    return space, rows


def _actions(action: npt.NDArray[Any], space: ActionSpace, where: str) -> tuple[ActionSpace, npt.NDArray[Any]]:
    vectors = action.dtype.kind == "f"
    if vectors and action.ndim == 1:
        action = action[:, None]
    if space is None and vectors:
        space = spaces.Box(-np.inf, np.inf, action.shape[1:], action.dtype.type)
    elif space is None and action.dtype.kind in "biu":
        space = spaces.Discrete(max(1, int(action.max()) + 1))
    kind = actions.column_type(space).base
    if not np.can_cast(action.dtype, kind, "same_kind"):
        raise RlpreError(
            f"the actions of {where} are {action.dtype}: give {kind} numbers, as {space or 'Discrete'} has"
        )
    return space, action.astype(kind)


def _sizes(bounds: npt.NDArray[np.int64], most: int) -> list[int]:
    """Lengths of pieces of at most ``most`` rows that end at bounds, or of one stretch between two."""
    sizes, at = [], 0
    while at < len(bounds) - 1:
        furthest = int(np.searchsorted(bounds, bounds[at] + most, side="right")) - 1
        end = max(furthest, at + 1)
        sizes.append(int(bounds[end] - bounds[at]))
        at = end
    return sizes
