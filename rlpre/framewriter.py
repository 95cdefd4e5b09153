"""Moved to rlpre.data.writer."""

import sys

from rlpre.data import writer

sys.modules[__name__] = writer
