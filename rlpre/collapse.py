"""Moved to rlpre.callbacks."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("rlpre.callbacks")
