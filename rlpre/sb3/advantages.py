"""Moved to rlpre.sb3.ppo."""

import sys

from rlpre.sb3 import ppo  # noqa

sys.modules[__name__] = ppo
