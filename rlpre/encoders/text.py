"""Moved to rlpre.encoders.sequence."""

import sys

from rlpre.encoders import sequence

sys.modules[__name__] = sequence
