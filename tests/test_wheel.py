"""The wheel holds the library alone, and is enough to load what the library has saved."""

import inspect
import subprocess
import zipfile
from pathlib import Path
from shutil import rmtree

import numpy as np
import torch
from stable_baselines3 import PPO

import envs
from rlpre import Encoder, InputSpec, policy_kwargs

ROOT = Path(__file__).parents[1]


def outputs(encoder: Encoder, model: PPO, frames: np.ndarray) -> dict[str, np.ndarray]:
    """Features, actions, values and log-probabilities of frames (n, C, H, W)."""
    actions, _ = model.predict(frames, deterministic=True)
    batch = torch.from_numpy(frames)
    with torch.inference_mode():
        values, logs, _ = model.policy.evaluate_actions(batch, torch.from_numpy(actions))
        return {"features": encoder(batch).numpy(), "actions": actions, "values": values.numpy(), "logs": logs.numpy()}


# Runs in the clean environment, where encoder/, model.zip, frames.npy lie in the working directory.
ELSEWHERE = f"""
import sys
from importlib.util import find_spec
import numpy as np
import torch
from stable_baselines3 import PPO
import rlpre
from rlpre import Encoder

{inspect.getsource(outputs)}
torch.set_num_threads(1)
np.savez("outputs.npz", **outputs(Encoder.load("encoder"), PPO.load("model", device="cpu"), np.load("frames.npy")))
assert rlpre.__file__.startswith(sys.prefix), rlpre.__file__
assert not {{"minigrid", "envs", "agents"}} & sys.modules.keys()
assert find_spec("envs") is find_spec("agents") is None
"""


def test_wheel_holds_the_library_alone(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"rlpre"}
    held = {name for name in names if ".dist-info/" not in name}
    assert held == {str(path.relative_to(ROOT)) for path in (ROOT / "rlpre").rglob("*.py")} | {
        "rlpre/py.typed",
        "rlpre/evaluation/page.html",
    }


def test_wheel_loads_what_was_saved_outside_the_checkout(wheel_python: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    venv_of_two = envs.make_vec("MiniGrid-DoorKey-5x5-v0", 2, seed=0)
    encoder = Encoder("cnn", InputSpec(venv_of_two.observation_space.shape), features=32)
    encoder.save(tmp_path / "encoder")
    arguments = policy_kwargs(Encoder.load(encoder.save(tmp_path / "used")), "finetuned")
    model = PPO("CnnPolicy", venv_of_two, n_steps=16, batch_size=16, device="cpu", policy_kwargs=arguments)
    model.learn(32).save(tmp_path / "model")
    rmtree(tmp_path / "used")
    frames = np.stack([venv_of_two.step(np.array([1, 2]))[0] for _ in range(8)]).reshape(16, 3, 56, 56)
    np.save(tmp_path / "frames.npy", frames)

    command = [wheel_python, "-c", ELSEWHERE]
    answer = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"})
    assert answer.returncode == 0, answer.stderr
    found, wanted = np.load(tmp_path / "outputs.npz"), outputs(encoder, model, frames)
    for name in wanted:
        assert np.array_equal(found[name], wanted[name]), name
