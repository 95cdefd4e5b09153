"""Pretraining: it learns, resumes bit for bit, and keeps what it has when it must stop."""

import copy
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.encoders import ARCHITECTURES
from rlpre.encoders.encoder import freeze
from rlpre.pretrain import rate_factor, step_directory

SHORT = {"objective": "temporal+inverse", "steps": 8, "batch": 16, "features": 32, "checkpoint_every": 4}


def weights(path: Path) -> dict[str, torch.Tensor]:
    return Encoder.load(path).state_dict()


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def done(doorkey: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pretraining with the settings SHORT, complete."""
    return rlpre.pretrain(doorkey, out=tmp_path_factory.mktemp("done"), **SHORT).path


def test_rate_rises_then_falls_to_zero() -> None:
    rates = [rate_factor(step, 100, 0.1) for step in (0, 9, 10, 55, 100)]
    assert rates == pytest.approx([0.1, 1, 1, 0.5, 0])


def test_same_seed_same_weights_and_another_seed_others(doorkey: FrameStore, done: Path, tmp_path: Path) -> None:
    for seed in (0, 1):
        state = torch.get_rng_state()
        rlpre.pretrain(doorkey, out=tmp_path / str(seed), seed=seed, **SHORT)
        assert torch.equal(state, torch.get_rng_state())  # the caller's random numbers do not change
        assert equal(weights(done), weights(tmp_path / str(seed))) == (seed == 0)


def test_killed_and_resumed_ends_with_the_same_weights(doorkey: FrameStore, tmp_path: Path) -> None:
    settings = {**SHORT, "objective": "temporal+inverse+forward", "steps": 12}
    rlpre.pretrain(doorkey, out=tmp_path / "whole", **settings)
    code = (
        f"import rlpre, torch; torch.set_num_threads(1); "
        f"rlpre.pretrain(rlpre.FrameStore.open({str(doorkey.path)!r}), out={str(tmp_path / 'cut')!r}, **{settings!r})"
    )
    process = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "cut" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert Encoder.load(tmp_path / "cut").pretraining["step"] < 12
    rlpre.pretrain(doorkey, out=tmp_path / "cut", **settings)
    assert equal(weights(tmp_path / "whole"), weights(tmp_path / "cut"))


def test_nan_stops_names_the_objective_and_saves_nothing_broken(doorkey: FrameStore, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=r"loss of objective 'temporal' is not finite near step \d+: lower lr=1e\+30"):
        rlpre.pretrain(doorkey, out=tmp_path, **{**SHORT, "steps": 40, "lr": 1e30, "clip": 1e30})
    assert not (tmp_path / "model.safetensors").exists()


def test_numbers_of_numpy_and_large_seeds(doorkey: FrameStore, tmp_path: Path) -> None:
    for name, seed in (("small", np.int32(5000)), ("large", 2**62)):
        first = rlpre.pretrain(doorkey, out=tmp_path / name, **{**SHORT, "steps": np.int64(2), "seed": seed})
        again = rlpre.pretrain(doorkey, out=tmp_path / name, **{**SHORT, "steps": 2, "seed": int(seed)})
        assert equal(first.encoder.state_dict(), again.encoder.state_dict())
    other = rlpre.pretrain(doorkey, out=tmp_path / "other", **{**SHORT, "steps": 2, "seed": 5000})
    assert equal(weights(tmp_path / "small"), other.encoder.state_dict())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"objective": "inverse"}, "objective='temporal\\+inverse', asked for 'inverse'"),
        ({"steps": 9}, "steps=8, asked for 9"),
        ({"device": "cuda:7"}, "device 'cuda:7' cannot be used here"),
        ({"stepz": 9}, "no setting 'stepz'"),
        ({"encoder": "cn"}, "did you mean 'cnn'"),
        ({"features": 0}, "features is 0: it must be at least 1"),
        ({"augment": "shft"}, "unknown augmentation 'shft': did you mean 'shift'"),
        ({"augment": "none", "objective": "contrastive"}, "compares two shifted views of a frame: leave out augment"),
        ({"steps": 8.0}, "steps is 8.0: give a whole number, as an int"),
        ({"seed": 2**63}, "seed is 9223372036854775808: give a number below"),
        ({"lr": 0}, "lr is 0: it must be a number above 0, or nothing is trained"),
        ({"clip": float("nan")}, "clip is nan: it must be a number above 0, or nothing is trained"),
        ({"devices": 3}, "a batch of 16 cannot be shared by 3 devices"),
        ({"devices": 2, "report": lambda step: None}, "report cannot be sent to other processes"),
        ({"warmup": 100}, "warmup is 100: it is a share of the steps"),
        ({"encoder": "runs/none"}, "runs/none.* is missing"),
        ({"keep": (5,)}, "^step 5 cannot be kept: .* of 8; keep steps that are still to come"),
    ],
)
def test_bad_input(change: dict, sentence: str, doorkey: FrameStore, done: Path) -> None:
    before = weights(done)
    with pytest.raises(RlpreError, match=sentence):
        rlpre.pretrain(doorkey, out=done, **{**SHORT, **change})
    assert equal(before, weights(done))


def test_goes_on_from_an_encoder_and_leaves_it_as_it_is(doorkey: FrameStore, done: Path, tmp_path: Path) -> None:
    before = weights(done)
    start = Encoder.load(done).requires_grad_(False)
    settings = {**SHORT, "features": None}
    second = rlpre.pretrain(doorkey, encoder=start, out=tmp_path / "b", **settings)
    assert equal(before, start.state_dict())
    assert not any(weight.requires_grad for weight in start.parameters())
    assert second.control == start.pretraining["probes"]
    assert second.encoder.num_features == 32
    assert all(not torch.equal(weight, before[name]) for name, weight in second.encoder.named_parameters())
    with pytest.raises(RlpreError, match=r"holds a pretraining with start='[0-9a-f]{64}', asked for None"):
        rlpre.pretrain(doorkey, out=tmp_path / "b", **SHORT)
    with pytest.raises(RlpreError, match=r"start='[0-9a-f]{64}', asked for '[0-9a-f]{64}'"):
        rlpre.pretrain(doorkey, encoder=second.encoder, out=tmp_path / "b", **settings)
    for shape, features, sentence in (
        ((3, 64, 64), None, r"to start from does not fit .*doorkey: the observation shape is \(3, 56, 56\)"),
        ((3, 56, 56), 33, "to start from has 32 features, asked for 33"),
    ):
        other = Encoder("cnn", rlpre.InputSpec(shape), features=32)
        with pytest.raises(RlpreError, match=sentence):
            rlpre.pretrain(doorkey, encoder=other, out=tmp_path / "c", **{**SHORT, "features": features})
        assert not (tmp_path / "c").exists()


def test_directories_and_results_are_as_good(doorkey: FrameStore, done: Path, tmp_path: Path) -> None:
    encoder = Encoder.load(done)
    whitened = [rlpre.whiten(encoder, frames) for frames in (doorkey, doorkey.path, str(doorkey.path))]
    assert len({each.fingerprint() for each in whitened}) == 1
    first = rlpre.pretrain(doorkey.path, out=tmp_path / "first", encoder=encoder, **SHORT)
    for name, start in (("directory", done), ("text", str(done))):
        assert equal(
            weights(rlpre.pretrain(doorkey, out=tmp_path / name, encoder=start, **SHORT).path), weights(first.path)
        )
    rlpre.pretrain(doorkey, out=tmp_path / "result", encoder=first, **SHORT)
    with pytest.raises(RlpreError, match=r"frames are int: give what rlpre.collect returned, or its directory"):
        rlpre.pretrain(3, out=tmp_path / "none")  # type: ignore[arg-type]


def test_frames_that_are_one_are_refused(tmp_path: Path) -> None:
    frames = rlpre.from_arrays(np.full((40, 3, 40, 40), 7, np.uint8), tmp_path / "frames")
    with pytest.raises(RlpreError, match=r"all frames of .* are the same: nothing can be learned"):
        rlpre.pretrain(frames, out=tmp_path / "encoder", objective="contrastive", device="cpu")
    with pytest.raises(RlpreError, match=r"all frames of .* are the same, which tells no features apart"):
        rlpre.whiten(Encoder("cnn", InputSpec((3, 40, 40))), frames)


def test_single_images_without_labels_are_enough(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (50, 4, 80, 72), np.uint8)
    rlpre.from_arrays(frames, tmp_path / "frames", episode_start=np.ones(50, bool))
    script = Path(__file__).parents[1] / "scripts" / "pretrain.py"
    settings = ["--objective=contrastive+jigsaw", "--steps=8", "--batch=16", "--device=cpu"]
    command = [sys.executable, script, tmp_path / "frames", tmp_path / "out", *settings]
    answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^last batch: contrastive loss \d.*, accuracy \d.*; jigsaw loss \d.*$", answer, re.MULTILINE)
    assert "no linear probe: the frames have no labels" in answer
    encoder = Encoder.load(tmp_path / "out")
    assert encoder.num_features == encoder.pretraining["features"] == 128  # the architecture's own
    assert (tmp_path / "out" / "00008" / "features" / "sprite.png").exists()
    assert not (tmp_path / "out" / "00008" / "features" / "metadata.tsv").exists()


def test_states_that_are_damaged_or_of_another_version_are_named(
    doorkey: FrameStore, done: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(done, old)
    state = torch.load(old / "state.ckpt")
    state["model"]["another.name"] = state["model"].pop("encoder.feature_mean")
    torch.save(state, old / "state.ckpt")
    with pytest.raises(RlpreError, match=r"old/state.ckpt is of another version of rlpre: choose another directory"):
        rlpre.pretrain(doorkey, out=old, **SHORT)
    (old / "state.ckpt").write_bytes(b"half")
    with pytest.raises(RlpreError, match=r"old/state.ckpt cannot be read"):
        rlpre.pretrain(doorkey, out=old, **SHORT)


def test_full_disk_keeps_the_last_checkpoint(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = weights(done)

    def full(self: Path, data: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(RlpreError, match="No space left on device"):
        Encoder.load(done).save(done)
    assert equal(before, weights(done))


def test_keeps_the_encoders_it_is_asked_for(doorkey: FrameStore, done: Path, tmp_path: Path) -> None:
    result = rlpre.pretrain(doorkey, out=tmp_path, keep=(0, 3, 8), **SHORT)
    assert equal(weights(result.path), weights(done)), "keeping changes nothing"
    kept = [Encoder.load(step_directory(tmp_path, step)) for step in (0, 3, 8)]
    assert [encoder.pretraining["step"] for encoder in kept] == [0, 3, 8]
    assert len({encoder.fingerprint() for encoder in kept}) == 3
    assert equal(kept[2].state_dict(), weights(result.path))
    torch.manual_seed(0)
    fresh = Encoder("cnn", kept[0].input, features=32)
    assert equal(dict(fresh.named_parameters()), dict(kept[0].named_parameters()))
    features = kept[0](torch.from_numpy(doorkey.frames(doorkey.sample(500, np.random.default_rng(1)))))
    assert float(features.detach().mean(0).abs().max()) < 0.2  # standardised


def test_an_encoder_that_something_froze_is_trained_like_the_original(doorkey: FrameStore, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = Encoder("cnn", rlpre.InputSpec(doorkey.space.shape), features=32)
    partly = copy.deepcopy(start)
    freeze(partly.stages[:2])
    whole, thawed = (
        rlpre.pretrain(doorkey, encoder=encoder, out=tmp_path / str(number), **SHORT).encoder
        for number, encoder in enumerate((start, partly))
    )
    assert start.fingerprint() != whole.fingerprint() == thawed.fingerprint()
    assert all(weight.requires_grad for weight in thawed.parameters())


class Detached(torch.nn.Linear):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return super().forward(features).detach()


@pytest.mark.parametrize("last", [Detached(27, 8), torch.nn.AdaptiveAvgPool1d(8)])
def test_an_encoder_that_gets_no_gradient_is_refused(
    last: torch.nn.Module, doorkey: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(3), torch.nn.Flatten())
    monkeypatch.setitem(ARCHITECTURES, "mine", lambda *shape, features=8: [pool, last])
    with pytest.raises(RlpreError, match="objective 'contrastive' trains nothing: no gradient reaches a weight of enc"):
        rlpre.pretrain(doorkey, encoder="mine", out=tmp_path, objective="contrastive", steps=2, batch=8)
    assert not (tmp_path / "config.json").exists()


def test_an_encoder_that_it_did_not_make_is_never_overwritten(doorkey: FrameStore, done: Path, tmp_path: Path) -> None:
    other = Encoder.load(done)
    with torch.no_grad():
        other.stages[-1][0].weight.mul_(1.01)  # as fine-tuning would
    other.save(tmp_path / "bare")
    other.save(tmp_path / "kept" / "step-4")
    for name in ("whitened", "tuned", "cut"):
        shutil.copytree(done, tmp_path / name)
    rlpre.whiten(Encoder.load(done), doorkey).save(tmp_path / "whitened")
    other.save(tmp_path / "tuned")
    for name, sentence in (
        ("bare", "bare holds an encoder, but no pretraining to resume: choose another directory"),
        ("kept", "step-4 holds an encoder that this pretraining did not make: choose another directory"),
        ("whitened", "the encoder in .*whitened is not the one that this pretraining saved there: move it away"),
        ("tuned", "the encoder in .*tuned is not the one that this pretraining saved there: move it away"),
    ):
        before = {path: path.read_bytes() for path in (tmp_path / name).rglob("*.*")}
        with pytest.raises(RlpreError, match=sentence):
            rlpre.pretrain(doorkey, out=tmp_path / name, keep=(4,) if name == "kept" else (), **SHORT)
        assert {path: path.read_bytes() for path in (tmp_path / name).rglob("*.*")} == before
    for file in ("config.json", "model.safetensors"):  # as if killed between the state and the encoder
        (tmp_path / "cut" / file).unlink()
        assert equal(rlpre.pretrain(doorkey, out=tmp_path / "cut", **SHORT).encoder.state_dict(), weights(done))
