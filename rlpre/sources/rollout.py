"""Moved to rlpre.data.collect."""

import sys

from rlpre.data import collect

sys.modules[__name__] = collect
