"""Comparisons whose arms start from variants of one pretraining, and from exactly so many frames."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from agents.compare import collect, compare
from agents.comparison import Arm, Offline, check, configuration, encoder_path
from agents.presets import PRESETS
from agents.train import PPOConfig, TrainConfig
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError
from rlpre.files import read_json

WORLD = "MiniGrid-DoorKey-5x5-v0"
TINY = {
    "environments": (WORLD,),
    "steps": (64,),
    "seeds": 1,
    "first_seed": 3,
    "probe": 400,
    "pretrain": PretrainConfig(steps=4, batch=16, features=16, checkpoint_every=4, seed=1),
    "train": TrainConfig(
        features=16, eval_every=64, eval_episodes=2, ppo=PPOConfig(n_envs=2, n_steps=32, batch_size=32, n_epochs=1)
    ),
}
WHY = replace(
    PRESETS["why"],
    data={"mixed": Offline((WORLD,), 400)},
    arms={**PRESETS["why"].arms, "random": Arm("random-frozen")},
    **TINY,
)
SIZES = {"1k": 10, "3k": 20, "10k": 30, "30k": 40, "100k": 50}
SCALING = replace(
    PRESETS["scaling"],
    data={name: Offline((WORLD,), 800, distinct=SIZES[name]) for name in PRESETS["scaling"].data},
    **TINY,
)


@pytest.fixture(scope="module")
def why(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("why")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        compare(WHY, out, 99, here)
    return out


def test_one_pretraining_leaves_every_variant(why: Path) -> None:
    home = why / "encoders" / "temporal+inverse@mixed" / "seed-1"
    plain, start = Encoder.load(home), Encoder.load(home / "step-0")
    torch.manual_seed(plain.pretraining["seed"])
    drawn, fresh = Encoder("cnn", plain.input, features=16).state_dict(), start.state_dict()
    assert all(tensor.equal(fresh[name]) for name, tensor in drawn.items() if not name.startswith("feature_"))
    prints = {plain.fingerprint(), start.fingerprint()}
    for path, before in ((home / "whitened", plain), (home / "step-0" / "whitened", start)):
        white = Encoder.load(path)
        assert white.architecture == "whitened:cnn"
        assert white.stages[0][0].weight.equal(before.stages[0][0].weight)
        prints.add(white.fingerprint())
    assert len(prints) == 4


def test_runs_start_from_their_variant(why: Path) -> None:
    for arm, of in WHY.arms.items():
        said = read_json(why / "runs" / WORLD / arm / "seed-3" / "run.json")
        assert (said["encoder"]["architecture"] == "whitened:cnn") == of.whitened
        if of.objective:
            assert Encoder.load(said["configuration"]["encoder"]).pretraining["step"] == (4 if of.step is None else 0)


def test_every_seed_may_have_encoders_of_its_own() -> None:
    for each, expected in ((True, [1, 2, 3]), (False, [1, 1, 1])):
        comparison = replace(WHY, seeds=3, each_seed=each)
        paths = [encoder_path(comparison, WHY.arms["fresh-whitened"], seed) for seed in (3, 4, 5)]
        assert paths == [Path(f"encoders/temporal+inverse@mixed/seed-{seed}/step-0/whitened") for seed in expected]


def test_features_are_measured_where_the_agents_act(why: Path) -> None:
    found = {arm: read_json(why / "features" / WORLD / arm / "seed-3" / "features.json") for arm in WHY.arms}
    frames, target = (FrameStore.open(why / path) for path in ("frames/mixed", f"targets/{WORLD}"))
    for arm, known in found.items():
        assert known["whitened"] == arm.endswith("whitened")
        assert known["updates"] == (4 if arm.startswith("pretrained") else 0)
        assert known["distinct"] == (None if arm == "random" else frames.distinct)
        assert 1 <= known["dimensions"] <= 16
        assert "front" in known["probes"]
    for arm in ("fresh", "pretrained"):
        assert found[f"{arm}-whitened"]["condition"] < found[arm]["condition"] / 3
        assert found[f"{arm}-whitened"]["probes"]["front"] == pytest.approx(found[arm]["probes"]["front"], abs=0.2)
    assert target.manifest["spec"]["seed"] != frames.manifest["spec"]["seed"]


def test_encoders_of_exactly_so_many_frames(tmp_path: Path) -> None:
    stores = [collect(SCALING, name, tmp_path) for name in SCALING.data]
    assert [store.distinct for store in stores] == list(SIZES.values())
    assert [path.name for path in (tmp_path / "pools").iterdir()] == ["1k"], "they are cut from one"
    assert collect(SCALING, "3k", tmp_path).hash == stores[1].hash


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_run(name: str) -> None:
    check(PRESETS[name])


def test_settings_that_change_nothing_are_not_told() -> None:
    """Directories of studies that were begun before a setting was there still belong to their comparison."""
    told = configuration(PRESETS["quick"])
    assert told["arms"]["scratch"] == {"agent": "scratch", "objective": "", "data": ""}
    assert list(told["data"]["mixed"]) == ["sources", "steps", "behaviour"]
    assert list(told) == ["environments", "steps", "data", "arms", "answer", "threshold", "pretrain", "train"]
    assert "collapse" not in told["pretrain"]
    why = configuration(WHY)
    assert why["arms"]["fresh"] == {"agent": "frozen", "objective": "temporal+inverse", "data": "", "step": 0}
    assert why["arms"]["pretrained-whitened"]["whitened"]
    assert (why["each_seed"], why["probe"]) == (True, 400)
    assert configuration(SCALING)["data"]["1k"]["distinct"] == 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"arms": {"a": Arm("frozen", "inverse", step=5)}}, "arm 'a' starts from step 5, but pretraining has 4"),
        ({"arms": {"a": Arm("frozen", "inverse", step=-1)}}, "arm 'a' starts from step -1"),
        ({"arms": {"a": Arm("random-frozen", whitened=True)}}, "arm 'a' has no pretraining to take step"),
        ({"arms": {"a": Arm("scratch", step=0)}}, "arm 'a' has no pretraining to take step"),
        ({"data": {"mixed": Offline((WORLD,), 400, distinct=0)}}, "data 'mixed' would hold 0 different frames"),
        ({"probe": -1}, "probe is -1: it must be at least 0"),
    ],
)
def test_bad_input(changes: dict[str, object], sentence: str) -> None:
    arms = changes.get("arms", WHY.arms)
    with pytest.raises(RlpreError, match=sentence):
        check(replace(WHY, **{**changes, "answer": next(iter(arms)), "baseline": next(iter(arms))}))
