"""The scoreboard: what is probed, the gap closed by hand, a study that is resumed, bad input."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from agents.scoreboard import DISCOUNT, Scoreboard, factors, returns, scoreboard, scores, symbols
from agents.scoreboard_report import (
    FRESH,
    GROUPS,
    IMITATION,
    PROBED,
    SCORE,
    SCORES,
    SIGNAL,
    SUPERVISED,
    rank_correlations,
    standings,
)
from rlpre import FrameStore, PretrainConfig, RlpreError
from rlpre.compare.runner import Row
from rlpre.utils import read_json

RESULTS = Path(__file__).parents[1] / "results"

WORLD = "MiniGrid-DoorKey-5x5-v0"
TINY = Scoreboard(
    worlds=(WORLD,),
    objectives=("inverse@none",),
    frames=400,
    probes=800,
    rows=100,
    seeds=1,
    pretrain=PretrainConfig(features=16, steps=2, batch=16),
)


def planted(scores_of: dict[str, tuple[list[float], list[float]]]) -> list[Row]:
    """Scores of (output, map) by arm and seed, whitened fully; softly they are lower."""
    return [
        Row("scoreboard", WORLD, arm, seed, f"{readout}{end}/{score}", value - 0.1 * len(end))
        for arm, both in scores_of.items()
        for readout, values in zip(("output", "map"), both, strict=True)
        for seed, value in enumerate(values)
        for end in ("", "-soft")
        for score in SCORES
    ]


def test_the_gap_closed_by_hand() -> None:
    scores_of = {
        FRESH: ([0.1, 0.1, 0.1], [0.4, 0.5, 0.6]),
        SUPERVISED: ([0.9, 1.0, 1.1], [0.2, 0.2, 0.2]),
        "half": ([0.0, 0.0, 0.0], [0.65, 0.75, 0.85]),
        "worse": ([0.3, 0.4, 0.5], [0.2, 0.2, 0.2]),
    }
    found = {one.arm: one for one in standings(planted(scores_of), WORLD, list(scores_of))}
    assert list(found) == [SUPERVISED, "half", FRESH, "worse"]
    assert [one.readout for one in found.values()] == ["output", "map", "map", "output"]
    assert [one.gap.value for one in found.values()] == pytest.approx([1, 0.5, 0, -0.2])
    assert (found["half"].gap.low, found["half"].gap.n) == (pytest.approx(0.5), 3), "paired by seed: no spread is left"
    scores_of[SUPERVISED] = ([0.3, 0.5, 0.9], [0.0, 0.0, 0.0])
    assert all(one.gap is None for one in standings(planted(scores_of), WORLD, list(scores_of))), "no gap is known"


def test_arms_of_other_seeds_are_paired_by_seed() -> None:
    controls = {FRESH: ([0.1, 0.2, 0.3], [0, 0, 0]), SUPERVISED: ([1.1, 1.2, 1.3], [0, 0, 0])}
    later = [replace(row, seed=row.seed + 1) for row in planted({"later": ([0.7, 0.8], [0, 0])})]
    apart = [replace(row, seed=7) for row in planted({"apart": ([0.7], [0])})]
    found = {one.arm: one for one in standings([*planted(controls), *later], WORLD, [*controls, "later"])}
    assert found["later"].gap is not None
    assert (found["later"].gap.value, found["later"].gap.n) == (pytest.approx(0.5), 2)
    with pytest.raises(RlpreError, match="'apart' and 'fresh' have no seed in common"):
        standings([*planted(controls), *apart], WORLD, [*controls, "apart"])


def test_a_score_that_orders_arms_as_their_areas_do_has_rank_correlation_1() -> None:
    """Published areas: change-soft .78, change-map .60, fresh-map .51, fresh-map-soft .48, fresh .19."""
    change = Row("scoreboard", WORLD, "change", 0, f"output-soft/{SCORE}", 0.9)
    rows = planted({FRESH: ([-0.1], [0.5]), SUPERVISED: ([1.0], [1.0]), "change": ([0.3], [0.7])})
    found = {WORLD: standings([*rows, change], WORLD, (FRESH, SUPERVISED, "change"))}
    ranked = rank_correlations(found, RESULTS / "eyes")
    assert (ranked[SCORE].value, ranked[SCORE].n) == (pytest.approx(1), 5)
    assert ranked[SIGNAL].value == pytest.approx(0), "change-soft is the last here and the first there"
    assert -1 <= ranked[SIGNAL].low < 0 < ranked[SIGNAL].high <= 1
    with pytest.raises(RlpreError, match="habits has no two arms with a frozen, whitened encoder on a world of this"):
        rank_correlations(found, RESULTS / "habits")


def test_what_is_scored_is_found_in_the_symbols_and_not_in_noise(doorkey: FrameStore) -> None:
    rows = np.unique(doorkey.ids, return_index=True)[1]
    asked = factors(doorkey, rows)
    assert set(GROUPS) - set(asked) == set()
    assert {factor.name for factor in asked["place"]} >= {"door", "key"}
    assert len(asked["cells"]) > 10
    known = symbols(doorkey, rows)
    noise = np.random.default_rng(0).normal(size=(len(rows), 32))
    of_symbols, of_noise, of_both = (scores(each, doorkey, rows) for each in (known, noise, np.hstack([known, noise])))
    for name in ("cells", "place", "carried", "door", SIGNAL):
        assert of_symbols[name] > 0.85, name
        assert of_noise[name] < 0.2, name
    for name in (SCORE, IMITATION, PROBED):
        assert of_symbols[name] > of_noise[name] + 0.4, name
    assert of_symbols[IMITATION] > of_both[IMITATION] + 0.02, "noise as large as the symbols slows learning down"


def test_too_few_frames_are_refused(doorkey: FrameStore) -> None:
    with pytest.raises(RlpreError, match="can be probed: collect more frames, from more episodes"):
        scores(np.zeros((4, 2)), doorkey, np.arange(4))


def test_returns_are_discounted_within_an_episode(doorkey: FrameStore) -> None:
    found, reward, end = returns(doorkey), doorkey.column("reward"), np.flatnonzero(doorkey.column("terminated"))
    last = end[reward[end] > 0][0]
    assert found[last] == reward[last]
    assert found[last - 3] == pytest.approx(DISCOUNT**3 * reward[last])
    assert found[last + 1] == 0, "no action is taken there"
    assert (found <= 1).all()


def test_a_scoreboard_is_reported_and_resumed(tmp_path: Path) -> None:
    executor = ThreadPoolExecutor(1)
    text = scoreboard(TINY, tmp_path, executor=executor)
    assert [name for name in (*GROUPS, *SCORES) if name not in text] == []
    records = read_json(tmp_path / "runs/summary.json")["records"]
    assert {one["arm"] for one in records} == {FRESH, SUPERVISED, "inverse@none"}
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("done.json")}
    assert scoreboard(TINY, tmp_path, executor=executor) == text
    assert {path: path.stat().st_mtime_ns for path in done} == done
    with pytest.raises(RlpreError, match="rows is 100 there and 101 here"):
        scoreboard(replace(TINY, rows=101), tmp_path, executor=executor)


def test_games_without_an_expert_are_scored_by_probes(tmp_path: Path) -> None:
    study = replace(TINY, worlds=("VizdoomBasic-v1",), behaviour="random", player="random", objectives=("change",))
    text = scoreboard(study, tmp_path, executor=ThreadPoolExecutor(1))
    records = read_json(tmp_path / "runs/summary.json")["records"]
    assert {one["arm"] for one in records} == {FRESH, SUPERVISED, "change"}
    for one in records:
        assert one[f"output/{SCORE}"] == one[f"output/{PROBED}"]
        assert not [name for name in one if IMITATION in name or "cells" in name]
        assert {f"map/{name}" for name in ("place", "carried", "distance", "return", SIGNAL)} <= set(one)
    assert "imitation  " not in text


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"objectives": ("invers",)}, "did you mean 'inverse'"),
        ({"objectives": ("cpc",)}, "pretrains a sequence encoder"),
        ({"objectives": ("supervised",)}, "are the controls of every scoreboard: leave them out"),
        ({"objectives": ("inverse@shft",)}, "unknown augmentation 'shft'"),
        ({"objectives": ()}, "no objective to score: name at least one"),
        ({"worlds": ()}, "no world to score objectives on: name at least one"),
        ({"seeds": 0}, "seeds is 0"),
        ({"pretrain": PretrainConfig(seed=3)}, "the scoreboard decides pretrain.objective, pretrain.aug"),
    ],
)
def test_bad_input_is_refused_at_once(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        scoreboard(replace(TINY, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
