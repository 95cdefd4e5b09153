"""Studies on a real dask cluster: the results of the process pool, whatever is lost on the way."""

import io
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from rlpre import PretrainConfig
from rlpre.compare import executors
from rlpre.compare.executors import cluster
from rlpre.compare.runner import Run, run_study
from rlpre.errors import RlpreError
from rlpre.utils import read_json

ROOT = Path(__file__).parents[1]
WORLD = "MiniGrid-Empty-5x5-v0"
CARTPOLE = "CartPole-v1"
STEPS = {CARTPOLE: 128}


class Terminal(io.TextIOWrapper):
    """A stream on which progress bars are shown."""

    def isatty(self) -> bool:
        return True


class Dask:
    """A scheduler and workers, started as users start them, in a folder that is not the study's."""

    def __init__(self, home: Path) -> None:
        self.home, self.processes = home, list[subprocess.Popen[bytes]]()
        self.start("scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard", "--scheduler-file", "file")
        wait_until((home / "file").exists)
        self.address = read_json(home / "file")["address"]

    def start(self, kind: str, *arguments: str) -> int:
        """Returns the id of the process."""
        folders = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        lost_twice = {"DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1"}
        environment = {**os.environ, "PYTHONPATH": folders, "OMP_NUM_THREADS": "1", **lost_twice}
        with (self.home / "log").open("a") as log:
            command = [sys.executable, "-m", "dask", kind, *arguments]
            process = subprocess.Popen(command, cwd=self.home, env=environment, stdout=log, stderr=log)
        self.processes.append(process)
        return process.pid

    def start_worker(self, *arguments: str) -> int:
        return self.start("worker", self.address, "--nthreads", "1", "--no-dashboard", *arguments)


@pytest.fixture(scope="module")
def dask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dask]:
    """A cluster with one worker; tests that kill start their own."""
    dask = Dask(tmp_path_factory.mktemp("dask"))
    dask.start_worker("--no-nanny")
    yield dask
    for process in reversed(dask.processes):
        process.terminate()
        process.wait(20)


def work(run: Run, path: Path, report: Callable[[int], None]) -> None:
    """Does what the arm is called, then trains; notes attempts and the dask worker outside the run directory."""
    study = path.parents[2]
    with (study / f"attempts-{run.arm}").open("a") as attempts:
        attempts.write(".")
    (study / f"worker-{run.arm}").write_text(str(os.getppid()))
    if run.arm == "kills":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(60)  # it does not outlive its worker
    while run.arm == "holds" and not (study / "release").exists():
        report(40)
        (study / "beat").write_text(str(time.time_ns()))
        time.sleep(0.05)
    env, evaluation = (make_vec_env(run.task, n_envs=2, seed=run.seed) for _ in range(2))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=run.seed, device="cpu")
    model.learn(128, EvalCallback(evaluation, eval_freq=32, log_path=str(path), n_eval_episodes=2, verbose=0))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def evaluations(path: Path) -> dict[str, np.ndarray]:
    return dict(np.load(path / "evaluations.npz"))


def test_worker_killed_mid_study_changes_no_result(dask: Dask, tmp_path: Path) -> None:
    runs = [Run(CARTPOLE, arm, 3) for arm in ("holds", "quick")]
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/release").touch()
    alone = {"workers": os.cpu_count()}  # one thread a run
    expected = run_study(tmp_path / "pool", runs, work, {}, STEPS, **alone)
    dask.start_worker("--no-nanny")
    study = tmp_path / "dask"
    with ThreadPoolExecutor(1) as thread, cluster(dask.address) as executor:
        future = thread.submit(run_study, study, runs, work, {}, STEPS, executor=executor, **alone)
        wait_until(lambda: (study / runs[1].path / "done.json").exists() and (study / "beat").exists())
        killed = int((study / "worker-holds").read_text())
        assert killed in [process.pid for process in dask.processes]
        os.kill(killed, signal.SIGKILL)
        (study / "release").touch()
        assert future.result() == expected
    assert int((study / "worker-holds").read_text()) != killed
    assert [(study / f"attempts-{run.arm}").read_text() for run in runs] == ["..", "."]
    for run in runs:
        one, other = (tmp_path / side / run.path for side in ("pool", "dask"))
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in other.iterdir())
        assert all(np.array_equal(evaluations(one)[name], values) for name, values in evaluations(other).items())
        assert {**read_json(one / "done.json"), "seconds": 0} == {**read_json(other / "done.json"), "seconds": 0}


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGKILL])
def test_cells_end_with_the_study(dask: Dask, tmp_path: Path, kind: signal.Signals) -> None:
    stderr, study = tmp_path / "stderr", tmp_path / "study"
    with stderr.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, __file__, dask.address, study], stderr=stream, stdout=subprocess.PIPE, text=True
        )
    wait_until(lambda: "40.0/128" in stderr.read_text())  # the bar
    process.send_signal(kind)
    printed, _ = process.communicate(timeout=20)
    assert process.returncode != 0
    assert printed == ""
    wait_until(lambda: not beats(study))
    assert not (study / CARTPOLE / "holds/seed-0/done.json").exists()


def beats(study: Path) -> bool:
    before = (study / "beat").read_text()
    time.sleep(0.5)
    return before != (study / "beat").read_text()


def test_cell_that_loses_every_worker_fails_and_the_cluster_goes_on(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(executors, "WATCH_SECONDS", 0.3)
    said = ""

    def says(words: str) -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return words in said

    quick, kills = (Run(CARTPOLE, arm, 0) for arm in ("quick", "kills"))
    with ThreadPoolExecutor(1) as thread, cluster(dask.address, gpus=2) as executor:
        future = thread.submit(run_study, tmp_path, [kills], work, {}, STEPS, executor=executor)
        wait_until(lambda: says(f"waiting for workers: start some with `dask worker {dask.address} --resources GPU=2`"))
        dask.start_worker("--resources", "GPU=2")  # with a nanny, which starts it again
        wait_until(lambda: says("workers are back"))
        result = future.result()
        # not beside it: dask blames a lost worker on every call that waited there
        after = run_study(tmp_path, [quick], work, {}, STEPS, executor=executor)
    assert result.failed[kills].startswith("every worker that tried it was lost: look at the workers' logs")
    assert after.done == (quick,)
    assert [(tmp_path / f"attempts-{run.arm}").read_text() for run in (kills, quick)] == ["..", "."]
    assert read_json(tmp_path / kills.path / "failed.json") == {"error": result.failed[kills]}


def test_comparison_on_a_cluster_gives_the_figures_of_this_process(
    dask: Dask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from functools import partial  # here, because the workers of the other tests need no environments

    import envs
    from rlpre import Arm, compare

    monkeypatch.chdir(tmp_path)  # not where the workers are
    frames = envs.collect(WORLD, "frames", 400, seed=0)
    settings = {
        "frames": frames,
        "pretrain": PretrainConfig(steps=4, batch=16, features=16, checkpoint_every=2),
        "algorithm_kwargs": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
    }
    arms = {"scratch": Arm("scratch"), "frozen": Arm("frozen", "inverse")}
    world = partial(envs.make_vec, WORLD)
    with ThreadPoolExecutor(1) as here, cluster(dask.address) as there:
        for name, executor in (("here", here), ("there", there)):
            compare(world, arms, 256, 1, name, n_envs=4, eval_episodes=2, executor=executor, workers=99, **settings)
    name = "encoders/inverse@frames/seed-0/model.safetensors"
    assert Path("here", name).read_bytes() == Path("there", name).read_bytes()
    for arm in arms:
        one, other = (Path(side, "comparison", arm, "seed-0") for side in ("here", "there"))
        assert all(np.array_equal(evaluations(one)[name], values) for name, values in evaluations(other).items())


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that accepts and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"tcp://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("tcp://127.0.0.1:1", "no answer within 0.5 s|Timed out"),
        ("silent", "no answer within 0.5 s"),
        ("localhost", "missing port number"),
        ("", "missing port number"),
        ("foo://localhost:8786", "unknown address scheme 'foo'"),
        ("tcp://localhost:port", "'port'"),
    ],
)
def test_address_that_does_not_answer(address: str, reason: str, silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executors, "ANSWER_SECONDS", 0.5)
    address = silent if address == "silent" else address
    start = time.monotonic()
    with pytest.raises(RlpreError, match=rf"no dask scheduler can be reached at '{address}' \(.*({reason})"):
        cluster(address).__enter__()
    assert time.monotonic() - start < 10


def test_cluster_without_dask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RlpreError, match=r"pip install 'rlpre\[cluster\]'"):
        cluster("tcp://127.0.0.1:8786").__enter__()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("--gpus 1", "gpus=1 are asked of dask workers: give --dask ADDRESS"),
        ("--dask here", "no dask scheduler can be reached at 'here'"),
        ("--dask tcp://127.0.0.1:1 --gpus -1", "gpus=-1.0 is no share of a GPU"),
    ],
)
def test_script_refuses(
    arguments: str,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setattr(sys, "argv", ["compare.py", "--out", str(tmp_path / "out"), *arguments.split(), "quick"])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(ROOT / "scripts/compare.py"), run_name="__main__")
    complaint = capfd.readouterr().err
    assert complaint.startswith(f"error: {sentence}")
    assert complaint.count("\n") == 1
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    sys.stderr = Terminal(sys.stderr.buffer, write_through=True)
    from test_compare_executors import work as importable  # not from __main__, which workers do not have

    with cluster(sys.argv[1]) as workers:
        run_study(Path(sys.argv[2]), [Run(CARTPOLE, "holds", 0)], importable, {}, STEPS, executor=workers)
