"""Missions as numbers that a policy can read."""

from functools import lru_cache

import numpy as np

from rlpre.errors import RlpreError

VOCABULARY = (
    "a after and at avoid ball behind blue box door end fetch find from front get go goal green grey hallway in key "
    "lava left matching maze must near next object of on open opening pick purple put reach red right room rooms "
    "square the then to traverse unlock up use yellow you your"
)
WORDS = VOCABULARY.split()
SEPARATORS = {"after", "and", "from", "near", "next", "then", "unlock"}  # between two things that a mission names
CLAUSES = 8  # in the longest mission of BabyAI's grammar
SHAPE = CLAUSES, len(WORDS)  # of a mission as an observation, `clauses`


@lru_cache(maxsize=4096)
def clauses(mission: str) -> np.ndarray:
    """Which words stand in each clause of a mission: (clauses, words) int8, read-only.

    A separator opens a new clause, so that "put the red ball next to the blue box" differs from "put the blue box next
    to the red ball". Within a clause MiniGrid's grammar knows one order only, so no two missions are the same.

    Raises:
        RlpreError: for a word that no mission of MiniGrid and BabyAI has, or too many clauses.
    """
    marks = np.zeros(SHAPE, np.int8)
    clause = 0
    for word in mission.lower().replace(",", " ").split():
        clause += word in SEPARATORS
        if word not in WORDS or clause == CLAUSES:
            what = f"more than {CLAUSES} clauses" if word in WORDS else f"the unknown word {word!r}"
            raise RlpreError(f"the mission {mission!r} has {what}: leave out dict_obs and read the mission from info")
        marks[clause, WORDS.index(word)] = 1
    marks.setflags(write=False)
    return marks
