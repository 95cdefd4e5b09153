"""How much could an encoder save? Oracles, transplants and fresh weights by each readout, in small comparisons."""

import html
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from pixel_world import same
from stable_baselines3 import PPO
from studies import METRIC, NEVER, write_study
from test_compare import compare, make
from test_sb3_state import blanks

import rlpre
from rlpre import Arm, Encoder, RlpreError, SequenceEncoder
from rlpre.compare.report import headroom, report
from rlpre.compare.summary import ALL, Metric, read_results
from rlpre.compare.train import trained_encoder
from rlpre.utils import read_json

WITH_ORACLE = Metric({**METRIC.arms, "best": 0, "true": 0}, answer="best", controls=["random", "jigsaw"], oracle="true")


def told(n_envs: int, seed: int) -> Any:
    return blanks(n_envs, seed)


def told_in_a_dict(n_envs: int, seed: int) -> Any:
    return blanks(n_envs, seed, parts=True)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> rlpre.ComparisonResult:
    arms = {
        "transplant": Arm("transplant"),
        "white transplant": Arm("transplant", whiten="map"),
        "map": Arm("frozen", "inverse", whiten="map"),
        "projection": Arm("frozen", "inverse", whiten=True),
    }
    return compare(tmp_path_factory.mktemp("runs"), arms, told, seeds=[4, 5])


def run(result: rlpre.ComparisonResult, arm: str, seed: int = 5) -> Path:
    return result.path / "comparison" / arm / f"seed-{seed}"


def test_controls_are_all_readouts_of_fresh_weights_and_an_oracle(result: rlpre.ComparisonResult) -> None:
    study = read_json(result.path / "study.json")
    assert list(study["arms"])[:4] == ["scratch", "fresh", "fresh-map", "oracle"]
    assert (study["metric"]["controls"], study["metric"]["oracle"]) == (["fresh", "fresh-map"], "oracle")
    first, second = (
        Encoder.load(read_json(run(result, arm) / "run.json")["configuration"]["encoder"])
        for arm in ("fresh", "fresh-map")
    )
    assert (first.architecture, second.architecture) == ("whitened:cnn", "map:cnn")
    assert same(first.stages[0], second.stages[0]), "they read the same weights"
    assert {record["n"] for record in result.table()} == {2}


def test_one_pretraining_is_read_both_ways(result: rlpre.ComparisonResult) -> None:
    home = result.path / "encoders" / "inverse@comparison" / "seed-10"
    for arm, place in (("map", "whitened-map"), ("projection", "whitened")):
        assert read_json(run(result, arm) / "run.json")["configuration"]["encoder"] == str(home / place)
    assert same(Encoder.load(home / "whitened-map").stages[0], Encoder.load(home / "whitened").stages[0])


def test_an_oracle_leaves_a_model_on_states_and_no_policy_on_pixels(result: rlpre.ComparisonResult) -> None:
    left = {path.name for path in run(result, "oracle").glob("*.zip")}
    assert left == {"best_model.zip", "last_model.zip"}
    model = PPO.load(run(result, "oracle") / "last_model.zip", device="cpu")
    assert model.observation_space.shape == (3,)
    assert read_json(run(result, "oracle") / "run.json")["encoder"] is None


def test_transplants_start_from_what_scratch_has_learned(result: rlpre.ComparisonResult) -> None:
    for seed in (4, 5):
        learned = trained_encoder(run(result, "scratch", seed), PPO)
        begun = PPO.load(run(result, "transplant", seed) / "last_model.zip", device="cpu")
        assert not [module for module in begun.policy.modules() if isinstance(module, Encoder)], "it is in front"
        plain, white = (
            Encoder.load(read_json(run(result, arm, seed) / "run.json")["configuration"]["encoder"])
            for arm in ("transplant", "white transplant")
        )
        assert same(plain, learned)
        assert white.architecture == "map:cnn"
        assert same(white.stages[0], learned.stages[0])
    assert not same(trained_encoder(run(result, "scratch", 4), PPO), learned)
    torch.manual_seed(5)
    assert not same(Encoder("cnn", learned.input, features=8), learned), "scratch did learn"


def test_it_goes_on_after_any_stage(result: rlpre.ComparisonResult) -> None:
    arms = {"transplant": Arm("transplant")}
    arms |= {"white transplant": Arm("transplant", whiten="map"), "map": Arm("frozen", "inverse", whiten="map")}
    arms |= {"projection": Arm("frozen", "inverse", whiten=True)}
    before = [row for row in result.rows if row["arm"] == "transplant"]
    written = {
        path: path.stat().st_mtime_ns for path in result.path.rglob("done.json") if "/transplant/" not in str(path)
    }
    for seed in (4, 5):
        (run(result, "transplant", seed) / "done.json").unlink()
    again = compare(result.path, arms, told, seeds=[4, 5])
    assert [row for row in again.rows if row["arm"] == "transplant"] == before
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert "Unfinished" not in again.text


def test_the_state_in_a_dict_is_hidden_from_all_but_the_oracle(tmp_path: Path) -> None:
    arms = {"scratch": Arm("scratch"), "true": Arm("oracle")}
    result = compare(tmp_path, arms, told_in_a_dict, controls=False)
    models = {arm: PPO.load(run(result, arm, 0) / "last_model.zip", device="cpu") for arm in arms}
    assert list(models["scratch"].observation_space.spaces) == ["image"]
    assert models["true"].observation_space.shape == (3,)


def test_encoders_of_a_map_are_compared_with_fresh_weights_of_their_network(tmp_path: Path) -> None:
    frames = rlpre.collect(make(2, 0), tmp_path / "frames", steps=60)
    encoder = rlpre.whiten(Encoder("cnn", rlpre.InputSpec((3, 36, 36)), features=8), frames, features="map", size=4)
    result = compare(tmp_path / "out", {"mine": Arm("frozen", encoder)}, frames=frames)
    said = {arm: read_json(run(result, arm, 0) / "run.json")["encoder"] for arm in ("scratch", "fresh-map", "mine")}
    assert {arm: of["architecture"] for arm, of in said.items()} == {
        "scratch": "cnn",
        "fresh-map": "map:cnn",
        "mine": "map:cnn",
    }


@pytest.mark.parametrize(
    ("arms", "make_env", "sentence"),
    [
        ({"a": Arm("oracle")}, make, r"arm 'a': environment 0 does not tell its true state: put an array"),
        ({"a": Arm("oracle", whiten=True)}, told, "arm 'a': mode 'oracle' reads the true state: leave out all but"),
        ({"a": Arm("oracle", "inverse")}, told, "arm 'a': mode 'oracle' reads the true state: leave out all but"),
        ({"a": Arm("transplant"), "b": Arm("random")}, told, r"arm 'a' .* trained from scratch: add Arm\('scratch'\)"),
        ({"a": Arm("transplant", "inverse"), "b": Arm("scratch")}, told, "'transplant' takes .*: leave out encoder"),
        ({"a": Arm("random", power=0.5)}, told, "arm 'a': power is that of whiten: give whiten too, or leave it out"),
        ({"a": Arm("random", whiten=True, power=2)}, told, "arm 'a': power is 2: give 0 to 1"),
        ({"a": Arm("random", whiten="mpa")}, told, "arm 'a': whiten is 'mpa': give True, False or 'map'"),
        ({"a": Arm("scratch", whiten="map")}, told, "starts from fresh weights: leave out whiten"),
    ],
)
def test_bad_arms(arms: dict[str, Arm], make_env: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        compare(tmp_path / "new", arms, make_env, controls=False, baseline=next(iter(arms)))
    assert not (tmp_path / "new").exists()


def test_no_map_of_an_encoder_of_sequences(tmp_path: Path) -> None:
    encoder = SequenceEncoder("gru", Encoder("cnn", rlpre.InputSpec((3, 36, 36)), features=8), 2, width=8)
    with pytest.raises(RlpreError, match="encoder 'gru' has no feature map to whiten"):
        compare(tmp_path / "new", {"a": Arm("frozen", encoder, whiten="map")}, told)


FAST, SLOW = [2000, 3000, 4000], [8000, 9000, 10_000]


@pytest.mark.parametrize(
    ("scratch", "oracle", "sentence"),
    [
        (
            SLOW,
            FAST,
            r"Scratch needs 3\.00 \[.*\] times the steps of the oracle: an encoder can hardly save more than that\b",
        ),
        (SLOW, [4000, 4000, 4000], r"Scratch needs 2\.25 \[.*\] times .*: more can be saved, as the arm 'best' shows"),
        (
            [9000, 9000, NEVER],
            FAST,
            r"Scratch needs at least 3.11 \[.*, inf\] times .*: not every run of scratch reached 0.8",
        ),
        (
            SLOW,
            [2000, 3000, NEVER],
            r"Scratch needs at most 1.80 \[0, .*\] times .*: not every run of the oracle reached",
        ),
        ([9000, 9000, NEVER], [2000, 3000, NEVER], r"Scratch needs 1.87 \[\d.*\] times .*: only within the budget"),
        ([NEVER] * 3, [NEVER] * 3, r"No run of scratch or the oracle reached 0\.8"),
        (FAST, SLOW, r"Scratch needs 0\.33 \[.*\] times .*: this oracle learns more slowly than from pixels"),
        (SLOW, [], "^$"),
    ],
)
def test_the_first_sentence(scratch: list[Any], oracle: list[Any], sentence: str, tmp_path: Path) -> None:
    study = write_study(tmp_path, {"scratch": scratch, "best": FAST, "true": oracle}, WITH_ORACLE)
    found = headroom(read_results(study), "Door")
    assert re.search(sentence, found)
    first = " ".join(report(study).splitlines()[:3])
    assert first.startswith(found)
    assert not found or found in html.unescape((study / "report.html").read_text())


def test_every_task_has_its_headroom_and_all_together_the_geometric_mean(tmp_path: Path) -> None:
    write_study(tmp_path, {"scratch": SLOW, "best": FAST, "true": [1000, 1000, 1000]}, WITH_ORACLE, "A")
    write_study(tmp_path, {"scratch": FAST, "best": FAST, "true": [3000, 3000, 3000]}, WITH_ORACLE, "B")
    results = read_results(tmp_path)
    assert "needs 3.00 [" in headroom(results, ALL)
    text = report(tmp_path)
    assert "needs 9.00 [" in text
    assert "needs 1.00 [" in text


def test_the_table_shows_the_ratio_over_the_better_control(tmp_path: Path) -> None:
    arms = {"scratch": SLOW, "random": [7000, 8000, 9000], "jigsaw": [3000, 4000, 5000], "best": FAST}
    text = report(write_study(tmp_path, arms, WITH_ORACLE))
    header = next(line for line in text.splitlines() if line.startswith("arm "))
    assert "scratch / arm" in header
    assert "jigsaw / arm" in header
    assert "random / arm" not in header
    never = {"scratch": SLOW, "random": [NEVER] * 3, "jigsaw": [], "best": FAST}
    assert read_results(write_study(tmp_path / "b", never, WITH_ORACLE)).best_control("Door") == "random"
    assert (
        read_results(write_study(tmp_path / "c", {"scratch": SLOW, "best": FAST}, WITH_ORACLE)).best_control("Door")
        is None
    )
