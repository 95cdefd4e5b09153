"""Natural pictures behind grid worlds: another one each episode, which drifts with each step."""

import functools
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from rlpre.data.backgrounds import FULL, VARIANTS, DistractingAtlas
from rlpre.data.files import find_images, read_image
from rlpre.data.tiles import TileAtlas
from rlpre.errors import RlpreError

STRENGTH, PICTURES = 0.5, "train"  # defaults
SHIPPED = {  # names in scikit-learn and scikit-image; no picture is in both parts
    "train": ("china", "astronaut", "coffee", "immunohistochemistry", "stereo_motorcycle"),
    "test": ("flower", "chelsea", "rocket", "retina"),
}
SCIKIT_LEARN = ("china", "flower")
FEWEST = 4  # pictures of a folder: an encoder could learn fewer by heart
MOST_BYTES = 2**27  # of the pictures; memory holds each turned four ways
ZOOM = 3  # side of a picture, in sides of a frame


class Drift:
    """The background of one environment.

    It depends on the seed and the number of resets and steps alone, not on the engine that runs the grid.

    Args:
        atlas: holds the pictures.
        size: (H, W) of the frames in pixels, a whole number of tiles.
        strength: weight of the picture, 0 (no picture) to 1 (no cell can be seen).

    Attributes:
        row: bytes of the row below the grid, see `DistractingAtlas`; all 0 without a picture.

    Raises:
        RlpreError: if the strength is outside 0..1.
    """

    def __init__(self, atlas: DistractingAtlas, size: tuple[int, int], strength: float = STRENGTH) -> None:
        if not 0 <= strength <= 1:
            raise RlpreError(f"strength is {strength}: give a number from 0 (no picture) to 1 (no cell can be seen)")
        self.weight, self.slack, self.count = round(FULL * strength), atlas.slack(size), len(atlas.pictures)
        self.fastest = max(1, atlas.tile_size // 4)  # pixels a step along each axis
        self.length = size[1] // atlas.tile_size * 3
        self.row = bytes(self.length)
        self._rng = np.random.default_rng()

    def reset(self, seed: int | None = None) -> None:
        """Draws a picture, its turn and colours, a place and a direction; a seed restarts the random numbers."""
        if seed is not None:
            self._rng = np.random.default_rng([seed, 1])  # not the numbers that lay out the grid
        highest = (self.count, len(VARIANTS), *(edge + 1 for edge in self.slack))
        self._number, self._variant, *self._place = self._rng.integers(highest).tolist()
        self._velocity = [0, 0]
        while self._velocity == [0, 0]:
            self._velocity = self._rng.integers(-self.fastest, self.fastest + 1, 2).tolist()
        self._pack()

    def step(self) -> None:
        """Moves the picture on; it turns back at its edges."""
        for axis, edge in enumerate(self.slack):
            place = self._place[axis] + self._velocity[axis]
            if not 0 <= place <= edge:
                self._velocity[axis] *= -1
                place = -place if place < 0 else 2 * edge - place
            self._place[axis] = place
        self._pack()

    def _pack(self) -> None:
        if self.weight:
            background = struct.pack(">HHHHB", self._number, *self._place, self.weight, self._variant)
            self.row = background.ljust(self.length, b"\0")


def distracting(tiles: TileAtlas, size: tuple[int, int], pictures: str | Path = PICTURES) -> DistractingAtlas:
    """The atlas of these tiles and pictures.

    Args:
        tiles: of the grid world.
        size: (H, W) of the frames in pixels.
        pictures: "train" or "test", photographs that scikit-learn and scikit-image come with, or a folder of images.

    Raises:
        RlpreError: if the folder holds no image, too few, too many for memory, or one that cannot be read.
    """
    side, files = ZOOM * max(size), ()
    if pictures not in SHIPPED:
        files = tuple(file for group in find_images(Path(pictures)).values() for file in group)
        if len(files) < FEWEST:
            raise RlpreError(f"{pictures} holds {len(files)} pictures: give at least {FEWEST}, or pictures='train'")
        if len(files) * 3 * side**2 > MOST_BYTES:
            most = MOST_BYTES // (3 * side**2)
            raise RlpreError(f"{pictures} holds {len(files):,} pictures, too many for memory: give at most {most:,}")
    version = tuple((file, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
    return _atlas(tiles, side, str(pictures), version)


@functools.lru_cache(maxsize=8)
def _atlas(tiles: TileAtlas, side: int, pictures: str, version: tuple[tuple[Path, int, int], ...]) -> DistractingAtlas:
    images = (read_image(file, None, 3).transpose(1, 2, 0) for file, *_ in version) if version else _shipped(pictures)
    squares = [np.asarray(ImageOps.fit(Image.fromarray(image), (side, side))) for image in images]
    return DistractingAtlas(tiles.tiles, tiles.index, tiles.light, np.stack(squares).transpose(0, 3, 1, 2))


def _shipped(part: str) -> list[np.ndarray]:
    """The photographs (H, W, 3) uint8 of a part."""
    try:
        from skimage import data
    except ImportError as error:
        raise RlpreError("the pictures come with scikit-image: pip install 'rlpre[lab]', or give a folder") from error
    from sklearn.datasets import load_sample_image

    images = []
    for name in SHIPPED[part]:
        image = load_sample_image(f"{name}.jpg") if name in SCIKIT_LEARN else getattr(data, name)()
        images.append(image[0] if isinstance(image, tuple) else image)  # of a stereo pair the left one
    return images
