"""Invariances: on frames whose factors a change is known to keep, to swap or to destroy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder, register_encoder
from rlpre.encoders import ARCHITECTURES
from rlpre.evaluation.invariance import CHANGES, Invariances, changed_frames, crop, gray, invariances, noise
from rlpre.objectives import make_reader

SIDE = 36


def store_of(path: Path, frames: np.ndarray, **labels: np.ndarray) -> FrameStore:
    """Single frames with labels."""
    space = spaces.Box(0, 255, frames.shape[1:], np.uint8)
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "action": -1}
    with FrameStore.create(path, space=space, action_space=None, spec={}, labels=list(labels)) as writer:
        writer.append(frames, episode_start=np.ones(len(frames), bool), **columns, **labels)
    return FrameStore.open(path)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """A bright quadrant ("place") in red, green or blue ("colour") on noise."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 60, (500, 3, SIDE, SIDE)).astype(np.uint8)
    place, colour = rng.integers(0, 4, 500), rng.integers(0, 3, 500)
    for frame, where, channel in zip(frames, place, colour, strict=True):
        top, left = 18 * (where // 2), 18 * (where % 2)
        frame[channel, top : top + 18, left : left + 18] += 180
    return store_of(tmp_path_factory.mktemp("coloured") / "store", frames, place=place, colour=colour)


@pytest.fixture(scope="module")
def pixels(coloured: FrameStore) -> Invariances:
    """Of fresh features, and one more change: every frame becomes another one."""
    torch.manual_seed(1)
    encoder = Encoder("cnn", InputSpec(coloured.space.shape), features=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHANGES, "another", lambda frames: frames.roll(1, 0))
        return invariances(encoder, make_reader(coloured, encoder))


def test_swapped_values_mislead_and_destroyed_ones_leave_chance(pixels: Invariances) -> None:
    assert set(pixels.plain) == {"place", "colour"}
    assert min(*pixels.plain.values(), *pixels.fresh.values()) > 0.95
    assert list(pixels.changes) == ["shift", "crop", "flip", "hue", "gray", "noise", "another"]
    for change, swapped, kept in (("flip", "place", "colour"), ("hue", "colour", "place")):
        found = pixels.changes[change]
        assert found.asked[swapped] < 0.05  # left is right, red is green: always wrong
        assert min(found.relearnt[swapped], found.relearnt[kept]) > 0.95
    assert pixels.changes["gray"].relearnt["colour"] == pytest.approx(1 / 3, abs=0.12)
    assert pixels.changes["gray"].relearnt["place"] > 0.95
    another = pixels.changes["another"]
    assert max(another.asked["place"], another.relearnt["place"]) < 0.45


def test_moved_is_zero_for_nothing_and_one_for_another_frame(pixels: Invariances) -> None:
    assert pixels.changes["another"].moved == pytest.approx(1, abs=0.1)
    assert 0 < pixels.changes["noise"].moved < 0.2
    assert not any(effect.learnt for effect in pixels.changes.values())  # one fresh encoder against another


def test_an_encoder_without_colours_ignores_them_and_cannot_tell_them(coloured: FrameStore) -> None:
    class Mean(nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            return frames.mean(1, keepdim=True)

    register_encoder("colourless", lambda c, h, w: [Mean(), nn.Sequential(nn.Flatten(), nn.Linear(h * w, 16))])
    try:
        encoder = Encoder("colourless", InputSpec(coloured.space.shape))
        found = invariances(encoder, make_reader(coloured, encoder), changes=["hue", "flip"])
    finally:
        del ARCHITECTURES["colourless"]
    assert found.changes["hue"].moved == pytest.approx(0, abs=1e-9)
    assert found.changes["flip"].moved > 0.1
    assert found.plain["colour"] < 0.45
    assert found.changes["hue"].asked == pytest.approx(found.plain)


def test_contrast_under_shifts_learns_to_ignore_them(doorkey: FrameStore, tmp_path: Path) -> None:
    settings = {"steps": 30, "batch": 32, "features": 16, "lr": 2e-3, "checkpoint_every": 30}
    encoder = rlpre.pretrain(doorkey, objective="contrastive", out=tmp_path / "encoder", **settings).encoder
    reader = make_reader(doorkey, encoder)
    found = invariances(encoder, reader, ["front"], ["shift", "flip", "palette"])
    assert found.changes["shift"].learnt
    assert not found.changes["flip"].learnt
    assert found.changes["shift"] == invariances(encoder, reader, ["front"], ["shift"]).changes["shift"]


def test_what_changes_do_to_pixels(doorkey: FrameStore) -> None:
    raw = doorkey.read(np.arange(40))
    frames = doorkey.decode(raw)
    for show in changed_frames(doorkey).values():
        assert show(raw).shape == frames.shape
        assert show(raw).dtype == torch.uint8
    flat = torch.full((8, 3, 20, 30), 100, dtype=torch.uint8)
    assert torch.equal(crop(flat), flat)
    ramp = torch.arange(40, dtype=torch.uint8).expand(200, 3, 40, 40)
    spans = [int(frame.max()) - int(frame.min()) for frame in crop(ramp)]
    assert set(spans) <= {29, 30}  # three quarters of 0 to 39
    assert crop(ramp).amin((1, 2, 3)).unique().numel() > 5  # each at a place of its own
    assert gray(torch.tensor([10, 20, 60], dtype=torch.uint8).view(1, 3, 1, 1)).flatten().tolist() == [30, 30, 30]
    assert noise(flat).float().std() == pytest.approx(16, rel=0.05)
    assert torch.equal(changed_frames(doorkey, ["hue"])["hue"](raw)[:, 1], frames[:, 0])  # what was red is green
    assert doorkey.atlas is not None
    night = doorkey.atlas.decode(doorkey.codes(np.arange(40)), "night")
    assert np.array_equal(changed_frames(doorkey)["palette"](raw).numpy(), night)


def test_changes_that_do_not_fit(doorkey: FrameStore, tmp_path: Path) -> None:
    store = store_of(tmp_path, np.zeros((3, 1, SIDE, SIDE), np.uint8))
    assert list(changed_frames(store)) == ["shift", "crop", "flip", "noise"]
    with pytest.raises(RlpreError, match=r"unknown change of .*'hue'"):
        changed_frames(store, ["hue"])
    vision = Encoder("cnn", InputSpec(doorkey.space.shape), features=16)
    sequence = SequenceEncoder("gru", vision, doorkey.num_actions, width=16)
    with pytest.raises(RlpreError, match="changes are of single frames, which SequenceEncoder does not read"):
        invariances(sequence, make_reader(doorkey, sequence))
