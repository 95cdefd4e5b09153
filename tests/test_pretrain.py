"""Pretraining: it learns, resumes bit for bit, and keeps what it has when it must stop."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rlpre
from rlpre import Encoder, FrameStore, RlpreError
from rlpre.loop import rate
from rlpre.measure.probe import linear_probe

SHORT = {"objective": "temporal+inverse", "steps": 8, "batch": 16, "features": 32, "checkpoint_every": 4}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return Encoder.load(path).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [rate(step, 100, 0.1) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == pytest.approx(0.0)


def test_same_seed_same_weights_and_another_seed_others(doorkey: FrameStore, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        state = torch.get_rng_state()
        rlpre.pretrain(doorkey, out=tmp_path / name, seed=seed, **SHORT)
        assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers are left alone
    assert equal(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert not equal(weights(tmp_path / "a"), weights(tmp_path / "c"))


def test_killed_and_resumed_ends_with_the_same_weights(doorkey: FrameStore, tmp_path: Path) -> None:
    settings = {**SHORT, "steps": 40}
    rlpre.pretrain(doorkey, out=tmp_path / "whole", **settings)
    code = (
        f"import rlpre, torch; torch.set_num_threads(1); "
        f"rlpre.pretrain(rlpre.FrameStore.open({str(doorkey.path)!r}), out={str(tmp_path / 'cut')!r}, **{settings!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "cut" / "state.ckpt").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Encoder.load(tmp_path / "cut").pretraining["step"] < 40
    rlpre.pretrain(doorkey, out=tmp_path / "cut", **settings)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_tensorboard_and_checkpoint_say_everything(doorkey: FrameStore, tmp_path: Path) -> None:
    settings = {**SHORT, "objective": "jigsaw+temporal", "steps": 60, "checkpoint_every": 30}
    result = rlpre.pretrain(doorkey, out=tmp_path, **settings)
    board = EventAccumulator(str(tmp_path)).Reload()
    scalars, images = board.Tags()["scalars"], board.Tags()["images"]
    for name in ("pretext/jigsaw/loss", "pretext/temporal/accuracy", "time/rate", "time/frames_per_second"):
        assert name in scalars
    for name in ("health/alignment", "health/uniformity", "health/effective_rank", "probes/front", "control/front"):
        assert [event.step for event in board.Scalars(name)] == [30, 60]
    assert set(images) == {"jigsaw", "neighbours"}
    history = Encoder.load(tmp_path).pretraining
    assert history["frames"] == doorkey.hash
    assert history["objective"] == "jigsaw+temporal"
    assert history["probes"] == result.probes
    assert (tmp_path / "run.json").exists()
    again = rlpre.pretrain(doorkey, out=tmp_path, **settings)
    assert again.probes == result.probes


def test_probe_reads_what_is_there_and_nothing_else(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 30, (600, 3, 36, 36)).astype(np.uint8)
    bright = rng.integers(0, 4, 600)
    for frame, place in zip(frames, bright, strict=True):
        top, left = 18 * (place // 2), 18 * (place % 2)
        frame[:, top : top + 18, left : left + 18] += 100
    action = np.zeros(600, int)
    action[-1] = -1
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "action": action}
    start = np.arange(600) == 0
    labels = {"bright": bright, "coin": rng.integers(0, 2, 600), "distance": bright * 2, "same": 1, "unknown": -1}
    space = spaces.Box(0, 255, (3, 36, 36), np.uint8)
    with FrameStore.create(
        tmp_path, space=space, action_space=spaces.Discrete(1), spec={}, labels=list(labels)
    ) as writer:
        writer.append(frames, episode_start=start, **columns, **labels)
    store = FrameStore.open(tmp_path)
    torch.manual_seed(0)
    scores = linear_probe(Encoder("cnn", rlpre.InputSpec((3, 36, 36)), features=32), store)
    assert set(scores) == {"bright", "coin", "distance"}  # one value, or none known: nothing to probe
    assert scores["bright"] > 0.95
    assert scores["distance"] > 0.9
    assert 0.3 < scores["coin"] < 0.7


def test_nan_stops_names_the_objective_and_keeps_the_last_checkpoint(doorkey: FrameStore, tmp_path: Path) -> None:
    rlpre.pretrain(doorkey, out=tmp_path, **SHORT)
    with pytest.raises(RlpreError, match=r"loss of objective 'temporal' is not finite near step \d+: lower lr=1e\+30"):
        rlpre.pretrain(doorkey, out=tmp_path / "b", **{**SHORT, "steps": 40, "lr": 1e30, "clip": 1e30})
    assert not (tmp_path / "b" / "model.safetensors").exists()
    assert all(torch.isfinite(tensor).all() for tensor in weights(tmp_path).values())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": "inverse"}, "objective='temporal\\+inverse', asked for 'inverse'"),
        ({"steps": 9}, "steps=8, asked for 9"),
        ({"device": "cuda:7"}, "device 'cuda:7' cannot be used here"),
        ({"device": "gpu"}, "device 'gpu' cannot be used here"),
        ({"stepz": 9}, "no setting 'stepz'"),
        ({"encoder": "cn"}, "did you mean 'cnn'"),
    ],
)
def test_bad_input(change: dict, sentence: str, doorkey: FrameStore, tmp_path: Path) -> None:
    rlpre.pretrain(doorkey, out=tmp_path, **SHORT)
    before = weights(tmp_path)
    with pytest.raises(RlpreError, match=sentence):
        rlpre.pretrain(doorkey, out=tmp_path, **{**SHORT, **change})
    assert equal(before, weights(tmp_path))


def test_full_disk_keeps_the_last_checkpoint(doorkey: FrameStore, tmp_path: Path, monkeypatch) -> None:
    rlpre.pretrain(doorkey, out=tmp_path, **SHORT)
    before = weights(tmp_path)

    def full(self: Path, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RlpreError, match="No space left on device"):
        Encoder.load(tmp_path).save(tmp_path)
    monkeypatch.undo()
    assert equal(before, weights(tmp_path))
