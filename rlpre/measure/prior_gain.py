"""Moved to rlpre.evaluation.prior."""  # ALIAS

import sys

from rlpre.evaluation import prior

sys.modules[__name__] = prior
