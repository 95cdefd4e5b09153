"""Corrections: one budget, counted; each learns from what its name says."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from clones import LEVEL, SHORT, demos, home, small
from pixel_world import same

from agents.clone import SequencePolicy, clone
from agents.corrections import CORRECTIONS, Budget, correct, label
from envs.layouts import is_test
from envs.trials import expert
from rlpre import FrameStore, RlpreError

BUDGET = Budget(labels=131, steps=17)
CONFIG = replace(SHORT, steps=10, check_every=5)


@cache
def cloned() -> SequencePolicy:
    return clone(demos(), small(), home(), CONFIG)


@cache
def corrected(name: str) -> tuple[SequencePolicy, Path]:
    out = home() / name
    return correct(name, cloned(), demos(), out, BUDGET, CONFIG), out


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_correction_costs_the_budget(name: str) -> None:
    before = {key: tensor.clone() for key, tensor in cloned().state_dict().items()}
    policy, out = corrected(name)
    said, correction = json.loads((out / "run.json").read_text()), CORRECTIONS[name]
    assert said["gradient_steps"] == (0 if name == "clone" else BUDGET.steps)
    assert said["labels"] == (BUDGET.labels if correction.player else 0)
    assert len(said["rounds"]) == correction.rounds
    assert said["configuration"]["history_dropout"] == correction.history_dropout
    stores = [FrameStore.open(path) for path in sorted(out.glob("labels-*"))]
    assert sum((store.column("expert") >= 0).sum() for store in stores) == said["labels"]
    assert not any(is_test(layout) for store in stores for layout in store.column("layout"))
    assert all(tensor.equal(before[key]) for key, tensor in cloned().state_dict().items()), "the clone is left alone"
    assert same(SequencePolicy.load(out), policy)
    assert same(policy, cloned()) == (name == "clone" or all(r["kept_step"] == 0 for r in said["rounds"]))


def test_players_do_what_their_names_say() -> None:
    strayed = {}
    for name in ("more-labels", "dart", "dagger"):
        stores = [FrameStore.open(path) for path in sorted(corrected(name)[1].glob("labels-*"))]
        action, advice = (np.concatenate([s.column(c)[s.acted] for s in stores]) for c in ("action", "expert"))
        strayed[name] = (action != advice).mean()
        assert len(stores) == CORRECTIONS[name].rounds
    noise = json.loads((corrected("dart")[1] / "run.json").read_text())["noise"]
    assert 0 < noise <= 0.5
    assert strayed["more-labels"] == 0
    assert strayed["dart"] == pytest.approx(noise * 6 / 7, abs=0.15), "a random action can be the advised one"
    assert strayed["dagger"] > 0.1


def test_a_correction_repeats_itself(tmp_path: Path) -> None:
    for seed in (0, 1):
        again = correct("dagger", cloned(), demos(), tmp_path / str(seed), BUDGET, replace(CONFIG, seed=seed))
        assert same(again, corrected("dagger")[0]) == (seed == 0)


def test_labels_are_counted_to_the_last_step() -> None:
    trials = label(LEVEL, expert(), labels=50, longest=4, first=0)
    assert sum(len(trial.actions) for trial in trials) == 50
    assert max(len(trial.actions) for trial in trials) == 4
    for trial in trials:
        assert len(trial.codes) == len(trial.advice) + 1 == len(trial.actions) + 1
    assert {trial.terminated for trial in trials} == {True, False}, "some are cut short"


@pytest.mark.parametrize(
    ("name", "budget", "sentence"),
    [
        ("dager", BUDGET, "unknown correction 'dager': did you mean 'dagger'"),
        ("dagger", Budget(labels=4, steps=17), "labels is 4: it must be at least 5"),
        ("more-steps", Budget(labels=1, steps=0), "steps is 0"),
    ],
)
def test_bad_input(name: str, budget: Budget, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        correct(name, cloned(), demos(), tmp_path, budget, CONFIG)
