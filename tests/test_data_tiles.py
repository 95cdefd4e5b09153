"""The tile atlas: pixels by hand, at night, against MiniGrid's own tiles, on disk."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from minigrid.core.grid import Grid

import envs
from envs.minigrid.render import CODES, OBJECTS
from rlpre import RlpreError
from rlpre.data.tiles import TileAtlas


def tiny(size: int = 2, kinds: int = 3) -> TileAtlas:
    """Random tiles: code (kind, 0, agent << 3) names tile kind * 2 + (agent here)."""
    tiles = np.random.default_rng(size).integers(0, 256, (kinds * 2, 3, size, size), dtype=np.uint8)
    index = np.full((kinds, 1, 16), -1)
    index[:, 0, 0], index[:, 0, 8] = np.arange(0, kinds * 2, 2), np.arange(1, kinds * 2, 2)
    return TileAtlas(tiles, index, np.array([256, 128, 64]))


def tiny_codes(*batch: int, rows: int = 3, columns: int = 4) -> np.ndarray:
    """Random kinds, the agent in cell (1, 2)."""
    codes = np.zeros((*batch, rows, columns, 3), np.uint8)
    codes[..., 0] = np.random.default_rng(0).integers(0, 3, codes.shape[:-1])
    codes[..., 1, 2, 2] = 8
    return codes


def test_decode_by_hand() -> None:
    tiles = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)  # tile 0: red 0..3, green 4..7; tile 1: red 12..15
    atlas = TileAtlas(tiles, np.array([[[0]], [[1]]]), np.array([256]))
    red, *_, blue = atlas.decode(np.array([[[1, 0, 0], [0, 0, 0]]], np.uint8)).tolist()
    assert red == [[12, 13, 0, 1], [14, 15, 2, 3]]
    assert blue == [[20, 21, 8, 9], [22, 23, 10, 11]]


def test_night_by_hand() -> None:
    index = np.array([[[0] + [-1] * 7 + [1]]])
    atlas = TileAtlas(np.full((2, 3, 1, 1), 200, np.uint8), index, np.array([256, 128, 64]))
    codes = np.zeros((2, 4, 3), np.uint8)
    codes[0, 1, 2] = 8  # distances from (0, 1): 1 0 1 2 and 1.41 1 1.41 2.24, rounded 1 1 1 2
    assert atlas.decode(codes, "night")[0].tolist() == [[100, 200, 100, 50], [100, 100, 100, 50]]
    assert (atlas.decode(codes) == 200).all()


@pytest.mark.parametrize("size", [1, 2, 3, 4, 8, 12])
@pytest.mark.parametrize("palette", ["day", "night"])
def test_decode_equals_placing_tile_by_tile(size: int, palette: str) -> None:
    atlas, codes = tiny(size), tiny_codes(37)
    expected = np.zeros((37, 3, 3 * size, 4 * size), np.uint8)
    for n, r, c in np.ndindex(37, 3, 4):
        tile = atlas.tiles[codes[n, r, c, 0] * 2 + (codes[n, r, c, 2] == 8)].astype(int)
        level = min(round(((r - 1) ** 2 + (c - 2) ** 2) ** 0.5), 2) if palette == "night" else 0
        expected[n, :, r * size : (r + 1) * size, c * size : (c + 1) * size] = tile // 2**level
    frames = atlas.decode(codes, palette)
    assert (frames.dtype, frames.flags.c_contiguous) == (np.uint8, True)
    assert np.array_equal(frames, expected)
    assert np.array_equal(atlas.decode_torch(torch.from_numpy(codes), palette).numpy(), expected)
    # the gather that an accelerator runs, here on the CPU
    assert np.array_equal(atlas._gather(torch.from_numpy(codes), palette == "night").numpy(), expected)
    if palette == "night":
        assert np.array_equal(atlas.dim(atlas.decode(codes[0]), agent=1 * 4 + 2), expected[0])


@pytest.mark.parametrize("batch", [(), (0,), (5,), (2, 3)])
def test_any_batch_shape(batch: tuple[int, ...]) -> None:
    atlas, codes = tiny(), tiny_codes(*batch)
    assert atlas.decode(codes).shape == (*batch, 3, 6, 8)
    flat = [atlas.decode(one, "night") for one in codes.reshape(-1, 3, 4, 3)]
    assert np.array_equal(atlas.decode(codes, "night").reshape(-1, 3, 6, 8), np.array(flat).reshape(-1, 3, 6, 8))


@pytest.mark.parametrize("cell", [(0, 0, 3), (0, 0, 255), (0, 1, 0), (0, 255, 255), (9, 0, 0), (255, 255, 255)])
def test_codes_of_another_atlas_are_refused(cell: tuple[int, int, int]) -> None:
    codes = tiny_codes(4)
    with pytest.raises(RlpreError, match="did you mean 'night'"):
        tiny().decode(codes, "nigth")
    codes[2, 1, 1] = cell
    with pytest.raises(RlpreError, match=re.escape(f"the code {list(cell)} (type, color, flags) names no tile")):
        tiny().decode(codes)


def test_save_and_load(tmp_path: Path) -> None:
    path = tmp_path / "atlas.npz"
    with pytest.raises(RlpreError, match="is not a tile atlas"):
        TileAtlas.load(path)
    tiny(4).save(path)
    for palette in ("day", "night"):
        decoded = TileAtlas.load(path).decode(tiny_codes(3), palette)
        assert np.array_equal(decoded, tiny(4).decode(tiny_codes(3), palette))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(RlpreError, match="is not a tile atlas"):
        TileAtlas.load(path)
    np.savez(path, tiles=np.array([{"a pickle": 1}]), index=0, light=0)
    with pytest.raises(RlpreError, match="is not a tile atlas"):
        TileAtlas.load(path)


@pytest.mark.parametrize("size", [4, 5])
def test_every_tile_equals_minigrid(size: int) -> None:
    Grid.tile_cache.clear()
    envs.atlas.cache_clear()
    atlas = envs.atlas(size)
    assert not Grid.tile_cache, "drawing the atlas leaves MiniGrid's own cache alone"
    for thing, (kind, color, state) in zip(OBJECTS, CODES, strict=True):
        for agent in range(5):
            for highlight in (False, True):
                stock = Grid.render_tile(thing, agent - 1 if agent else None, highlight, size).astype(np.uint8)
                code = np.array([[[kind, color, state | highlight << 2 | agent << 3]]], np.uint8)
                assert np.array_equal(atlas.decode(code), stock.transpose(2, 0, 1)), (thing, agent, highlight)
    with pytest.raises(RlpreError, match="tile_size is 0"):
        envs.atlas(0)
