"""Moved to rlpre.data.minari."""

import sys

from rlpre.data import minari

sys.modules[__name__] = minari
