"""Moved to rlpre.objectives.batches, .base and .symbols."""

from rlpre.objectives.base import SequenceObjective
from rlpre.objectives.batches import WINDOWS, WindowBatch, WindowReader, WindowViews
from rlpre.objectives.symbols import SymbolObjective

__all__ = ["WINDOWS", "SequenceObjective", "SymbolObjective", "WindowBatch", "WindowReader", "WindowViews"]
