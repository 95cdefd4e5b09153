"""Masked against autoregressive pretraining: how likely does each find unseen frames of trajectories?"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.features import WINDOWS
from rlpre.objectives import make_objective
from rlpre.objectives.batches import WindowReader
from rlpre.objectives.symbols import SymbolObjective, foreground, symbol_loss
from rlpre.pretrain import Pretext, read_state
from rlpre.utils import resolve_device

Scores = dict[str, float]


def conditional_likelihood(
    paths: Mapping[str, str | Path], store: FrameStore, windows: int = 1024, seed: int = 0, device: str = "auto"
) -> dict[str, Scores]:
    """Scores pretrained sequence encoders, with the heads that they were pretrained with, on the same windows.

    All predict the next frame from the past; masked models see windows that end with it, hidden. Masked models predict
    the middle frame from both sides, autoregressive ones from the past.

    Args:
        paths: name -> directory of a pretraining with objective "autoregressive" or "masked", all of one window.
        store: held-out trajectories.
        windows: number of full windows, drawn uniformly with replacement.
        seed: of the windows.
        device: where the models run.

    Returns:
        By name: "next_nll" and "middle_nll", negative log-likelihood in nats of a cell with something in it;
        "next_accuracy" and "middle_accuracy", the share of these cells with all three symbols right; "next_copied" and
        "middle_copied", the accuracy of predicting the frame before.

    Raises:
        RlpreError: if a directory holds no such pretraining, windows differ, or the store does not fit a model.
    """
    models = {name: _load(Path(path), store, device) for name, path in paths.items()}
    lengths = {name: encoder.window for name, (encoder, _) in models.items()}
    if len(set(lengths.values())) != 1:
        raise RlpreError(f"windows differ ({lengths}): compare sequence encoders of one window")
    scores = {}
    for name, (encoder, objective) in models.items():
        reader = WindowReader(store, encoder, None, encoder.device)
        rows = np.random.default_rng(seed).choice(reader.windows.full, windows)  # the same for all models
        scores[name] = _score(encoder, objective, reader, reader.windows.ending(rows))
    return scores


def _load(path: Path, store: FrameStore, device: str) -> tuple[SequenceEncoder, SymbolObjective]:
    encoder = SequenceEncoder.load(path)
    objectives = make_objective(encoder.pretraining.get("objective", "cpc"), encoder, store)
    symbolic = [part for part in objectives.objectives.values() if isinstance(part, SymbolObjective)]
    if not symbolic:
        raise RlpreError(f"{path} holds no pretraining that predicts symbols: use one by autoregressive or masked")
    pretext = Pretext(encoder, objectives)
    pretext.load_state_dict(read_state(path)["model"])
    pretext.to(resolve_device(device)).eval()
    return encoder, symbolic[0]


@torch.inference_mode()
def _score(encoder: SequenceEncoder, objective: SymbolObjective, reader: WindowReader, rows: np.ndarray) -> Scores:
    length = rows.shape[1]
    scores: Scores = {}
    for name, step in (("next", length - 1), ("middle", length // 2)):
        found: dict[str, list[Tensor]] = {"nll": [], "accuracy": [], "copied": []}
        for at in range(0, len(rows), WINDOWS):
            batch = reader.batch(rows[at : at + WINDOWS])
            assert batch.codes is not None
            before, answer = (batch.codes[:, place].flatten(1, 2).long() for place in (step - 1, step))
            nll, right = symbol_loss(objective.fill(batch.views(encoder), step), answer)
            for values, value in zip(found.values(), (nll, right, (before == answer).all(-1)), strict=True):
                values.append(value[foreground(answer)].float())
        scores |= {f"{name}_{measure}": float(torch.cat(values).mean()) for measure, values in found.items()}
    return scores
