"""Where frames come from: environments, images, arrays, Minari."""

from rlpre.sources.vecenv import collect

__all__ = ["collect"]
