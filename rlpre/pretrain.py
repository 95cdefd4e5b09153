"""Pretraining: frames in, an encoder out, on one device or several."""

import pickle
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch

from rlpre.collapse import Parts
from rlpre.device import resolve_device
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError, at_least, lookup
from rlpre.frames import FrameStore
from rlpre.loop import PretrainConfig, Reaction, Reports, Run
from rlpre.objectives import AnyEncoder

if TYPE_CHECKING:
    from lightning_fabric import Fabric  # which takes as long to import as torch


@dataclass(frozen=True)
class PretrainResult:
    """What pretraining made.

    Attributes:
        encoder: the pretrained encoder, on the CPU; its features have mean 0 and SD 1 over the frames.
        path: its checkpoint directory.
        probes: scores of the linear probes on the last checkpoint, by label.
        control: the same for the encoder that it started from.
        health: numbers of `rlpre.measure.health.Health` of the last checkpoint: of "features", and by the names of
            objectives that compare projections of those.
        fresh: the same for fresh weights.
        collapse: what has collapsed, and how; None if nothing has.
        seconds: wall-clock time spent in this call; near 0 if everything was there already.
    """

    encoder: AnyEncoder
    path: Path
    probes: dict[str, float]
    control: dict[str, float]
    health: Parts
    fresh: Parts
    collapse: str | None
    seconds: float


def quiet(step: int) -> None:
    """Reports nothing."""


def pretrain(
    frames: FrameStore,
    *,
    out: str | Path,
    encoder: str | AnyEncoder | None = None,
    config: PretrainConfig | None = None,
    report: Callable[[int], None] = quiet,
    keep: Collection[int] = (),
    **changes: Any,
) -> PretrainResult:
    """Pretrains an encoder on frames; killed and called again it goes on and ends with the same weights, bit for bit.

    At each checkpoint features and projections are compared with those of fresh weights (`rlpre.measure.health`): if
    they have collapsed, a warning says how, or the run ends.

    Every step draws its randomness from (seed, step) alone, so the state to resume from is the weights, the optimiser
    and a step number.

    With ``devices=N``, N processes share the batch out (DDP): loss and weights are those of one process up to rounding,
    heads, negatives and batch statistics being those of the whole batch; only batch normalisation inside an encoder
    sees its own part alone. The processes are spawned here, so that a script, a test and a function call work alike,
    and the calling script needs the usual ``if __name__ == "__main__":``. Started by torchrun or Slurm with N tasks,
    no process is spawned: those there are join.

    Args:
        frames: what to learn from.
        out: directory for the checkpoint (``config.json``, ``model.safetensors``), the TensorBoard log and the state.
        encoder: an architecture's name, or an encoder whose weights to start from; it is copied, never changed. A
            `SequenceEncoder` is always given, with its vision, which stays as it is.
        config: settings; default ``PretrainConfig()``.
        report: called with the number of steps so far; with several devices in another process, so it must be a
            function of a module.
        keep: steps after which the encoder stays as it is then, a checkpoint in ``step-<number>`` below ``out``; 0: as
            it starts. They belong to one run: the learning rate follows the whole of its steps.
        **changes: single settings that replace those of ``config``, as ``objective="jigsaw"``.

    Returns:
        The encoder with its probes.

    Raises:
        RlpreError: for unknown settings, frames without what the objective learns from, an encoder that does not fit
            the frames, a directory that holds another pretraining, a missing device, a process that was lost, a loss
            that is not finite (the last checkpoint stays), or a collapse with ``collapse="stop"``.
    """
    known = {field.name for field in fields(PretrainConfig)}
    for name in changes.keys() - known:
        raise RlpreError(f"pretraining has no setting {name!r}: it has {', '.join(sorted(known))}")
    start = None if isinstance(encoder, str) else encoder
    if encoder is not None:
        changes["encoder"] = encoder if isinstance(encoder, str) else getattr(encoder, encoder.design)
    config = replace(config or PretrainConfig(), **changes)
    _check(config)
    began = time.perf_counter()
    with torch.random.fork_rng():
        work = partial(_work, frames=frames, start=start, out=Path(out), config=config, report=report, keep=keep)
        reports = _launch(_fabric(config), work)
        pretrained = (type(start) if start else Encoder).load(out).eval()
    return PretrainResult(pretrained, Path(out), **reports, seconds=time.perf_counter() - began)


def _check(config: PretrainConfig) -> None:
    at_least(config, features=1, steps=1, batch=2, gap=1, seed=0, checkpoint_every=1, devices=1)
    lookup("reaction to a collapse", config.collapse, dict.fromkeys(get_args(Reaction)))
    if config.batch % config.devices:
        raise RlpreError(f"a batch of {config.batch} cannot be shared out to {config.devices} devices: use a multiple")
    if config.devices > 1 and resolve_device(config.device).index is not None:
        raise RlpreError(f"device {config.device!r} is one, but devices={config.devices}: leave out its number")


def _fabric(config: PretrainConfig) -> "Fabric":
    """Devices and precision; whether processes are there already (torchrun, Slurm) or must be spawned."""
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
    except Exception as error:  # Fabric's own classes, one per reason
        raise RlpreError(f"devices={config.devices} cannot be used here ({error}): ask for fewer") from error


def _work(fabric: "Fabric", **task: Any) -> Reports:
    """What every process does."""
    return Run(fabric, **task).finish()


def _launch(fabric: "Fabric", work: "partial[Reports]") -> Reports:
    """Runs ``work`` here or in spawned processes, and passes their errors on."""
    from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

    if fabric.world_size > 1:
        try:
            pickle.dumps(work.keywords["report"])
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RlpreError(f"report cannot travel to other processes ({error}): give a module's function") from error
    try:
        reports: Reports = fabric.launch(work)
    except (ProcessExitedException, ProcessRaisedException) as error:
        text = str(error).strip()
        _, ours, sentence = text.rpartition(f"{RlpreError.__module__}.{RlpreError.__qualname__}: ")
        why = text.splitlines()[-1]
        lost = f"a process of the pretraining was lost ({why}): the same call goes on from its last checkpoint"
        raise RlpreError(sentence if ours else lost) from error
    return reports
