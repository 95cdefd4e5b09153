"""The worlds to measure on: MiniGrid and BabyAI as pixels, drawn by look-up."""

from envs.atlas import atlas
from envs.worlds import make, make_vec

__all__ = ["atlas", "make", "make_vec"]
