"""Moved to rlpre.data.tiles."""

import sys

from rlpre.data import tiles

sys.modules[__name__] = tiles
