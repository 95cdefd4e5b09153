"""Image grids, JSON files and memory; the other helpers are tested by those who use them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import rlpre
from rlpre import Encoder, RlpreError
from rlpre.compare.summary import read_results
from rlpre.utils import nearest_grid, read_json, write_json


def test_nearest_frames_come_first() -> None:
    angles = torch.arange(8) * 0.1
    features = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.rand(8, 1).add(1)  # lengths do not matter
    frames = torch.arange(8, dtype=torch.uint8)[:, None, None, None].expand(8, 1, 1, 1)
    first = (nearest_grid(features, frames)[0, 2, 2::3] * 255).round().int().tolist()
    assert first == [0, 1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("kind", "content", "fault"), [(dict, "[]", "object"), (dict, "1", "object"), (list, "{}", "list")]
)
def test_json_of_another_program_is_refused(kind: type, content: str, fault: str, tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    path.write_text(content)
    wanted = "object" if kind is dict else "list"
    with pytest.raises(RlpreError, match=rf"run\.json holds no JSON {wanted}: it is damaged, or not a file of rlpre"):
        read_json(path, kind)


@pytest.mark.parametrize(
    ("name", "read"),
    [("config.json", Encoder.load), ("manifest.json", rlpre.FrameStore.open), ("study.json", read_results)],
)
def test_public_functions_refuse_it_too(name: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    (tmp_path / name).write_text("[]")
    with pytest.raises(RlpreError, match=rf"{name} holds no JSON object"):
        read(tmp_path)


def test_numbers_of_numpy_become_json(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"steps": np.int64(3), "share": np.float32(0.5), "kept": np.True_})
    assert read_json(tmp_path / "a.json") == {"steps": 3, "share": 0.5, "kept": True}
    with pytest.raises(TypeError, match="a set is not JSON"):
        write_json(tmp_path / "b.json", {"a": set()})


BATCHES = """
import resource, sys, torch
from rlpre.utils import keep_memory
if sys.argv[1] == "keep":
    keep_memory()
for _ in range(10):
    batch = torch.ones(1024, 9408)
    del batch
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_memory_is_kept() -> None:
    """Each page that the kernel clears is a minor fault."""
    command = [sys.executable, "-c", BATCHES]
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    faults = [int(subprocess.check_output([*command, how], env=plain, text=True)) for how in ("keep", "return")]
    assert faults[0] < faults[1] - 50_000, faults
