"""Moved to rlpre.data.adapters."""

import sys

from rlpre.data import adapters

sys.modules[__name__] = adapters
