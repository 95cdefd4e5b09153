"""Moved to rlpre.evaluation.probes."""  # ALIAS

import sys

from rlpre.evaluation import probes

sys.modules[__name__] = probes
