"""The environments that we measure in, their experts, and frames and demonstrations of these."""

from envs.make import collect, find, make_vec
from envs.minigrid.demos import demonstrations
from envs.minigrid.render import atlas
from envs.minigrid.worlds import WORDS as MISSION_WORDS
from envs.minigrid.worlds import make

__all__ = ["MISSION_WORDS", "atlas", "collect", "demonstrations", "find", "make", "make_vec"]
