"""What TensorBoard shows of a pretraining: curves, health, pictures, and at the end the features themselves."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlpre.collapse import FEATURES
from rlpre.frames import FrameStore
from rlpre.objectives import Views, WindowViews
from rlpre.report.pictures import neighbours, rgb
from rlpre.sampling import Indices

POINTS = 400  # distinct frames in the projector
THUMBNAIL = 64  # pixels along the longer side of a frame there


class Watch:
    """Writes the TensorBoard events of a pretraining; a context manager.

    Args:
        out: directory of the events.
        step: events of this step and later ones, left there by a process that died, are dropped.
    """

    def __init__(self, out: Path, step: int) -> None:
        self.board = SummaryWriter(str(out), purge_step=step)
        self.frames, self.logged = 0, time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.board.close()

    def curves(self, step: int, metrics: dict[str, Tensor], rate: float, frames: int) -> None:
        """Adds a point to every curve; ``frames`` were encoded since the last one."""
        for name, value in metrics.items():
            self.board.add_scalar(f"pretext/{name}", float(value), step)
        self.board.add_scalar("time/rate", rate, step)
        now = time.perf_counter()
        self.board.add_scalar("time/frames_per_second", frames / (now - self.logged), step)
        self.logged = now

    def checkpoint(
        self,
        step: int,
        views: Views | WindowViews,
        pictures: dict[str, Tensor],
        reports: dict[str, Any],
    ) -> None:
        """Adds probe scores, the health of features and projections, an alarm if they have collapsed, and pictures."""
        features, batch = views.plain.float(), views.batch
        groups = {kind: reports[kind] for kind in ("probes", "control")}
        for kind in ("health", "fresh"):
            groups |= {kind if part == FEATURES else f"{kind}/{part}": of for part, of in reports[kind].items()}
        for group, numbers in groups.items():
            for name, number in numbers.items():
                self.board.add_scalar(f"{group}/{name}", number, step)
        if reports["collapse"]:
            self.board.add_text("collapse", reports["collapse"], step)
            tqdm.write(f"warning: step {step}: {reports['collapse']}", file=sys.stderr)
        _, distinct = np.unique(batch.anchor_id.cpu().numpy(), return_index=True)
        near = neighbours(features[distinct], batch.anchor[distinct])
        for name, picture in {**pictures, "neighbours": near}.items():
            self.board.add_image(name, picture.cpu(), step)
        self.board.flush()

    def embedding(self, step: int, read: Callable[[Indices], Tensor], frames: FrameStore) -> None:
        """Fills the projector: features of distinct frames, with thumbnails, and the store's labels to colour by."""
        _, first = np.unique(frames.ids, return_index=True)
        rows = np.random.default_rng(0).permutation(first)[:POINTS]
        thumbnails = rgb(torch.from_numpy(frames.frames(rows))).float() / 255
        scale = min(1.0, THUMBNAIL / max(thumbnails.shape[2:]))
        small = thumbnails if scale == 1 else F.interpolate(thumbnails, scale_factor=scale, mode="area")
        labels = [[str(value) for value in frames.column(name)[rows]] for name in frames.labels]
        self.board.add_embedding(
            read(rows),
            metadata=list(zip(*labels, strict=True)) if labels else None,
            metadata_header=frames.labels if labels else None,
            label_img=small,
            global_step=step,
            tag="features",
        )
