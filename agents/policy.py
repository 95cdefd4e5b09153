"""Moved to agents.cloning."""

import sys

from agents import cloning

sys.modules[__name__] = cloning
