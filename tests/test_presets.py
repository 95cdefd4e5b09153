"""Presets of comparisons, and what they say about the causes of their results."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from minigrid.core.constants import OBJECT_TO_IDX
from studies import STEPS, write_study

import envs
from agents.causes import OVERLAP, TARGETS, cause_sentence, overlap_section, sections, two_way
from agents.presets import MIXED, PRESETS, AgentConfig, Data, PPOConfig, Preset
from envs.minigrid.overlap import overlaps
from envs.minigrid.worlds import NARROW_MEMORY
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError
from rlpre.compare.runner import Run
from rlpre.compare.summary import Metric
from rlpre.evaluation.page import Section
from rlpre.utils import read_json, write_json

WORLD = "MiniGrid-DoorKey-5x5-v0"
PPO = PPOConfig(n_envs=2, n_steps=32, batch_size=32, n_epochs=1)
TINY = {
    "environments": (WORLD,),
    "steps": (64,),
    "seeds": 1,
    "first_seed": 3,
    "probe": 400,
    "pretrain": PretrainConfig(steps=4, batch=16, features=16, checkpoint_every=4, seed=1),
    "train": AgentConfig(eval_every=64, eval_episodes=2, ppo=PPO),
}
WHY = replace(PRESETS["why"], data={"mixed": Data((WORLD,), 400)}, **TINY)
SIZES = {"1k": 10, "3k": 20, "10k": 30, "30k": 40, "100k": 50}
LUCK = np.array([0.7, 0.9, 1.0, 1.1, 1.4])  # of seeds: all four runs of one have the same


@pytest.fixture(scope="module")
def why(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("why")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        WHY.run(out, 99, here)
    return out


def test_one_pretraining_leaves_every_variant(why: Path) -> None:
    home = why / "encoders" / "temporal+inverse@mixed" / "seed-4"
    plain, start = Encoder.load(home), Encoder.load(home / "step-0")
    prints = {plain.fingerprint(), start.fingerprint()}
    for path, before in ((home / "whitened", plain), (home / "step-0" / "whitened", start)):
        white = Encoder.load(path)
        assert white.stages[0][0].weight.equal(before.stages[0][0].weight)
        prints.add(white.fingerprint())
    assert len(prints) == 4
    for arm, of in WHY.arms.items():
        start = Encoder.load(read_json(why / WORLD / arm / "seed-3" / "run.json")["configuration"]["encoder"])
        assert (start.pretraining["step"], start.architecture) == (
            4 if of.step is None else 0,
            "whitened:cnn" if of.whiten else "cnn",
        )


def test_features_are_measured_where_the_agents_act(why: Path) -> None:
    found = {
        arm: dict(row[:2] for row in read_json(why / WORLD / arm / "seed-3" / "rows.json", list)) for arm in WHY.arms
    }
    frames, target = (FrameStore.open(why / path) for path in ("frames/mixed", f"{TARGETS}/{WORLD}"))
    for arm, known in found.items():
        assert known["different frames"] == frames.distinct
        assert (known["updates"], known["whitened"]) == (0 if "fresh" in arm else 4, "whitened" in arm)
        assert known["dimensions"] <= 16
    for arm in ("fresh", "pretrained"):
        assert found[f"{arm}-whitened"]["condition number"] < found[arm]["condition number"] / 3
        assert found[f"{arm}-whitened"]["probe front"] == pytest.approx(found[arm]["probe front"], abs=0.2)
    assert target.manifest["spec"]["seed"] != frames.manifest["spec"]["seed"]
    page = (why / "report.html").read_text()
    for words in ("Pretraining</h2>", "pretraining divides the steps by", "condition number", "2 cells apart"):
        assert words in page


def test_overlap_is_measured_once_or_the_reason_is_shown(why: Path) -> None:
    (section,) = overlap_section([WORLD], why)
    assert section.blocks[0].head == ["task", "state", "layout", "observation", "1 cell apart", "2 cells apart"]
    (of,) = overlaps(FrameStore.open(why / "frames" / "mixed"), [WORLD], steps=400).values()
    assert read_json(why / OVERLAP)["mixed"][WORLD]["state"]["value"] == of.state.value
    write_json(why / "other.json", {"mixed": "no reason"})
    (why / "other.json").replace(why / OVERLAP)
    assert overlap_section([WORLD], why)[0].text[1] == "mixed: not measured, no reason."


def test_frames_are_cut_to_exactly_so_many_different_ones(tmp_path: Path) -> None:
    data = {name: Data((WORLD,), 800, distinct=SIZES[name]) for name in PRESETS["scaling"].data}
    scaling = replace(PRESETS["scaling"], data=data, **TINY)
    stores = [scaling.collect(name, tmp_path) for name in data]
    assert [store.distinct for store in stores] == list(SIZES.values())
    assert [path.name for path in (tmp_path / "pools").iterdir()] == ["1k"], "they are cut from one"
    assert scaling.collect("3k", tmp_path).hash == stores[1].hash


def test_frames_show_other_pictures_than_agents_see_where_these_are_held_out(tmp_path: Path) -> None:
    held_out = PRESETS["held-out"]
    data = {"mixed": replace(held_out.data["mixed"], steps=300)}
    store = replace(held_out, data=data).collect("mixed", tmp_path / "a")
    for pictures, same in (("train", True), (held_out.train.pictures, False)):
        look = {**held_out.train.look, "pictures": pictures}
        other = envs.collect((WORLD,), tmp_path / pictures, 300, store.manifest["spec"]["seed"], MIXED, **look)
        assert np.array_equal(store.frames(np.arange(100)), other.frames(np.arange(100))) is same


def test_agents_learn_from_normalized_rewards_and_reports_show_plain_returns() -> None:
    venv, rng = AgentConfig(normalize_reward=True).make_env("MiniGrid-Empty-5x5-v0")(4, 0), np.random.default_rng(0)
    venv.reset()
    learned, shown = [], []
    for _ in range(400):
        _, rewards, _, infos = venv.step(rng.integers(0, 3, 4))
        learned += rewards[rewards > 0].tolist()
        shown += [info["episode"]["r"] for info in infos if "episode" in info]
    assert min(learned) > 1 > max(shown) > 0, "a reward of MiniGrid is below 1"


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_can_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise RlpreError("everything was checked")

    monkeypatch.setattr(Preset, "collect", stop)
    monkeypatch.setattr(sys.modules["rlpre.compare.compare"], "run_study", stop)  # of a preset without frames
    with pytest.raises(RlpreError, match="everything was checked"):
        PRESETS[name].run(tmp_path)


@pytest.mark.parametrize("length", [7, 9, 11, 13])
def test_one_frame_tells_all_in_short_corridors_only(length: int) -> None:
    """The reason for the narrow view of "memory": from the fork, an agent that looks back sees the object shown."""
    world = envs.make(f"MiniGrid-MemoryS{length}-v0").unwrapped
    world.reset(seed=0)
    world.agent_pos, world.agent_dir = np.array([world.success_pos[0], length // 2]), 2
    seen = world.gen_obs()["image"][..., 0]
    assert np.isin(seen, [OBJECT_TO_IDX["key"], OBJECT_TO_IDX["ball"]]).sum() == (3 if length < 11 else 2)


def test_the_narrow_view_never_shows_an_end_and_the_start() -> None:
    world = envs.make(NARROW_MEMORY).unwrapped
    world.reset(seed=0)
    start, *ends = [(x, y) for x, y in np.ndindex(7, 7) if getattr(world.grid.get(x, y), "type", "") in ("key", "ball")]
    shown = 0
    for x, y, world.agent_dir in np.ndindex(7, 7, 4):
        if world.grid.get(x, y) is None:
            world.agent_pos = np.array([x, y])
            shown += world.in_view(*start)
            assert not (world.in_view(*start) and any(world.in_view(*end) for end in ends))
    assert shown


def known(updates: int, whitened: bool, frames: int | None, **probes: float) -> list[list[Any]]:
    facts = {"updates": updates, "whitened": whitened, "condition number": 1.0 if whitened else 4000.0}
    facts |= {"dimensions": 15, **({"different frames": frames} if frames else {})}
    return [[metric, value, None] for metric, value in {**facts, "probe front": 0.6, **probes}.items()]


def write_known(home: Path, arm: str, rows: list[list[Any]], seeds: int = 3) -> None:
    for seed in range(seeds):
        path = home / Run("Door", arm, seed).path / "rows.json"
        write_json(path, read_json(path, list) + rows)


@pytest.mark.parametrize("change", ["", "one corner twice", "one corner missing"])
def test_causes_of_a_study_made_by_hand(change: str, tmp_path: Path) -> None:
    """Pretraining halves the steps, whitening saves a quarter."""
    steps = {"fresh": [8000] * 3, "fresh-white": [6000] * 3, "best": [4000] * 3, "best-white": [3000] * 3}
    if change == "one corner twice":
        steps["other-white"] = [3000] * 3
    write_study(tmp_path, steps, Metric(dict.fromkeys(steps, 500), answer="best", baseline="fresh"))
    write_json(tmp_path / "study.json", {**read_json(tmp_path / "study.json"), "frames": {}})
    for arm in steps:
        if arm != "best-white" or change != "one corner missing":
            write_known(tmp_path, arm, known(0 if "fresh" in arm else 900, "white" in arm, 500))
    (section,) = sections([], tmp_path)
    expected = "Door: pretraining divides the steps by 2.00 [2.00, 2.00], whitening by 1.33 [1.33, 1.33]; "
    assert [text.startswith(expected) for text in section.text] == ([] if change else [True])
    (table,) = section.blocks
    assert list(table.rows[0]) == ["fresh", "0", "500", "no", "4k [4k, 4k]", "15", "0.60"]
    assert list(table.head[-2:]) == ["dimensions", "front"]


def test_a_figure_of_more_frames(tmp_path: Path) -> None:
    arms = {"scratch": [8000] * 3, "random": [9000] * 3, "a": [9000] * 3, "b": [6000] * 3, "c": [3000] * 3}
    write_study(tmp_path, arms, Metric(dict.fromkeys(arms, 0), answer="c"))
    write_json(tmp_path / "study.json", {**read_json(tmp_path / "study.json"), "frames": {}})
    write_known(tmp_path, "random", known(0, False, None))
    for arm, frames in (("a", 10_000), ("b", 100), ("c", 1000)):
        write_known(tmp_path, arm, known(900, False, frames), seeds=1)
    (section,) = sections([], tmp_path)
    assert isinstance(section, Section)
    figure, _ = section.blocks
    probes, steps = figure.image.axes
    assert list(probes.lines[0].get_xdata()) == [100, 1000, 10_000]
    assert list(steps.lines[0].get_ydata()) == [6000, 3000, 9000]
    assert {line.get_label() for line in steps.lines} == {"pretrained", "scratch", "random"}
    assert steps.get_ylim()[1] == pytest.approx(1.1 * STEPS[-1])


def test_effects_that_multiply() -> None:
    steps = 1000.0 * np.array([[12, 4], [6, 2]])[..., None] * LUCK
    found = two_way(steps, np.ones(steps.shape, bool))
    values = [of.value for of in (found.first, found.second, found.interaction, found.difference)]
    assert values == pytest.approx([2, 3, 1, (12 - 6 - 4 + 2) * 1000 * LUCK.mean()])
    assert found.first.high - found.first.low < 1e-9, "each seed is its own control"
    assert found.difference.low > 0
    few = two_way(np.full((2, 2, 2), 5.0), np.ones((2, 2, 2), bool))
    assert (few.first.value, few.first.low, few.difference.high) == (1, None, None)


def test_effects_that_add_up() -> None:
    steps = 1000.0 * np.array([[12, 8], [6, 2]])[..., None] + np.random.default_rng(0).normal(0, 50, (2, 2, 5))
    found = two_way(steps, steps < 12_000)
    assert found.difference.low < 0 < found.difference.high
    assert found.interaction.high < 1, "the same steps are a larger share of fewer"
    assert found.interaction.value == pytest.approx((12 / 6) / (8 / 2), rel=0.05)
    assert found.censored == (steps >= 12_000).sum() > 0


def descend(error: float, condition: float, seed: int) -> int:
    """Steps of gradient descent on a quadratic with eigenvalues 1 / condition .. 1 until the error is below 1e-4."""
    rate, start = np.geomspace(1 / condition, 1, 6), np.random.default_rng(seed).normal(size=6)
    weights, step = error * start / np.linalg.norm(start), 0
    while np.linalg.norm(weights) >= 1e-4:
        weights, step = weights * (1 - 0.5 * rate), step + 1
    return step


def test_effects_on_gradient_descent_multiply() -> None:
    """A start that is a thousand times nearer saves the same share, whatever the conditioning."""
    steps = np.array([[[descend(e, c, seed) for seed in range(5)] for c in (400, 10)] for e in (100.0, 0.1)], float)
    found = two_way(steps, np.ones(steps.shape, bool))
    assert found.first.value == pytest.approx(6 / 3, rel=0.25), "orders of magnitude to go"
    assert found.second.value == pytest.approx(400 / 10, rel=0.25)
    assert found.interaction.value == pytest.approx(1, rel=0.15)
    assert found.difference.low > 1000


@pytest.mark.parametrize(
    ("steps", "phrase"),
    [
        ([[12, 4], [6, 2]], "their effects multiply and do not add up"),
        ([[12, 8], [6, 2]], "their effects add up and do not multiply"),
        ([[12, 8], [2, 7]], "their effects neither multiply nor add up"),
        ([[5, 5], [5, 5]], "whether their effects multiply or add up is not known"),
    ],
)
def test_how_causes_act_together_in_words(steps: list[list[int]], phrase: str) -> None:
    noise = np.random.default_rng(0).normal(0, 20, (2, 2, 6))
    times = 1000.0 * np.array(steps)[..., None] + noise - noise.mean(-1, keepdims=True)
    assert phrase in cause_sentence(two_way(times, np.ones(times.shape, bool)))
    few = cause_sentence(two_way(times[..., :2], np.zeros((2, 2, 2), bool)))
    assert "fewer than 3 seeds do not tell how they act together" in few
    assert few.endswith("; 8 runs never got there and count as their budget")


@pytest.mark.parametrize(("shape", "value"), [((2, 3, 5), 1.0), ((2, 2, 0), 1.0), ((2, 2), 1.0), ((2, 2, 3), 0.0)])
def test_bad_steps_are_refused(shape: tuple[int, ...], value: float) -> None:
    with pytest.raises(RlpreError, match="steps are"):
        two_way(np.full(shape, value), np.ones(shape, bool))


def test_the_study_of_the_makefile(tmp_path: Path) -> None:
    data = {name: replace(each, steps=1200) for name, each in PRESETS["study"].data.items()}
    settings = {**TINY, "train": replace(TINY["train"], view="distract"), "probe": 0, "first_seed": 0}
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        result = replace(PRESETS["study"], data=data, **settings).run(tmp_path, 99, here)
    assert {row["arm"] for row in result.rows} >= set(PRESETS["study"].arms)
