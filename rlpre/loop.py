"""Moved to rlpre.pretrain."""

import importlib
import sys

sys.modules[__name__] = importlib.import_module("rlpre.pretrain")
