"""The worlds to measure on: MiniGrid and BabyAI as pixels, drawn by look-up."""

from envs.atlas import atlas
from envs.collect import collect
from envs.demos import demonstrations
from envs.worlds import make, make_vec

__all__ = ["atlas", "collect", "demonstrations", "make", "make_vec"]
