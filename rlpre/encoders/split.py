"""Moved to rlpre.encoders.published."""

import sys

from rlpre.encoders import published

sys.modules[__name__] = published
