"""Moved to rlpre.data."""

from rlpre.data.collect import collect
from rlpre.data.files import from_arrays, from_images
from rlpre.data.minari import from_minari, to_minari

__all__ = ["collect", "from_arrays", "from_images", "from_minari", "to_minari"]
