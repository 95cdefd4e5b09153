"""Moved to rlpre.encoders.encoder."""

import sys

from rlpre.encoders import encoder

sys.modules[__name__] = encoder
