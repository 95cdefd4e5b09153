"""Moved to rlpre.sb3.ppo."""

import sys

from rlpre.sb3 import ppo

sys.modules[__name__] = ppo
