"""Frames from files: folders of images, and NumPy arrays in memory, .npy or .npz files."""

import re
import tempfile
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from PIL import Image, ImageOps

from rlpre.data.adapters import channels_first, layout_of
from rlpre.data.store import (
    COLUMNS,
    ActionSpace,
    Columns,
    Frames,
    FrameStore,
    action_dtype,
    end_values,
    fill_store,
    frame_space,
    has_action,
    shard_rows,
)
from rlpre.errors import RlpreError, lookup

Array = npt.NDArray[Any]
IMAGE_NAMES = re.compile(r".+\.(png|jpe?g|jpe|jfif|jp2|webp|avif|gif|bmp|tga|tiff?|p[bgnp]m)", re.IGNORECASE)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels
GRAY, COLOR = ("1", "L", "LA"), ("P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV")  # Pillow's modes of 8 bits
FRAMES = ("frames", "observations", "obs")  # names in a .npz file: ours, those of D4RL, of imitation
NAMES = {  # by column; the first one that the file holds is read
    "action": ("action", "actions", "acts"),
    "reward": ("reward", "rewards", "rews"),
    "terminated": ("terminated", "terminals", "terminations", "dones"),
    "truncated": ("truncated", "timeouts", "truncations"),
    "episode_start": ("episode_start", "episode_starts"),
}


def from_images(
    folder: str | Path, out: str | Path, size: tuple[int, int] | None = None, channels: int | None = None
) -> FrameStore:
    """Makes a store of image files; each folder that holds some becomes one sequence without actions.

    Within a folder, files are in natural order (``frame9.png`` before ``frame10.png``). Column "task" is the folder,
    and `tasks` holds the names. In a folder of unrelated photographs neighbours mean nothing: pretrain on them with an
    objective of single frames.

    Frames are what an image viewer shows: turned as EXIF says, with colours from palettes, CMYK or YCbCr; transparent
    pixels are black unless the frames have 4 channels. Of 16-bit gray images the upper 8 bits are kept, with a warning.
    Another warning names the endings of files that are left out.

    Args:
        folder: images, or folders of images: one per trajectory or class, nested at any depth.
        out: the directory of the store; it appears when all images are read.
        size: (H, W) to resize every image to.
        channels: 1, 3 or 4 to convert every image to; default: those of the images.

    Raises:
        RlpreError: if there are no images, two differ in shape (both are named), a file cannot be read, holds several
            images or pixels of an unknown range (32 bits, floats), or ``out`` is not empty.
    """
    folder = Path(folder)
    if size is not None and min(size) < 1:
        raise RlpreError(f"images cannot be resized to {size}: give (height, width) in pixels")
    if channels not in (None, *MODES):
        raise RlpreError(f"images cannot be converted to {channels} channels: choose 1, 3 or 4")
    sequences = find_images(folder)
    first = next(iter(sequences.values()))[0]
    shape = read_image(first, size, channels).shape
    most = max(1, shard_rows(shape) // 8)  # 16 MiB

    def rows() -> Iterator[Mapping[str, Any]]:
        """Reads at most ``most`` images of a sequence at a time."""
        for task, files in enumerate(sequences.values()):
            for start in range(0, len(files), most):
                frames = []
                for file in files[start : start + most]:
                    frames.append(read_image(file, size, channels))
                    if frames[-1].shape != shape:
                        raise RlpreError(
                            f"{first} is {shape} (channels, height, width) and {file} {frames[-1].shape}: give "
                            "size=(height, width) to resize, or channels=1, 3 or 4 to convert all"
                        )
                begins = np.arange(start, start + len(frames)) == 0
                # without actions, every row is like the last of an episode
                yield {"frames": np.stack(frames), "episode_start": begins, "task": task, **end_values(None)}

    spec = {"images": str(folder), "size": size, "channels": channels}
    arguments = {"space": frame_space(shape), "action_space": None, "spec": spec, "tasks": list(sequences)}
    return fill_store(Path(out), rows(), sum(map(len, sequences.values())), **arguments)


def natural_order(name: str) -> list[str | int]:
    """The key that sorts "frame9" before "frame10"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)]


def find_images(folder: Path) -> dict[str, list[Path]]:
    """Image files by folder, both in natural order, without hidden ones; warns of files that are left out.

    Raises:
        RlpreError: if there are none.
    """
    sequences: dict[tuple[str, ...], list[Path]] = {}
    others: Counter[str] = Counter()
    for path, files in _walk(folder, ()) if folder.is_dir() else ():
        images = [file for file in files if IMAGE_NAMES.fullmatch(file.name)]
        others.update(file.suffix.lower() or file.name for file in files if not IMAGE_NAMES.fullmatch(file.name))
        if images:
            sequences[path.relative_to(folder).parts] = sorted(images, key=lambda file: natural_order(file.name))
    if not sequences:
        what = "holds no images" if folder.is_dir() else "is not a folder"
        raise RlpreError(f"{folder} {what}: give a folder of .png, .jpg or .webp files, or of folders with them")
    if others:
        listed = ", ".join(f"{count} {ending}" for ending, count in sorted(others.items()))
        warnings.warn(f"files of {folder} that are no images are left out: {listed}", stacklevel=3)
    order = sorted(sequences, key=lambda parts: [natural_order(part) for part in parts])
    return {"/".join(parts) or folder.absolute().name: sequences[parts] for parts in order}


def _walk(folder: Path, above: tuple[Path, ...]) -> Iterator[tuple[Path, list[Path]]]:
    """Each folder with its files; links are followed, except to a folder that they lie in."""
    if folder.resolve() in above:
        return
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    yield folder, [entry for entry in entries if entry.is_file()]
    for entry in entries:
        if entry.is_dir():
            yield from _walk(entry, (*above, folder.resolve()))


def read_image(file: Path, size: tuple[int, int] | None, channels: int | None) -> Frames:
    """The frame (C, H, W) uint8 of one file, resized and converted as in `from_images`.

    Raises:
        RlpreError: if the file cannot be read, holds several images or pixels of an unknown range.
    """
    try:
        with Image.open(file) as opened:
            # a photograph of format MPO comes with previews of itself
            count = 1 if opened.format == "MPO" else getattr(opened, "n_frames", 1)
            image = ImageOps.exif_transpose(opened)
            sixteen_bits = image.mode.startswith("I;16") or (image.mode == "I" and opened.format in ("PNG", "PPM"))
    except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
        raise RlpreError(f"{file} cannot be read as an image ({error}): remove it or save a smaller PNG") from error
    if count > 1:
        raise RlpreError(f"{file} holds {count} images: save each as a file of its own, in a folder of their own")
    if sixteen_bits:
        warnings.warn(f"of the 16-bit images in {file.parent} only the upper 8 bits are kept", stacklevel=3)
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in GRAY + COLOR:
        raise RlpreError(
            f"{file} has pixels of mode {image.mode}, whose range is unknown: save it as 8-bit RGB or gray"
        )
    transparent = image.mode.endswith("A") or "transparency" in image.info
    mode = MODES[channels] if channels else "RGBA" if transparent else "L" if image.mode in GRAY else "RGB"
    if transparent and mode != "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image.convert("RGBA"))
    image = image.convert(mode)
    pixels: Frames = np.asarray(image.resize(size[::-1], Image.Resampling.BILINEAR) if size else image)
    return channels_first(pixels, "HW" if mode == "L" else "HWC")


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
    """Makes a store of an array of frames. Files are read piece by piece; a .npz file is unpacked beside ``out`` first.

    Row t of every column belongs to frame t, as in `FrameStore`: the action taken at it, and the reward and the flags
    that the action caused. The last row of an episode holds its final frame and action -1 (NaN in vectors). If it holds
    an action instead, the final frame is missing: the action is left out with its reward and flags, with a warning.

    Args:
        source: uint8 (N, C, H, W), (N, H, W, C) or (N, H, W): an array, a .npy file, or a .npz file, from which the
            columns are read too, in our names or those of D4RL, imitation and Stable-Baselines 2 ("actions", "acts",
            "rewards", "terminals", "dones", "timeouts", "episode_starts", ...). A warning names all other arrays.
        out: the directory of the store; it appears when all is read.
        key: the array of a .npz file that holds the frames; default "frames", the only one that could, "observations"
            or "obs".
        layout: "CHW", "HWC" or "HW", if the shape is ambiguous.
        action_space: default: ``Discrete`` up to the largest number, or an unbounded ``Box``.
        action: (N,) or (N, 1) integers or (N, ...) floats; without, the frames are sequences without actions.
        reward: (N,).
        terminated: (N,) flags.
        truncated: (N,) flags.
        episode_start: (N,) flags; default: after every row without an action, or, if there is none, after every row
            that is terminated or truncated.

    Raises:
        RlpreError: if the file cannot be read, there is no such key, the frames are not uint8 or not images, a column
            has another length, the rows are not complete episodes, or ``out`` is not empty.
    """
    arguments = zip(NAMES, (action, reward, terminated, truncated, episode_start), strict=True)
    given = {column: np.asarray(values) for column, values in arguments if values is not None}
    with _opened(source, key, Path(out)) as (name, frames, columns):
        _check_frames(frames, name)
        layout = layout_of(frames.shape[1:], name, layout)
        action_space, columns = _complete_columns(columns | given, len(frames), action_space, name)
        shape = channels_first(frames[:1], layout).shape[1:]
        starts = np.arange(len(frames)) if action_space is None else np.flatnonzero(columns["episode_start"])
        rows = (
            {"frames": channels_first(frames[part], layout), "task": 0, **{key: columns[key][part] for key in columns}}
            for part in _pieces(np.append(starts, len(frames)), max(1, shard_rows(shape) // 8))
        )
        kind = {"space": frame_space(shape), "action_space": action_space, "spec": {"arrays": name, "layout": layout}}
        return fill_store(Path(out), rows, len(frames), **kind)


@contextmanager
def _opened(source: Array | str | Path, key: str | None, out: Path) -> Iterator[tuple[str, Array, Columns]]:
    """Yields the name of the frames for messages, the frames, memory-mapped if in a file, and the columns beside them.

    A .npz file is unpacked beside ``out`` while it is open.
    """
    name = str(source) if isinstance(source, str | Path) else "the array"
    if key is not None and not name.endswith(".npz"):
        raise RlpreError(f"{name} is no .npz file, so there is no array {key!r} in it: leave the key out")
    if not isinstance(source, str | Path):
        yield name, np.asarray(source), {}
        return
    (beside := out.absolute().parent).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=beside) as folder:
        try:
            if zipfile.is_zipfile(source):
                zipfile.ZipFile(source).extractall(folder)
                arrays = _load_folder(Path(folder))
            else:
                arrays = {"": np.load(source, mmap_mode="r")}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise RlpreError(f"{name} cannot be read as a .npy or .npz file ({error}): save it with numpy") from error
        yield (name, arrays[""], {}) if "" in arrays else _choose(arrays, key, name)


def _load_folder(folder: Path) -> Columns:
    """The arrays of an unpacked .npz file by name; those of Python objects, which are not read, are empty."""
    arrays: Columns = {}
    for file in sorted(folder.rglob("*.npy")):
        try:
            array = np.load(file, mmap_mode="r")
        except ValueError:
            array = np.empty(0, object)
        arrays[file.relative_to(folder).with_suffix("").as_posix()] = array
    return arrays


def _choose(arrays: Columns, key: str | None, name: str) -> tuple[str, Array, Columns]:
    """The frames and the columns among the arrays of a file; warns of the others."""
    if key is None:
        named = [key for key in FRAMES if key in arrays]
        images = [key for key, array in arrays.items() if array.dtype == np.uint8 and array.ndim in (3, 4)]
        key = "frames" if "frames" in named else images[0] if len(images) == 1 else next(iter(named), None)
    if key is None:
        raise RlpreError(f"{name} holds {', '.join(arrays) or 'no arrays'}: name the array of frames with key=...")
    frames = lookup("array", key, arrays)
    used = {column: next((known for known in names if known in arrays), "") for column, names in NAMES.items()}
    if others := ", ".join(sorted({*arrays} - {key, *used.values()})):
        warnings.warn(f"arrays {others} of {name} are left out: they are no columns of a frame store", stacklevel=3)
    return f"{key!r} of {name}", frames, {column: np.asarray(arrays[known]) for column, known in used.items() if known}


def _check_frames(frames: Array, name: str) -> None:
    if frames.ndim not in (3, 4) or not frames.size:
        raise RlpreError(
            f"frames are (N, C, H, W), (N, H, W, C) or (N, H, W) and {name} has shape {frames.shape}: reshape it"
        )
    if frames.dtype != np.uint8:
        raise RlpreError(f"frames are uint8 in 0..255 and {name} holds {frames.dtype}: {_conversion(frames)}")


def _conversion(frames: Array) -> str:
    """The advice how to convert frames to uint8, by their dtype and range."""
    kind = frames.dtype.kind
    if kind not in "biuf":
        return "give numbers"
    low, high = frames.min(), frames.max()
    ways = {  # the first one of this kind and range
        "(255 * frames).astype(np.uint8)": ("b", 1),
        "frames.astype(np.uint8)": ("iu", 255),
        "(frames >> 8).astype(np.uint8)": ("iu", 2**16 - 1),
        "(255 * frames).round().astype(np.uint8)": ("f", 1),
        "frames.round().astype(np.uint8)": ("f", 255),
    }
    for way, (kinds, most) in ways.items():
        if kind in kinds and low >= 0 and high <= most:
            return f"convert them by {way}"
    return f"they range over {low:g}..{high:g}, rescale them to 0..255 first"


def _complete_columns(columns: Columns, n: int, space: ActionSpace, name: str) -> tuple[ActionSpace, Columns]:
    """The action space, and all columns: episodes get starts, and a last row without an action."""
    rows: Columns = {column: np.zeros(n, dtype) for column, dtype in COLUMNS.items() if column in NAMES}
    for column, values in columns.items():
        flat = values.shape[1:] == (1,) and (column != "action" or values.dtype.kind != "f")
        rows[column] = values[:, 0] if flat else values
        if values.shape[:1] != (n,):
            raise RlpreError(f"column {column!r} of {name} has shape {values.shape}: expected {n} rows, one per frame")
    space, rows["action"] = _actions(rows["action"], space, name) if "action" in columns else (None, np.full(n, -1))
    acted = has_action(rows["action"])
    if "episode_start" not in columns:
        ended = ~acted if acted.any() and not acted.all() else (rows["terminated"] != 0) | (rows["truncated"] != 0)
        rows["episode_start"] = np.append(True, ended[:-1])
    if not rows["episode_start"][0]:
        raise RlpreError(f"the first row of {name} must begin an episode: set episode_start[0]")
    if space is None:
        return space, rows
    last = np.append(rows["episode_start"][1:], True) != 0
    if left_out := int((last & acted).sum()):
        warnings.warn(
            f"the frame after the last action is missing in {left_out:,} episodes of {name}: those actions are left "
            "out, with their rewards and flags",
            stacklevel=3,
        )
    for column, value in end_values(space).items():
        rows[column] = rows[column].copy()
        rows[column][last] = value
    return space, rows


def _actions(action: npt.NDArray[Any], space: ActionSpace, name: str) -> tuple[ActionSpace, npt.NDArray[Any]]:
    vectors = action.dtype.kind == "f"
    if vectors and action.ndim == 1:
        action = action[:, None]
    if space is None and vectors:
        space = spaces.Box(-np.inf, np.inf, action.shape[1:], action.dtype.type)
    elif space is None and action.dtype.kind in "biu":
        space = spaces.Discrete(max(1, int(action.max()) + 1))
    kind = action_dtype(space).base
    if not np.can_cast(action.dtype, kind, "same_kind"):
        raise RlpreError(f"the actions of {name} are {action.dtype}: give {kind} numbers, as {space or 'Discrete'} has")
    return space, action.astype(kind)


def _pieces(bounds: npt.NDArray[np.int64], most: int) -> Iterator[slice]:
    """Slices of at most ``most`` rows that start and end at bounds, or of all rows between two."""
    at = 0
    while at < len(bounds) - 1:
        end = max(int(np.searchsorted(bounds, bounds[at] + most, side="right")) - 1, at + 1)
        yield slice(bounds[at], bounds[end])
        at = end
