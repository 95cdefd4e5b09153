"""rl_zoo3 reads our suggested hyper-parameters and trains with them, the encoder in its policy."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlpre import Encoder, InputSpec

ROOT = Path(__file__).parents[1]
SETTINGS = ROOT / "agents/hyperparameters/ppo.yml"


@pytest.mark.parametrize(
    ("env", "shape"), [("MiniGrid-DoorKey-5x5-v0", (3, 56, 56)), ("BabyAI-GoToRedBallNoDists-v0", (3, 56, 56))]
)
def test_the_zoo_trains_with_our_settings(env: str, shape: tuple[int, int, int], tmp_path: Path) -> None:
    Encoder("cnn", InputSpec(shape), features=16).save(tmp_path / "runs/encoders/mine")
    options = [
        "--algo",
        "ppo",
        "--env",
        env,
        "--conf-file",
        SETTINGS,
        "--gym-packages",
        "minigrid",
        "--eval-freq",
        "-1",
    ]
    command = [sys.executable, "-m", "rl_zoo3.train", *options, "-n", "64", "--log-folder", "logs", "--device", "cpu"]
    small = ["--hyperparams", "n_envs:2", "n_steps:32", "batch_size:32", "n_epochs:1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run([*command, *small], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert list((tmp_path / "logs/ppo").glob(f"{env}_1/{env}.zip"))
