"""Pretraining on several processes: what one process would give, from Python, from a script and under torchrun."""

import os
import signal
import subprocess
import sys
import time
import traceback
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from lightning_fabric import Fabric
from torch.multiprocessing import ProcessRaisedException

import rlpre
from rlpre import Encoder, FrameStore, PretrainConfig, RlpreError
from rlpre.features import encode
from rlpre.pretrain import Pretraining, _launch, quiet

SCRIPT = Path(__file__).parents[1] / "scripts" / "pretrain.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
OBJECTIVE = "contrastive+temporal+forward+inverse+jigsaw"
SHORT = {"objective": "temporal+forward", "steps": 40, "batch": 16, "features": 32}
LOST = "a process of the pretraining was lost"


def updates(fabric: Fabric, frames: FrameStore, out: Path) -> list[dict[str, float]]:
    """Three updates: the metrics of each; the gradients that the optimiser sees go into ``out``."""
    run = Pretraining(fabric, frames, None, out, PretrainConfig(objective=OBJECTIVE, features=32, batch=32))
    weights = [weight for weight in run.pretext.parameters() if weight.requires_grad]
    seen: list[npt.NDArray[np.float32]] = []
    run.optimizer.optimizer.register_step_pre_hook(lambda *_: seen.extend(w.grad.numpy().copy() for w in weights))
    metrics = []
    for run.step in range(3):
        torch.manual_seed(run.step)
        batch = run.reader.draw(32, np.random.default_rng(run.step))
        metrics.append({name: float(value) for name, value in run.update(batch).items()})
    if fabric.is_global_zero:
        np.savez(out / f"{fabric.world_size}.npz", *seen)
    return metrics


def test_two_processes_give_the_losses_and_gradients_of_one(doorkey: FrameStore, tmp_path: Path) -> None:
    one = Fabric(accelerator="cpu", devices=1).launch(updates, doorkey, tmp_path)
    two = Fabric(accelerator="cpu", devices=2, strategy="ddp_spawn").launch(updates, doorkey, tmp_path)
    for alone, shared in zip(one, two, strict=True):
        assert shared == pytest.approx(alone, abs=2e-5)
    gradients, shared_gradients = (list(np.load(tmp_path / f"{world}.npz").values()) for world in (1, 2))
    for expected, found in zip(gradients, shared_gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)
    assert sum(np.abs(gradient).max() > 1e-3 for gradient in gradients) > 50


def script(*arguments: object, launcher: tuple[str, ...] = ()) -> "subprocess.Popen[str]":
    settings = [f"--{name}={value}" for name, value in SHORT.items()]
    command = [sys.executable, *launcher, SCRIPT, *arguments, *settings, "--devices=2", "--device=cpu"]
    return subprocess.Popen(list(map(str, command)), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def workers(process: "subprocess.Popen[str]") -> list[int]:
    """The spawned processes of a script."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [int(child) for child in children if "spawn_main" in Path(f"/proc/{child}/cmdline").read_text()]


def test_a_lost_process_is_named_and_torchrun_goes_on_to_the_weights_of_one_process(
    doorkey: FrameStore, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    start = Encoder("cnn", rlpre.InputSpec(doorkey.space.shape), features=32)
    start.save(tmp_path / "start")
    given = (doorkey.path, tmp_path / "two", f"--start={tmp_path / 'start'}")
    process = script(*given, "--checkpoint-every=4")
    while not (tmp_path / "two" / "config.json").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(workers(process)[1], signal.SIGKILL)
    _, complaint = process.communicate()
    assert process.returncode == 2
    assert f"\nerror: {LOST}" in complaint
    assert Encoder.load(tmp_path / "two").pretraining["step"] < 40
    process = script(*given, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--"))
    _, complaint = process.communicate()
    assert process.returncode == 0, complaint
    one = rlpre.pretrain(doorkey, out=tmp_path / "one", encoder=start, device="cpu", **SHORT).encoder
    rows = np.arange(200)
    alone, shared = (encode(encoder, doorkey, rows) for encoder in (one, Encoder.load(tmp_path / "two")))
    torch.testing.assert_close(shared, alone, atol=1e-2, rtol=0)
    assert (alone - encode(start, doorkey, rows)).abs().max() > 0.5
    assert len(list((tmp_path / "two").glob("events.out.tfevents.*"))) == 2  # the first process alone writes


def fail(fabric: Fabric, error: Exception, report: object) -> None:
    """Ends as a launcher does when a spawned process ended with ``error``."""
    text = "".join(traceback.format_exception(error))
    raise ProcessRaisedException(f"\n\n-- Process 1 terminated with the following error:\n{text}", 1, 4711)


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (RlpreError("the loss is not finite: lower lr"), r"^the loss is not finite: lower lr$"),
        (ConnectionError("reset"), rf"^{LOST} \(ConnectionError: reset\): the same call goes on"),
    ],
)
def test_errors_of_spawned_processes_are_passed_on(error: Exception, sentence: str) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    with pytest.raises(RlpreError, match=sentence):
        _launch(fabric, partial(fail, error=error, report=quiet))
