"""Moved to rlpre.data.windows."""

import sys

from rlpre.data import windows

sys.modules[__name__] = windows
