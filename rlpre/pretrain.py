"""Pretraining: frames in, an encoder out. `Pretraining` is the whole algorithm, ``update`` is one step of it."""

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn

from rlpre.callbacks import Parts, Progress, TensorBoard, explain_collapse, measure_health
from rlpre.data.store import FrameStore
from rlpre.encoders import AnyEncoder, Encoder, InputSpec, as_encoder
from rlpre.encoders.encoder import CONFIG, WEIGHTS
from rlpre.errors import RlpreError, at_least, lookup
from rlpre.evaluation.probes import fresh, linear_probe
from rlpre.objectives import make_objective, make_reader, parse_objective
from rlpre.objectives.base import WeightedSum
from rlpre.objectives.batches import AnyBatch
from rlpre.objectives.losses import AUGMENTATIONS
from rlpre.utils import provenance, python_numbers, read_json, resolve_device, write_bytes, write_json

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # which takes as long to import as torch

RUN, STATE = "run.json", "state.ckpt"  # settings and versions; what resuming needs beside the checkpoint
LOG_EVERY = 50  # steps between points of the curves
STANDARD_ROWS = 2048  # frames over which features are standardised
SEED_STRIDE = 1_000_003  # keeps the random streams of two seeds apart
OTHER = "choose another directory"
IRRELEVANT = ("device", "devices", "checkpoint_every", "collapse")  # settings that do not change the weights

Reports = dict[str, Any]  # what was measured at the last checkpoint: fields of `PretrainResult`
Reaction = Literal["warn", "stop"]


@dataclass(frozen=True)
class PretrainConfig:
    """Everything that decides the weights, together with the frames and an encoder to start from."""

    encoder: str = "cnn"  # architecture (or backbone), a name in the registry
    features: int | None = None  # length of the feature vector; None: the architecture's default
    objective: str = "temporal+inverse"  # names joined by +, weights after a colon
    steps: int = 2000  # updates
    batch: int = 256  # pairs of frames (or windows) per update, over all devices; SimCLR tried none smaller
    gap: int = 5  # k: largest number of steps between the frames of a pair, or that cpc predicts ahead
    augment: str = "shift"  # moves frames by up to 3 pixels; with "none" it is easier to see what an action moved
    lr: float = 1e-3  # peak learning rate of AdamW
    weight_decay: float = 1e-4  # of AdamW
    warmup: float = 0.05  # share of the steps in which the learning rate rises; then it follows a cosine to 0
    clip: float = 1.0  # largest gradient norm
    seed: int = 0  # of the weights, the batches and the shifts
    checkpoint_every: int = 500  # steps between checkpoints, each with probes and a check for collapse
    collapse: Reaction = "warn"  # or "stop": what happens at a checkpoint with collapsed features or projections
    device: str = "auto"  # "cpu", "cuda", "cuda:1", ...
    devices: int = 1  # processes that share the batch, each on its own GPU if there are any

    def __post_init__(self) -> None:
        python_numbers(self)


@dataclass(frozen=True)
class PretrainResult:
    """The result of `pretrain`."""

    encoder: AnyEncoder  # pretrained, on the CPU; its features have mean 0 and SD 1 over the frames
    path: Path  # its checkpoint directory
    probes: dict[str, float]  # scores of the linear probes at the last checkpoint, by label
    control: dict[str, float]  # the same for the encoder that pretraining started from
    health: Parts  # fields of `rlpre.evaluation.health.Health` at the last checkpoint, by "features" or objective
    fresh: Parts  # the same for fresh weights
    collapse: str | None  # what has collapsed, and how
    metrics: dict[str, float]  # of the last batch, by "OBJECTIVE/METRIC": a "loss" of each, of most an "accuracy"
    seconds: float  # wall-clock time of this call; near 0 if the pretraining was complete before


def quiet(step: int) -> None:
    """Reports nothing."""


def pretrain(
    frames: FrameStore | str | Path,
    *,
    out: str | Path,
    encoder: "str | Path | AnyEncoder | PretrainResult | None" = None,
    config: PretrainConfig | None = None,
    report: Callable[[int], None] = quiet,
    keep: Collection[int] = (),
    **changes: Any,
) -> PretrainResult:
    """Pretrains an encoder on frames.

    A pretraining that was killed goes on when called again and ends with the same weights, bit for bit: every step
    draws its randomness from (seed, step). At each checkpoint features and projections are compared with those of
    fresh weights (`rlpre.evaluation.health`); if they have collapsed, a warning says how, or the run ends.

    With ``devices=N``, N processes share each batch (DDP). Loss and weights are those of one process up to rounding,
    except that batch normalisation inside an encoder sees one process's part only. The processes are spawned here, so
    the calling script needs the usual ``if __name__ == "__main__":``; under torchrun or Slurm the existing ones are
    used.

    Args:
        frames: what to learn from, a store or its directory.
        out: directory for the checkpoint (``config.json``, ``model.safetensors``), the TensorBoard log and the state.
        encoder: an architecture's name, or an encoder to start from (or its directory, or the result of an earlier
            `pretrain`), which is copied. To pretrain a `SequenceEncoder`, give one; its encoder of frames stays frozen.
        config: settings; default ``PretrainConfig()``.
        report: called with the number of steps so far; with several devices it must be a function of a module.
        keep: steps after which a copy of the encoder is saved in ``step-<number>`` below ``out``; 0: before the first.
        **changes: single settings that replace those of ``config``, as ``objective="jigsaw"``.

    Raises:
        RlpreError: for unknown settings, frames without what the objective learns from, an encoder that does not fit
            the frames or gets no gradient, a directory with another pretraining or encoder, a missing device, a process
            that was lost, a loss that is not finite (the last checkpoint stays), or a collapse with
            ``collapse="stop"``.
    """
    known = {field.name for field in fields(PretrainConfig)}
    for name in changes.keys() - known:
        raise RlpreError(f"pretraining has no setting {name!r}: it has {', '.join(sorted(known))}")
    frames, start = FrameStore.given(frames), None
    if encoder is not None:
        start = None if _is_name(encoder) else as_encoder(encoder)
        changes["encoder"] = start.name if start else encoder
    config = replace(config or PretrainConfig(), **changes)
    _check(config)
    began = time.perf_counter()
    with torch.random.fork_rng():
        work = partial(_work, frames=frames, start=start, out=Path(out), config=config, report=report, keep=keep)
        reports = _launch(_fabric(config), work)
        pretrained = (type(start) if start else Encoder).load(out).eval()
    return PretrainResult(pretrained, Path(out), **reports, seconds=time.perf_counter() - began)


class Pretext(nn.Module):
    """Encoder and objective as one module with one forward pass, as DDP needs; see `Views` for the other arguments."""

    def __init__(self, encoder: AnyEncoder, objective: WeightedSum, world: int = 1, augment: str = "shift") -> None:
        super().__init__()
        self.encoder, self.objective, self.world, self.augment = encoder, objective, world, augment

    def forward(self, batch: Any) -> Any:
        """Returns the loss and the metrics of a batch."""
        return self.objective(batch.views(self.encoder, self.world, self.augment))


class Pretraining:
    """One pretraining in one of its processes, on a launched ``fabric``; only the first one measures and writes.

    ``start`` is an encoder to copy, or None for fresh weights; the other arguments are those of `pretrain`.
    """

    def __init__(
        self,
        fabric: "Fabric",
        frames: FrameStore,
        start: AnyEncoder | None,
        out: Path,
        config: PretrainConfig,
        report: Callable[[int], None] = quiet,
        keep: Collection[int] = (),
    ) -> None:
        self.fabric, self.frames, self.out, self.config = fabric, frames, out, config
        self.report, self.keep = report, keep
        torch.manual_seed(config.seed)
        encoder = first_encoder(frames, start, config)
        objective = make_objective(config.objective, encoder, frames)
        if len(np.unique(frames.ids)) < 2:
            raise RlpreError(f"all frames of {frames.path} are the same: nothing can be learned, collect others")
        single = all(part.needs == "frames" for part in objective.objectives.values())
        self.reader: Any = make_reader(frames, encoder, None if single else config.gap, fabric.device)
        self.pretext = Pretext(encoder, objective, fabric.world_size, config.augment)
        trained = [parameter for parameter in self.pretext.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
        self.model, self.optimizer = fabric.setup(self.pretext, optimizer)
        self.identity = {name: value for name, value in asdict(config).items() if name not in IRRELEVANT}
        self.identity |= {"features": encoder.num_features, "frames": frames.hash}
        self.identity["start"] = start.fingerprint() if start else None
        self.step = 0
        self.saved: str | None = None  # fingerprint of the encoder in the directory
        self.reports: Reports = {"collapse": None}  # the others come with the first checkpoint

    def run(self) -> Reports:
        """Resumes if there is a state, then trains to the last step; returns what the last checkpoint measured.

        Every step draws its randomness from (seed, step).
        """
        self._resume()
        self._check_keep()
        config, metrics = self.config, dict[str, Tensor]()
        shown = self.fabric.is_global_zero and self.step < config.steps
        self.model.train()
        with (
            TensorBoard(self.out, self.step) if shown else nullcontext() as board,
            Progress(f"pretrain {config.objective}", self.step, config.steps, silent=not shown) as progress,
        ):
            if board and self.step == 0:
                self._begin()
            while self.step < config.steps:
                torch.manual_seed((config.seed * SEED_STRIDE + self.step) % 2**64)
                batch = self.reader.draw(config.batch, np.random.default_rng((config.seed, self.step)))
                previous, metrics = metrics, self.update(batch)
                self._refuse_nan(previous)  # one step late, so that a GPU is never waited for
                self.step += 1
                checkpoint = self.step == config.steps or self.step % config.checkpoint_every == 0
                if checkpoint:
                    self._refuse_nan(metrics)
                progress.show(self.step, metrics)
                if board:
                    self._keep()
                    self.report(self.step)
                    if self.step % LOG_EVERY == 0:
                        rate = self.optimizer.param_groups[0]["lr"]
                        board.curves(self.step, metrics, rate, config.batch * self.reader.reads)
                    if checkpoint:
                        self._checkpoint(board, batch, metrics)
        return self.fabric.broadcast(self.reports)  # the others wait for the first one's files

    def _resume(self) -> None:
        """Goes on where the pretraining in the directory stopped; refuses a directory with anything else."""
        if not (self.out / STATE).exists():
            if (self.out / RUN).exists():  # of a pretraining that was killed early, or of a clone
                check_same(self.out, "pretraining", read_json(self.out / RUN).get("configuration"), self.identity)
            if (self.out / CONFIG).exists():
                raise RlpreError(f"{self.out} holds an encoder, but no pretraining to resume: {OTHER}")
            return
        state = read_state(self.out, self.fabric.device)
        check_same(self.out, "pretraining", state["identity"], self.identity)
        try:
            self.pretext.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
        except (RuntimeError, ValueError) as error:
            raise RlpreError(f"{self.out / STATE} is of another version of rlpre: {OTHER}") from error
        self.step, self.reports = state["step"], state["reports"]
        if all((self.out / name).exists() for name in (CONFIG, WEIGHTS)):
            try:
                self.saved = type(self.pretext.encoder).load(self.out).fingerprint()
            except RlpreError as error:
                raise RlpreError(f"{self.out} holds another encoder ({error}): {OTHER}") from error
        if self.saved not in (None, *state["encoders"]):
            raise RlpreError(
                f"the encoder in {self.out} is not the one that this pretraining saved there: move it away, or {OTHER}"
            )
        if self.saved != state["encoders"][-1] and self.fabric.is_global_zero:  # killed before it was saved
            self._save(self._finished())
        self._stop_if_collapsed()

    def _check_keep(self) -> None:
        for step in self.keep:
            path, last = step_directory(self.out, step), self.config.steps
            if (0 < self.step >= step and not path.exists()) or not 0 <= step <= last:
                raise RlpreError(
                    f"step {step} cannot be kept: {self.out} is at step {self.step} of {last}; keep steps that are "
                    f"still to come, or {OTHER}"
                )
            made = {**self.identity, "step": step}
            if (path / CONFIG).exists() and read_json(path / CONFIG).get("pretraining") != made:
                raise RlpreError(f"{path} holds an encoder that this pretraining did not make: {OTHER}")

    def _begin(self) -> None:
        """Measures the encoder that training starts from, and fresh weights."""
        encoder, config = self.pretext.encoder, self.config
        untrained = fresh(encoder, config.seed)
        objective = make_objective(config.objective, untrained, self.frames).to(encoder.device)
        self.reports["control"] = linear_probe(encoder, self.reader)
        self.reports["fresh"] = measure_health(untrained, objective, self.reader, config.seed)
        write_json(self.out / RUN, {"configuration": self.identity, **provenance()})
        self._keep()

    def update(self, batch: AnyBatch) -> dict[str, Tensor]:
        """One optimiser step on a batch; returns the metrics, each objective's loss among them."""
        encoder, config = self.pretext.encoder, self.config
        for group in self.optimizer.param_groups:
            group["lr"] = config.lr * rate_factor(self.step, config.steps, config.warmup)
        loss, metrics = self.model(batch)
        self.fabric.backward(loss)
        self.fabric.clip_gradients(self.model, self.optimizer, max_norm=config.clip, error_if_nonfinite=False)
        if self.step == 0 and all(weight.grad is None for weight in encoder.parameters()):
            raise RlpreError(
                f"objective {config.objective!r} trains nothing: no gradient reaches a weight of encoder "
                f"{config.encoder!r}; does its forward detach, or has it only buffers?"
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        for part in self.pretext.objective.objectives.values():
            part.after_step(encoder)
        return cast(dict[str, Tensor], metrics)

    def _checkpoint(self, board: TensorBoard, batch: AnyBatch, metrics: dict[str, Tensor]) -> None:
        """Measures and draws the encoder, then saves it and the state to resume from."""
        self.model.eval()
        encoder = self._finished()
        self.reports["metrics"] = {name: float(value) for name, value in metrics.items()}
        health = measure_health(self.pretext.encoder, self.pretext.objective, self.reader, self.config.seed)
        self.reports |= {"probes": linear_probe(encoder, self.reader), "health": health}
        self.reports["collapse"] = explain_collapse(health, self.reports["fresh"], metrics)
        board.measurements(self.step, self.reports)
        board.draw(board.pictures, self.step, self.pretext, encoder, batch)
        if self.step == self.config.steps:
            board.draw(board.embedding, self.step, partial(self.reader.encode, encoder), self.frames)
        self.model.train()
        self._save(encoder)
        self._stop_if_collapsed()

    def _keep(self) -> None:
        if self.step in self.keep:
            encoder = self._finished()
            encoder.pretraining = {**self.identity, "step": self.step}
            encoder.save(step_directory(self.out, self.step))

    def _finished(self) -> AnyEncoder:
        """The encoder as users get it: a copy whose features have mean 0 and SD 1 over the frames."""
        encoder = copy.deepcopy(self.pretext.encoder).eval()
        drawn = self.frames.sample(STANDARD_ROWS, np.random.default_rng(self.config.seed))
        rows, places = np.unique(drawn, return_inverse=True)  # a small store gives the same rows many times
        encoder.standardise(self.reader.encode(encoder, rows)[places])
        return encoder

    def _refuse_nan(self, metrics: dict[str, Tensor]) -> None:
        for name, value in metrics.items():
            if name.endswith("/loss") and not torch.isfinite(value):
                raise RlpreError(
                    f"the loss of objective {name.removesuffix('/loss')!r} is not finite near step {self.step}: lower "
                    f"lr={self.config.lr:g}; the last good checkpoint stays in {self.out}"
                )

    def _stop_if_collapsed(self) -> None:
        if self.reports["collapse"] and self.config.collapse == "stop":
            raise RlpreError(
                f"{self.reports['collapse']}; stopped after step {self.step}, the checkpoint is in {self.out}: "
                "choose another objective or a lower lr, or go on with collapse='warn'"
            )

    def _save(self, encoder: AnyEncoder) -> None:
        """Saves the state, then the encoder; the state lists which encoders may be in the directory, in this order."""
        encoder.pretraining = {**self.identity, "step": self.step, **self.reports}
        encoders = [self.saved, encoder.fingerprint()]
        content = {"identity": self.identity, "step": self.step, "reports": self.reports, "encoders": encoders}
        buffer = io.BytesIO()
        torch.save({"model": self.pretext.state_dict(), "optimizer": self.optimizer.state_dict(), **content}, buffer)
        write_bytes(self.out / STATE, buffer.getbuffer())
        encoder.save(self.out)
        self.saved = encoders[-1]


def step_directory(path: Path, step: int) -> Path:
    """Where the pretraining in the directory ``path`` saves the encoder of a step that it was asked to keep."""
    return path / f"step-{step}"


def check_same(out: Path, what: str, there: Mapping[str, Any] | None, here: Mapping[str, Any]) -> None:
    """Refuses a directory of ``what`` ("pretraining", "clone") with other settings than ``here``, or of something else.

    Raises:
        RlpreError: if the settings ``there`` differ or are not those of ``what``.
    """
    if there is None or not here.keys() <= there.keys():
        raise RlpreError(f"{out} holds something else than a {what}: {OTHER}")
    for name, value in here.items():
        if there[name] != value:
            raise RlpreError(f"{out} holds a {what} with {name}={there[name]!r}, asked for {value!r}: {OTHER}")


def read_state(path: Path, device: str | torch.device = "cpu") -> dict[str, Any]:
    """Reads what the pretraining in the directory ``path`` resumes from, the weights of its heads among it."""
    try:
        return cast(dict[str, Any], torch.load(path / STATE, map_location=device, weights_only=True))
    except Exception as error:
        raise RlpreError(f"{path / STATE} cannot be read ({error}): remove {path} to begin again") from error


def first_encoder(frames: FrameStore, start: AnyEncoder | None, config: PretrainConfig) -> AnyEncoder:
    """A trainable copy of ``start`` (the encoder of frames in a sequence encoder stays frozen), or fresh weights.

    Raises:
        RlpreError: if ``start`` does not read such frames or has another number of features than ``config`` asks for.
    """
    if start is None:
        arguments = {} if config.features is None else {"features": config.features}
        return Encoder(config.encoder, InputSpec(frames.space.shape), **arguments)  # type: ignore[arg-type]  # no `weights`
    vision = start if isinstance(start, Encoder) else start.frames
    try:
        vision.input.check(frames.space)
    except RlpreError as error:
        raise RlpreError(f"the encoder to start from does not fit {frames.path}: {error}") from error
    if config.features not in (None, start.num_features):
        raise RlpreError(
            f"the encoder to start from has {start.num_features} features, asked for {config.features}: leave them out"
        )
    with torch.random.fork_rng(devices=[]):
        encoder = type(start).from_config(start.config)  # not a copy: a plug turns frozen weights into buffers
    encoder.load_state_dict(start.state_dict())
    return encoder


def rate_factor(step: int, steps: int, warmup: float) -> float:
    """Factor on the learning rate: a linear rise over the share ``warmup`` of the steps, then a cosine to 0."""
    rising = max(1, round(warmup * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _is_name(encoder: object) -> bool:
    """Whether it names an architecture; otherwise it is an encoder, or where one is."""
    return isinstance(encoder, str) and "/" not in encoder and not (Path(encoder) / CONFIG).exists()


def _check(config: PretrainConfig) -> None:
    at_least(config, features=1, steps=1, batch=2, gap=1, seed=0, checkpoint_every=1, devices=1)
    at_least(config, weight_decay=0)
    if config.seed >= 2**63:
        raise RlpreError(f"seed is {config.seed}: give a number below 2 ** 63")
    if not 0 <= config.warmup <= 1:
        raise RlpreError(f"warmup is {config.warmup}: it is a share of the steps, from 0 to 1")
    for name in ("lr", "clip"):
        if not 0 < getattr(config, name) < math.inf:
            raise RlpreError(f"{name} is {getattr(config, name)}: it must be a number above 0, or nothing is trained")
    lookup("augmentation", config.augment, AUGMENTATIONS)
    if config.augment == "none" and "contrastive" in parse_objective(config.objective):
        raise RlpreError("objective 'contrastive' compares two shifted views of a frame: leave out augment='none'")
    lookup("reaction to a collapse", config.collapse, dict.fromkeys(get_args(Reaction)))
    if config.batch % config.devices:
        raise RlpreError(f"a batch of {config.batch} cannot be shared by {config.devices} devices: use a multiple")
    if config.devices > 1 and resolve_device(config.device).index is not None:
        raise RlpreError(f"device {config.device!r} is one, but devices={config.devices}: leave out its number")


def _fabric(config: PretrainConfig) -> "Fabric":
    """Devices, precision, and whether processes exist already (torchrun, Slurm) or must be spawned."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    device = resolve_device(config.device)
    one_gpu = config.devices == 1 and device.type == "cuda"
    launched = SLURMEnvironment.detect() or TorchElasticEnvironment.detect()
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()
    try:
        return Fabric(
            accelerator=device.type,
            devices=[device.index or 0] if one_gpu else config.devices,
            strategy="auto" if config.devices == 1 else "ddp" if launched else "ddp_spawn",
            precision="bf16-mixed" if half else "32-true",
        )
    except Exception as error:  # Fabric has a class of its own for each reason
        raise RlpreError(f"devices={config.devices} cannot be used here ({error}): ask for fewer") from error


def _work(fabric: "Fabric", **task: Any) -> Reports:
    return Pretraining(fabric, **task).run()


def _launch(fabric: "Fabric", work: "partial[Reports]") -> Reports:
    """Runs ``work`` here or in spawned processes, and passes their errors on."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    if fabric.world_size > 1:
        try:
            pickle.dumps(work.keywords["report"])
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RlpreError(f"report cannot be sent to other processes ({error}): give a module's function") from error
    try:
        return cast(Reports, fabric.launch(work))
    except (ProcessExitedException, ProcessRaisedException) as error:
        text = str(error).strip()
        _, ours, sentence = text.rpartition(f"{RlpreError.__module__}.{RlpreError.__qualname__}: ")
        lost = f"a process of the pretraining was lost ({text.splitlines()[-1]}): the same call goes on from its last"
        raise RlpreError(sentence if ours else f"{lost} checkpoint") from error
