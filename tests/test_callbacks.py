"""What a pretraining shows: curves, probes and pictures in TensorBoard, and an alarm when features collapse."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder, callbacks
from rlpre.callbacks import POINTS, THUMBNAIL, TensorBoard, thumbnails
from rlpre.encoders import ARCHITECTURES
from rlpre.objectives import OBJECTIVES, Objective
from rlpre.objectives.base import head
from rlpre.objectives.batches import FrameViews

SHORT = {"steps": 16, "batch": 32, "features": 32, "checkpoint_every": 8, "lr": 3e-3}


class Attract(Objective):
    """Two views attract, nothing repels."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = self.layers(encoder.num_features)

    def layers(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16))

    def forward(self, views: FrameViews) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.projector(views.anchor), self.projector(views.second_view)
        return 1 - F.cosine_similarity(first, second).mean(), {}


class Normalised(Attract):
    """The same behind batch norm, which forbids a constant: then all dimensions become alike."""

    def layers(self, width: int) -> nn.Module:
        return head(width, width, 16)


class Static(nn.Module):
    """A learned constant with noise that does not depend on the frame."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(features))

    def forward(self, frames: Tensor) -> Tensor:
        return self.constant + 1e-3 * torch.randn(len(frames), len(self.constant))


BROKEN = {"attract": Attract, "normalised": Normalised}
COLLAPSES = {"attract": "complete collapse", "normalised": "dimensional collapse"}


@pytest.fixture(autouse=True)
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives and an architecture that collapse."""
    for name, objective in BROKEN.items():
        monkeypatch.setitem(OBJECTIVES, name, objective)
    monkeypatch.setitem(ARCHITECTURES, "static", lambda *shape, features: [Static(features)])


@pytest.mark.parametrize(("objective", "cause"), COLLAPSES.items())
def test_warns_and_names_the_cause(
    objective: str, cause: str, doorkey: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SHORT, "steps": 32, "checkpoint_every": 16}  # dimensions take their time
    result = rlpre.pretrain(doorkey, out=tmp_path, objective=objective, **given)
    assert result.collapse is not None
    assert f"have collapsed ({cause})" in result.collapse
    assert f"warning: step 32: {result.collapse}\n" in capsys.readouterr().err
    assert result.encoder.pretraining["collapse"] == result.collapse
    board = EventAccumulator(str(tmp_path)).Reload()
    assert board.Tensors("collapse/text_summary")[-1].tensor_proto.string_val == [result.collapse.encode()]
    assert [event.step for event in board.Scalars("health/spread")] == [16, 32]


def test_noise_on_a_constant_is_found_and_info_nce_is_evidence(doorkey: FrameStore, tmp_path: Path) -> None:
    result = rlpre.pretrain(doorkey, out=tmp_path, encoder="static", objective="contrastive", **SHORT)
    assert result.collapse is not None
    assert "the features of the encoder have collapsed (constant and noise)" in result.collapse
    assert "the loss of 'contrastive'" in result.collapse
    assert result.collapse.endswith("is that of a constant, ln N")
    assert result.health["features"]["centred_rank"] > 28  # of 32: it looks healthy
    assert result.health["features"]["effective_rank"] < 1.2


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_silent_while_all_is_well(
    objective: str, doorkey: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {**SHORT, "objective": objective, "steps": 8}
    if OBJECTIVES[objective].kind == "sequence":
        torch.manual_seed(0)
        vision, causal = Encoder("cnn", InputSpec(doorkey.space.shape), features=32), objective != "masked"
        given["encoder"] = SequenceEncoder("gru", vision, doorkey.num_actions, width=32, window=4, causal=causal)
    result = rlpre.pretrain(doorkey, out=tmp_path, **given)
    assert result.collapse is None
    assert "warning" not in capsys.readouterr().err
    projects = objective in ("contrastive", "temporal", "forward")
    assert set(result.health) == set(result.fresh) == {"features", *([objective] if projects else [])}


def test_stops_if_asked_to_and_goes_on_if_not(doorkey: FrameStore, tmp_path: Path) -> None:
    given = {**SHORT, "objective": "attract", "out": tmp_path}
    sentence = r"have collapsed \(complete collapse\).*; stopped after step 8, the checkpoint is in .*collapse='warn'"
    for _ in range(2):  # again without a step
        with pytest.raises(RlpreError, match=sentence):
            rlpre.pretrain(doorkey, collapse="stop", **given)
        assert Encoder.load(tmp_path).pretraining["step"] == 8
    assert rlpre.pretrain(doorkey, **given).collapse
    with pytest.raises(RlpreError, match="stopped after step 16"):
        rlpre.pretrain(doorkey, collapse="stop", **given)
    with pytest.raises(RlpreError, match="unknown reaction to a collapse 'stp': did you mean 'stop'"):
        rlpre.pretrain(doorkey, collapse="stp", **given)


def test_a_collapsed_encoder_to_start_from_is_found_too(doorkey: FrameStore, tmp_path: Path) -> None:
    first = rlpre.pretrain(doorkey, out=tmp_path / "a", objective="attract", **SHORT)
    given = {**SHORT, "steps": 1, "lr": 1e-6, "objective": "inverse"}
    second = rlpre.pretrain(doorkey, out=tmp_path / "b", encoder=first.encoder, **given)
    assert "features of the encoder" in str(second.collapse)  # compared with fresh weights, not with the start


def test_tensorboard_and_checkpoint_say_everything(doorkey: FrameStore, tmp_path: Path) -> None:
    settings = {**SHORT, "objective": "jigsaw+temporal", "steps": 60, "checkpoint_every": 30}
    result = rlpre.pretrain(doorkey, out=tmp_path, **settings)
    board = EventAccumulator(str(tmp_path)).Reload()
    curves = {"pretext/jigsaw/loss", "pretext/temporal/accuracy", "time/rate", "time/frames_per_second"}
    assert curves <= set(board.Tags()["scalars"])
    for name in ("health/alignment", "health/uniformity", "health/effective_rank", "probes/front", "control/front"):
        assert [event.step for event in board.Scalars(name)] == [30, 60]
    assert set(board.Tags()["images"]) == {"jigsaw", "neighbours"}
    history = Encoder.load(tmp_path).pretraining
    expected = {"frames": doorkey.hash, "objective": "jigsaw+temporal", "probes": result.probes}
    assert expected.items() <= history.items()
    assert (tmp_path / "run.json").exists()
    projector, count = tmp_path / "00060" / "features", min(POINTS, doorkey.distinct)
    assert 'tensor_path: "00060/features/tensors.tsv"' in (tmp_path / "projector_config.pbtxt").read_text()
    features = np.loadtxt(projector / "tensors.tsv", delimiter="\t")
    header, *labels = (projector / "metadata.tsv").read_text().splitlines()
    assert features.shape == (count, 32)
    assert 0.5 < features.std() < 2  # standardised over the frames
    assert header.split("\t") == doorkey.labels
    assert len(labels) == count
    with Image.open(projector / "sprite.png") as sprite:
        assert sprite.size == (56 * math.ceil(count**0.5),) * 2
    assert rlpre.pretrain(doorkey, out=tmp_path, **settings).probes == result.probes


@pytest.mark.parametrize(("height", "width"), [(210, 160), (40, 36), (36, 700), (700, 36)])
def test_thumbnails_are_small_squares_with_the_picture_in_the_middle(height: int, width: int) -> None:
    side = min(max(height, width), THUMBNAIL)
    (small,) = thumbnails(torch.ones(1, 3, height, width))
    shown = small[0].nonzero()
    assert small.shape == (3, side, side)
    assert shown.unique(dim=0).shape[0] == (side * height // max(height, width)) * (side * width // max(height, width))
    assert (shown.float().mean(0) - (side - 1) / 2).abs().max() <= 0.5


@pytest.mark.parametrize("broken", ["pictures", "embedding"])
def test_a_picture_that_cannot_be_drawn_costs_no_checkpoint(
    broken: str, doorkey: FrameStore, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("could not broadcast")

    monkeypatch.setattr(TensorBoard, broken, fail)
    result = rlpre.pretrain(doorkey, out=tmp_path, objective="contrastive", **{**SHORT, "steps": 2})
    assert Encoder.load(tmp_path).pretraining["step"] == 2
    assert result.health
    assert "cannot be drawn (ValueError: could not broadcast)" in capsys.readouterr().err


def test_a_resumed_run_loses_and_doubles_no_point(doorkey: FrameStore, tmp_path: Path) -> None:
    given = {**SHORT, "steps": 120, "batch": 8, "features": 8, "checkpoint_every": 35, "objective": "contrastive"}
    left = [20, 35, 60, 104]  # before the first checkpoint, at one, after a point of the curves, before another

    def die(step: int) -> None:
        if left and step == left[0]:
            left.pop(0)
            raise KeyboardInterrupt

    for _ in range(4):
        with pytest.raises(KeyboardInterrupt):
            rlpre.pretrain(doorkey, out=tmp_path / "cut", report=die, **given)
    points = {}
    for name in ("cut", "whole"):
        rlpre.pretrain(doorkey, out=tmp_path / name, **given)
        board = EventAccumulator(str(tmp_path / name), size_guidance={"images": 0}).Reload()
        curves = [tag for tag in board.Tags()["scalars"] if tag != "time/frames_per_second"]
        points[name] = {tag: [(event.step, event.value) for event in board.Scalars(tag)] for tag in curves}
        points[name] |= {"neighbours": [event.step for event in board.Images("neighbours")]}
    assert points["cut"] == points["whole"]
    assert points["whole"]["neighbours"] == [35, 70, 105, 120]
    assert [step for step, _ in points["whole"]["pretext/contrastive/loss"]] == [50, 100]


def test_progress_without_a_terminal_is_a_line_a_minute(
    doorkey: FrameStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {**SHORT, "objective": "temporal+inverse"}
    result = rlpre.pretrain(doorkey, out=tmp_path / "a", **given)
    assert capsys.readouterr().err == ""  # it took less than a minute
    monkeypatch.setattr(callbacks, "LINE_EVERY", 0)
    rlpre.pretrain(doorkey, out=tmp_path / "b", **given)
    *_, last = lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 16
    line = r"pretrain temporal\+inverse: step 16 of 16, .* steps/s, about 0 min left; temporal loss .*; inverse loss .*"
    assert re.fullmatch(line, last)
    assert last.endswith(callbacks.describe(result.metrics))
    assert Encoder.load(tmp_path / "a").pretraining["metrics"] == result.metrics
