"""Masked against autoregressive: how likely does each find frames of trajectories that it has not seen?"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from rlpre.device import resolve_device
from rlpre.encoders.sequence import SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.loop import Pretext, read_state
from rlpre.objectives import make_objective
from rlpre.objectives.sequence import WINDOWS, SymbolObjective, WindowReader
from rlpre.objectives.symbols import foreground, judge
from rlpre.sampling import Indices

Scores = dict[str, float]


def conditional_likelihood(
    paths: Mapping[str, str | Path], store: FrameStore, windows: int = 1024, seed: int = 0, device: str = "auto"
) -> dict[str, Scores]:
    """Scores pretrained sequence encoders, with the heads that they were pretrained with, on the same windows.

    The next frame is asked for given the past alone, by all; masked models see windows that end with it, and it is
    hidden. The middle frame is asked for given both sides by masked models, given the past by autoregressive ones.

    Args:
        paths: name -> directory of a pretraining with objective "autoregressive" or "masked", all of one window.
        store: held-out trajectories.
        windows: how many to draw, of those that are full, uniformly and with replacement.
        seed: draws them.
        device: where the models run.

    Returns:
        By name: "next_nll" and "middle_nll", negative log-likelihood in nats of a cell with something in it; and
        "next_accuracy" and "middle_accuracy", the share of these cells of which all three symbols are right; and
        "next_copied" and "middle_copied", the accuracy of answering with the frame before.

    Raises:
        RlpreError: if a directory holds no such pretraining, windows differ, or the store is not what a model reads.
    """
    models = {name: _load(Path(path), store).to(resolve_device(device)).eval() for name, path in paths.items()}
    lengths = {name: model.encoder.window for name, model in models.items()}
    if len(set(lengths.values())) != 1:
        raise RlpreError(f"windows differ ({lengths}): compare sequence encoders of one window")
    scores = {}
    for name, model in models.items():
        reader = WindowReader(store, model.encoder, None, model.encoder.device)
        rows = np.random.default_rng(seed).choice(reader.windows.full, windows)  # the same for all
        scores[name] = _score(model, reader, reader.windows.ending(rows))
    return scores


class _Model(nn.Module):
    """A sequence encoder and the objective that it was pretrained with."""

    def __init__(self, encoder: SequenceEncoder, objective: SymbolObjective) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective


def _load(path: Path, store: FrameStore) -> _Model:
    encoder = SequenceEncoder.load(path)
    objectives = make_objective(encoder.pretraining.get("objective", "cpc"), encoder, store)
    symbolic = [part for part in objectives.objectives.values() if isinstance(part, SymbolObjective)]
    if not symbolic:
        raise RlpreError(f"{path} holds no pretraining that predicts symbols: use one by autoregressive or masked")
    Pretext(encoder, objectives).load_state_dict(read_state(path)["model"])
    return _Model(encoder, symbolic[0])


@torch.inference_mode()
def _score(model: _Model, reader: WindowReader, rows: Indices) -> Scores:
    length = rows.shape[1]
    scores: Scores = {}
    for name, step in (("next", length - 1), ("middle", length // 2)):
        found: dict[str, list[Tensor]] = {"nll": [], "accuracy": [], "copied": []}
        for at in range(0, len(rows), WINDOWS):
            batch = reader.batch(rows[at : at + WINDOWS])
            assert batch.codes is not None
            before, asked = (batch.codes[:, place].flatten(1, 2).long() for place in (step - 1, step))
            nll, right = judge(model.objective.fill(batch.views(model.encoder), step), asked)
            for values, value in zip(found.values(), (nll, right, (before == asked).all(-1)), strict=True):
                values.append(value[foreground(asked)].float())
        scores |= {f"{name}_{measure}": float(torch.cat(values).mean()) for measure, values in found.items()}
    return scores
