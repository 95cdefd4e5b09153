"""Moved to agents.exposure."""

import sys

from agents import exposure

sys.modules[__name__] = exposure
