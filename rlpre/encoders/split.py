"""Moved to rlpre.encoders.published."""
import sys; from rlpre.encoders import published  # noqa
sys.modules[__name__] = published
