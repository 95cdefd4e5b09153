"""The environments that we measure in: MiniGrid and BabyAI as exact pixels, experts, frames and demonstrations."""

from envs.make import find
from envs.minigrid.collect import collect
from envs.minigrid.demos import demonstrations
from envs.minigrid.render import atlas
from envs.minigrid.worlds import WORDS as MISSION_WORDS
from envs.minigrid.worlds import make, make_vec

__all__ = ["MISSION_WORDS", "atlas", "collect", "demonstrations", "find", "make", "make_vec"]
