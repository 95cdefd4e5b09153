"""Moved to rlpre.utils."""

import sys

from rlpre import utils

sys.modules[__name__] = utils
