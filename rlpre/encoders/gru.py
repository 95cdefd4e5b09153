"""Moved to rlpre.encoders.mixers."""

import sys

from rlpre.encoders import mixers

sys.modules[__name__] = mixers
