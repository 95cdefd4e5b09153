"""Image grids and JSON files; the other helpers are tested by those who use them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import rlpre
from rlpre import Encoder, RlpreError
from rlpre.compare.summary import read_results
from rlpre.utils import nearest_grid, read_json


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
