"""Moved to agents.presets (AGENTS) and rlpre.compare.arms (Backbone)."""  # ALIAS

from agents.presets import AGENTS as RECIPES  # noqa: F401
from rlpre.compare.arms import Backbone  # noqa: F401
