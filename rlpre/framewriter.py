"""Moved to rlpre.data.store."""

import sys

from rlpre.data import store

sys.modules[__name__] = store
