"""Layouts: what tells them apart, and two parts that share none."""

import numpy as np
import pytest

from envs import layouts, make
from rlpre.errors import RlpreError

LEVEL = "BabyAI-GoToLocal-v0"


def test_grid_pose_and_mission_make_a_layout() -> None:
    world = make(LEVEL)
    first = layouts.enter(world, 3)
    assert layouts.enter(make(LEVEL), 3) == first
    inner = world.grid_env
    found = {first}
    inner.agent_dir = (inner.agent_dir + 1) % 4
    found.add(layouts.layout(inner))
    inner.mission = "go to the moon"
    found.add(layouts.layout(inner))
    inner.grid.set(*inner.agent_pos, None)
    inner.agent_pos = tuple(np.add(inner.agent_pos, (1, 0)))
    found.add(layouts.layout(inner))
    inner.grid.vert_wall(1, 1, 2)
    found.add(layouts.layout(inner))
    assert len(found) == 5
    many = [layouts.enter(world, seed) for seed in range(200)]
    assert 0 <= min(many) < 2**13
    assert 2**14 < max(many) < 2**15
    assert len(set(many)) > 190


def test_one_fifth_of_the_layouts_is_for_tests() -> None:
    assert np.mean([layouts.is_test(layout) for layout in range(layouts.LAYOUTS)]) == pytest.approx(0.2, abs=1e-4)


def test_every_seed_belongs_to_one_part_and_no_layout_to_both() -> None:
    train, test = layouts.seeds(LEVEL, "train", 80), layouts.seeds(LEVEL, "test", 20)
    last = min(train[-1], test[-1])
    assert sorted(seed for seed in train + test if seed <= last) == list(range(last + 1))
    world = make(LEVEL)
    assert all(layouts.is_test(layouts.enter(world, seed)) for seed in test)
    assert not {layouts.enter(world, seed) for seed in train} & {layouts.enter(world, seed) for seed in test}
    assert layouts.seeds(LEVEL, "train", 5, first=train[3]) == train[3:8]


def test_minigrid_keeps_its_rejections_to_itself(capsys: pytest.CaptureFixture[str]) -> None:
    world = make(LEVEL)
    for seed in range(20):
        world.reset(seed=seed)
    assert capsys.readouterr().out == ""
    for seed in range(20):
        world.unwrapped.reset(seed=seed)
    assert "Sampling rejected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((LEVEL, "tests", 1), "unknown part 'tests': did you mean 'test'"),
        ((LEVEL, "test", 0), "cannot find 0 seeds from 0 on"),
        ((LEVEL, "test", 1, -1), "cannot find 1 seeds from -1 on"),
        (("BabyAI-GoToLocale-v0", "test", 1), "did you mean 'BabyAI-GoToLocal"),
    ],
)
def test_bad_input_is_named(arguments: tuple, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        layouts.seeds(*arguments)


def test_a_level_with_one_layout_cannot_be_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "MOST_MISSES", 20)
    level = "MiniGrid-Empty-5x5-v0"
    (there, absent) = ("test", "train") if layouts.is_test(layouts.enter(make(level), 0)) else ("train", "test")
    assert layouts.seeds(level, there, 3) == [0, 1, 2]
    with pytest.raises(RlpreError, match=f"{level} has too few layouts for a part '{absent}'"):
        layouts.seeds(level, absent, 1)
