"""Moved to agents.distinct."""

import sys

from agents import distinct  # noqa: TID251

sys.modules[__name__] = distinct
