"""The environments that we measure in, and for MiniGrid and BabyAI experts, frames and demonstrations."""

from envs.make import find, make_vec
from envs.minigrid.collect import collect
from envs.minigrid.demos import demonstrations
from envs.minigrid.render import atlas
from envs.minigrid.worlds import WORDS as MISSION_WORDS
from envs.minigrid.worlds import make

__all__ = ["MISSION_WORDS", "atlas", "collect", "demonstrations", "find", "make", "make_vec"]
