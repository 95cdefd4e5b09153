"""Moved to envs.minigrid.demos."""

import sys

from envs.minigrid import demos

sys.modules[__name__] = demos
