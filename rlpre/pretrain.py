"""Pretraining: one visible loop that turns frames into an encoder."""

import copy
import io
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from rlpre.augment import random_shift
from rlpre.device import resolve_device
from rlpre.encoders import Encoder, InputSpec
from rlpre.errors import RlpreError, at_least
from rlpre.files import write_bytes, write_json
from rlpre.frames import FrameStore
from rlpre.measure.health import alignment, effective_rank, uniformity
from rlpre.measure.probe import encode, linear_probe
from rlpre.objectives import Batch, Views, Weighted, make_objective
from rlpre.provenance import provenance
from rlpre.report.pictures import neighbours
from rlpre.sampling import Pairs

STATE = "state.ckpt"  # what resuming needs beside the checkpoint
LOG_EVERY = 50  # steps between curve points
STANDARD_ROWS = 2048  # frames over which features are standardised
SEED_STRIDE = 1_000_003  # keeps the streams of two seeds apart


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, together with the frames."""

    encoder: str = "cnn"  # architecture, a name in the registry
    features: int = 128  # length of the feature vector
    objective: str = "temporal+inverse"  # names joined by +, weights after a colon
    steps: int = 2000  # updates
    batch: int = 256  # pairs of frames an update; SimCLR's smallest
    gap: int = 5  # k: a pair is at most this many steps apart
    lr: float = 1e-3  # peak rate of AdamW
    weight_decay: float = 1e-4  # AdamW
    warmup: float = 0.05  # share of the steps over which the rate rises; then it follows a cosine to 0
    clip: float = 1.0  # largest gradient norm
    seed: int = 0  # draws the weights, the batches and the shifts
    checkpoint_every: int = 500  # steps between checkpoints, each with its probes
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...


@dataclass(frozen=True)
class PretrainResult:
    """What pretraining made.

    Attributes:
        encoder: the pretrained encoder, on the CPU; its features have mean 0 and SD 1 over the frames.
        path: its checkpoint directory.
        probes: scores of the linear probes on the last checkpoint, by label.
        control: the same for the same architecture with its fresh weights.
        seconds: wall-clock time spent in this call; 0 if everything was there already.
    """

    encoder: Encoder
    path: Path
    probes: dict[str, float]
    control: dict[str, float]
    seconds: float


class Pretext(nn.Module):
    """Encoder and objective as one module, so that one forward pass is one call."""

    def __init__(self, encoder: Encoder, objective: Weighted) -> None:
        super().__init__()
        self.encoder, self.objective = encoder, objective

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the metrics of a batch."""
        loss, metrics = self.objective(Views(self.encoder, batch))
        return loss, metrics


def pretrain(
    frames: FrameStore,
    *,
    out: str | Path,
    config: PretrainConfig | None = None,
    report: Callable[[int], None] = lambda step: None,
    **changes: Any,
) -> PretrainResult:
    """Pretrains an encoder on frames; killed and called again it goes on and ends with the same weights, bit for bit.

    Every step draws its randomness from (seed, step) alone, so the state to resume from is the weights, the optimiser
    and a step number.

    Args:
        frames: what to learn from.
        out: directory for the checkpoint (``config.json``, ``model.safetensors``), the TensorBoard log and the state.
        config: settings; default ``PretrainConfig()``.
        report: called with the number of steps so far.
        **changes: single settings that replace those of ``config``, as ``objective="jigsaw"``.

    Returns:
        The encoder with its probes.

    Raises:
        RlpreError: for unknown settings, a directory that holds another pretraining, a missing device, or a loss that
            is not finite (the last checkpoint stays).
    """
    known = {field.name for field in fields(PretrainConfig)}
    for name in changes.keys() - known:
        raise RlpreError(f"pretraining has no setting {name!r}: it has {', '.join(sorted(known))}")
    config = replace(config or PretrainConfig(), **changes)
    at_least(config, features=1, steps=1, batch=2, gap=1, seed=0, checkpoint_every=1)
    return _Run(frames, Path(out), config, report).finish()


def draw_batch(frames: FrameStore, pairs: Pairs, size: int, rng: np.random.Generator, device: torch.device) -> Batch:
    """Draws a batch of pairs; only raw rows (codes of a grid world, else pixels) travel to the device."""
    anchor, later, action = pairs.sample(size, rng)

    def ship(array: Any) -> Tensor:
        tensor = torch.as_tensor(array)
        return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor

    raw = ship(frames.read(anchor))
    return Batch(
        anchor=frames.decode(raw),
        later=frames.decode(ship(frames.read(later))),
        action=ship(action),
        gap=ship(later - anchor),
        anchor_id=ship(frames.ids[anchor]),
        later_id=ship(frames.ids[later]),
        codes=raw if frames.atlas else None,
    )


class _Run:
    """One pretraining run: what it needs at hand, and the loop."""

    def __init__(
        self, frames: FrameStore, out: Path, config: PretrainConfig, report: Callable[[int], None] = lambda step: None
    ) -> None:
        from lightning_fabric import Fabric  # here, because it takes as long to import as torch

        device = resolve_device(config.device)
        self.frames, self.out, self.config, self.device, self.report = frames, out, config, device, report
        index = [device.index or 0] if device.type == "cuda" else 1
        precision = "bf16-mixed" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "32-true"
        self.fabric = Fabric(accelerator=device.type, devices=index, precision=precision)  # type: ignore[arg-type]
        self.pairs = frames.pairs(config.gap)
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            spec = InputSpec(tuple(frames.space.shape))  # type: ignore[arg-type]
            encoder = Encoder(config.encoder, spec, features=config.features)
            self.pretext = Pretext(encoder, make_objective(config.objective, encoder, frames))
        optimizer = torch.optim.AdamW(self.pretext.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = self.fabric.setup(self.pretext, optimizer)
        self.identity = {**asdict(config), "frames": frames.hash}
        for unrelated in ("device", "checkpoint_every"):
            del self.identity[unrelated]
        self.step, self.logged = 0, time.perf_counter()
        self.reports: dict[str, dict[str, float]] = {"probes": {}, "control": {}}

    def finish(self) -> PretrainResult:
        """Resumes if there is a state, then runs to the last step."""
        start = time.perf_counter()
        with torch.random.fork_rng():
            self._resume()
            if self.step < self.config.steps:
                with SummaryWriter(str(self.out), purge_step=self.step) as board:
                    self._loop(board)
            encoder = Encoder.load(self.out).eval()
        return PretrainResult(encoder, self.out, **self.reports, seconds=time.perf_counter() - start)

    def _loop(self, board: SummaryWriter) -> None:
        config, frames = self.config, self.frames
        if self.step == 0:
            self.reports["control"] = linear_probe(self.pretext.encoder, frames)
            write_json(self.out / "run.json", {"configuration": self.identity, **provenance()})
        self.model.train()
        metrics: dict[str, Tensor] = {}
        with tqdm(
            total=config.steps, initial=self.step, desc=f"pretrain {config.objective}", unit="step", disable=None
        ) as bar:
            while self.step < config.steps:
                torch.manual_seed(config.seed * SEED_STRIDE + self.step)
                rng = np.random.default_rng((config.seed, self.step))
                batch = draw_batch(frames, self.pairs, config.batch, rng, self.device)
                before, metrics = metrics, self.update(batch)
                self._refuse_nan(before)  # one step late, so that a GPU is never waited for
                self.step += 1
                bar.update()
                self.report(self.step)
                if self.step % LOG_EVERY == 0:
                    self._log(board, bar, metrics)
                if self.step % config.checkpoint_every == 0 or self.step == config.steps:
                    self._refuse_nan(metrics)
                    self._checkpoint(board, batch)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns the metrics, each part's loss among them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate(self.step, self.config.steps, self.config.warmup)
        loss, metrics = self.model(batch)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return cast(dict[str, Tensor], metrics)

    def _refuse_nan(self, metrics: dict[str, Tensor]) -> None:
        broken = [name for name, value in metrics.items() if name.endswith("/loss") and not torch.isfinite(value)]
        if broken:
            raise RlpreError(
                f"the loss of objective {broken[0].removesuffix('/loss')!r} is not finite near step {self.step}: lower "
                f"lr={self.config.lr:g}; the last good checkpoint stays in {self.out}"
            )

    def _log(self, board: SummaryWriter, bar: Any, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            board.add_scalar(f"pretext/{name}", float(value), self.step)
        board.add_scalar("time/rate", self.optimizer.param_groups[0]["lr"], self.step)
        now = time.perf_counter()
        frames_per_second = 2 * self.config.batch * LOG_EVERY / (now - self.logged)
        self.logged = now
        board.add_scalar("time/frames_per_second", frames_per_second, self.step)
        accuracies = {name: float(value) for name, value in metrics.items() if name.endswith("accuracy")}
        bar.set_postfix({name.removesuffix("/accuracy"): f"{value:.2f}" for name, value in accuracies.items()})

    def _checkpoint(self, board: SummaryWriter, batch: Batch) -> None:
        """Measures and draws the encoder, then saves it and the state to resume from."""
        self.model.eval()
        encoder = self._finished()
        self.reports["probes"] = linear_probe(encoder, self.frames)
        with torch.inference_mode():
            features = encoder(batch.anchor).float()
            twins = [encoder(random_shift(batch.anchor)).float() for _ in range(2)]  # alike for every objective
            pictures = self.pretext.objective.pictures(self.pretext.encoder, batch)
        for kind, scores in self.reports.items():
            for name, score in scores.items():
                board.add_scalar(f"{kind}/{name}", score, self.step)
        board.add_scalar("health/alignment", alignment(*twins), self.step)
        board.add_scalar("health/uniformity", uniformity(features), self.step)
        board.add_scalar("health/effective_rank", effective_rank(features), self.step)
        _, distinct = np.unique(batch.anchor_id.cpu().numpy(), return_index=True)
        pictures["neighbours"] = neighbours(features[distinct], batch.anchor[distinct])
        for name, picture in pictures.items():
            board.add_image(name, picture.cpu(), self.step)
        board.flush()
        self.model.train()
        encoder.pretraining = {**self.identity, "step": self.step, **self.reports}
        encoder.save(self.out)
        buffer = io.BytesIO()
        torch.save(self._state(), buffer)
        write_bytes(self.out / STATE, buffer.getbuffer())

    def _finished(self) -> Encoder:
        """The encoder as users get it: a copy whose features have mean 0 and SD 1 over the frames."""
        encoder = copy.deepcopy(self.pretext.encoder).eval()
        rows = self.frames.sample(STANDARD_ROWS, np.random.default_rng(self.config.seed))
        encoder.standardise(encode(encoder, self.frames, rows))
        return encoder

    def _state(self) -> dict[str, Any]:
        content = {"identity": self.identity, "step": self.step, "reports": self.reports}
        return {"model": self.pretext.state_dict(), "optimizer": self.optimizer.state_dict(), **content}

    def _resume(self) -> None:
        if not (self.out / STATE).exists():
            return
        try:
            state = torch.load(self.out / STATE, map_location=self.device, weights_only=True)
        except Exception as error:
            raise RlpreError(f"{self.out / STATE} cannot be read ({error}): remove it to begin again") from error
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise RlpreError(
                    f"{self.out} holds a pretraining with {name}={state['identity'].get(name)!r}, asked for {value!r}: "
                    "choose another directory"
                )
        self.pretext.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.reports = state["step"], state["reports"]


def rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: rises linearly over the share ``warmup`` of the steps, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
