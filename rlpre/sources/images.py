"""Moved to rlpre.data.files."""

import sys

from rlpre.data import files

sys.modules[__name__] = files
