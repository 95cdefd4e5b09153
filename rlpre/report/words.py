"""Moved to rlpre.evaluation.page."""
import sys; from rlpre.evaluation import page  # noqa
page.show = page.show_interval
sys.modules[__name__] = page
