"""Moved to envs.minigrid.worlds."""

import sys

from envs.minigrid import worlds

sys.modules[__name__] = worlds
