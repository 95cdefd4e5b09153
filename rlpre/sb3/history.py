"""Moved to rlpre.sb3.vecenv."""

import sys

from rlpre.sb3 import vecenv

sys.modules[__name__] = vecenv
