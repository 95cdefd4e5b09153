"""The study of exposure bias at its smallest: killed, resumed, answered; what fails is reported and tried again."""

import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.clone import CloneConfig
from agents.corrections import CORRECTIONS
from agents.exposure import Exposure, check, expose
from agents.exposure_presets import EXPOSURES
from agents.policy import SequencePolicy
from agents.recipes import Backbone
from agents.starts import BASELINE, PROTOCOL
from agents.tuning import Tuning
from envs.layouts import is_test
from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.files import read_json
from rlpre.measure.exposure import load_contexts

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
    """When each cell of a study has ended."""
    return {marker: marker.stat().st_mtime_ns for marker in out.rglob("done.json")}


def of(out: Path, arm: str) -> Path:
    """The run directory of an arm."""
    return out / "runs" / LEVEL / arm / "seed-0"


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[Path, int]]:
    """A study started by its script and killed when its first cell has ended; what was done by then."""
    out = tmp_path_factory.mktemp("study") / "out"
    command = [sys.executable, str(ROOT / "scripts/exposure.py"), "--out", str(out), "--workers", "1", "smoke"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (out.parent / "said").open("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=said, stderr=said)
        try:
            deadline = time.monotonic() + 240
            while not markers(out):
                assert process.poll() is None, (out.parent / "said").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            process.kill()
            process.wait()
    return out, markers(out)


@pytest.fixture(scope="module")
def answered(killed: tuple[Path, dict[Path, int]]) -> tuple[Path, str]:
    """The same study, resumed to its end, and what it printed."""
    out, _ = killed
    return out, run(TINY, out)


def test_study_goes_on_where_it_was_killed(killed: tuple[Path, dict[Path, int]], answered: tuple[Path, str]) -> None:
    out, before = killed
    after = markers(out)
    assert before.items() <= after.items()
    assert len(before) < len(after) == 2 + 1 + len(ARMS), "two encoders, demonstrations, the arms"
    assert run(TINY, out) == answered[1]
    assert markers(out) == after


def test_every_arm_is_measured_on_the_same_episodes_and_judged(answered: tuple[Path, str]) -> None:
    out, text = answered
    for arm in ARMS:
        found, switches = load_contexts(of(out, arm) / "contexts.npz")
        assert all(len(context.success) == TINY.levels[LEVEL].episodes for context in found.values())
        assert (switches is not None) == (arm == BASELINE)
        assert arm in text
        SequencePolicy.load(of(out, arm))
    for name in ("report.html", "results.json", "table.md"):
        assert (out / "runs" / name).stat().st_size
    kinds = read_json(out / "runs" / "study.json")["exposure"]["arms"]
    assert [arm for arm, kind in kinds.items() if kind == "control"] == ["more-labels", "more-steps", "ppo-scratch"]
    assert list(kinds) == list(ARMS)
    assert text.count("no verdict") >= len(ARMS) - len(TINY.clones), "one seed has no interval"


def test_arms_are_what_they_are_called(answered: tuple[Path, str]) -> None:
    out, _ = answered
    policies = {arm: SequencePolicy.load(of(out, arm)).encoder for arm in ARMS}
    seen = {name: read_json(out / "encoders" / name / "seed-0" / "config.json") for name in ("pretrained", "random")}
    assert (bool(seen["pretrained"]["pretraining"]), bool(seen["random"]["pretraining"])) == (True, False)
    baseline, other = (policies[arm] for arm in (BASELINE, "clone-random-observation"))
    assert (baseline.previous_action, other.previous_action) == (True, False)
    assert baseline.frames.fingerprint() != other.frames.fingerprint()
    masked = SequenceEncoder.load(of(out, "clone-masked") / "pretrained")
    assert (masked.causal, masked.pretraining["objective"]) == (False, "masked")
    assert policies["clone-masked"].causal
    assert policies["clone-masked"].pretraining == masked.pretraining
    for arm in ("clone-masked", *ARMS[len(TINY.clones) :]):
        assert policies[arm].frames.fingerprint() == baseline.frames.fingerprint()
        assert policies[arm].vocabulary == baseline.vocabulary


def test_budgets_are_matched(answered: tuple[Path, str]) -> None:
    out, _ = answered
    cost = {arm: read_json(of(out, arm) / "run.json") for arm in ARMS}
    assert {cost[arm]["gradient_steps"] for arm in TINY.corrections} == {TINY.steps}
    asked = {arm: cost[arm]["labels"] for arm in TINY.corrections if CORRECTIONS[arm].player}
    assert asked == dict.fromkeys(("dart", "dagger", "more-labels"), TINY.levels[LEVEL].labels)
    assert {cost[arm]["environment_steps"] for arm in TINY.tunings} == {TINY.levels[LEVEL].steps}


def test_nothing_is_learned_from_layouts_for_tests(answered: tuple[Path, str]) -> None:
    out, _ = answered
    stores = [manifest.parent for manifest in out.rglob("manifest.json") if manifest.parent.name != "frames"]
    assert len(stores) == 1 + 1 + 5 + 1, "demonstrations, dart, dagger five times, more labels"
    for store in stores:
        assert not is_test(FrameStore.open(store).column("layout")).any()


def test_what_fails_is_reported_and_tried_again(answered: tuple[Path, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(answered[0], out)
    for arm in ("more-labels", "history-dropout"):
        (of(out, arm) / "done.json").unlink()
    head = of(out, BASELINE) / "head.safetensors"
    content = head.read_bytes()
    head.unlink()
    with pytest.raises(RlpreError, match=r"^2 runs failed, .*head.safetensors cannot be read .*; the same command"):
        run(TINY, out)
    assert (of(out, "more-labels") / "failed.json").exists()
    head.write_bytes(content)
    assert run(TINY, out) == answered[1]
    assert not (of(out, "more-labels") / "failed.json").exists()
    with (
        np.load(of(out, "more-labels") / "contexts.npz") as again,
        np.load(of(answered[0], "more-labels") / "contexts.npz") as first,
    ):
        assert all(np.array_equal(again[name], first[name], equal_nan=True) for name in first)


def test_another_study_is_refused(answered: tuple[Path, str]) -> None:
    with pytest.raises(RlpreError, match=r"belongs to another study: .*horizon is 6 there and 9 here"):
        run(replace(TINY, levels={LEVEL: replace(SOME, horizon=9)}), answered[0])


@pytest.mark.parametrize("name", EXPOSURES)
def test_presets_can_run(name: str) -> None:
    check(EXPOSURES[name])
    assert EXPOSURES[name].first_seed + EXPOSURES[name].seeds <= 100, "settings were tuned on seeds from 100 on"


def test_full_asks_the_whole_protocol() -> None:
    full = EXPOSURES["full"]
    assert len(full.levels) == 5
    assert full.seeds >= 4
    assert full.clones == PROTOCOL
    assert len(full.corrections) + len(full.tunings) == 9


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"levels": {}}, "the study has no level"),
        ({"levels": {"BabyAI-GoToLocl-v0": SOME}}, "did you mean 'BabyAI-GoToLocal-v0'"),
        ({"levels": {"MiniGrid-MemoryS7-v0": SOME}}, "there is no expert for MiniGrid-MemoryS7-v0"),
        ({"levels": {LEVEL: replace(SOME, horizon=0)}}, f"horizon of {LEVEL} is 0 steps"),
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
