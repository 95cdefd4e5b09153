"""The alarm of a pretraining: it rings when features collapse, says how, and is silent otherwise."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor, nn
from torch.nn import functional as F

import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.encoders import registry
from rlpre.objectives import OBJECTIVES, Objective, Views
from rlpre.objectives.base import head
from rlpre.objectives.info_nce import blind_nce, info_nce

SHORT = {"steps": 16, "batch": 32, "features": 32, "checkpoint_every": 8, "lr": 3e-3}
KEPT = 2  # directions that `Squeezed` leaves


class Attract(Objective):
    """Two views attract, nothing repels."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.projector = self.layers(encoder.num_features)

    def layers(self, width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 16))

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.projector(views.anchor), self.projector(views.twin)
        return 1 - F.cosine_similarity(first, second).mean(), {}


class Normalised(Attract):
    """The same behind batch norm, which forbids a constant: then all dimensions become alike."""

    def layers(self, width: int) -> nn.Module:
        return head(width, width, 16)


class Unstopped(Attract):
    """SimSiam, but gradients flow through the target."""

    def __init__(self, encoder: Encoder, frames: FrameStore) -> None:
        super().__init__(encoder, frames)
        self.predictor = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16))

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        first, second = self.projector(views.anchor), self.projector(views.twin)
        return 1 - F.cosine_similarity(self.predictor(first), second).mean(), {}


class Squeezed(Objective):
    """Contrast in a few directions, and what lies in the others is driven out."""

    def forward(self, views: Views) -> tuple[Tensor, dict[str, Tensor]]:
        first, second, ids = views.anchor, views.twin, views.batch.anchor_id
        contrast, _ = info_nce(first[:, :KEPT], second[:, :KEPT], ids, ids)
        return contrast + 10 * first[:, KEPT:].square().mean(), {}


class Static(nn.Module):
    """A learned constant with noise that has nothing to do with the frame."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.randn(features))

    def forward(self, frames: Tensor) -> Tensor:
        return self.constant + 1e-3 * torch.randn(len(frames), len(self.constant))


BROKEN = {"attract": Attract, "normalised": Normalised, "unstopped": Unstopped, "squeezed": Squeezed}
COLLAPSES = {
    "attract": "complete collapse",
    "unstopped": "complete collapse",
    "normalised": "dimensional collapse",
    "squeezed": "dimensional collapse",
}


@pytest.fixture(autouse=True)
def _broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """Objectives and an architecture that collapse."""
    for name, objective in BROKEN.items():
        monkeypatch.setitem(OBJECTIVES, name, objective)
    monkeypatch.setitem(registry.ARCHITECTURES, "static", lambda *shape, features: [Static(features)])


@pytest.mark.parametrize(("objective", "cause"), COLLAPSES.items())
def test_rings_and_names_the_cause(
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


def test_noise_that_hides_a_constant_is_found_and_info_nce_bears_witness(doorkey: FrameStore, tmp_path: Path) -> None:
    result = rlpre.pretrain(doorkey, out=tmp_path, encoder="static", objective="contrastive", **SHORT)
    assert result.collapse is not None
    assert "the features of the encoder have collapsed (constant and noise)" in result.collapse
    assert "the loss of 'contrastive'" in result.collapse
    assert result.collapse.endswith("is that of a constant, ln N")
    assert result.health["features"]["centred_rank"] > 28  # of 32: healthy, to all appearance
    assert result.health["features"]["effective_rank"] < 1.2


@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_silent_while_all_is_well(
    objective: str, doorkey: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {**SHORT, "objective": objective, "steps": 8}
    if OBJECTIVES[objective].kind == "sequence":
        torch.manual_seed(0)
        vision = Encoder("cnn", InputSpec(doorkey.space.shape), features=32)
        given["encoder"] = SequenceEncoder(
            "gru", vision, doorkey.num_actions, width=32, window=4, causal=objective != "masked"
        )
    result = rlpre.pretrain(doorkey, out=tmp_path, **given)
    assert result.collapse is None
    assert "warning" not in capsys.readouterr().err
    projects = objective in ("contrastive", "temporal", "forward")
    assert set(result.health) == set(result.fresh) == {"features", *([objective] if projects else [])}


def test_stops_where_it_is_told_to_and_goes_on_where_not(doorkey: FrameStore, tmp_path: Path) -> None:
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


def test_a_collapsed_encoder_is_no_excuse_for_the_next(doorkey: FrameStore, tmp_path: Path) -> None:
    """Fresh weights are what it is compared with, not those it starts from."""
    first = rlpre.pretrain(doorkey, out=tmp_path / "a", objective="attract", **SHORT)
    given = {**SHORT, "steps": 1, "lr": 1e-6, "objective": "inverse"}
    second = rlpre.pretrain(doorkey, out=tmp_path / "b", encoder=first.encoder, **given)
    assert second.collapse is not None
    assert "features of the encoder" in second.collapse


def test_states_from_before_the_alarm_go_on(doorkey: FrameStore, tmp_path: Path) -> None:
    def die(step: int) -> None:
        if step == 9:
            raise KeyboardInterrupt

    given = {**SHORT, "objective": "contrastive", "out": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        rlpre.pretrain(doorkey, report=die, **given)
    state = torch.load(tmp_path / "state.ckpt")
    for name in ("health", "fresh", "collapse"):
        del state["reports"][name]
    torch.save(state, tmp_path / "state.ckpt")
    result = rlpre.pretrain(doorkey, **given)
    assert result.fresh["contrastive"]["spread"] > 0
    assert result.collapse is None


def test_one_frame_alone_is_nothing_to_judge(tmp_path: Path) -> None:
    store = rlpre.from_arrays(torch.zeros(4, 3, 36, 36, dtype=torch.uint8).numpy(), tmp_path / "frames")
    result = rlpre.pretrain(store, out=tmp_path / "out", objective="contrastive", **{**SHORT, "steps": 2})
    assert result.collapse is None
    assert result.health == {}


def test_a_constant_gets_the_blind_loss() -> None:
    ids = torch.tensor([1, 2, 3, 3, 4])
    loss, _ = info_nce(torch.ones(5, 8), torch.ones(5, 8), ids, ids)
    torch.testing.assert_close(blind_nce(ids, ids), loss)
    assert float(blind_nce(torch.arange(5), torch.arange(5, 10))) == pytest.approx(1.6094, abs=1e-4)  # ln 5
