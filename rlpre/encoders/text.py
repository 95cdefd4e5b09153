"""Moved to rlpre.encoders.sequence."""
import sys; from rlpre.encoders import sequence  # noqa
sys.modules[__name__] = sequence
