"""Self-supervised objectives: one per file, combined by a string such as ``"temporal:1+inverse:0.5"``."""

from rlpre.data.store import FrameStore
from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.objectives import batches  # ALIAS
from rlpre.objectives.autoregressive import Autoregressive
from rlpre.objectives.base import Objective, WeightedSum
from rlpre.objectives.batches import AnyBatch, make_reader
from rlpre.objectives.contrastive import Contrastive
from rlpre.objectives.cpc import Cpc
from rlpre.objectives.forward import Forward
from rlpre.objectives.inverse import Inverse
from rlpre.objectives.jigsaw import Jigsaw
from rlpre.objectives.masked import Masked
from rlpre.objectives.supervised import Supervised
from rlpre.objectives.temporal import Temporal

__all__ = ["OBJECTIVES", "AnyBatch", "Objective", "WeightedSum", "make_objective", "make_reader", "parse_objective"]

OBJECTIVES: dict[str, type[Objective]] = {
    "autoregressive": Autoregressive,
    "contrastive": Contrastive,
    "cpc": Cpc,
    "forward": Forward,
    "inverse": Inverse,
    "jigsaw": Jigsaw,
    "masked": Masked,
    "supervised": Supervised,
    "temporal": Temporal,
}
OFFERS = {"frames": "single images", "pairs": "frames without actions", "actions": "frames and actions"}
LEVELS = list(OFFERS)  # each offers what those before it do


def parse_objective(text: str, kind: str | None = None) -> dict[str, float]:
    """Reads ``"temporal:1+inverse:0.5"`` into names and weights; the default weight is 1.

    Args:
        text: names joined by "+", each with an optional weight after a colon.
        kind: of the encoder to pretrain, "vision" or "sequence"; None: any.

    Raises:
        RlpreError: for an unknown or repeated name, a weight that is not a positive number, or an objective for the
            other kind of encoder.
    """
    weights: dict[str, float] = {}
    for part in text.split("+"):
        name, _, weight = part.strip().partition(":")
        needed = lookup("objective", name, OBJECTIVES).kind
        if name in weights:
            raise RlpreError(f"objective {name!r} is named twice in {text!r}: name it once, with one weight")
        try:
            weights[name] = float(weight or 1)
        except ValueError:
            weights[name] = 0.0
        if not 0 < weights[name] < float("inf"):
            raise RlpreError(f"weight {weight!r} of objective {name!r} is not a positive number: write {name}:0.5")
        if kind not in (None, needed):
            fitting = ", ".join(known for known, objective in OBJECTIVES.items() if objective.kind == kind)
            raise RlpreError(
                f"objective {name!r} pretrains a {needed} encoder and was given a {kind} encoder: give it one, or "
                f"choose among {fitting}"
            )
    return weights


def make_objective(text: str, encoder: AnyEncoder, frames: FrameStore) -> WeightedSum:
    """Builds the objective that ``text`` names for an encoder and the frames it will see.

    Raises:
        RlpreError: as `parse_objective`, or if an objective needs frames in sequence, or actions, where there are none.
    """
    weights = parse_objective(text, encoder.kind)
    sequences = not frames.column("episode_start").all()
    offered = ("pairs" if frames.action_space is None else "actions") if sequences else "frames"
    fitting = [
        name
        for name, objective in OBJECTIVES.items()
        if objective.kind == encoder.kind and LEVELS.index(objective.needs) <= LEVELS.index(offered)
    ]
    for name in weights:
        if name not in fitting:
            raise RlpreError(
                f"objective {name!r} learns from {OBJECTIVES[name].needs}, but {frames.path} holds {OFFERS[offered]}: "
                f"use {' or '.join(fitting) or 'trajectories'}"
            )
    return WeightedSum({name: OBJECTIVES[name](encoder, frames) for name in weights}, weights)


Weighted = WeightedSum  # ALIAS
READERS: dict[str, type[batches.FrameReader] | type[batches.WindowReader]]  # ALIAS
READERS = {"vision": batches.FrameReader, "sequence": batches.WindowReader}  # ALIAS
Views, Batch, FrameReader = batches.FrameViews, batches.Batch, batches.FrameReader  # ALIAS
WindowViews, WindowBatch, WindowReader = batches.WindowViews, batches.WindowBatch, batches.WindowReader  # ALIAS


def draw_batch(frames, pairs, size, rng, device):  # type: ignore[no-untyped-def]  # ALIAS
    """Moved to `FrameReader.draw`."""
    reader = FrameReader(frames, None, None, device)  # type: ignore[arg-type]
    reader.pairs = pairs
    return reader.draw(size, rng)
