"""Moved to envs.minigrid.overlap."""  # ALIAS

import sys

from envs.minigrid import overlap

sys.modules[__name__] = overlap
