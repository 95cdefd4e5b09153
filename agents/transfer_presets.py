"""Moved to agents.transfer."""

import sys

from agents import transfer

sys.modules[__name__] = transfer
