"""Diagnoses of real encoders on real frames, and their page."""

import runpy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import look
from pixel_world import FRAME

import envs
import rlpre
from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.evaluation.diagnose import CHANGES, LABELS, OVERLAP, PRIORS, THIS, Diagnosis, diagnose, write_diagnosis
from rlpre.evaluation.health import Conditioning
from rlpre.utils import read_json

WORLD = "MiniGrid-DoorKey-5x5-v0"
MIXED = "0.5*random + 0.5*expert:0.3"
SCRIPT = Path(__file__).parents[1] / "scripts" / "diagnose.py"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return envs.collect(WORLD, tmp_path_factory.mktemp("frames") / "few", 500, seed=0, behaviour=MIXED)


@pytest.fixture(scope="module")
def taught(frames: FrameStore) -> Encoder:
    """An encoder that was trained on the labels that it is probed for, of all frames."""
    recorded = {"objective": "cheating", "frames": frames.hash, "probes": {"front": 0.9}, "control": {"front": 0.8}}
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec((3, 56, 56)), recorded, features=16)
    _, rows = np.unique(frames.ids, return_index=True)
    rows = rows[frames.column("expert")[rows] >= 0]
    values = torch.from_numpy(np.stack([frames.column(name)[rows] for name in frames.labels], axis=1)).float()
    classes = [torch.nn.functional.one_hot(column.long(), 11) for column in values.T[[0, 1, 3]]]
    answers = torch.cat([*classes, 3 * values[:, 2:3] / values[:, 2].max()], dim=1).float()
    head, shown = torch.nn.Linear(16, answers.shape[1]), frames.decode(frames.read(rows))
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=2e-3)
    for batch in torch.randint(len(rows), (100, 48)):
        loss = (head(encoder(shown[batch])) - answers[batch]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return encoder.eval()


@pytest.fixture(scope="module")
def diagnosis(taught: Encoder, frames: FrameStore) -> Diagnosis:
    return diagnose(taught, frames, frames)


def untrained() -> Encoder:
    torch.manual_seed(7)
    return Encoder("cnn", InputSpec((3, 56, 56)), features=16)


def test_what_is_measured(diagnosis: Diagnosis, frames: FrameStore) -> None:
    assert diagnosis.cause is None
    front = diagnosis.efficiency["front"]
    assert front.ratio(THIS).ratio.value > 1  # it was trained on the labels
    assert diagnosis.seen is not None
    assert diagnosis.seen.observation.value == 1
    assert set(diagnosis.unknown) == {PRIORS}  # the target's frames are those of its pretraining
    assert set(diagnosis.efficiency) == set(diagnosis.sparse) >= {"front", "expert"}
    assert diagnosis.invariances is not None
    assert "palette" in diagnosis.invariances.changes
    assert diagnosis.health[THIS].inputs == frames.distinct


def test_the_page_shows_it(diagnosis: Diagnosis, taught: Encoder, frames: FrameStore, tmp_path: Path) -> None:
    text = write_diagnosis(taught, Path("runs/taught"), tmp_path, diagnosis, frames, frames)
    assert text.startswith("Its features have not collapsed; of 4 labels a linear head learns ")
    kept = read_json(tmp_path / "diagnosis.json")["diagnosis"]
    assert kept["health"][THIS] == asdict(diagnosis.health[THIS])
    assert kept["efficiency"]["front"]["scores"][THIS] == diagnosis.efficiency["front"].scores[THIS].tolist()
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    seen = look(tmp_path / "report.html", width=500)
    assert text.startswith(seen["headline"][:60])
    assert [label for label, _ in seen["charts"]] == ["Label curves"]
    assert not seen["loads"]
    assert seen["beyond"] <= 0
    rank = f"{diagnosis.health[THIS].effective_rank:.3g}"
    for part in (
        "What it knows",
        "Has it collapsed?",
        "What it has seen of the target",
        "palette",
        frames.hash[:12],
        rank,
    ):
        assert part in seen["text"]
        assert part.lower() in text.lower()
    for number in (10, 10_000, float("inf")):
        ill = replace(diagnosis, conditioning=diagnosis.conditioning | {THIS: Conditioning(number, 16)})
        page = write_diagnosis(taught, Path("runs/taught"), tmp_path, ill, frames, frames)
        assert ("rlpre.whiten" in page) == (number > 1000)
    assert read_json(tmp_path / "diagnosis.json")["diagnosis"]["conditioning"][THIS]["number"] is None


def test_a_collapsed_encoder(frames: FrameStore, tmp_path: Path) -> None:
    encoder = untrained()
    with torch.no_grad():
        *_, bias = encoder.stages[-1].parameters()
        for parameter in encoder.stages[-1].parameters():
            parameter.zero_()
        bias.fill_(1.0)
    found = diagnose(encoder, frames)
    assert found.cause == "complete collapse"
    assert set(found.unknown) == {OVERLAP, PRIORS}
    page = write_diagnosis(encoder, tmp_path, tmp_path, found, frames)
    assert page.startswith("Its features have collapsed: complete collapse.")


def test_frames_without_labels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 36, 36), dtype=np.uint8)
    store, encoder = rlpre.from_arrays(pixels, tmp_path / "plain"), Encoder("cnn", FRAME, features=16)
    found = diagnose(encoder, store)
    assert found.efficiency == {}
    assert set(found.unknown) == {LABELS, CHANGES, OVERLAP, PRIORS}
    text = write_diagnosis(encoder, tmp_path / "plain", tmp_path / "page", found, store)
    assert "cannot be probed: it has no labels." in " ".join(text.split())


def test_other_frames_as_target_and_as_pretraining(taught: Encoder, frames: FrameStore, tmp_path: Path) -> None:
    others = envs.collect(WORLD, tmp_path / "others", 400, seed=1, behaviour=MIXED)
    found = diagnose(taught, others, frames)
    assert found.unknown == {}
    assert set(found.priors) == set(found.efficiency)
    assert "Heads for the frames of its pretraining, as priors" in write_diagnosis(
        taught, tmp_path, tmp_path, found, others, frames
    )
    with pytest.raises(RlpreError, match=r"was pretrained on frames .* give those, or leave them out"):
        diagnose(taught, frames, others)


def test_sequence_encoders(frames: FrameStore, tmp_path: Path) -> None:
    encoder = SequenceEncoder("gru", untrained(), actions=7, width=16, window=3)
    found = diagnose(encoder, frames)
    assert found.health[THIS].dim == 16
    assert "expert" in found.sparse
    text = write_diagnosis(encoder, tmp_path, tmp_path, found, frames)
    assert "gru over cnn, 16 features" in text
    assert "Not measured: changes are of single frames" in text


def test_a_checkpoint_alone(
    taught: Encoder,
    frames: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taught.save(tmp_path / "taught")
    monkeypatch.syspath_prepend(SCRIPT.parent)

    def call(*arguments: str) -> None:
        page = str(tmp_path / "page")
        monkeypatch.setattr("sys.argv", ["diagnose.py", str(tmp_path / "taught"), "--out", page, *arguments])
        runpy.run_path(str(SCRIPT), run_name="__main__")

    call()
    printed = capsys.readouterr().out
    assert printed.startswith("Nothing was measured: give frames of a target.")
    for part in ("cheating", frames.hash[:12], "Linear probes after pretraining (before): front 0.90 (0.80)"):
        assert part in printed
    assert not (tmp_path / "page" / "diagnosis.png").exists()
    with pytest.raises(SystemExit, match="2"):
        call("--pretrained-on", str(frames.path))
    assert "--pretrained-on is compared with frames of a target" in capsys.readouterr().err
