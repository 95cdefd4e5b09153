"""Moved to rlpre.evaluation.invariance."""  # ALIAS

import sys

from rlpre.evaluation import invariance

sys.modules[__name__] = invariance
