"""The study of transfer: labels of disjoint frames, wrong sources, every arm paired, resumed, judged and reported."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import few_labels
from agents.few_labels import LABELS, TEST, VALIDATION, LabelsConfig, Task, balanced_accuracy
from agents.transfer import Source, Transfer, by_rl, check, configuration, shuffle_actions, transfer
from agents.transfer_presets import TRANSFERS
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.files import read_json, write_json
from rlpre.frames import digests
from rlpre.report.transfer.report import Question, report
from rlpre.sb3.modes import MODES
from rlpre.study import Cell

TINY = TRANSFERS["smoke"]
(TASK,) = TINY.tasks
TWO = ("MiniGrid-DoorKey-8x8-v0", "MiniGrid-Unlock-v0")


def run(study: Transfer, out: Path) -> str:
    """Runs a study in this process, which spares the imports."""
    with ThreadPoolExecutor(1) as executor:
        return transfer(study, out, executor=executor)


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smallest study and what it said."""
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run(TINY, out)


@pytest.fixture(scope="module")
def task(answered: tuple[Path, str]) -> Task:
    return few_labels.load(TASK, answered[0] / "demonstrations")


def test_every_arm_that_is_needed_is_scored_and_no_other(answered: tuple[Path, str]) -> None:
    out, text = answered
    scored = {path.parent.relative_to(out / "runs" / TASK).as_posix() for path in out.rglob("score.json")}
    choosing = {f"{arm}/seed-0" for arm in ("scratch", "day@0", "day@2", "day@4")}
    chosen = read_json(out / "runs" / "results.json")["sources"]["day"]["tasks"][TASK]["chosen"]
    assert scored == choosing | {f"{arm}/seed-1" for arm in ("scratch", f"day@{chosen}", "day@4")}
    assert "no verdict on DoorKey-8x8" in text
    assert {Encoder.load(out / f"encoders/day/seed-1/step-{step}").pretraining["step"] for step in (0, 2, 4)} == {
        0,
        2,
        4,
    }


def test_goes_on_and_takes_more_seeds(answered: tuple[Path, str]) -> None:
    out, text = answered
    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    assert run(TINY, out) == text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("done.json")} == before
    assert configuration(replace(TINY, seeds=7)) == configuration(TINY)
    with pytest.raises(RlpreError, match=r"belongs to another study: agent is \"frozen\" there and \"finetuned\" here"):
        run(replace(TINY, agent="finetuned"), out)


def test_parts_share_no_frame_and_no_layout(task: Task, answered: tuple[Path, str]) -> None:
    frames = {part: set(digests(of)) for part, of in task.frames.items()}
    assert [len(of) for of in frames.values()] == [len(of) for of in task.actions.values()], "each frame once"
    for one, other in ((LABELS, VALIDATION), (LABELS, TEST), (VALIDATION, TEST)):
        assert frames[one]
        assert not frames[one] & frames[other]
    layouts = [
        set(FrameStore.open(answered[0] / "demonstrations" / TASK / name).column("layout"))
        for name in ("pool", "held-out")
    ]
    assert not layouts[0] & layouts[1]


def fresh(seed: int = 0) -> Encoder:
    torch.manual_seed(seed)
    return Encoder("cnn", InputSpec((3, 56, 56)), features=16)


def test_score_learns_repeats_and_freezes_what_it_should(task: Task) -> None:
    config = LabelsConfig(labels=60, steps=40)
    known = replace(
        task, frames={**task.frames, TEST: task.frames[LABELS]}, actions={**task.actions, TEST: task.actions[LABELS]}
    )
    for mode in ("scratch", "frozen", "finetuned"):
        encoder, before = fresh(), fresh().state_dict()
        found = few_labels.score(encoder, MODES[mode], known, TEST, config, seed=0)
        assert found > 1.5 / len(np.unique(task.actions[LABELS])), "better than chance where it has learned"
        assert torch.equal(encoder.state_dict()["stages.0.0.weight"], before["stages.0.0.weight"]) == (mode == "frozen")
    again = [few_labels.score(fresh(), MODES["frozen"], task, TEST, config, seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]


def test_balanced_accuracy_by_hand() -> None:
    wanted, answers = np.array([0, 0, 0, 0, 2]), np.array([0, 0, 0, 1, 2])
    assert balanced_accuracy(wanted, answers) == pytest.approx((3 / 4 + 1) / 2)


def test_too_few_frames_to_label_are_refused(task: Task) -> None:
    with pytest.raises(RlpreError, match=r"^labels=99999, but only \d+ frames can be labelled: ask fewer"):
        few_labels.score(fresh(), MODES["frozen"], task, TEST, LabelsConfig(labels=99_999), 0)


def test_shuffled_actions_are_the_same_actions_elsewhere(doorkey: FrameStore, tmp_path: Path) -> None:
    wrong = shuffle_actions(doorkey, tmp_path / "wrong", seed=0)
    right, dealt = doorkey.column("action"), wrong.column("action")
    assert Counter(right.tolist()) == Counter(dealt.tolist())
    np.testing.assert_array_equal(right == -1, dealt == -1)
    assert np.mean(right != dealt) > 0.5
    np.testing.assert_array_equal(wrong.ids, doorkey.ids)
    np.testing.assert_array_equal(wrong.column("expert"), doorkey.column("expert"))
    assert shuffle_actions(doorkey, tmp_path / "wrong", seed=0).hash == wrong.hash
    with pytest.raises(RlpreError, match="belongs to another collection: seed is 0 there and 1 here"):
        shuffle_actions(doorkey, tmp_path / "wrong", seed=1)


def test_rl_scores_the_area_under_the_curve(answered: tuple[Path, str], tmp_path: Path) -> None:
    out, study = answered[0], replace(TINY, measure="rl")
    start = out / "encoders/day/seed-0/step-4"
    found = by_rl(study, out, Cell("MiniGrid-Empty-5x5-v0", "day@4", 0), start, tmp_path, lambda steps: None)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["timesteps"].tolist() == [32, 64]
        assert found == pytest.approx(file["results"].mean())
    assert read_json(tmp_path / "run.json")["configuration"]["encoder"] == str(start)


QUESTION = Question(("right", "wrong"), TWO, (0, 50, 800), (0, 1, 2), "share of planted successes")
TRUE = {
    "scratch": 0.5,
    "right@0": 0.4,
    "right@50": 0.8,
    "right@800": 0.6,
    "wrong@0": 0.4,
    "wrong@50": 0.2,
    "wrong@800": 0.1,
}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A study of one source that helps, most if stopped early, and of one that harms."""
    rng = np.random.default_rng(0)
    for task in TWO:
        for arm, mean in TRUE.items():
            for seed in range(8):
                cell = Cell(task, arm, seed)
                write_json(tmp_path / cell.path / "score.json", {"score": mean + rng.normal(0, 0.02)})
                write_json(tmp_path / cell.path / "done.json", {**asdict(cell), "seconds": 1.0, "threads": 1})
    write_json(tmp_path / "study.json", {"transfer": asdict(QUESTION)})
    return tmp_path


def test_report_says_who_helps_who_harms_and_when_to_stop(planted: Path) -> None:
    text = report(planted)
    assert "- right: best checkpoint positive on DoorKey-8x8 and Unlock; last checkpoint positive on" in text
    assert "- wrong: best checkpoint negative on DoorKey-8x8 and Unlock; last checkpoint negative on" in text
    assert "50 or scratch" in text
    found = read_json(planted / "results.json")
    assert found["test_seeds"] == [3, 4, 5, 6, 7]
    of = found["sources"]["right"]["tasks"][TWO[0]]
    assert (of["chosen"], of["advised"], of["early"]["verdict"]) == (50, 50, "positive")
    assert of["best"]["gain"]["value"] == pytest.approx(0.3, abs=0.05)
    assert found["sources"]["wrong"]["tasks"][TWO[0]]["advised"] is None
    assert "- wrong instead of right: -0.5" in text
    rival = found["instead_of_first"]["wrong"]
    assert [rival[name]["verdict"] for name in (*TWO, "all")] == ["negative"] * 3
    assert rival[TWO[1]]["gain"]["value"] == pytest.approx(-0.5, abs=0.05)
    assert len(found["scores"]) == len(TWO) * len(TRUE) * 8
    assert (planted / "transfer.png").read_bytes().startswith(b"\x89PNG")
    assert (planted / "table.md").read_text().startswith("- right: best checkpoint positive")
    curve = EventAccumulator(str(planted / "transfer" / "right")).Reload().Scalars(f"transfer/{TWO[0]}/score")
    assert [point.step for point in curve] == [0, 50, 800]
    assert [point.value for point in curve] == pytest.approx([0.4, 0.8, 0.6], abs=0.05)
    assert report(planted) == text


def test_seeds_that_have_not_tested_everything_wait(planted: Path) -> None:
    (planted / Cell(TWO[0], "wrong@800", 5).path / "done.json").unlink()
    report(planted)
    assert read_json(planted / "results.json")["test_seeds"] == [3, 4, 6, 7]
    (planted / Cell(TWO[1], "right@0", 2).path / "done.json").unlink()
    with pytest.raises(RlpreError, match=r"Unlock-v0/right@0/seed-2 has no score yet: run the study to its end"):
        report(planted)


def test_studies_without_tests_or_question_are_refused(planted: Path) -> None:
    for seed in range(3, 8):
        (planted / Cell(TWO[0], "scratch", seed).path / "done.json").unlink()
    with pytest.raises(RlpreError, match="no seed has tested every chosen checkpoint yet"):
        report(planted)
    write_json(planted / "study.json", {})
    with pytest.raises(RlpreError, match="does not say what is asked: put a transfer entry"):
        report(planted)


@pytest.mark.parametrize("name", TRANSFERS)
def test_presets_can_run(name: str) -> None:
    study = TRANSFERS[name]
    check(study)
    assert study.testers.stop <= 100, "settings were tuned on seeds from 100 on"
    assert not set(study.choosers) & set(study.testers)


def test_quick_and_full_have_wrong_sources_and_enough_seeds() -> None:
    for study in (TRANSFERS["quick"], TRANSFERS["full"]):
        assert study.seeds >= 5
        assert any(source.shuffled for source in study.sources.values())
        assert {source.palette for source in study.sources.values()} == {"day", "night"}
        assert study.train.palette == "day"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sources": {}}, "a study of transfer needs sources and tasks"),
        ({"tasks": ("MiniGrid-DoorKy-8x8-v0",)}, "did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"tasks": ("MiniGrid-MemoryS7-v0",)}, "there is no expert for MiniGrid-MemoryS7-v0: choose another task"),
        ({"measure": "labls"}, "unknown measure 'labls': did you mean 'labels'"),
        ({"agent": "scratch"}, "unknown agent 'scratch'"),
        ({"ladder": (0,)}, r"the ladder is \(0,\): give steps of pretraining, at least one above 0"),
        ({"seeds": 0}, "seeds is 0: it must be at least 1"),
        ({"labels": LabelsConfig(labels=1)}, "labels is 1: it must be at least 2"),
        ({"pretrain": replace(TINY.pretrain, steps=7)}, "pretrain.steps is decided by the study itself: leave it out"),
        ({"pretrain": replace(TINY.pretrain, objective="jigsow")}, "did you mean 'jigsaw'"),
        ({"train": replace(TINY.train, seed=7)}, "train.seed is decided by the study itself: leave it out"),
        ({"train": replace(TINY.train, view="full")}, "DoorKey-8x8-v0 frames .* have never seen: choose one shape"),
        ({"sources": {"a": Source(("MiniGrid-Emty-5x5-v0",), 9)}}, "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RlpreError, match=sentence):
        transfer(replace(TINY, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
