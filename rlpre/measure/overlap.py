"""Moved to rlpre.evaluation.overlap."""  # ALIAS

import sys

from rlpre.evaluation import overlap

sys.modules[__name__] = overlap
