"""Moved to rlpre.objectives.batches."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("rlpre.objectives.batches")
