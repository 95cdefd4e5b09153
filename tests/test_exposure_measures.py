"""Exposure bias: recorded contexts, statistics and verdicts against numbers worked out by hand."""

from dataclasses import fields

import numpy as np
import pytest

from rlpre.errors import RlpreError
from rlpre.measure.exposure import (
    CONTEXTS,
    ERROR,
    NLL,
    REGRET,
    Context,
    Switches,
    load_contexts,
    save_contexts,
)


def context(wrong, alive=None, regret=None, success=None) -> Context:
    wrong = np.array(wrong, bool)
    return Context(
        wrong=wrong,
        nll=np.where(wrong, 2.0, 0.5),
        regret=wrong.astype(float) if regret is None else regret,
        alive=np.ones_like(wrong) if alive is None else alive,
        success=np.ones(len(wrong), bool) if success is None else success,
    )


def test_contexts_survive_the_disk(tmp_path):
    rng = np.random.default_rng(0)
    contexts = {name: context(rng.random((4, 6)) < 0.3) for name in CONTEXTS}
    switches = Switches(np.array([0, 2]), rng.random((2, 4)) < 0.5, rng.random((2, 4)) < 0.5)
    save_contexts(tmp_path / "contexts.npz", contexts, switches)
    loaded, turns = load_contexts(tmp_path / "contexts.npz")
    for name in CONTEXTS:
        for field in fields(Context):
            np.testing.assert_array_equal(getattr(loaded[name], field.name), getattr(contexts[name], field.name))
    for field in fields(Switches):
        np.testing.assert_array_equal(getattr(turns, field.name), getattr(switches, field.name))
    save_contexts(tmp_path / "contexts.npz", contexts)
    assert load_contexts(tmp_path / "contexts.npz")[1] is None


def test_only_living_steps_count():
    alive = np.array([[True, True, False], [True, True, True], [False, False, False]])
    regret = np.array([[0.0, 2.0, np.nan], [0.0, 0.0, 1.0], [np.nan] * 3])
    found = context(np.ones((3, 3)), alive, regret)
    assert found.kept.tolist() == [True, True, False]
    assert found.per_step(ERROR, 4).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 0]]
    assert found.per_step(REGRET, 2).tolist() == [[0, 1], [0, 0], [0, 0]]  # not every disagreement costs something
    assert found.per_step(NLL, 3).tolist() == [[2, 2, 0], [2, 2, 2], [0, 0, 0]]
    assert found.running(4).sum(axis=0).tolist() == [2, 2, 1, 0]


def test_bad_contexts_are_refused(tmp_path):
    path = tmp_path / "contexts.npz"
    with pytest.raises(RlpreError, match="the regret was not measured at every step"):
        context(np.ones((2, 2)), regret=np.full((2, 2), np.nan)).per_step(REGRET, 2)
    with pytest.raises(RlpreError, match="alive after its end"):
        context(np.ones((1, 3)), np.array([[True, False, True]]))
    with pytest.raises(RlpreError, match=r"a context is \(episodes, steps\).*'success': \(3,\)"):
        context(np.ones((2, 3)), success=np.ones(3))
    with pytest.raises(RlpreError, match="nll is not finite"):
        Context(*np.zeros((4, 1, 2))[:1], np.full((1, 2), np.inf), np.zeros((1, 2)), np.ones((1, 2)), np.ones(1))
    with pytest.raises(RlpreError, match="is missing: measure"):
        load_contexts(path)
    path.write_bytes(b"PK half a file")
    with pytest.raises(RlpreError, match="is damaged"):
        load_contexts(path)
    save_contexts(path, {name: context(np.ones((len(name) + (name == "OO"), 2))) for name in CONTEXTS})
    with pytest.raises(RlpreError, match=r"different numbers of episodes, {'EE': 2, 'EO': 2, 'OE': 2, 'OO': 3}"):
        load_contexts(path)
