"""Moved to rlpre.encoders.networks."""

import sys

from rlpre.encoders import networks

sys.modules[__name__] = networks
