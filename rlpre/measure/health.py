"""Moved to rlpre.evaluation.health."""  # ALIAS

import sys

from rlpre.evaluation import health

sys.modules[__name__] = health
