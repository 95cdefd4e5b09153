"""Moved to envs.minigrid.render."""

import sys

from envs.minigrid import render

sys.modules[__name__] = render
