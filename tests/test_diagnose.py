"""Diagnoses of real encoders on real frames, their page, and advice held against a study made by hand."""

import runpy
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import look
from pixel_world import FRAME
from studies import write_run

import envs
import rlpre
from agents.advice import contests, restore
from agents.comparison import Arm, Comparison, Offline, configuration
from rlpre import Encoder, FrameStore, InputSpec, PretrainConfig, RlpreError, SequenceEncoder
from rlpre.files import read_json, write_json
from rlpre.measure.advice import advise
from rlpre.measure.diagnosis import CHANGES, LABELS, OVERLAP, PRIORS, Diagnosis, Remembering, diagnose_encoder, examine
from rlpre.report.comparison.results import Metric
from rlpre.report.diagnosis.report import write_diagnosis
from rlpre.study import Cell

WORLD = "MiniGrid-DoorKey-5x5-v0"
MIXED = "0.5*random + 0.5*expert:0.3"
SCRIPT = Path(__file__).parents[1] / "scripts" / "diagnose.py"


@pytest.fixture(scope="module")
def frames(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return envs.collect(WORLD, tmp_path_factory.mktemp("frames") / "few", 500, seed=0, behaviour=MIXED)


@pytest.fixture(scope="module")
def taught(frames: FrameStore) -> Encoder:
    """An encoder that was told the very labels that it is asked about, of all frames."""
    told = {"objective": "cheating", "frames": frames.hash, "probes": {"front": 0.9}, "control": {"front": 0.8}}
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec((3, 56, 56)), told, features=16)
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
    return diagnose_encoder(taught, frames, frames)


def untrained() -> Encoder:
    torch.manual_seed(7)
    return Encoder("cnn", InputSpec((3, 56, 56)), features=16)


def test_an_encoder_that_was_taught_is_frozen(diagnosis: Diagnosis, frames: FrameStore) -> None:
    assert diagnosis.advice.way == "freeze", str(diagnosis.advice)
    found = diagnosis.findings
    assert found.cause is None
    assert found.few is not None
    assert found.few.low is not None
    assert found.few.low > 0
    assert found.seen is not None
    assert found.seen.observation.value == 1
    assert set(found.unknown) == {PRIORS}  # the target's frames are those of its pretraining
    assert set(found.efficiency) == set(diagnosis.sparse) >= {"front", "expert"}
    assert diagnosis.invariances is not None
    assert "palette" in diagnosis.invariances.changes
    assert found.health.inputs == frames.distinct


def test_the_page_shows_what_was_measured(
    diagnosis: Diagnosis, taught: Encoder, frames: FrameStore, tmp_path: Path
) -> None:
    text = write_diagnosis(taught, Path("runs/taught"), tmp_path, diagnosis, frames, frames)
    assert text.startswith("Freeze it: ")
    kept = read_json(tmp_path / "diagnosis.json")["diagnosis"]
    assert kept["advice"]["way"] == "freeze"
    assert kept["findings"]["few"] == asdict(diagnosis.findings.few)
    assert (tmp_path / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    seen = look(tmp_path / "report.html", width=500)
    assert seen["headline"] == "Freeze it."
    assert len(seen["charts"]) == len(diagnosis.findings.efficiency)
    assert not seen["loads"]
    assert seen["beyond"] <= 0
    for part in ("What it knows", "Has it collapsed?", "What it has seen of the target", "palette", frames.hash[:12]):
        assert part in seen["text"]
    rank = f"{diagnosis.findings.health.effective_rank:.1f}"
    assert f"Effective rank {rank} of 16" in seen["text"]
    assert f"Effective rank {rank} of 16" in text
    for number in (10, 10_000):
        ill = replace(diagnosis, conditioning=replace(diagnosis.conditioning, number=number))
        told = write_diagnosis(taught, Path("runs/taught"), tmp_path, ill, frames, frames)
        assert ("rlpre.whiten" in told) == (number > 1000)


def test_a_collapsed_encoder_is_left(frames: FrameStore) -> None:
    encoder = untrained()
    with torch.no_grad():
        *_, bias = encoder.stages[-1].parameters()
        for parameter in encoder.stages[-1].parameters():
            parameter.zero_()
        bias.fill_(1.0)
    found = examine(encoder, frames)
    assert found.cause == "complete collapse"
    assert set(found.unknown) == {OVERLAP, PRIORS}


def test_without_labels_there_is_no_advice(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 3, 36, 36), dtype=np.uint8)
    store, encoder = rlpre.from_arrays(pixels, tmp_path / "plain"), Encoder("cnn", FRAME, features=16)
    found = diagnose_encoder(encoder, store)
    assert found.advice.way is None
    assert set(found.unknown) == {LABELS, CHANGES, OVERLAP, PRIORS}
    text = write_diagnosis(encoder, tmp_path / "plain", tmp_path / "page", found, store)
    assert "Not measured" in text
    assert "it has no labels" in text


def test_every_input_is_encoded_once(frames: FrameStore) -> None:
    encoder, seen = untrained().eval(), []
    encoder.register_forward_pre_hook(lambda module, inputs: seen.append(len(inputs[0])))
    reader = Remembering(frames, encoder)
    rows = np.arange(300)
    first = reader.encode(encoder, rows)
    assert sum(seen) == len(np.unique(frames.ids[:300]))
    again = reader.encode(encoder, rows[::-1])
    assert sum(seen) == len(np.unique(frames.ids[:300]))
    torch.testing.assert_close(again.flip(0), first)
    torch.testing.assert_close(first, reader.reader.encode(encoder, rows))


def test_other_frames_than_those_of_the_pretraining_are_refused(
    taught: Encoder, frames: FrameStore, tmp_path: Path
) -> None:
    others = envs.collect(WORLD, tmp_path / "others", 64, seed=1)
    with pytest.raises(RlpreError, match=r"was pretrained on frames .* give those, or leave them out"):
        examine(taught, frames, others)


def test_sequence_encoders_are_diagnosed_too(frames: FrameStore, tmp_path: Path) -> None:
    encoder = SequenceEncoder("gru", untrained(), actions=7, width=16, window=3)
    found = diagnose_encoder(encoder, frames)
    assert found.findings.health.dim == 16
    assert "expert" in found.sparse
    text = write_diagnosis(encoder, tmp_path, tmp_path, found, frames)
    assert "gru over cnn, 16 features" in text
    assert "Not measured: changes are of single frames" in text


def test_a_checkpoint_alone_says_what_it_can(
    taught: Encoder,
    frames: FrameStore,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    taught.save(tmp_path / "taught")
    monkeypatch.syspath_prepend(SCRIPT.parent)

    def call(*arguments: str) -> None:
        monkeypatch.setattr(
            "sys.argv", ["diagnose.py", str(tmp_path / "taught"), "--out", str(tmp_path / "page"), *arguments]
        )
        runpy.run_path(str(SCRIPT), run_name="__main__")

    call()
    said = capsys.readouterr().out
    assert said.startswith("No advice from a checkpoint alone")
    for part in ("cheating", frames.hash[:12], "Linear probes at its end, in brackets before: front 0.90 (0.80)"):
        assert part in said
    assert not (tmp_path / "page" / "diagnosis.png").exists()
    with pytest.raises(SystemExit, match="2"):
        call("--pretrained-on", str(frames.path))
    assert "--pretrained-on is compared with frames of a target" in capsys.readouterr().err


@pytest.fixture
def study(taught: Encoder, frames: FrameStore, tmp_path: Path) -> Path:
    """A comparison whose curves are made by hand: frozen agents learn at once, fine-tuned ones late."""
    arms = {"scratch": Arm("scratch"), "shift": Arm("scratch-shift")}
    arms |= {name: Arm(name, "jigsaw") for name in ("frozen", "finetuned")}
    arms["frozen-other"] = Arm("frozen", "jigsaw", "other")
    data = {name: Offline((WORLD,), 800, behaviour) for name, behaviour in {"few": MIXED, "other": "expert"}.items()}
    comparison = Comparison((WORLD,), (10_000,), data, arms, "frozen")
    home = tmp_path / "study"
    write_json(home / "study.json", configuration(comparison))
    (home / "frames").mkdir()
    for name in data:
        taught.save(home / "encoders" / f"jigsaw@{name}" / "seed-0")
        (home / "frames" / name).symlink_to(frames.path)
    steps = {"scratch": 9000, "shift": 1000, "frozen": 3000, "finetuned": 8000, "frozen-other": 9000}
    for arm, reached_at in steps.items():
        for seed in range(3):
            write_run(home / "runs", Cell(WORLD, arm, seed), reached_at)
    write_run(home / "runs", Cell("MiniGrid-Empty-5x5-v0", "scratch", 0), 1000)  # nothing to compare with yet
    write_json(home / "runs" / "study.json", {"metric": asdict(Metric(dict.fromkeys(arms, 0), "frozen"))})
    return home


def test_advice_is_held_against_learning_curves(
    study: Path, taught: Encoder, frames: FrameStore, tmp_path: Path
) -> None:
    contest, other = contests([study], tmp_path / "out", steps=320)
    assert other.areas.keys() == {"scratch", "freeze"}
    assert (contest.environment, contest.objective, contest.best) == (WORLD, "jigsaw@few", "freeze")
    # evaluations every 1000 steps return 0.2 before the threshold and 0.95 from it on
    by_hand = {"scratch": 0.2 + 0.75 * 1.5 / 9, "freeze": 0.2 + 0.75 * 7.5 / 9, "fine-tune": 0.2 + 0.75 * 2.5 / 9}
    assert {way: areas.tolist() for way, areas in contest.areas.items()} == {
        way: pytest.approx([area] * 3) for way, area in by_hand.items()
    }
    assert not contest.worse("freeze")
    target = FrameStore.open(tmp_path / "out" / "frames" / "study" / "few" / WORLD)
    advice = advise(examine(taught, target, frames).evidence)  # the same numbers again
    expert = FrameStore.open(tmp_path / "out" / "frames" / "study" / "other" / WORLD)
    assert (expert.column("action") == expert.column("expert"))[expert.acted].all()
    assert (contest.advised, contest.reasons) == (advice.way, advice.reasons)


def test_a_comparison_is_read_back(study: Path, tmp_path: Path) -> None:
    comparison = restore(study)
    assert comparison.pretrain == PretrainConfig()
    assert comparison.arms["frozen"] == Arm("frozen", "jigsaw")
    write_json(tmp_path / "study.json", {"arms": {}})
    with pytest.raises(RlpreError, match="is not of a comparison"):
        restore(tmp_path)
