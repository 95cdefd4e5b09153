"""Transfer: labels of disjoint frames, wrong sources, hand-computed tests, choices that are not optimistic, reports."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from browser import look
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents import transfer as study
from agents.transfer import LABELS, TEST, TRANSFERS, VALIDATION, LabelsConfig, Source, Task, Transfer, score_labels
from agents.transfer_report import ALL, CHOSEN, EARLY, LAST, LEVEL, Design, choose, compare, find, p_values, report
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.compare.runner import FORMAT, Run
from rlpre.data.store import digests
from rlpre.evaluation.stats import holm
from rlpre.sb3.policy import MODES
from rlpre.utils import read_json, write_json

TINY = TRANSFERS["smoke"]
(TASK,) = TINY.tasks
TWO = ("MiniGrid-DoorKey-8x8-v0", "MiniGrid-Unlock-v0")


def run(config: Transfer, out: Path) -> str:
    """Runs a study in this process, which spares the imports."""
    with ThreadPoolExecutor(1) as executor:
        return study.transfer(config, out, executor=executor)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The smallest study and its report."""
    out = tmp_path_factory.mktemp("study") / "out"
    return out, run(TINY, out)


@pytest.fixture(scope="module")
def task(finished: tuple[Path, str]) -> Task:
    return study.load_task(TASK, finished[0] / "demonstrations")


def test_only_the_arms_that_are_needed_are_scored(finished: tuple[Path, str]) -> None:
    out, text = finished
    scored = {path.parent.relative_to(out / "runs" / TASK).as_posix() for path in (out / "runs").rglob("done.json")}
    records = read_json(out / "runs" / "summary.json")["records"]
    (chosen,) = {record["chosen"] for record in records if record["task"] == TASK}
    validation = {f"{arm}/seed-0" for arm in ("scratch", "day@0", "day@2", "day@4")}
    assert scored == validation | {f"{arm}/seed-1" for arm in ("scratch", f"day@{chosen}", "day@4")}
    assert "no verdict" in text
    for step in (0, 2, 4):
        assert Encoder.load(out / f"encoders/day/seed-1/step-{step}").pretraining["step"] == step


def test_a_study_resumes_and_refuses_another_configuration(finished: tuple[Path, str]) -> None:
    out, text = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("done.json")}
    assert run(TINY, out) == text
    assert {path: path.stat().st_mtime_ns for path in out.rglob("done.json")} == before
    with pytest.raises(RlpreError, match=r"belongs to another study: agent is \"frozen\" there and \"finetuned\" here"):
        run(replace(TINY, seeds=2, agent="finetuned"), out)


def test_parts_share_no_frame_and_no_layout(task: Task, finished: tuple[Path, str]) -> None:
    frames = {part: set(digests(pixels)) for part, pixels in task.frames.items()}
    assert [len(part) for part in frames.values()] == [len(part) for part in task.actions.values()], "each frame once"
    for one, other in ((LABELS, VALIDATION), (LABELS, TEST), (VALIDATION, TEST)):
        assert frames[one]
        assert not frames[one] & frames[other]
    home = finished[0] / "demonstrations" / TASK
    pool, held_out = (set(FrameStore.open(home / name).column("layout")) for name in ("pool", "held-out"))
    assert not pool & held_out


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
        score = score_labels(encoder, MODES[mode], known, TEST, config, seed=0)
        assert score > 1.5 / len(np.unique(task.actions[LABELS])), "better than chance where it has learned"
        assert torch.equal(encoder.state_dict()["stages.0.0.weight"], before["stages.0.0.weight"]) == (mode == "frozen")
    again = [score_labels(fresh(), MODES["frozen"], task, TEST, config, seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    with pytest.raises(RlpreError, match=r"^labels=99999, but only \d+ frames can be labelled: ask for fewer"):
        score_labels(fresh(), MODES["frozen"], task, TEST, LabelsConfig(labels=99_999), 0)


def test_shuffled_actions_are_the_same_actions_elsewhere(doorkey: FrameStore, tmp_path: Path) -> None:
    wrong = study.shuffle_actions(doorkey, tmp_path / "wrong", seed=0)
    right, shuffled = doorkey.column("action"), wrong.column("action")
    assert Counter(right.tolist()) == Counter(shuffled.tolist())
    np.testing.assert_array_equal(right == -1, shuffled == -1)
    assert np.mean(right != shuffled) > 0.5
    np.testing.assert_array_equal(wrong.ids, doorkey.ids)
    np.testing.assert_array_equal(wrong.column("expert"), doorkey.column("expert"))
    assert study.shuffle_actions(doorkey, tmp_path / "wrong", seed=0).hash == wrong.hash


def test_rl_scores_the_area_under_the_curve(finished: tuple[Path, str], tmp_path: Path) -> None:
    out, config = finished[0], replace(TINY, measure="rl")
    start = out / "encoders/day/seed-0/step-4"
    score = study.by_rl(config, out, Run("MiniGrid-Empty-5x5-v0", "day@4", 0), start, tmp_path, lambda steps: None)
    with np.load(tmp_path / "evaluations.npz") as file:
        assert file["timesteps"].tolist() == [32, 64]
        assert score == pytest.approx(file["results"].mean())


def test_p_values_are_those_of_the_paired_t_test() -> None:
    differences = np.random.default_rng(0).normal(0.3, 1.0, size=(8, 3))
    expected = stats.ttest_1samp(differences, 0.0, alternative="greater").pvalue
    np.testing.assert_allclose(p_values(differences), expected)
    assert p_values(np.array([[0.0, 1.0, -1.0]] * 4)).tolist() == [1.0, 0.0, 1.0]


def test_false_calls_are_as_rare_as_promised() -> None:
    p = p_values(np.random.default_rng(3).normal(size=(5, 4 * 250))).reshape(250, 4)
    assert np.mean([holm(family).min() <= LEVEL for family in p]) == pytest.approx(LEVEL, abs=0.035)


def test_verdicts_in_both_directions_and_by_holm() -> None:
    noise = np.array([-0.02, 0.0, 0.01, -0.01, 0.02])[:, None]
    found = compare(noise + np.array([0.2, -0.2, 0.0]))
    assert [contrast.verdict for contrast in found] == ["positive", "negative", "undecided"]
    assert found[1].gain.value == pytest.approx(-0.2)
    assert found[1].gain.high < 0
    equal = compare(np.zeros((5, 1)))[0]
    assert (equal.verdict, equal.gain.low, equal.gain.high) == ("undecided", 0.0, 0.0)
    column = np.array([0.1, -0.02, 0.12, 0.06, 0.04])
    assert compare(column[:, None])[0].verdict == "positive"
    tasks = np.stack([column, *(np.array([1.0, -1.0, 0.5, -0.6, 0.1]) for _ in range(9))], axis=1)
    assert compare(tasks)[0].verdict == "undecided", "of ten tasks one gives it by chance"
    (few,) = compare(np.array([[0.5], [0.6]]))
    assert (few.verdict, few.gain.low, few.above) == ("no verdict", None, None)


def scores_of(arms: dict[str, list[float]], task: str = "a") -> dict[Run, float]:
    """Scores by arm, of seeds 0, 1, ..."""
    return {Run(task, arm, seed): score for arm, each in arms.items() for seed, score in enumerate(each)}


def test_choice_by_hand() -> None:
    arms = {"scratch": [0.5, 0.6], "s@0": [0.9, 0.9], "s@50": [0.7, 0.6], "s@200": [0.6, 0.7], "s@800": [0.1, 0.2]}
    design = Design(("s",), ("a",), (0, 50, 200, 800), (0, 1))
    assert choose(scores_of(arms), design, "s", "a") == (50, True), "the earliest of equals, never step 0"
    assert choose(scores_of({**arms, "scratch": [0.65, 0.65]}), design, "s", "a") == (50, False), "scratch is as good"


def test_differences_by_hand() -> None:
    noise = np.array([0.01, -0.01, 0.02, -0.02])
    means = {"scratch": (0.5, 0.5), "right@50": (0.8, 0.75), "right@200": (0.4, 0.3), "wrong@50": (0.1, 0.0)}
    means |= {"wrong@200": (0.2, 0.2)}
    arms = {arm: [first, *(mean + noise * (arm == "scratch"))] for arm, (first, mean) in means.items()}
    scores = scores_of(arms, "a") | scores_of({arm: [one / 2 for one in each] for arm, each in arms.items()}, "b")
    found = find(scores, Design(("right", "wrong"), ("a", "b"), (50, 200), (0,)))
    assert found.seeds == (1, 2, 3, 4)
    assert (found.choices["right", "a"], found.choices["wrong", "b"]) == ((50, True), (200, False))
    gains = {
        ("right", CHOSEN): ([0.25, 0.125, 0.1875], "positive"),
        ("right", LAST): ([-0.2, -0.1, -0.15], "negative"),
        ("right", EARLY): ([0.45, 0.225, 0.3375], "positive"),
        ("wrong", EARLY): ([0, 0, 0], "undecided"),  # there was nothing to choose
        ("wrong", "last - last of right"): ([-0.1, -0.05, -0.075], "negative"),
    }
    for (source, difference), (expected, verdict) in gains.items():
        contrasts = [found.contrasts[source][difference][task] for task in ("a", "b", ALL)]
        assert [one.gain.value for one in contrasts] == pytest.approx(expected)
        assert {one.verdict for one in contrasts} == {verdict}


def test_testing_on_other_seeds_is_not_optimistic() -> None:
    """Eight checkpoints as good as scratch: the best looks better on the seeds that chose it, and not on others."""
    design, found = Design(("s",), ("a",), tuple(range(1, 9)), tuple(range(5))), []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        arms = ["scratch", *(f"s@{step}" for step in design.checkpoints)]
        found.append(find(scores_of({arm: rng.normal(0.5, 0.1, 10).tolist() for arm in arms}), design))
    gains = [one.contrasts["s"][CHOSEN]["a"].gain.value for one in found]
    assert abs(np.mean(gains)) < 3 * np.std(gains) / np.sqrt(len(gains))
    assert np.mean([one.choices["s", "a"][1] for one in found]) > 0.7, "the first look is optimistic"
    assert np.mean([one.contrasts["s"][CHOSEN]["a"].verdict == "positive" for one in found]) < 0.1


DESIGN = Design(("right", "wrong"), TWO, (0, 50, 200), (0, 1, 2))
TRUE = {"scratch": 0.5, "right@0": 0.4, "right@50": 0.8, "right@200": 0.6}
TRUE |= {"wrong@0": 0.4, "wrong@50": 0.2, "wrong@200": 0.1}


@pytest.fixture
def planted(tmp_path: Path) -> Path:
    """A study of one source that helps, most if stopped early, and of one that harms."""
    rng = np.random.default_rng(0)
    for task in TWO:
        for arm, mean in TRUE.items():
            for seed in range(8):
                one = Run(task, arm, seed)
                write_json(tmp_path / one.path / "rows.json", [["score", mean + rng.normal(0, 0.02), None]])
                write_json(tmp_path / one.path / "done.json", {**asdict(one), "seconds": 1.0, "threads": 1})
    write_json(tmp_path / "study.json", {"format": FORMAT, "study": "transfer"})
    return tmp_path


def test_report_tells_which_source_helps_and_when_to_stop(planted: Path) -> None:
    text = report(planted, DESIGN, "share of planted successes")
    assert text.startswith("Pretraining on right helps on 2 and harms on none of 2 tasks.")
    assert "50 or scratch" in text
    content = read_json(planted / "summary.json")
    found = {(one["task"], one["arm"], one["difference"]): one for one in content["records"]}
    right = found[TWO[0], "right", CHOSEN]
    assert (right["chosen"], right["verdict"], right["n"]) == (50, "positive", 5)
    assert right["value"] == pytest.approx(0.3, abs=0.05)
    assert found[TWO[0], "right", EARLY]["verdict"] == "positive"
    assert [found[task, "wrong", LAST]["verdict"] for task in (*TWO, ALL)] == ["negative"] * 3
    assert found[ALL, "wrong", "last - last of right"]["value"] == pytest.approx(-0.5, abs=0.05)
    assert (planted / "report.png").read_bytes().startswith(b"\x89PNG")
    seen = look(planted / "report.html")
    assert seen["headline"].startswith("Pretraining on right helps")
    assert (seen["loads"], len(seen["charts"])) == ([], 1)
    assert seen["beyond"] <= 0
    board = EventAccumulator(str(planted / "tensorboard" / "right")).Reload()
    curve = board.Scalars(f"compare/{TWO[0]}/score by checkpoint")
    assert [point.step for point in curve] == [0, 50, 200]
    assert [point.value for point in curve] == pytest.approx([0.4, 0.8, 0.6], abs=0.05)
    assert report(planted, DESIGN, "share of planted successes") == text


def test_scores_that_are_missing_or_damaged(planted: Path) -> None:
    (planted / Run(TWO[0], "wrong@200", 5).path / "done.json").unlink()
    assert "DoorKey-8x8, n=4" in report(planted, DESIGN, "share")
    write_json(planted / Run(TWO[1], "right@50", 1).path / "rows.json", [["score", float("nan"), None]])
    with pytest.raises(RlpreError, match=r"the score of .*Unlock-v0/right@50/seed-1 is not finite: look at that run"):
        report(planted, DESIGN, "share")
    (planted / Run(TWO[1], "right@50", 1).path / "done.json").unlink()
    with pytest.raises(RlpreError, match=r"Unlock-v0/right@50/seed-1 has no score yet: run the study to its end"):
        report(planted, DESIGN, "share")
    with pytest.raises(RlpreError, match="no seed has tested every chosen checkpoint yet"):
        find(scores_of({arm: [0.5] for arm in TRUE}), Design(("right",), ("a",), (0, 50), (0,)))


@pytest.mark.parametrize("name", TRANSFERS)
def test_presets_can_run(name: str) -> None:
    config = TRANSFERS[name]
    study.check(config)
    assert config.test_seeds.stop <= 100, "settings were tuned on seeds from 100 on"
    assert not set(config.validation_seeds) & set(config.test_seeds)
    if name != "smoke":
        assert config.seeds >= 5
        assert any(source.shuffled for source in config.sources.values())
        assert {source.palette for source in config.sources.values()} == {"day", "night"}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sources": {}}, "a study of transfer needs sources and tasks"),
        ({"tasks": ("MiniGrid-DoorKy-8x8-v0",)}, "did you mean 'MiniGrid-DoorKey-8x8-v0'"),
        ({"tasks": ("MiniGrid-MemoryS7-v0",)}, "there is no expert for MiniGrid-MemoryS7-v0: choose another task"),
        ({"measure": "labls"}, "unknown measure 'labls': did you mean 'labels'"),
        ({"agent": "scratch"}, "unknown agent 'scratch'"),
        ({"checkpoints": (0,)}, r"checkpoints is \(0,\): give steps of pretraining, at least one above 0"),
        ({"seeds": 0}, "seeds is 0: it must be at least 1"),
        ({"labels": LabelsConfig(labels=1)}, "labels is 1: it must be at least 2"),
        ({"pretrain": replace(TINY.pretrain, steps=7)}, "pretrain.steps is decided by the study itself: leave it out"),
        ({"pretrain": replace(TINY.pretrain, objective="jigsow")}, "did you mean 'jigsaw'"),
        ({"train": replace(TINY.train, seed=7)}, "train.seed is decided by the study itself: leave it out"),
        (
            {"train": replace(TINY.train, view="full")},
            "task MiniGrid-DoorKey-8x8-v0 has frames .*: give both one shape",
        ),
        ({"sources": {"a": Source(("MiniGrid-Emty-5x5-v0",), 9)}}, "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RlpreError, match=sentence):
        study.transfer(replace(TINY, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_published_summary_follows_from_the_published_rows(tmp_path: Path) -> None:
    published = Path(__file__).parents[1] / "results" / "transfer"
    for name in ("study.json", "rows.json"):
        (tmp_path / name).write_bytes((published / name).read_bytes())
    design = Design(("day", "night", "shuffled"), TRANSFERS["quick"].tasks, (0, 50, 200), (0, 1, 2))
    report(tmp_path, design, "balanced accuracy of the expert's action")
    here, there = (read_json(home / "summary.json")["records"] for home in (tmp_path, published))
    for one, other in zip(here, there, strict=True):
        assert one == {key: pytest.approx(of, 1e-4) if isinstance(of, float) else of for key, of in other.items()}
