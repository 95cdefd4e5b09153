"""Self-supervised objectives, combined by a string such as ``"temporal:1+inverse:0.5"``."""

import inspect
from typing import get_args

from rlpre.data.store import FrameStore
from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError, lookup
from rlpre.objectives.autoregressive import Autoregressive
from rlpre.objectives.base import Needs, Objective, WeightedSum
from rlpre.objectives.batches import make_reader
from rlpre.objectives.change import Change
from rlpre.objectives.contrastive import Contrastive
from rlpre.objectives.cpc import Cpc
from rlpre.objectives.forward import Forward
from rlpre.objectives.inverse import Inverse
from rlpre.objectives.jigsaw import Jigsaw
from rlpre.objectives.masked import Masked
from rlpre.objectives.symbols import Supervised
from rlpre.objectives.temporal import Temporal

__all__ = ["OBJECTIVES", "Objective", "make_objective", "make_reader", "parse_objective", "register_objective"]

OBJECTIVES: dict[str, type[Objective]] = {
    "autoregressive": Autoregressive,
    "change": Change,
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


def register_objective(name: str, objective: type[Objective]) -> None:
    """Makes a class of your own an objective: ``register_objective("mine", Mine)``, then ``objective="mine"``.

    Register again, under the same name, in every process that starts or resumes a pretraining with it.

    Raises:
        RlpreError: if the name is not a plain word or belongs to another class, or the class is not an `Objective`
            that defines ``forward``.
    """
    if not (inspect.isclass(objective) and issubclass(objective, Objective)) or inspect.isabstract(objective):
        raise RlpreError(
            f"objective {name!r} is registered with {objective!r}: give a subclass of rlpre.objectives.Objective that "
            "defines forward"
        )
    there = OBJECTIVES.get(name, objective)
    same = (there.__module__, there.__qualname__) == (objective.__module__, objective.__qualname__)  # defined again
    if not name or set(name) & set("+: ") or not same:
        raise RlpreError(
            f"the objective name {name!r} is taken or no plain word: choose one not among {', '.join(OBJECTIVES)}"
        )
    OBJECTIVES[name] = objective


def parse_objective(text: str, kind: str | None = None) -> dict[str, float]:
    """Reads ``"temporal:1+inverse:0.5"`` into names and weights; the default weight is 1.

    Raises:
        RlpreError: for an unknown or repeated name, a weight that is not a positive number, or an objective for another
            ``kind`` of encoder than the given one, "vision" or "sequence".
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
        RlpreError: as `parse_objective`, or if an objective needs frames in sequence, or actions, where there are none,
            or a sequence encoder that sees (or does not see) later steps.
    """
    weights = parse_objective(text, encoder.kind)
    sequences = not frames.column("episode_start").all()
    offered = get_args(Needs)[: 1 if not sequences else 2 if frames.action_space is None else 3]
    fitting = [name for name, known in OBJECTIVES.items() if known.kind == encoder.kind and known.needs in offered]
    if not frames.atlas and not frames.labels and "supervised" not in weights:
        fitting = [name for name in fitting if name != "supervised"]
    for name in weights:
        if name not in fitting:
            raise RlpreError(
                f"objective {name!r} learns from {OBJECTIVES[name].needs}, but {frames.path} holds "
                f"{OFFERS[offered[-1]]}: use {' or '.join(fitting) or 'trajectories'}"
            )
        causal = OBJECTIVES[name].causal
        if getattr(encoder, "causal", causal) != causal:
            why = "would be shown its own answers" if causal else "fills in what is hidden from both sides"
            raise RlpreError(f"objective {name!r} {why}: build the sequence encoder with causal={causal}")
    return WeightedSum({name: OBJECTIVES[name](encoder, frames) for name in weights}, weights)
