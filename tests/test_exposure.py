"""The study of exposure bias: killed, resumed, reported; its report on policies that err with known rates."""

import os
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from browser import look
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.cloning import CloneConfig, Episodes, SequencePolicy
from agents.corrections import CORRECTIONS, Tuning
from agents.exposure import EXPOSURES, PROTOCOL, Exposure, check, expose
from agents.exposure_metrics import Record
from agents.exposure_report import BASELINE, report, summarise
from envs.minigrid.trials import is_test
from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.compare.arms import Backbone
from rlpre.compare.runner import FORMAT, Run
from rlpre.utils import read_json, write_json

ROOT = Path(__file__).parents[1]
TINY = EXPOSURES["smoke"]
(LEVEL,) = TINY.levels
SOME = TINY.levels[LEVEL]
ARMS = (*TINY.clones, *TINY.corrections, *TINY.tunings)


def run(study: Exposure, out: Path) -> str:
    """Runs a study in this process, which spares the imports."""
    with ThreadPoolExecutor(1) as executor:
        return expose(study, out, executor=executor)


def markers(out: Path) -> dict[Path, int]:
    """When each run of a study was finished."""
    return {marker: marker.stat().st_mtime_ns for marker in out.rglob("done.json")}


def home(out: Path, arm: str) -> Path:
    """The run directory of an arm."""
    return out / "runs" / LEVEL / arm / "seed-0"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """A study started by its script and killed when its first run was finished; the runs finished by then."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = [sys.executable, str(ROOT / "scripts/exposure.py"), "--out", str(out), "--workers", "1", "smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out.parent / "log").open("w+") as log:
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 240
            while not markers(out):
                assert process.poll() is None, (out.parent / "log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    return out, markers(out)


@pytest.fixture(scope="module")
def finished(killed: tuple[Path, dict[Path, int]]) -> tuple[Path, str]:
    """The same study, resumed to its end, and its report."""
    out, _ = killed
    return out, run(TINY, out)


def test_a_killed_study_resumes(killed: tuple[Path, dict[Path, int]], finished: tuple[Path, str]) -> None:
    out, before = killed
    after = markers(out)
    assert before.items() <= after.items()
    assert len(before) < len(after) == 2 + 1 + len(ARMS), "two encoders, demonstrations, the arms"
    assert run(TINY, out) == finished[1]
    assert markers(out) == after
    with pytest.raises(RlpreError, match=r"belongs to another study: .*horizon is 6 there and 9 here"):
        run(replace(TINY, levels={LEVEL: replace(SOME, horizon=9)}), out)


def test_arms_are_what_they_are_called_and_measured_on_the_same_episodes(finished: tuple[Path, str]) -> None:
    out, text = finished
    for arm in ARMS:
        record = Record.load(home(out, arm) / "contexts.npz")
        assert record.success.shape == (4, SOME.episodes)
        assert bool(len(record.switch_steps)) == (arm == BASELINE)
        assert arm in text
    assert [arm for arm, kind in TINY.arms.items() if kind == "control"] == ["more-labels", "more-steps", "ppo-scratch"]
    assert list(TINY.arms) == list(ARMS)
    assert text.count("no verdict") >= len(ARMS) - len(TINY.clones), "one seed has no interval"
    assert "Fewer than 3 seeds give no answer" in text
    policies = {arm: SequencePolicy.load(home(out, arm)).encoder for arm in ARMS}
    vision = {name: read_json(out / "encoders" / name / "seed-0" / "config.json") for name in ("pretrained", "random")}
    assert (bool(vision["pretrained"]["pretraining"]), bool(vision["random"]["pretraining"])) == (True, False)
    baseline, other = (policies[arm] for arm in (BASELINE, "clone-random-observation"))
    assert (baseline.previous_action, other.previous_action) == (True, False)
    assert baseline.frames.fingerprint() != other.frames.fingerprint()
    masked = SequenceEncoder.load(home(out, "clone-masked") / "pretrained")
    assert (masked.causal, masked.pretraining["objective"]) == (False, "masked")
    assert policies["clone-masked"].causal
    assert policies["clone-masked"].pretraining == masked.pretraining
    for arm in ("clone-masked", *ARMS[len(TINY.clones) :]):
        assert policies[arm].frames.fingerprint() == baseline.frames.fingerprint()
        assert policies[arm].vocabulary == baseline.vocabulary


def test_budgets_are_matched_and_test_layouts_never_learned(finished: tuple[Path, str]) -> None:
    out, _ = finished
    cost = {arm: read_json(home(out, arm) / "run.json") for arm in ARMS}
    assert {cost[arm]["gradient_steps"] for arm in TINY.corrections} == {TINY.steps}
    labels = {arm: cost[arm]["labels"] for arm in TINY.corrections if CORRECTIONS[arm].player}
    assert labels == dict.fromkeys(("dart", "dagger", "more-labels"), SOME.labels)
    assert {cost[arm]["environment_steps"] for arm in TINY.tunings} == {SOME.steps}
    stores = [manifest.parent for manifest in out.rglob("manifest.json") if manifest.parent.name != "frames"]
    assert len(stores) == 1 + 1 + 5 + 1, "demonstrations, dart, dagger five times, more labels"
    for store in stores:
        assert not is_test(FrameStore.open(store).column("layout")).any()


def test_clones_of_what_was_done_on_fresh_maps(tmp_path: Path) -> None:
    """As in the preset "reinforced"."""
    reinforced = EXPOSURES["reinforced"]
    parts = {
        name: getattr(reinforced, name) for name in ("vision", "noise", "previous_action", "corrections", "clones")
    }
    tunings, labels = {"ppo": TINY.tunings["ppo"]}, reinforced.clone.labels
    run(replace(TINY, tunings=tunings, clone=replace(TINY.clone, labels=labels), **parts), tmp_path)
    store = FrameStore.open(tmp_path / "demonstrations" / LEVEL / "seed-0")
    taken, advice = (store.column(name)[store.acted] for name in ("action", "expert"))
    assert 0.5 < (taken == advice).mean() < 0.95
    encoder = SequencePolicy.load(home(tmp_path, "ppo")).encoder
    assert (encoder.frames.name, encoder.previous_action) == ("map:cnn", False)
    for name, column in (("action", taken), ("expert", advice)):
        assert np.array_equal(Episodes.read(store, encoder, name).steps.label.cpu(), column)


def test_failed_runs_are_reported_and_tried_again(finished: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(finished[0], out)
    before = (home(out, "more-labels") / "contexts.npz").read_bytes()
    for arm in ("more-labels", "history-dropout"):
        (home(out, arm) / "done.json").unlink()
    head = home(out, BASELINE) / "head.safetensors"
    content = head.read_bytes()
    head.unlink()
    with pytest.raises(RlpreError, match=r"^2 runs failed, .*head.safetensors cannot be read .*; the same command"):
        run(TINY, out)
    assert "Failed runs: 2" in (out / "runs" / "report.html").read_text()
    head.write_bytes(content)
    run(TINY, out)
    assert not (home(out, "more-labels") / "failed.json").exists()
    assert (home(out, "more-labels") / "contexts.npz").read_bytes() == before


@pytest.mark.parametrize("name", EXPOSURES)
def test_presets_can_run(name: str) -> None:
    check(EXPOSURES[name])
    assert EXPOSURES[name].first_seed + EXPOSURES[name].seeds <= 100, "settings were tuned on seeds from 100 on"
    if name == "full":
        assert (len(EXPOSURES[name].levels), EXPOSURES[name].clones) == (5, PROTOCOL)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": {}}, "the study has no level"),
        ({"levels": {"BabyAI-GoToLocl-v0": SOME}}, "did you mean 'BabyAI-GoToLocal-v0'"),
        ({"levels": {"MiniGrid-MemoryS7-v0": SOME}}, "there is no expert for MiniGrid-MemoryS7-v0"),
        ({"levels": {LEVEL: replace(SOME, horizon=0)}}, "horizon is 0: it must be at least 1"),
        ({"levels": {LEVEL: replace(SOME, demonstrations=1)}}, "demonstrations is 1: it must be at least 2"),
        ({"levels": {LEVEL: replace(SOME, labels=4)}}, "labels is 4: it must be at least 5"),
        ({"steps": 4}, "steps is 4: it must be at least 5"),
        ({"corrections": ("daggr",)}, "unknown correction 'daggr': did you mean 'dagger'"),
        ({"clones": ("clone", "cloned")}, "unknown clone 'cloned': did you mean 'clone'"),
        ({"clones": ("clone-random",)}, "unknown arm 'clone'"),
        ({"tunings": {"ppo": Tuning("frozen")}}, "mode 'frozen' trains no encoder"),
        ({"tunings": {"dagger": Tuning()}}, "'dagger' names a correction and a tuning"),
        ({"clone": CloneConfig(seed=3)}, "clone.seed is decided by the study itself"),
        ({"backbone": Backbone("transfomer")}, "did you mean 'transformer'"),
        ({"backbone": Backbone(width=15)}, "4 heads do not divide width=15"),
        ({"pretrain": replace(TINY.pretrain, objective="jigsow")}, "did you mean 'jigsaw'"),
        ({"pretrain": replace(TINY.pretrain, device="abacus")}, "device 'abacus' cannot be used here"),
        ({"seeds": 0}, "seeds is 0: it must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    changes: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(RlpreError, match=sentence):
        expose(replace(TINY, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


EPISODES, STEPS = 200, 16
NEAR, FAR = "BabyAI-Near-v0", "BabyAI-Far-v0"
KINDS = {"clone": "clone", "observation only": "clone", "dagger": "correction", "ppo": "correction"}
KINDS |= {"more labels": "control"}
HORIZONS = {NEAR: 6, FAR: 14}
BIASED = {  # P(error) in the expert's contexts, P(error after an error) on its own, success
    "clone": (0.05, 0.7, 0.55),
    "observation only": (0.1, 0.5, 0.5),
    "dagger": (0.045, 0.12, 0.95),
    "ppo": (0.4, 0.4, 0.3),
    "more labels": (0.05, 0.7, 0.55),
}
UNBIASED = {"clone": (0.05, 0.05, 0.9), "dagger": (0.05, 0.05, 0.9)}


def write_policy(study: Path, run: Run, error: float, stay: float, solved: float) -> None:
    """A run whose policy errs with ``error``, and on its own goes on erring with ``stay``; it solves a share."""
    rng = np.random.default_rng([run.seed, *run.arm.encode()])
    layouts = np.random.default_rng(7).integers(3, STEPS, EPISODES)  # the expert's lengths, of all policies
    success = rng.random(EPISODES) < solved
    lengths = np.stack([layouts, layouts, *2 * [np.where(success, np.minimum(layouts + 2, STEPS), STEPS)]])
    after = np.array([error, (error + stay) / 2, (error + stay) / 2, stay])[:, None]
    uniform = rng.random((4, EPISODES, STEPS))
    wrong = uniform < error
    for t in range(1, STEPS):
        wrong[..., t] = uniform[..., t] < np.where(wrong[..., t - 1], after, error)
    regret = 1.0 * (wrong & (rng.random(wrong.shape) < 0.8))  # the other errors are as good as the expert's action
    switches = np.array([0, 2, 4, 8, 16]) if run.arm == "clone" else np.zeros(0, np.int64)
    share = (solved + (1 - solved) * switches / 16)[:, None]
    turns = [rng.random((len(switches), EPISODES)) < chance for chance in (1 - 0.1 * switches[:, None] / 16, share)]
    running = np.arange(STEPS) < lengths[..., None]
    solves = np.stack([np.ones(EPISODES, bool)] * 2 + [success] * 2)
    record = Record(wrong, np.where(wrong, 1.5, 0.1), regret, running, solves, switches, *turns)
    home = study / run.path
    record.save(home / "contexts.npz")
    rows = record.measurements(HORIZONS[run.task])
    points = [(name, value, step) for name, of in rows.items() if isinstance(of, list) for step, value in of]
    write_json(home / "rows.json", points + [(name, of, None) for name, of in rows.items() if not isinstance(of, list)])
    write_json(home / "done.json", {**asdict(run), "seconds": 90.0, "threads": 1})


def write_study(study: Path, policies: dict[str, tuple[float, float, float]], level: str = FAR, seeds: int = 3) -> Path:
    """A study of policies with these rates."""
    for arm, rates in policies.items():
        for seed in range(seeds):
            write_policy(study, Run(level, arm, seed), *rates)
    write_json(study / "study.json", {"format": FORMAT, "study": "exposure"})
    return study


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A study with exposure bias on the far level and none on the near one, where one run has failed."""
    directory = tmp_path_factory.mktemp("exposure")
    write_study(directory, BIASED, FAR)
    write_study(directory, UNBIASED, NEAR)
    write_json(directory / NEAR / "ppo/seed-0/failed.json", {"error": "RuntimeError: <b>no</b> & more"})
    return directory, report(directory, KINDS, HORIZONS)


def test_report_gives_the_verdicts(planted: tuple[Path, str]) -> None:
    directory, text = planted
    parts = (
        "Exposure bias is measured on 1 of 2 levels, and cured on 1.\nDagger cures it on Far.",
        "Failed runs: 1.",
        "Without a finished run: observation only, ppo, more labels on Near.",
        "dagger                 no effect   cures",
        "more labels (control)  no verdict  no effect",
        "No exposure bias is measured: in 6 steps clone makes 0.",
        "there is no excess to remove",
        "Exposure bias is measured: in 14 steps clone makes 1.",
        "at least half of the excess is removed",
        "success falls",
    )
    places = [text.index(part) for part in parts]
    assert places == sorted(places)
    records = read_json(directory / "summary.json")["records"]
    (dagger,) = [one for one in records if (one["task"], one["arm"], one["metric"]) == (FAR, "dagger", "excess")]
    assert (dagger["over"], dagger["verdict"], dagger["n"]) == ("clone", "cures", 3)
    assert dagger["high"] < 0 < dagger["removed"]
    assert report(directory, KINDS, HORIZONS) == text  # no chance in it


def test_numbers_are_those_of_the_records(planted: tuple[Path, str]) -> None:
    directory, _ = planted
    clone = summarise(directory, KINDS, HORIZONS)[FAR]["clone"]
    records = [Record.load(directory / Run(FAR, "clone", seed).path / "contexts.npz") for seed in range(3)]
    for row, name in ((0, "EE"), (3, "OO")):
        errors = np.concatenate([(one.regret > 0)[row] & one.running[row] for one in records])[:, :14]
        assert clone[f"regret error {name}"].value == pytest.approx(errors.sum(axis=1).mean())
        running = np.concatenate([one.running[row] for one in records])[:, 9]
        by_step = clone.numbers[f"regret error {name} by step"][9].value
        assert by_step == pytest.approx(errors[:, 9].sum() / running.sum())
    # a chain that goes on erring with .7 recovers with .3; in EE it errs with .05 whatever was before
    assert clone["recovery OO"].value == pytest.approx(0.3, abs=0.05)
    assert clone["recovery EE"].value == pytest.approx(0.95, abs=0.05)
    assert clone["success gap"].value == pytest.approx(1 - np.mean([one.success[3] for one in records]))
    board = EventAccumulator(str(directory / "tensorboard" / "clone")).Reload()
    points = board.Scalars(f"compare/{FAR}/regret error OO")
    assert [point.step for point in points] == list(range(1, 15))


def test_page_and_picture(planted: tuple[Path, str]) -> None:
    directory, _ = planted
    seen = look(directory / "report.html")
    assert seen["headline"] == "Exposure bias is measured on 1 of 2 levels, and cured on 1."
    assert seen["loads"] == []
    assert seen["beyond"] <= 0
    assert len(seen["charts"]) == 2 * 6
    assert all(width > 200 for _, width in seen["charts"])
    assert f"{NEAR}/ppo/seed-0" in seen["text"]
    assert "<b>no</b>" in seen["text"]
    assert not re.search(r"https?://|<link|<script|@import", (directory / "report.html").read_text())
    pixels = np.asarray(Image.open(directory / "report.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0, 0), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(axis=1).sum() > 500


def test_answers_that_cannot_be_given(tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match="holds no finished run"):
        report(tmp_path, KINDS, HORIZONS)
    few = write_study(tmp_path / "few", {arm: BIASED[arm] for arm in ("clone", "dagger")}, seeds=2)
    text = report(few, KINDS, HORIZONS)
    assert text.startswith("No level has an answer yet.\nFewer than 3 seeds give no answer on Far.")
    assert "(n<3)" in text
    lone = write_study(tmp_path / "lone", {"dagger": BIASED["dagger"]})
    assert "Clone has no finished run on Far." in report(lone, KINDS, HORIZONS)
    null = write_study(tmp_path / "null", UNBIASED, NEAR)
    assert report(null, KINDS, HORIZONS).startswith("Exposure bias is measured on none of 1 levels.")
