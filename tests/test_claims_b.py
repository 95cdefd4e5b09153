"""Claims about puzzles, priors, transfer and search: each verdict falls when the effect is taken away."""

import runpy
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from minigrid.core.constants import COLOR_TO_IDX
from stable_baselines3 import DQN, PPO

import envs
from agents import failures
from agents.claims import (
    CLAIMS,
    both_sides,
    contamination,
    early_stop,
    failing_levels,
    graphs,
    leak,
    prior,
    signal,
    spurious,
    surrogate,
    world_grammar,
)
from agents.claims.cells import MaskedCells, copied, fresh_encoder, score, solve, stored
from agents.claims.claim import Verdict
from agents.failures import Search, first_frames, load_policy, own_features, play, search
from agents.transfer import LabelsConfig
from envs.minigrid.render import EMPTY
from rlpre import FrameStore, RlpreError

SCRIPTS = Path(__file__).parents[1] / "scripts"
EMPTY_ROOM = "MiniGrid-Empty-Random-5x5-v0"
FILES = {2: world_grammar, 6: leak, 8: failing_levels, 11: surrogate, 16: prior, 17: signal}
FILES |= {18: both_sides, 21: graphs, 25: early_stop, 26: contamination, 27: spurious}


def measured(
    monkeypatch: pytest.MonkeyPatch, where: Path, file: ModuleType, sizes: dict[str, Any], **arguments: Any
) -> Verdict:
    for name, value in sizes.items():
        monkeypatch.setattr(file, name, value)
    return file.measure(where, 3, **arguments)


def test_every_claim_is_in_the_table() -> None:
    for number, file in FILES.items():
        assert CLAIMS[number] is file.CLAIM
        assert file.CLAIM.number == number


QUICK = {
    "contamination": ({"STEPS": 4000}, {"leak": False}),
    "graphs": ({"LAYOUTS": 3, "HELD_OUT": 2, "STEPS": 60}, {"rewired": True}),
    "signal": ({"STEPS": 3000}, {"permuted": True}),
}


@pytest.mark.parametrize("name", QUICK)
def test_the_verdict_flips_without_the_effect(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes, without = QUICK[name]
    file = import_module(f"agents.claims.{name}")
    found = measured(monkeypatch, tmp_path / "with", file, sizes)
    nothing = measured(monkeypatch, tmp_path / "without", file, sizes, **without)
    assert found.figure.value > max(0.0, nothing.figure.value)
    assert nothing.verdict != "supported"
    assert found.picture is not None


SMALL = {
    "world_grammar": ({"LAYOUTS": 100, "HELD_OUT": 50, "STEPS": 2}, {"shuffled": True}),
    "leak": ({"FRAMES": 400, "STEPS": 2, "HEAD_STEPS": 2}, {"cheated": True}),
    "prior": ({"STEPS": 1000}, {"permuted": True}),
    "early_stop": ({"FRAMES": 400, "FEW": LabelsConfig(20, 20, steps=4, device="cpu")}, {"checkpoints": (2,)}),
}


@pytest.mark.parametrize("name", SMALL)
def test_nothing_is_gained_where_the_claimed_and_the_control_are_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two arms differ in the effect alone: without it they give the same scores, whatever their size."""
    sizes, without = SMALL[name]
    found = measured(monkeypatch, tmp_path, import_module(f"agents.claims.{name}"), sizes, **without)
    assert (found.figure.value, found.verdict) == (0.0, "not supported")


def test_without_a_cue_no_accuracy_drops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = replace(spurious.FEW, labels=50, steps=20)
    sizes = {"PRETRAINING": {**spurious.PRETRAINING, "steps": 2}, "STEPS": 2000, "FEW": few}
    found = measured(monkeypatch, tmp_path, spurious, sizes, cue=0.5)
    assert found.verdict != "supported"
    assert abs(found.figure.value) < 0.1


def test_masked_modelling_is_better_than_a_model_that_learned_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim is not supported here; the comparison would support it if it were true."""
    sizes = {"FRAMES": 600, "UPDATES": 25, "BATCH": 8, "WINDOW": 6, "TESTS": 32}
    assert measured(monkeypatch, tmp_path, both_sides, sizes, past_updates=1).figure.value > 0
    assert "autoregressive 2.39 [2.35, 2.42], masked 3.42" in both_sides.study()


def test_a_surrogate_learns_nothing_from_permuted_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"STEPS": 150, "DRAWS": 2, "MANY": 200}.items():
        monkeypatch.setattr(surrogate, name, value)
    systems = surrogate.smooth_tube, surrogate.ribbed_tube
    for shuffled in (False, True):
        scratch, permuted, pretrained = np.mean(
            [np.ravel(surrogate.errors(*systems, (8,), seed, shuffled)) for seed in range(3)], axis=0
        )
        assert (pretrained < 0.9 * permuted) != shuffled
        assert pretrained < scratch


def test_the_ribbed_tube_transfers_more_heat_than_the_smooth_one() -> None:
    """At Re = 44721 and Pr = 3.768; the smooth one agrees with Dittus and Boelter, which is right within 25 %."""

    class Middle:
        def uniform(self, low: float, high: float, shape: tuple[int, int]) -> np.ndarray:
            return np.zeros(shape)

    (_, smooth), (_, ribbed) = (system(1, Middle()) for system in (surrogate.smooth_tube, surrogate.ribbed_tube))
    assert np.exp(smooth[0]) == pytest.approx(0.023 * 44721**0.8 * 3.768**0.4, rel=0.2)
    assert 1.5 < np.exp(ribbed[0] - smooth[0]) < 4


def test_the_random_walk_is_that_of_the_world() -> None:
    venv, rng, returns = envs.make_vec(EMPTY_ROOM, 32, 0), np.random.default_rng(0), []
    venv.reset()
    for _ in range(1500):
        returns += [info["episode"]["r"] for info in venv.step(rng.integers(7, size=32))[3] if "episode" in info]
    exact = np.delete(surrogate.random_walk(5).reshape(4, -1), -1, 1).mean()  # without the goal
    assert np.mean(returns) == pytest.approx(exact, abs=float(4 * np.std(returns) / len(returns) ** 0.5))


def test_signal_theory_gives_the_numbers_of_the_example() -> None:
    assert [round(float(signal.theory(a, np.array([10]))[0]), 2) for a in (1.0, 0.6)] == [0.95, 0.80]


def test_exchanged_cells_are_as_frequent_in_their_place() -> None:
    codes = world_grammar.first_frames(50, 0)
    mixed = world_grammar.exchanged(codes, np.random.default_rng(0))
    assert (np.sort(codes.reshape(50, -1), 0) == np.sort(mixed.reshape(50, -1), 0)).all()
    colours = [{tuple(cell[1:2]) for cell in frame.reshape(-1, 3) if cell[0] in (4, 5)} for frame in codes]
    assert {len(each) for each in colours} == {1}  # the key has the door's colour
    assert world_grammar.frequency_loss(codes, codes) < world_grammar.frequency_loss(
        codes, world_grammar.first_frames(50, 1)
    )


def test_masked_cells_learn_a_world_of_two_frames(tmp_path: Path) -> None:
    """Each visible cell tells all others: the loss falls near 0 and answers are right."""
    codes = np.zeros((40, 7, 7, 3), np.uint8)
    codes[..., 0], codes[::2, ..., 0] = 5, 6  # keys or balls everywhere
    frames = stored(codes, tmp_path / "frames")
    encoder = fresh_encoder(frames, 0)
    objective = MaskedCells(encoder, frames)
    before = score(objective, encoder, frames, 0)
    solve(objective.train(), encoder, frames, 15, 0, frozen=False)
    after = score(objective, encoder, frames, 0)
    assert after[0] < 0.3 < 2 < before[0]
    assert after[1] > 0.9


def test_a_frozen_encoder_does_not_change(tmp_path: Path) -> None:
    frames = leak.pairs(tmp_path / "pairs", 200, 0)
    encoder = fresh_encoder(frames, 0)
    weights = encoder.fingerprint()
    solve(leak.HiddenBefore(encoder, frames), encoder, frames, 2, 0, frozen=True)
    assert encoder.fingerprint() == weights


@pytest.mark.parametrize(("kind", "shown_above"), [(leak.HiddenBefore, False), (leak.ShownBefore, True)])
def test_what_the_puzzles_show(kind: type[leak.HiddenBefore], shown_above: bool, tmp_path: Path) -> None:
    frames = leak.pairs(tmp_path / "pairs", 200, 0)
    hidden, shown = kind(fresh_encoder(frames, 0), frames).hide(torch.from_numpy(frames.codes([0, 1])))
    assert not hidden[:, :7].any()
    assert (shown[:, :7] == shown_above).all()
    assert (shown[:, 7:] != hidden[:, 7:]).all()


def test_the_floor_is_painted_and_nothing_else(doorkey: FrameStore, tmp_path: Path) -> None:
    codes = doorkey.codes(np.arange(2))
    painted = spurious.painted(codes, np.array([True, False]))
    changed = (codes != painted).any(-1)
    assert (changed == (codes[..., 0] == EMPTY)).all()
    assert {int(colour) for colour in painted[0][changed[0]][:, 1]} == {COLOR_TO_IDX["green"]}
    same = copied(doorkey, tmp_path / "copy")
    assert (same.codes(np.arange(len(same))) == doorkey.codes(np.arange(len(same)))).all()
    assert same.labels == []


def test_search_finds_what_a_map_shows_and_random_search_does_not() -> None:
    """Levels near one corner of the map fail; a map that says nothing does not help."""
    rng = np.random.default_rng(0)
    place = rng.uniform(size=(600, 2))
    returns = np.where(np.linalg.norm(place - 0.9, axis=1) < 0.12, 0.0, place.mean(1) * -0.5 + 1)
    needed = {}
    for name, points in (("map", place), ("mixed", rng.permutation(place)), ("random", None)):
        found = search(points, lambda levels: returns[levels], 600, 120, 0)
        assert len(set(found.levels.tolist())) == 120
        needed[name] = found.needed(10, 0.0) or 120
    assert needed["map"] < 70 < min(needed["mixed"], needed["random"])
    assert returns[search(place, lambda levels: returns[levels], 600, 80, 1).worst(3)].tolist() == [0, 0, 0]
    with pytest.raises(RlpreError, match="budget is 7 of 6 levels"):
        search(None, lambda levels: returns[levels], 6, 7, 0)
    assert Search(np.array([4, 2]), np.array([0.0, 1.0])).needed(2, 0.0) is None


def test_failures_of_a_policy_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    venv = envs.make_vec(EMPTY_ROOM, 2, 0)
    model = PPO("CnnPolicy", venv, n_steps=4, batch_size=8, seed=0, device="cpu")
    model.save(tmp_path / "model.zip")
    model.policy.save(str(tmp_path / "policy.zip"))
    make_env = envs.find(EMPTY_ROOM)
    expected = play(model, make_env, range(6))
    for name in ("model.zip", "policy.zip"):
        agent = load_policy(tmp_path / name)
        assert play(agent, make_env, range(6)).tolist() == expected.tolist()
        assert play(agent, make_env, [3]).tolist() == expected[3:4].tolist()
        assert own_features(agent, first_frames(make_env, range(3))).shape == (3, 512)
    arguments = [str(tmp_path / "policy.zip"), EMPTY_ROOM, "--levels", "24", "--budget", "20"]
    monkeypatch.setattr(sys, "argv", ["failures.py", *arguments])
    monkeypatch.syspath_prepend(str(SCRIPTS))
    runpy.run_path(str(SCRIPTS / "failures.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()[1:]
    assert len(lines) == failures.WORST
    shown = [float(line.split()[3]) for line in lines]
    assert shown == sorted(shown)
    assert all(Path(line.split()[4]).exists() for line in lines)


def test_what_is_no_policy_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.zip").write_text("nothing")
    DQN("CnnPolicy", envs.make_vec(EMPTY_ROOM, 1, 0), buffer_size=10, device="cpu").policy.save(
        str(tmp_path / "dqn.zip")
    )
    for name in ("text.zip", "absent.zip", "dqn.zip"):
        with pytest.raises(RlpreError, match=f"{name} is no policy that can be played"):
            load_policy(tmp_path / name)
