"""Moved to rlpre.utils."""
import sys; from rlpre import utils  # noqa
sys.modules[__name__] = utils
