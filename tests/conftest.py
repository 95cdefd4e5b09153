"""What several test modules share: frames to learn from, and an environment in which only the wheel is installed."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from shutil import copytree, ignore_patterns

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: orthogonal weights depend on the threads that LAPACK gets

import pytest
import torch

import envs
from rlpre import FrameStore
from rlpre.utils import MALLOC, keep_memory

ROOT = Path(__file__).parents[1]
keep_memory()  # and for the programs that tests start:
os.environ |= {
    name: str(MALLOC[option]) for name, option in {"MALLOC_TRIM_THRESHOLD_": -1, "MALLOC_MMAP_MAX_": -4}.items()
}
LEFT_OUT = (".*", "runs", "build", "dist", "site", "results", "*.egg-info", "__pycache__")


@pytest.fixture(scope="session")
def doorkey(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    """2,000 steps of DoorKey, half random and half by the expert."""
    out: Path = tmp_path_factory.mktemp("frames") / "doorkey"
    return envs.collect("MiniGrid-DoorKey-5x5-v0", out, 2000, seed=0, behaviour="0.5*random + 0.5*expert:0.2")


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    """One thread, because small tensors run faster on it and tests share the cores, and the same weights every time."""
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, so that files of an earlier build are not in it."""
    home = tmp_path_factory.mktemp("wheel")
    copytree(ROOT, home / "source", ignore=ignore_patterns(*LEFT_OUT))
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", home, home / "source"]
    subprocess.run(command, check=True, capture_output=True)
    (built,) = home.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_python(wheel: Path) -> Path:
    """The interpreter of an environment with the wheel; third-party packages are those of this environment."""
    home = wheel.parent / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True, capture_output=True)
    # Path files there are not followed, so the checkout stays out of sight.
    paths = {scheme: Path(sysconfig.get_path(scheme)) for scheme in ("purelib", "platlib")}
    (site,) = home.glob("lib/python*/site-packages")
    (site / "borrowed.pth").write_text("".join(f"{path}\n" for path in dict.fromkeys(paths.values())))
    return python
