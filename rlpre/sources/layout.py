"""Moved to rlpre.data.layout."""

import sys

from rlpre.data import layout

sys.modules[__name__] = layout
