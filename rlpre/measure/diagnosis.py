"""Moved to rlpre.evaluation.diagnose."""  # ALIAS

import sys

from rlpre.evaluation import diagnose

sys.modules[__name__] = diagnose
