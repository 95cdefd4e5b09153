"""Moved to rlpre.evaluation.page."""
import sys; from rlpre.evaluation import page  # noqa
sys.modules[__name__] = page
