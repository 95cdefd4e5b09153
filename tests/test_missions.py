"""Missions as numbers: every one of MiniGrid's and BabyAI's, and no two alike."""

import gymnasium as gym
import numpy as np
import pytest
from minigrid.core.mission import MissionSpace

from envs.missions import CLAUSES, SEPARATORS, SHAPE, WORDS, clauses
from rlpre import RlpreError

# Of each clause "put A next to B", joined in the longest ways of BabyAI's grammar.
LONGEST = (
    "put the grey ball on your left next to the red box behind you and put a key next to the door in front of you, "
    "then put the green key on your right next to a blue door and put the purple object next to the yellow ball"
)


def words(mission: str) -> list[set[str]]:
    return [{WORDS[i] for i in np.flatnonzero(clause)} for clause in clauses(mission)]


def test_a_separator_opens_a_clause() -> None:
    given = words("put the red ball next to the blue box")
    assert given == [{"put", "the", "red", "ball"}, {"next", "to", "the", "blue", "box"}] + [set()] * (CLAUSES - 2)
    assert not np.array_equal(*map(clauses, ("put a ball near the box", "put the box near a ball")))


def test_the_longest_mission_fits() -> None:
    assert clauses(LONGEST).shape == SHAPE
    assert words(LONGEST)[-1] == {"next", "to", "the", "yellow", "ball"}


@pytest.mark.parametrize(
    ("mission", "named"), [("go to the teapot", "unknown word 'teapot'"), (LONGEST + " and go to a key", "8 clauses")]
)
def test_what_does_not_fit_is_refused(mission: str, named: str) -> None:
    with pytest.raises(RlpreError, match=named):
        clauses(mission)


@pytest.mark.filterwarnings("ignore")  # some ids have a newer version
def test_no_two_missions_of_minigrid_are_the_same() -> None:
    ids = [name for name in gym.registry if name.startswith("MiniGrid-") and "WFC" not in name]
    missions = set()
    for name in ids:
        space = gym.make(name, disable_env_checker=True).unwrapped.observation_space["mission"]
        assert isinstance(space, MissionSpace)
        space.seed(0)
        missions |= {space.sample() for _ in range(100)}
    assert len(missions) > 200
    assert len({clauses(mission).tobytes() for mission in missions}) == len(missions)
    assert set(WORDS) >= SEPARATORS
