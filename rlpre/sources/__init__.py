"""Where frames come from: environments, images, arrays, Minari."""

from rlpre.sources.arrays import from_arrays
from rlpre.sources.images import from_images
from rlpre.sources.minari import from_minari, to_minari
from rlpre.sources.vecenv import collect

__all__ = ["collect", "from_arrays", "from_images", "from_minari", "to_minari"]
