"""Moved to rlpre.encoders.mixers."""
import sys; from rlpre.encoders import mixers  # noqa
sys.modules[__name__] = mixers
