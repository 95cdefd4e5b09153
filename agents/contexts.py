"""Moved to agents.exposure_metrics."""

import sys

from agents import exposure_metrics

sys.modules[__name__] = exposure_metrics
