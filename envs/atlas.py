"""The tile atlas of MiniGrid, drawn by MiniGrid itself."""

import functools

import numpy as np
from minigrid.core.grid import Grid
from minigrid.utils.rendering import downsample, highlight_img

from envs.symbols import CODES, OBJECTS
from rlpre.errors import RlpreError
from rlpre.tiles import AGENT_SHIFT, HIGHLIGHT, TileAtlas

_SAMPLES = 3  # sub-pixels a pixel and axis, as in Grid.render_tile
_NIGHT = (256, 256, 256, 154, 90, 38)  # brightness in 1/256 at 0, 1, 2, 3, 4, and 5 or more cells from the agent


class _Easel(Grid):
    """MiniGrid's tile renderer with a cache of its own: what is drawn here unsampled must not reach the stock cache."""

    tile_cache: dict = {}  # noqa: RUF012


@functools.cache
def atlas(tile_size: int) -> TileAtlas:
    """The atlas of every object, color and state, with and without the agent and the highlight.

    Each layer is drawn once by MiniGrid and the layers are combined as ``Grid.render_tile`` does, so the tiles equal
    the stock ones to the pixel.

    Args:
        tile_size: pixels a cell and axis.

    Raises:
        RlpreError: if ``tile_size`` is below 1.
    """
    if tile_size < 1:
        raise RlpreError(f"tile_size is {tile_size}: give at least 1 pixel a cell")
    empty, *agents = (_draw(None, tile_size, direction) for direction in (None, 0, 1, 2, 3))
    masks = [np.zeros(empty.shape[:2], bool), *((agent != empty).any(-1) for agent in agents)]
    tiles, index = [], np.full((CODES[:, 0].max() + 1, CODES[:, 1].max() + 1, len(masks) << AGENT_SHIFT), -1)
    for (kind, color, state), thing in zip(CODES, OBJECTS, strict=True):
        picture = _draw(thing, tile_size)
        for agent, mask in enumerate(masks):
            for highlight in (0, HIGHLIGHT):
                index[kind, color, state | highlight | agent << AGENT_SHIFT] = len(tiles)
                tiles.append(_tile(picture, mask, bool(highlight)))
    return TileAtlas(np.stack(tiles), index, np.array(_NIGHT))


def _draw(thing: object, tile_size: int, direction: int | None = None) -> np.ndarray:
    """One layer before down-sampling, (T * samples, T * samples, 3) uint8."""
    return _Easel.render_tile(thing, direction, tile_size=tile_size * _SAMPLES, subdivs=1).astype(np.uint8)


def _tile(picture: np.ndarray, agent: np.ndarray, highlight: bool) -> np.ndarray:
    tile = picture.copy()
    tile[agent] = (255, 0, 0)
    if highlight:
        highlight_img(tile)
    return downsample(tile, _SAMPLES).astype(np.uint8).transpose(2, 0, 1)
