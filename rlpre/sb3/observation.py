"""Moved to rlpre.sb3.spaces."""

import sys

from rlpre.sb3 import spaces

sys.modules[__name__] = spaces
