"""Overlap of offline frames with a target, and the gain of a pretraining without it."""

import json
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from gymnasium import spaces
from scipy.stats import binomtest

import envs
import rlpre
from agents.distinct import take_distinct
from envs.minigrid.overlap import overlaps, state, states
from rlpre import Encoder, FrameStore, InputSpec, RlpreError
from rlpre.evaluation.overlap import nearest, overlap, pure_gain, share
from rlpre.utils import read_json, write_json

SCRIPTS = Path(__file__).parents[1] / "scripts"
EMPTY, DOOR, LARGER = "MiniGrid-Empty-5x5-v0", "MiniGrid-DoorKey-5x5-v0", "MiniGrid-DoorKey-6x6-v0"


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return envs.collect(EMPTY, tmp_path_factory.mktemp("frames") / "empty", 2000, seed=0)


def written(path: Path, kinds: list[list[int]], tiles: bool = True) -> FrameStore:
    """Episodes of 2 x 2 cells; the k-th kind of frame shows the digits of k in base 3 as floor, key and ball."""
    numbers = np.concatenate(kinds)
    cells = np.array([[1, 5, 6][number // 3**place % 3] for number in numbers for place in range(4)], np.uint8)
    codes, atlas = np.zeros((len(numbers), 2, 2, 3), np.uint8), envs.atlas(18)
    codes[..., 0] = cells.reshape(-1, 2, 2)
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0}
    start = np.concatenate([np.arange(len(kind)) == 0 for kind in kinds])
    action = np.where(np.append(start[1:], True), -1, 0)
    space, given = spaces.Box(0, 255, (3, 36, 36), np.uint8), atlas if tiles else None
    with FrameStore.create(path, space=space, action_space=spaces.Discrete(2), spec={}, atlas=given) as writer:
        writer.append(codes if tiles else atlas.decode(codes), action=action, episode_start=start, **columns)
    return FrameStore.open(path)


@pytest.mark.parametrize("tiles", [True, False])
def test_shares_by_hand(tiles: bool, tmp_path: Path) -> None:
    """Frames 0, 1 and 80 are known; 2 and 9 differ from 0 in a cell, 4 in two but from 1 in one, 40 from all in 3."""
    seen = written(tmp_path / "seen", [[0, 1], [80, 80]])
    met = written(tmp_path / "met", [[0, 2], [1, 1, 40, 40], [9, 13], [4]], tiles)
    here, there = np.array([7, 8, 9, 9]), np.array([7, 1, 9, 9, 2, 3, 8, 5, 6])
    found = overlap(seen, met, (here, there))
    assert found.observation.value == pytest.approx((1 / 2 + 2 / 4 + 0 + 0) / 4)
    assert (found.seen, found.met, found.why_unknown, found.alike) == (3, 7, "", None)
    assert found.state.value == pytest.approx((1 / 2 + 2 / 4 + 1 / 2 + 0) / 4)
    assert found.layout.value == pytest.approx(2 / 4)  # 7 and 9 begin episodes here, 8 does not
    assert [figure.n for figure in (found.observation, found.state, found.layout)] == [4] * 3
    assert [round(figure.value, 6) for figure in found.near] == ([0.75, 0.875] if tiles else [])


def test_equal_cells_of_another_palette_are_other_frames(tmp_path: Path) -> None:
    day, night = (envs.collect(EMPTY, tmp_path / palette, 60, seed=0, palette=palette) for palette in ("day", "night"))
    assert np.array_equal(day.codes(range(60)), night.codes(range(60)))
    assert overlap(day, night, "not asked").observation.value == 0


def test_wilson_and_few_episodes() -> None:
    for hits in (0, 3, 10):
        figure = share(np.arange(10) < hits)
        reference = binomtest(hits, 10).proportion_ci(method="wilson")
        assert (figure.low, figure.high) == pytest.approx((reference.low, reference.high))
    assert (share(np.ones(2)).low, share(np.ones(2)).value) == (None, 1)


def test_interval_covers_shares_of_episodes() -> None:
    rng = np.random.default_rng(0)
    found = [share(rng.beta(0.3, 1.2, size=40)) for _ in range(400)]
    assert np.mean([figure.low <= 0.2 <= figure.high for figure in found]) > 0.94


def test_nearest_is_the_smallest_number_of_different_cells(doorkey: FrameStore) -> None:
    _, rows = np.unique(doorkey.ids, return_index=True)
    codes = doorkey.codes(rows)
    some, others = codes[::2], codes[1::2]
    brute = (some[:, None] != others[None]).any(-1).sum((2, 3)).min(1)
    assert nearest(some, others).tolist() == brute.tolist()
    assert len(set(brute.tolist())) > 3
    assert not nearest(codes, codes).any()


def test_states_of_a_world_that_one_can_count(empty: FrameStore) -> None:
    """8 free cells with 4 directions each, and the goal, entered to the right or downwards; one layout."""
    found = states(empty)
    assert len(np.unique(found)) == 8 * 4 + 2
    assert len(np.unique(found[empty.column("episode_start")])) == 1
    shown = {(one, frame) for one, frame in zip(found.tolist(), empty.ids.tolist(), strict=True)}
    assert len(shown) == 34  # a state shows one frame


def test_states_are_replayed(tmp_path: Path) -> None:
    """DoorKey has keys, doors and things in hands; its worlds are stepped beside the collection."""
    store = envs.collect([DOOR, EMPTY], tmp_path, 400, seed=3, behaviour="expert:0.3", n_envs=2)
    found, lived, row = states(store), [], 0
    for number, name in enumerate((DOOR, EMPTY)):
        worlds = envs.make_vec(name, 2, rlpre.data.collect.seeds(3, number)[0])
        worlds.reset()
        for world in worlds.unwrapped.envs:
            for _ in range(100):
                lived.append(state(world.grid_env))
                _, terminated, truncated, _ = world.step_unrendered(store.column("action")[row])
                row += 1
                if terminated or truncated:
                    lived.append(state(world.grid_env))
                    row += 1
                    world.reset_unrendered()
            if not store.column("episode_start")[row:][:1].all() or row == len(store) - 1:
                lived.append(state(world.grid_env))
                row += 1
    assert found.tolist() == lived
    assert len(set(lived)) > 60


def test_a_small_world_is_met_again_and_a_larger_one_is_not(empty: FrameStore, doorkey: FrameStore) -> None:
    found = overlaps(empty, [EMPTY], steps=600)[EMPTY]
    for figure in (found.state, found.layout, found.observation, *found.near):
        assert figure.value == 1
    other = overlaps(doorkey, [LARGER], steps=600)[LARGER]
    assert (other.state.value, other.layout.value) == (0, 0)
    assert 0.05 < other.observation.value < other.near[0].value < other.near[1].value < 1  # walls are walls
    assert 0 < other.state.high < 0.2
    assert overlaps(doorkey, [LARGER], steps=600)[LARGER] == other


def test_an_independent_encoder_finds_what_is_alike(empty: FrameStore) -> None:
    judge = Encoder("cnn", InputSpec(empty.space.shape), features=32)
    found = overlaps(empty, [DOOR], steps=600, encoder=judge)[DOOR]
    assert found.observation.value <= found.alike.value < 1
    judge.pretraining["frames"] = empty.hash
    with pytest.raises(RlpreError, match=r"the encoder was pretrained on .*empty, whose frames it should compare"):
        overlaps(empty, [DOOR], steps=100, encoder=judge)
    with pytest.raises(RlpreError, match=r"the observation shape is \(3, 56, 56\), the encoder was built for \(3, 36"):
        overlaps(empty, [DOOR], steps=100, encoder=Encoder("cnn", InputSpec((3, 36, 36))))


def test_unknown_states_have_a_reason(empty: FrameStore, tmp_path: Path) -> None:
    mine = rlpre.collect(envs.make_vec(EMPTY, 4, seed=0), tmp_path / "mine", steps=400)
    found = overlaps(mine, [EMPTY], steps=200)[EMPTY]
    assert (found.state, found.layout, found.near) == (None, None, ())
    assert found.observation.value > 0.9
    assert "mine is not a complete collection of envs.collect" in found.why_unknown
    part = take_distinct(empty, tmp_path / "part", 10)
    assert "part is not a complete collection" in overlaps(part, [EMPTY], steps=200)[EMPTY].why_unknown
    other = tmp_path / "other"
    shutil.copytree(empty.path, other)
    manifest = read_json(other / "manifest.json")
    manifest["spec"] |= {"environments": [DOOR], "minigrid": "2.0"}
    write_json(other / "manifest.json", manifest | {"tasks": [DOOR]})
    with pytest.raises(RlpreError, match=r"other was collected with minigrid 2\.0, and its actions lead elsewhere"):
        states(FrameStore.open(other))
    assert "lead elsewhere" in overlaps(FrameStore.open(other), [EMPTY], steps=200)[EMPTY].why_unknown


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("MiniGrid-Emty-5x5-v0", "did you mean 'MiniGrid-Empty-5x5-v0'"),
        (f"{EMPTY} --seed 0", "empty was collected with seed 0, and would be met again: give another"),
        (f"{EMPTY} --steps 0", "cannot collect 0 steps"),
        ("", "give ids of MiniGrid or BabyAI, or one other environment as --env"),
        (f"{EMPTY} --encoder nowhere", "nowhere/config.json is missing"),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: str, words: str, empty: FrameStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(empty, arguments.split(), monkeypatch) == 2
    complaints = capsys.readouterr().err.splitlines()
    assert len(complaints) == 1
    assert words in complaints[0]


def call(frames: FrameStore, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.syspath_prepend(SCRIPTS)
    monkeypatch.setattr(sys, "argv", ["contamination.py", str(frames.path), *arguments])
    try:
        runpy.run_path(str(SCRIPTS / "contamination.py"), run_name="__main__")
    except SystemExit as end:
        return int(str(end.code))
    return 0


def test_script_says_shares(
    empty: FrameStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "overlap.json"
    assert call(empty, [EMPTY, DOOR, "--steps", "300", "--out", str(out)], monkeypatch) == 0
    printed = capsys.readouterr().out.splitlines()
    assert "26 distinct" in printed[0]
    assert " ".join(printed[1].split()) == "state layout observation 1 cell apart 2 cells apart cosine 0.95"
    assert printed[3].split()[:2] == [EMPTY, "1.00"]
    assert printed[4].split()[:2] == [DOOR, "0.00"]
    shown = json.loads(out.read_text())
    assert shown["hash"] == empty.hash
    assert shown["overlap"][EMPTY]["layout"]["value"] == 1


PLAIN = np.array([[1.0, 0.0], [0.0, 0.0]])  # contaminated and clean pretraining, on seen and unseen items
PURE, LEAK = 0.12, 0.1


def simulated(rng: np.random.Generator, seeds: int, noise: float = 0.02) -> np.ndarray:
    """Seen items are harder by .04, the frames that hold them are better by .03 in general; the mean gain is .12."""
    items, frames = np.array([-0.02, 0.02]), np.array([[0.0], [-0.03]])
    return PURE + items + frames + LEAK * PLAIN + noise * rng.standard_normal((seeds, 2, 2))


def test_pure_gain_by_hand() -> None:
    """Naive .17; the leak is (.20 - .09) - (.14 - .13) = .10, half of which is in it."""
    gain = pure_gain(np.array([[[0.20, 0.14], [0.09, 0.13]]] * 3), PLAIN)
    assert (gain["naive"].value, gain["leak"].value, gain["pure"].value) == pytest.approx((0.17, 0.10, 0.12))
    assert gain["pure"].low == pytest.approx(0.12)
    assert pure_gain(simulated(np.random.default_rng(0), 2), PLAIN)["pure"].low is None  # too few seeds


def test_over_several_overlaps_it_is_the_height_of_the_line_at_zero() -> None:
    overlap = np.array([0.1, 0.4, 0.5, 0.9])
    rng = np.random.default_rng(0)
    gains = PURE + LEAK * overlap + 0.01 * rng.standard_normal((5, 4))
    slope, height = np.polyfit(overlap, gains.mean(0), 1)
    gain = pure_gain(gains, overlap)
    assert (gain["leak"].value, gain["pure"].value) == pytest.approx((slope, height))
    assert gain["naive"].value == pytest.approx(height + slope * overlap.mean())


def test_what_pretrainings_and_items_have_in_common_drops_out() -> None:
    overlap = np.array([[0.8, 0.3, 0.0], [0.1, 0.2, 0.0], [0.0, 0.0, 0.4]])
    rng = np.random.default_rng(0)
    items, frames = rng.standard_normal((3, 1)), rng.standard_normal(3)
    gain = pure_gain(np.stack([items + frames + 0.7 * overlap] * 3), overlap)
    assert gain["leak"].value == pytest.approx(0.7)
    assert gain["pure"].value == pytest.approx((items[0] + frames).mean())


@pytest.mark.parametrize("seeds", [3, 10])
def test_planted_overlap_is_recovered_where_the_naive_gain_is_not(seeds: int) -> None:
    rng = np.random.default_rng(0)
    gains = [pure_gain(simulated(rng, seeds), PLAIN) for _ in range(200)]

    def covered(figure: str, truth: float) -> float:
        return float(np.mean([gain[figure].low <= truth <= gain[figure].high for gain in gains]))

    assert covered("pure", PURE) > 0.91
    assert covered("leak", LEAK) > 0.91
    assert covered("naive", PURE) < (0.5 if seeds == 3 else 0.01)
    assert np.mean([gain["pure"].value for gain in gains]) == pytest.approx(PURE, abs=0.004)
    assert np.mean([gain["naive"].value for gain in gains]) == pytest.approx(0.17, abs=0.004)


@pytest.mark.parametrize(
    ("gains", "overlap", "words"),
    [
        (np.zeros((3, 2)), PLAIN, r"gains \(3, 2\) and overlap \(2, 2\) do not fit"),
        (np.zeros((0, 2, 2)), PLAIN, "do not fit"),
        (np.full((3, 2, 2), np.nan), PLAIN, "gains must be finite"),
        (np.zeros((3, 2, 2)), 2 * PLAIN, r"shares in \[0, 1\]"),
        (np.zeros((3, 1, 2)), PLAIN[:1], "say nothing about a leak: measure a clean pretraining too"),
        (np.zeros((3, 2, 2)), np.array([[1, 1], [0, 0]]), "say nothing about a leak"),
        (np.zeros((3, 2)), np.array([0.5, 0.5]), "say nothing about a leak"),
    ],
)
def test_bad_gains(gains: np.ndarray, overlap: np.ndarray, words: str) -> None:
    with pytest.raises(RlpreError, match=words):
        pure_gain(gains, overlap)
