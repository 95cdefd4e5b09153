"""What a pretraining shows of itself: progress, TensorBoard, and an alarm that says how features have collapsed."""

import copy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlpre.data.store import FrameStore, Indices
from rlpre.encoders import AnyEncoder
from rlpre.evaluation.health import ROWS, Health, collapse_cause, health, sample_features, unstandardised
from rlpre.evaluation.probes import distinct_rows, fresh
from rlpre.objectives import WeightedSum, make_objective
from rlpre.utils import nearest_grid, to_rgb

POINTS = 400  # distinct frames in the projector
THUMBNAIL = 64  # largest side of their pictures, in pixels
FEATURES = "features"  # the encoder's part of the health; the others are projections, by their objective's name
SHOWN = ("loss", "accuracy", "r2")  # metrics that `Progress` shows
BAR_EVERY, LINE_EVERY = 1, 60  # seconds between them on a terminal and elsewhere
NEAR_CHANCE = 0.95  # share of the chance loss: InfoNCE above it has learned nothing

Parts = dict[str, dict[str, Any]]  # the fields of `Health` by part


class Progress:
    """Says how far a pretraining is, on stderr: with a bar on a terminal, else with a line a minute.

    Args:
        name: of the pretraining.
        step: steps so far.
        steps: in all.
        silent: for processes that show nothing.
    """

    def __init__(self, name: str, step: int, steps: int, silent: bool) -> None:
        self.bar = tqdm(total=steps, initial=step, desc=name, unit="step", disable=silent or None)  # None: no terminal
        self.name, self.first, self.steps, self.silent = name, step, steps, silent
        self.began = self.shown = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def update(self, step: int, metrics: Mapping[str, Tensor]) -> None:
        """Call after every step; the metrics are read, which waits for a GPU, only when they are shown."""
        self.bar.update()
        now = time.monotonic()
        if self.silent or now - self.shown < (LINE_EVERY if self.bar.disable else BAR_EVERY):
            return
        self.shown = now
        if not self.bar.disable:
            self.bar.set_postfix_str(describe(metrics))
            return
        rate = (step - self.first) / (now - self.began)
        left = (self.steps - step) / rate / 60
        print(
            f"{self.name}: step {step:,} of {self.steps:,}, {rate:.3g} steps/s, about {left:.0f} min left; "
            f"{describe(metrics)}",
            file=sys.stderr,
            flush=True,
        )


def describe(metrics: Mapping[str, Tensor | float]) -> str:
    """Loss and accuracy of each objective in words, of metrics by "NAME/METRIC"."""
    parts: dict[str, list[str]] = {}
    for name, value in metrics.items():
        part, _, kind = name.rpartition("/")
        if kind in SHOWN:
            parts.setdefault(part, []).append(f"{kind} {float(value):.3g}")
    return "; ".join(f"{part} {', '.join(numbers)}" for part, numbers in parts.items())


class TensorBoard:
    """Writes the TensorBoard events of a pretraining; a context manager.

    Args:
        out: directory of the events.
        step: steps so far; events of later ones, left by a process that died, are dropped, for they come again.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.writer = SummaryWriter(str(out), purge_step=step + 1)
        self.step, self.last = step, time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.writer.close()

    def curves(self, step: int, metrics: Mapping[str, Tensor], rate: float, frames: int) -> None:
        """Adds a point to every curve; each step encodes ``frames``."""
        for name, value in metrics.items():
            self.writer.add_scalar(f"pretext/{name}", float(value), step)
        now = time.perf_counter()
        self.writer.add_scalar("time/rate", rate, step)
        self.writer.add_scalar("time/frames_per_second", frames * (step - self.step) / (now - self.last), step)
        self.step, self.last = step, now

    def measurements(self, step: int, reports: Mapping[str, Any]) -> None:
        """Adds probe scores, health, and the alarm if something has collapsed; see `rlpre.PretrainResult`."""
        groups = {kind: reports[kind] for kind in ("probes", "control")}
        for kind in ("health", "fresh"):
            for part, numbers in reports[kind].items():
                groups[kind if part == FEATURES else f"{kind}/{part}"] = numbers
        for group, numbers in groups.items():
            for name, number in numbers.items():
                self.writer.add_scalar(f"{group}/{name}", number, step)
        if reports["collapse"]:
            self.writer.add_text("collapse", reports["collapse"], step)
            warn(step, reports["collapse"])
        self.writer.flush()

    @torch.inference_mode()
    def pictures(self, step: int, pretext: Any, encoder: AnyEncoder, batch: Any) -> None:
        """Adds pictures of the objectives' tasks, and which frames of the batch have similar features.

        Args:
            step: of the checkpoint.
            pretext: encoder and objective in training.
            encoder: the same encoder, standardised.
            batch: the last one.
        """
        for name, picture in pretext.objective.pictures(pretext.encoder, batch).items():
            self.writer.add_image(name, picture.cpu(), step)
        _, distinct = np.unique(batch.anchor_id.cpu().numpy(), return_index=True)
        features = batch.views(encoder).plain[distinct].float()
        self.writer.add_image("neighbours", nearest_grid(features, batch.anchor[distinct]).cpu(), step)
        self.writer.flush()

    def embedding(self, step: int, encode: Callable[[Indices], Tensor], frames: FrameStore) -> None:
        """Fills the projector: features of distinct frames, with thumbnails and the store's labels as colours."""
        _, first = np.unique(frames.ids, return_index=True)
        rows = np.random.default_rng(0).permutation(first)[:POINTS]
        small = thumbnails(to_rgb(torch.from_numpy(frames.frames(rows))).float() / 255)
        labels = [[str(value) for value in frames.column(name)[rows]] for name in frames.labels]
        self.writer.add_embedding(
            encode(rows),
            metadata=list(zip(*labels, strict=True)) if labels else None,
            metadata_header=frames.labels if labels else None,
            label_img=small,
            global_step=step,
            tag="features",
        )


@contextmanager
def not_fatal(what: str, step: int) -> Iterator[None]:
    """Turns an error into a warning: a picture that cannot be drawn must not cost a checkpoint."""
    try:
        yield
    except Exception as error:
        warn(step, f"{what} cannot be drawn ({type(error).__name__}: {error}); the checkpoint does not need them")


def warn(step: int, sentence: str) -> None:
    """Writes a warning to stderr, above a progress bar."""
    tqdm.write(f"warning: step {step}: {sentence}", file=sys.stderr)


def thumbnails(pictures: Tensor) -> Tensor:
    """Square pictures of at most ``THUMBNAIL`` pixels, of pictures (n, 3, H, W), with black borders where needed.

    PyTorch's sprite of the projector fails for pictures that are higher than wide, and TensorBoard stretches others.
    """
    longest = max(pictures.shape[2:])
    if longest > THUMBNAIL:
        height, width = (max(1, side * THUMBNAIL // longest) for side in pictures.shape[2:])
        pictures, longest = F.interpolate(pictures, size=(height, width), mode="area"), THUMBNAIL
    down, right = (longest - side for side in pictures.shape[2:])
    return F.pad(pictures, (right // 2, right - right // 2, down // 2, down - down // 2))


def measure_health(encoder: AnyEncoder, objective: WeightedSum, reader: Any, seed: int) -> Parts:
    """The health of an encoder's features, and of the projections that its objectives compare.

    Args:
        encoder: see `rlpre.evaluation.health.encoder_health`.
        objective: its heads do not change.
        reader: of the frames.
        seed: draws the inputs; use the same for everything that is compared.

    Returns:
        By part; empty if the frames hold fewer than two different inputs.
    """
    rows = distinct_rows(reader, ROWS, seed)
    if len(rows) < 2:
        return {}
    features = sample_features(encoder, reader, rows, seed)
    parts = {FEATURES: asdict(health(*unstandardised(encoder, features)))}
    for name, part in objective.objectives.items():
        head = copy.deepcopy(part).train()  # with batch statistics, as in the loss
        with torch.no_grad():
            latents = [latent for latent in map(head.project, features) if latent is not None]
        if latents:
            parts[name] = asdict(health(*latents))
    return parts


def fresh_health(encoder: AnyEncoder, objective: str, reader: Any, seed: int) -> Parts:
    """`measure_health` of fresh weights, of the encoder and of the objective's heads."""
    untrained = fresh(encoder, seed)
    return measure_health(
        untrained, make_objective(objective, untrained, reader.frames).to(encoder.device), reader, seed
    )


def explain_collapse(now: Parts, untrained: Parts, metrics: Mapping[str, Tensor]) -> str | None:
    """Says in one sentence what has collapsed, and how; None if nothing has.

    Args:
        now: from `measure_health`.
        untrained: from `fresh_health`.
        metrics: of the last batch; "NAME/chance_loss" is the loss of constant features.
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
