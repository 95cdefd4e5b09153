"""Moved to rlpre.objectives.batches, .base and .symbols."""

from rlpre.features import WINDOWS
from rlpre.objectives.base import SequenceObjective
from rlpre.objectives.batches import WindowBatch, WindowReader, WindowViews
from rlpre.objectives.symbols import SymbolObjective

__all__ = ["WINDOWS", "SequenceObjective", "SymbolObjective", "WindowBatch", "WindowReader", "WindowViews"]
