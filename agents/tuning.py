"""Moved to agents.corrections."""

import sys

from agents import corrections

sys.modules[__name__] = corrections
