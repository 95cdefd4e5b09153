"""Pictures over tiles: pixels by hand, on both paths of decoding, on disk, and in a store."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpre import FrameStore, RlpreError
from rlpre.data.backgrounds import BACKGROUND, FULL, VARIANTS, DistractingAtlas
from rlpre.data.store import ATLAS, resume_store

ROWS, COLUMNS, TILE, SIDE, KINDS, PICTURES = 3, 4, 2, 11, 3, 300
RNG = np.random.default_rng(0)
TILES = RNG.integers(0, 256, (KINDS, 3, TILE, TILE), dtype=np.uint8)
PHOTOS = RNG.integers(0, 256, (PICTURES, 3, SIDE, SIDE), dtype=np.uint8)


def distracting(pictures: np.ndarray = PHOTOS) -> DistractingAtlas:
    """Code (kind, 0, 0) or, with the agent, (kind, 0, 8) names tile ``kind``."""
    index = np.full((KINDS, 1, 16), -1)
    index[:, 0, 0] = index[:, 0, 8] = range(KINDS)
    return DistractingAtlas(TILES, index, np.array([256, 128, 64]), pictures)


def codes(count: int = 200, weight: int | None = None) -> np.ndarray:
    """Random cells before random backgrounds; the agent is in cell (1, 2)."""
    rng = np.random.default_rng(1)
    drawn = np.zeros((count, ROWS + 1, COLUMNS, 3), np.uint8)
    drawn[:, :-1, :, 0] = rng.integers(0, KINDS, (count, ROWS, COLUMNS))
    drawn[:, 1, 2, 2] = 8
    background = np.zeros(count, BACKGROUND)
    limits = (PICTURES, SIDE - ROWS * TILE + 1, SIDE - COLUMNS * TILE + 1, FULL + 1, len(VARIANTS))
    for name, limit in zip(BACKGROUND.names, limits, strict=True):
        background[name] = rng.integers(0, limit, count)
    if weight is not None:
        background["weight"] = weight
    drawn[:, -1].reshape(count, -1)[:, : BACKGROUND.itemsize] = background.view(np.uint8).reshape(count, -1)
    return drawn


@pytest.mark.parametrize("palette", ["day", "night"])
def test_a_frame_mixes_tiles_with_the_window_of_a_turned_picture(palette: str) -> None:
    atlas, drawn = distracting(), codes()
    frames, plain = atlas.decode(drawn, palette), atlas.plain.decode(drawn[:, :-1], palette)
    for frame, tiles, code in zip(frames, plain, drawn, strict=True):
        row = code[-1].ravel().astype(int)
        number, y, x, weight = row[0:8:2] * 256 + row[1:8:2]
        turns, order = VARIANTS[row[8]]
        channels = [np.rot90(PHOTOS[number, channel], turns) for channel in order]
        window = np.array([channel[y : y + ROWS * TILE, x : x + COLUMNS * TILE] for channel in channels], int)
        assert np.array_equal(frame, (tiles * (FULL - weight) + window * weight) // FULL)
    raw = torch.from_numpy(drawn)
    assert np.array_equal(atlas.decode_torch(raw, palette).numpy(), frames)
    assert np.array_equal(atlas._gather(raw, palette == "night").numpy(), frames), "the way of an accelerator"


def test_weights_of_0_and_all() -> None:
    atlas = distracting()
    none, all_of_it = codes(weight=0), codes(weight=FULL)
    assert np.array_equal(atlas.decode(none), atlas.plain.decode(none[:, :-1]))
    other_cells = all_of_it.copy()
    other_cells[:, :-1, :, 0] = (other_cells[:, :-1, :, 0] + 1) % KINDS
    assert np.array_equal(atlas.decode(all_of_it), atlas.decode(other_cells))


def test_codes_of_any_batch_shape() -> None:
    atlas, drawn = distracting(), codes(6)
    frames = atlas.decode(drawn)
    assert np.array_equal(atlas.decode(drawn.reshape(2, 3, *drawn.shape[1:])), frames.reshape(2, 3, *frames.shape[1:]))
    assert np.array_equal(atlas.decode(drawn[0]), frames[0])
    raw = torch.from_numpy(drawn).view(2, 3, *drawn.shape[1:])
    assert np.array_equal(atlas._gather(raw, False).flatten(0, 1).numpy(), frames)
    assert atlas.decode(drawn[:0]).shape == (0, *frames.shape[1:])


def test_a_replaced_background_leaves_cells_and_weight() -> None:
    atlas, drawn = distracting(), codes()
    other = atlas.replaced(torch.from_numpy(drawn)).numpy()
    atlas.decode(other)  # valid
    assert np.array_equal(other[:, :-1], drawn[:, :-1])
    before, after = (each[:, -1].reshape(len(each), -1)[:, :9].copy().view(BACKGROUND) for each in (drawn, other))
    assert np.array_equal(after["number"], (before["number"] + 1) % PICTURES)
    assert np.array_equal(after["variant"], (before["variant"] + 1) % len(VARIANTS))
    assert all(np.array_equal(after[name], before[name]) for name in ("y", "x", "weight"))


@pytest.mark.parametrize(("byte", "value"), [(0, 2), (3, SIDE), (5, SIDE), (6, 2), (8, len(VARIANTS))])
def test_codes_of_another_atlas_are_refused(byte: int, value: int) -> None:
    drawn = codes(3)
    drawn[1, -1].reshape(-1)[byte] = value
    with pytest.raises(RlpreError, match="codes name no background: they are damaged or belong to another atlas"):
        distracting().decode(drawn)


def test_a_store_keeps_backgrounds_beside_the_codes(tmp_path: Path) -> None:
    drawn = codes(40)
    drawn[20:, :-1] = drawn[:20, :-1]  # the same cells before other pictures
    space = spaces.Box(0, 255, (3, ROWS * TILE, COLUMNS * TILE), np.uint8)
    kind = {"space": space, "action_space": None, "atlas": distracting()}
    columns = {"reward": 0, "terminated": False, "truncated": False, "task": 0}
    with resume_store(tmp_path / "s", {}, **kind) as writer:
        writer.append(drawn, action=-1, episode_start=np.arange(40) == 0, **columns)
    store = FrameStore.open(tmp_path / "s")
    expected = distracting().decode(drawn)
    assert np.array_equal(store.frames(range(40)), expected)
    assert np.array_equal(store.decode(store.read(range(40))).numpy(), expected)
    assert np.array_equal(store.codes(range(40)), drawn[:, :-1])
    assert np.array_equal(store.grid(store.read(range(40))).numpy(), drawn[:, :-1])
    assert store.distinct == 40
    assert np.array_equal(store.grid_ids[20:], store.grid_ids[:20])
    store.verify()
    with pytest.raises(RlpreError, match=r"the tiles or pictures of .* are others than those here"):
        resume_store(tmp_path / "s", {}, **kind | {"atlas": distracting(255 - PHOTOS)})
    pictures = tmp_path / "s" / ATLAS
    pictures.write_bytes(pictures.read_bytes()[:-1] + b"?")
    with pytest.raises(RlpreError, match=r"atlas\.npz does not match its SHA-256"):
        store.verify()
