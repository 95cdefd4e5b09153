"""What a pretraining shows of itself: progress, TensorBoard, and an alarm that says how features have collapsed."""

import copy
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlpre.data.store import FrameStore, Indices
from rlpre.encoders import AnyEncoder
from rlpre.errors import RlpreError
from rlpre.evaluation.health import ROWS, Health, collapse_cause, health, sample_features, unstandardised
from rlpre.evaluation.probes import distinct_rows
from rlpre.objectives.base import WeightedSum
from rlpre.utils import nearest_grid, to_rgb

POINTS = 400  # distinct frames in the projector
THUMBNAIL = 64  # largest side of their pictures, in pixels
FEATURES = "features"  # the encoder's part of the health; the others are projections, by their objective's name
SHOWN = ("loss", "accuracy", "r2")  # metrics that `Progress` shows
BAR_EVERY, LINE_EVERY = 1, 60  # seconds between them on a terminal and elsewhere
NEAR_CHANCE = 0.95  # share of the chance loss: InfoNCE above it has learned nothing

Parts = dict[str, dict[str, Any]]  # the fields of `Health` by part


class Progress(tqdm):  # type: ignore[misc]  # tqdm has no types
    """Shows how far a pretraining is, on stderr: a bar on a terminal, else a line a minute; nothing if ``silent``."""

    def __init__(self, name: str, step: int, steps: int, silent: bool) -> None:
        super().__init__(total=steps, initial=step, desc=name, unit="step", disable=silent or None)  # None: no terminal
        self.name, self.first, self.steps, self.silent = name, step, steps, silent
        self.began = self.shown = time.monotonic()

    def show(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Call after every step; the metrics are read, which waits for a GPU, only when they are shown."""
        self.update()
        now = time.monotonic()
        if self.silent or now - self.shown < (LINE_EVERY if self.disable else BAR_EVERY):
            return
        self.shown, text = now, describe(metrics)
        if not self.disable:
            self.set_postfix_str(text)
            return
        rate = (step - self.first) / (now - self.began)
        speed = f"{rate:.3g} steps/s, about {(self.steps - step) / rate / 60:.0f} min left"
        print(f"{self.name}: step {step:,} of {self.steps:,}, {speed}; {text}", file=sys.stderr, flush=True)


def describe(metrics: Mapping[str, Tensor | float]) -> str:
    """Loss and accuracy of each objective in words, of metrics by "NAME/METRIC"."""
    parts: dict[str, list[str]] = {}
    for name, value in metrics.items():
        part, _, kind = name.rpartition("/")
        if kind in SHOWN:
            parts.setdefault(part, []).append(f"{kind} {float(value):.3g}")
    return "; ".join(f"{part} {', '.join(numbers)}" for part, numbers in parts.items())


class TensorBoard(SummaryWriter):
    """Writes the TensorBoard events of a pretraining into the directory ``out``."""

    def __init__(self, out: Path, step: int) -> None:  # events of later steps, left by a process that died, are dropped
        try:
            super().__init__(str(out), purge_step=step + 1)
        except OSError as error:
            raise RlpreError(f"cannot write into {out}: {error.strerror}") from error
        self.step, self.last = step, time.perf_counter()

    def scalars(self, step: int, group: str, numbers: Mapping[str, Any]) -> None:
        """Adds a point to the curve "GROUP/NAME" of each number."""
        for name, number in numbers.items():
            self.add_scalar(f"{group}/{name}", float(number), step)

    def curves(self, step: int, metrics: Mapping[str, Tensor], rate: float, frames: int) -> None:
        """Adds a point to every curve of the training; each step encodes ``frames``."""
        now = time.perf_counter()
        speed = frames * (step - self.step) / (now - self.last)
        self.scalars(step, "pretext", metrics)
        self.scalars(step, "time", {"rate": rate, "frames_per_second": speed})
        self.step, self.last = step, now

    def measurements(self, step: int, reports: Mapping[str, Any]) -> None:
        """Adds probe scores, health, and the alarm if something has collapsed; see `rlpre.PretrainResult`."""
        for kind in ("probes", "control"):
            self.scalars(step, kind, reports[kind])
        for kind in ("health", "fresh"):
            for part, numbers in reports[kind].items():
                self.scalars(step, kind if part == FEATURES else f"{kind}/{part}", numbers)
        if reports["collapse"]:
            self.add_text("collapse", reports["collapse"], step)
            warn(step, reports["collapse"])
        self.flush()

    def draw(self, picture: Callable[..., None], step: int, *given: Any) -> None:
        """Calls ``picture(step, *given)``; if it cannot be drawn, this warns, for that must not cost a checkpoint."""
        try:
            picture(step, *given)
        except Exception as error:
            warn(step, f"a picture cannot be drawn ({type(error).__name__}: {error}); the checkpoint does not need it")

    @torch.inference_mode()
    def pictures(self, step: int, pretext: Any, encoder: AnyEncoder, batch: Any) -> None:
        """Adds pictures of the tasks of a `Pretext`, and which frames of the batch have similar features.

        ``encoder`` is the one in training, standardised.
        """
        for name, part in pretext.objective.objectives.items():
            if (picture := part.picture(pretext.encoder, batch)) is not None:
                self.add_image(name, picture.cpu(), step)
        _, distinct = np.unique(batch.anchor_id.cpu().numpy(), return_index=True)
        features = batch.views(encoder).plain[distinct].float()
        near = nearest_grid(features, batch.anchor[distinct]).cpu()
        self.add_image("neighbours", near, step)
        self.flush()

    def embedding(self, step: int, encode: Callable[[Indices], Tensor], frames: FrameStore) -> None:
        """Fills the projector: features of distinct frames, with thumbnails and the store's labels as colours."""
        _, first = np.unique(frames.ids, return_index=True)
        rows = np.random.default_rng(0).permutation(first)[:POINTS]
        labels = [[str(value) for value in frames.column(name)[rows]] for name in frames.labels]
        self.add_embedding(
            encode(rows),
            metadata=list(zip(*labels, strict=True)) if labels else None,
            metadata_header=frames.labels if labels else None,
            label_img=thumbnails(to_rgb(torch.from_numpy(frames.frames(rows))).float() / 255),
            global_step=step,
            tag="features",
        )


def warn(step: int, sentence: str) -> None:
    """Writes a warning to stderr, above a progress bar."""
    tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)


def thumbnails(pictures: Tensor) -> Tensor:
    """Square pictures of at most ``THUMBNAIL`` pixels, of pictures (n, 3, H, W), with black borders where needed.

    PyTorch's sprite of the projector fails for pictures that are higher than wide, and TensorBoard stretches others.
    """
    longest = max(pictures.shape[2:])
    side = min(longest, THUMBNAIL)
    height, width = (max(1, each * side // longest) for each in pictures.shape[2:])
    down, right = side - height, side - width
    small = F.interpolate(pictures, size=(height, width), mode="area")
    return F.pad(small, (right // 2, right - right // 2, down // 2, down - down // 2))


def measure_health(encoder: AnyEncoder, objective: WeightedSum, reader: Any, seed: int) -> Parts:
    """The health of an encoder's features, and of the projections that its objectives compare, by part.

    ``seed`` draws the inputs: use the same for all that is compared.
    """
    rows = distinct_rows(reader, ROWS, seed)
    features = sample_features(encoder, reader, rows, seed)
    parts = {FEATURES: asdict(health(*unstandardised(encoder, features)))}
    for name, part in objective.objectives.items():
        if hasattr(part, "projector"):
            projector: Any = copy.deepcopy(part.projector)
            with torch.no_grad():  # and with batch statistics, as in the loss
                parts[name] = asdict(health(*map(projector.train(), features)))
    return parts


def explain_collapse(now: Parts, untrained: Parts, metrics: Mapping[str, Tensor]) -> str | None:
    """Says in one sentence what has collapsed, and how; None if nothing has.

    ``now`` and ``untrained`` (of fresh weights) are from `measure_health`, ``metrics`` of the last batch.
    """
    for part in now:
        trained, control = Health(**now[part]), Health(**untrained[part])
        if cause := collapse_cause(trained, control):
            what = "features of the encoder" if part == FEATURES else f"projections of objective {part!r}"
            return (
                f"the {what} have collapsed ({cause}): over {trained.inputs:,} different inputs their spread is "
                f"{trained.spread:.2g} and their effective rank {trained.effective_rank:.1f}, centred "
                f"{trained.centred_rank:.1f}, of fresh weights {control.spread:.2g}, {control.effective_rank:.1f} "
                f"and {control.centred_rank:.1f}{_loss_at_chance(metrics)}"
            )
    return None


def _loss_at_chance(metrics: Mapping[str, Tensor]) -> str:
    for name, chance in metrics.items():
        part, _, kind = name.rpartition("/")
        if kind == "chance_loss" and metrics[f"{part}/loss"] >= NEAR_CHANCE * chance:
            return f"; the loss of {part!r}, {float(metrics[f'{part}/loss']):.2f}, is that of a constant, ln N"
    return ""
