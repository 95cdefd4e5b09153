"""Moved to rlpre.sb3.spaces."""

import sys

from rlpre.sb3 import spaces  # noqa

sys.modules[__name__] = spaces
