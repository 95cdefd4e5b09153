"""Moved to rlpre.sb3.policy."""

import sys

from rlpre.sb3 import policy

sys.modules[__name__] = policy
