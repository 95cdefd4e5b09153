"""Folders of images: films cut into files, or photographs by class."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
from gymnasium import spaces
from PIL import Image
from tqdm import tqdm

from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.sources.layout import Frames
from rlpre.sources.whole import rows_at_once, whole

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm", ".pgm", ".tif", ".tiff")
MODES: dict[int | None, str] = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's, by channels


def from_images(
    folder: str | Path, out: str | Path, size: tuple[int, int] | None = None, channels: int | None = None
) -> FrameStore:
    """Makes a store of image files; each folder that holds some becomes one sequence without actions.

    Within a folder, files follow each other in natural order (``frame9.png`` before ``frame10.png``). Column "task"
    tells the folder, `tasks` holds the names. A few images are in memory at a time. A store of
    photographs by class has no meaningful neighbours: pretrain it with an objective of single frames.

    Args:
        folder: images, or folders of images: one per trajectory or class, nested as you like.
        out: the directory of the store; it appears when all images are read.
        size: (H, W) to resize every image to.
        channels: 1, 3 or 4 to convert every image to.

    Raises:
        RlpreError: if there are no images, two differ in shape (both are named), a file cannot be read, or something
            stands at ``out``.
    """
    folder, out = Path(folder), Path(out)
    if size is not None and min(size) < 1:
        raise RlpreError(f"images cannot be resized to {size}: give (height, width) in pixels")
    if channels is not None and channels not in MODES:
        raise RlpreError(f"images cannot be converted to {channels} channels: choose 1, 3 or 4")
    sequences = find(folder)
    read = _reader(size, channels)
    first = next(iter(sequences.values()))[0]
    shape = read(first).shape
    spec = {"images": str(folder), "size": size, "channels": channels}
    space = spaces.Box(0, 255, shape, np.uint8)
    total = sum(map(len, sequences.values()))
    with (
        whole(out, space=space, action_space=None, spec=spec, tasks=list(sequences)) as writer,
        tqdm(total=total, unit="image", desc=out.name, disable=None) as bar,
    ):
        for task, files in enumerate(sequences.values()):
            for start in range(0, len(files), rows := rows_at_once(writer)):
                chunk = files[start : start + rows]
                frames = np.stack([_same(read(file), file, shape, first) for file in chunk])
                begins = np.arange(start, start + len(chunk)) == 0
                blank = {"action": -1, "reward": 0.0, "terminated": False, "truncated": False}
                writer.append(frames, **blank, episode_start=begins, task=task)
                bar.update(len(chunk))
    return FrameStore.open(out)


def natural(name: str) -> list[str | int]:
    """The key that sorts "frame9" before "frame10"."""
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if place % 2 else part.lower() for place, part in enumerate(parts)]


def find(folder: Path) -> dict[str, list[Path]]:
    """Image files by folder, both in natural order; hidden ones are left out.

    Raises:
        RlpreError: if there is none.
    """
    found: dict[tuple[str, ...], list[Path]] = {}
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(ENDINGS) and not name.startswith(".")]
        if names:
            found[Path(root).relative_to(folder).parts] = [Path(root, name) for name in sorted(names, key=natural)]
    if not found:
        what = "holds no images" if folder.is_dir() else "is not a folder"
        raise RlpreError(f"{folder} {what}: give a folder of {', '.join(ENDINGS[:4])} files, or of folders with them")
    order = sorted(found, key=lambda parts: [natural(part) for part in parts])
    return {"/".join(parts) or folder.absolute().name: found[parts] for parts in order}


def _reader(size: tuple[int, int] | None, channels: int | None) -> Callable[[Path], Frames]:
    # here, because torchvision takes a second to import; its own decoders are deprecated in favour of another package
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    def read(file: Path) -> Frames:
        """The frames of one file."""
        try:
            with Image.open(file) as image:
                count = getattr(image, "n_frames", 1)
                pixels = pil_to_tensor(image.convert(MODES.get(channels)))  # without a mode, palettes are looked up
        except (OSError, SyntaxError, ValueError, TypeError, Image.DecompressionBombError) as error:
            raise RlpreError(f"{file} cannot be read as an image ({error}): remove it or save it as PNG") from error
        frame: Frames = (resize(pixels, list(size), antialias=True) if size else pixels).numpy()
        if count > 1 or frame.dtype != np.uint8:
            raise RlpreError(
                f"{file} holds {count} images of {frame.dtype}: a frame is one image of uint8; save it so, or give "
                "channels=1, 3 or 4 to convert all"
            )
        return frame

    return read


def _same(frame: Frames, file: Path, shape: tuple[int, ...], first: Path) -> Frames:
    if frame.shape[1:] != shape[1:]:
        sizes = [f"{height} x {width}" for _, height, width in (shape, frame.shape)]
        raise RlpreError(f"{first} is {sizes[0]} pixels and {file} {sizes[1]}: give size=(height, width) to resize all")
    if frame.shape != shape:
        raise RlpreError(
            f"{first} has {shape[0]} channels and {file} {frame.shape[0]}: give channels=1, 3 or 4 to convert all"
        )
    return frame
