"""Moved to rlpre.objectives.losses."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("rlpre.objectives.losses")
