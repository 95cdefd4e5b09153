"""Moved to envs.minigrid.collect."""

import sys

from envs.minigrid import collect

sys.modules[__name__] = collect
