"""The pretraining loop: settings, one update, checkpoints, and how it goes on after a kill."""

import copy
import io
import math
from collections.abc import Callable, Collection
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rlpre.collapse import control, explain, measure
from rlpre.encoders import Encoder, InputSpec
from rlpre.errors import RlpreError
from rlpre.files import write_bytes, write_json
from rlpre.frames import FrameStore
from rlpre.measure.probe import linear_probe
from rlpre.objectives import READERS, AnyBatch, AnyEncoder, Weighted, make_objective
from rlpre.provenance import provenance
from rlpre.watch import Watch

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # which takes as long to import as torch

STATE = "state.ckpt"  # what resuming needs beside the checkpoint
LOG_EVERY = 50  # steps between curve points
STANDARD_ROWS = 2048  # frames over which features are standardised
SEED_STRIDE = 1_000_003  # keeps the streams of two seeds apart
UNRELATED = ("device", "devices", "checkpoint_every", "collapse")  # settings that do not decide the weights

Reports = dict[str, Any]  # what a checkpoint was found to be, see `rlpre.PretrainResult`
Reaction = Literal["warn", "stop"]


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, together with the frames and an encoder to start from."""

    encoder: str = "cnn"  # architecture (or backbone), a name in the registry
    features: int | None = None  # length of the feature vector; None: the architecture's default
    objective: str = "temporal+inverse"  # names joined by +, weights after a colon
    steps: int = 2000  # updates
    batch: int = 256  # pairs of frames (or windows) an update, over all devices; SimCLR's smallest
    gap: int = 5  # k: a pair, or what cpc predicts from a step, is at most this many steps apart
    lr: float = 1e-3  # peak rate of AdamW
    weight_decay: float = 1e-4  # AdamW
    warmup: float = 0.05  # share of the steps over which the rate rises; then it follows a cosine to 0
    clip: float = 1.0  # largest gradient norm
    seed: int = 0  # draws the weights, the batches and the shifts
    checkpoint_every: int = 500  # steps between checkpoints, each with its probes and a look for collapse
    collapse: Reaction = "warn"  # or "stop": what a checkpoint does whose features or projections have collapsed
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...
    devices: int = 1  # processes that share the batch out, each on its own GPU if there are any


class Pretext(nn.Module):
    """Encoder and objective as one module, so that one forward pass is one call; see ``Sharing`` for the processes."""

    def __init__(self, encoder: AnyEncoder, objective: Weighted, rank: int = 0, world: int = 1) -> None:
        super().__init__()
        self.encoder, self.objective, self.rank, self.world = encoder, objective, rank, world

    def forward(self, batch: Any) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss and the metrics of a batch."""
        loss, metrics = self.objective(batch.views(self.encoder, self.rank, self.world))
        return loss, metrics


class Run:
    """One pretraining run, as one of its processes sees it: what it needs at hand, and the loop.

    Args:
        fabric: launched.
        frames: what to learn from.
        start: weights to start from, left as they are; None: fresh ones.
        out: directory for everything that is written; only the first process writes.
        config: settings.
        report: called by the first process with the number of steps so far.
        keep: steps after which the encoder is also saved to a directory of its own, see `kept`; 0: as it starts.
    """

    def __init__(
        self,
        fabric: "Fabric",
        frames: FrameStore,
        start: AnyEncoder | None,
        out: Path,
        config: PretrainConfig,
        report: Callable[[int], None],
        keep: Collection[int] = (),
    ) -> None:
        self.fabric, self.frames, self.out, self.config, self.report = fabric, frames, out, config, report
        self.keep = keep
        torch.manual_seed(config.seed)
        encoder = first_encoder(frames, start, config)
        objective = make_objective(config.objective, encoder, frames)
        gap = None if objective.single else config.gap
        self.reader: Any = READERS[encoder.kind](frames, encoder, gap, fabric.device)  # type: ignore[arg-type]
        self.pretext = Pretext(encoder, objective, fabric.global_rank, fabric.world_size)
        trained = [parameter for parameter in self.pretext.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = fabric.setup(self.pretext, optimizer)
        self.identity = {name: value for name, value in asdict(config).items() if name not in UNRELATED}
        self.identity |= {"features": encoder.num_features, "frames": frames.hash}
        self.identity["start"] = start.fingerprint() if start else None
        self.step = 0
        self.reports: Reports = {"probes": {}, "control": {}, "health": {}, "fresh": {}, "collapse": None}

    def finish(self) -> Reports:
        """Resumes if there is a state, then runs to the last step; returns the probes, of the fresh encoder too."""
        self._resume()
        self._refuse_collapse()
        for step in self.keep:
            passed = 0 < self.step >= step and not kept(self.out, step).exists()
            if passed or not 0 <= step <= self.config.steps:
                raise RlpreError(
                    f"step {step} cannot be kept: {self.out} is at step {self.step} of {self.config.steps}; keep steps "
                    "that are still to come, or choose another directory"
                )
        if self.step < self.config.steps:
            with Watch(self.out, self.step) if self.fabric.is_global_zero else nullcontext() as watch:
                self._loop(watch)
        return self.fabric.broadcast(self.reports)  # the others wait for the first one's files

    def _loop(self, watch: Watch | None) -> None:
        config = self.config
        if self.step == 0 and watch:
            self.reports["control"] = linear_probe(self.pretext.encoder, self.reader)
            write_json(self.out / "run.json", {"configuration": self.identity, **provenance()})
            self._keep()
        if watch and not self.reports["fresh"]:
            self.reports["fresh"] = control(self.pretext.encoder, config.objective, self.reader, config.seed)
        self.model.train()
        metrics: dict[str, Tensor] = {}
        with tqdm(
            total=config.steps,
            initial=self.step,
            desc=f"pretrain {config.objective}",
            unit="step",
            disable=None if watch else True,
        ) as bar:
            while self.step < config.steps:
                torch.manual_seed(config.seed * SEED_STRIDE + self.step)
                rng = np.random.default_rng((config.seed, self.step))
                batch = self.reader.draw(config.batch, rng)
                before, metrics = metrics, self.update(batch)
                self._refuse_nan(before)  # one step late, so that a GPU is never waited for
                self.step += 1
                bar.update()
                last = self.step == config.steps
                checkpoint = last or self.step % config.checkpoint_every == 0
                if checkpoint:
                    self._refuse_nan(metrics)
                if watch:
                    self._keep()
                    self._tell(watch, bar, metrics)
                    if checkpoint:
                        self._checkpoint(watch, batch, metrics, last)

    def update(self, batch: AnyBatch) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns the metrics, each part's loss among them."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.config.lr * rate(self.step, self.config.steps, self.config.warmup)
        loss, metrics = self.model(batch)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=self.config.clip, error_if_nonfinite=False)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.pretext.objective.after_step(self.pretext.encoder)
        return cast(dict[str, Tensor], metrics)

    def _refuse_nan(self, metrics: dict[str, Tensor]) -> None:
        broken = [name for name, value in metrics.items() if name.endswith("/loss") and not torch.isfinite(value)]
        if broken:
            raise RlpreError(
                f"the loss of objective {broken[0].removesuffix('/loss')!r} is not finite near step {self.step}: lower "
                f"lr={self.config.lr:g}; the last good checkpoint stays in {self.out}"
            )

    def _tell(self, watch: Watch, bar: "tqdm[Any]", metrics: dict[str, Tensor]) -> None:
        self.report(self.step)
        if self.step % LOG_EVERY == 0:
            read = LOG_EVERY * self.config.batch * self.reader.reads
            watch.curves(self.step, metrics, self.optimizer.param_groups[0]["lr"], read)
            accuracies = {name: float(value) for name, value in metrics.items() if name.endswith("accuracy")}
            bar.set_postfix({name.removesuffix("/accuracy"): f"{value:.2f}" for name, value in accuracies.items()})

    def _checkpoint(self, watch: Watch, batch: AnyBatch, metrics: dict[str, Tensor], last: bool) -> None:
        """Measures and draws the encoder, then saves it and the state to resume from."""
        self.model.eval()
        encoder = self._finished()
        self.reports["probes"] = linear_probe(encoder, self.reader)
        self.reports["health"] = measure(self.pretext.encoder, self.pretext.objective, self.reader, self.config.seed)
        self.reports["collapse"] = explain(self.reports["health"], self.reports["fresh"], metrics)
        with torch.inference_mode():
            pictures = self.pretext.objective.pictures(self.pretext.encoder, batch)
            watch.checkpoint(self.step, batch.views(encoder), pictures, self.reports)  # type: ignore[arg-type]
        if last:
            watch.embedding(self.step, partial(self.reader.encode, encoder), self.frames)
        self.model.train()
        encoder.pretraining = {**self.identity, "step": self.step, **self.reports}
        encoder.save(self.out)
        buffer = io.BytesIO()
        torch.save(self._state(), buffer)
        write_bytes(self.out / STATE, buffer.getbuffer())
        self._refuse_collapse()

    def _refuse_collapse(self) -> None:
        if self.reports["collapse"] and self.config.collapse == "stop":
            raise RlpreError(
                f"{self.reports['collapse']}; stopped after step {self.step}, the checkpoint is in {self.out}: "
                "choose another objective or a lower lr, or go on with collapse='warn'"
            )

    def _keep(self) -> None:
        if self.step in self.keep:
            encoder = self._finished()
            encoder.pretraining = {**self.identity, "step": self.step}
            encoder.save(kept(self.out, self.step))

    def _finished(self) -> AnyEncoder:
        """The encoder as users get it: a copy whose features have mean 0 and SD 1 over the frames."""
        encoder = copy.deepcopy(self.pretext.encoder).eval()
        rows = self.frames.sample(STANDARD_ROWS, np.random.default_rng(self.config.seed))
        encoder.standardise(self.reader.encode(encoder, rows))
        return encoder

    def _state(self) -> dict[str, Any]:
        content = {"identity": self.identity, "step": self.step, "reports": self.reports}
        return {"model": self.pretext.state_dict(), "optimizer": self.optimizer.state_dict(), **content}

    def _resume(self) -> None:
        if not (self.out / STATE).exists():
            return
        state = read_state(self.out, self.fabric.device)
        for name, value in self.identity.items():
            if state["identity"].get(name) != value:
                raise RlpreError(
                    f"{self.out} holds a pretraining with {name}={state['identity'].get(name)!r}, asked for {value!r}: "
                    "choose another directory"
                )
        try:
            self.pretext.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise RlpreError(f"{self.out / STATE} is of another version of rlpre: choose another directory") from error
        self.step, self.reports = state["step"], self.reports | state["reports"]


def kept(path: Path, step: int) -> Path:
    """Where the pretraining in the directory ``path`` saves the encoder of a step that it was asked to keep."""
    return path / f"step-{step}"


def read_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """What the pretraining in the directory ``path`` left to go on from: weights, the heads' among them, and more.

    Raises:
        RlpreError: if there is none, or the file is damaged.
    """
    try:
        return cast(dict[str, Any], torch.load(path / STATE, map_location=device, weights_only=True))
    except Exception as error:
        raise RlpreError(f"{path / STATE} cannot be read ({error}): remove it to begin again") from error


def first_encoder(frames: FrameStore, start: AnyEncoder | None, config: PretrainConfig) -> AnyEncoder:
    """A copy of ``start``, all of it trainable (but the frozen vision of a sequence encoder), or fresh weights.

    Raises:
        RlpreError: if ``start`` does not read such frames or has another number of features than ``config`` asks for.
    """
    if start is None:
        arguments = {} if config.features is None else {"features": config.features}
        return Encoder(config.encoder, InputSpec(tuple(frames.space.shape)), **arguments)  # type: ignore[arg-type]
    vision = start if isinstance(start, Encoder) else start.frames
    try:
        vision.input.check(frames.space)
    except RlpreError as error:
        raise RlpreError(f"the encoder to start from does not fit {frames.path}: {error}") from error
    if config.features not in (None, start.num_features):
        raise RlpreError(
            f"the encoder to start from has {start.num_features} features, asked for {config.features}: leave them out"
        )
    return copy.deepcopy(start).cpu().requires_grad_(True)


def rate(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: rises linearly over the share ``warmup`` of the steps, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))
