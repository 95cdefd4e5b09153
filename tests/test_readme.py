"""The README is true: its Python runs as written, its commands and files exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_python_runs_as_written(tmp_path: Path) -> None:
    """All blocks in order, as one program, in an empty directory."""
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert blocks
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(blocks)]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_make_targets_exist() -> None:
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", README, re.MULTILINE))
    known = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"study", "test", "tensorboard", "bench"} <= named <= known


def test_files_exist() -> None:
    named = re.findall(r"\b(?:scripts|rlpre|envs|agents|tests)/[\w/]+\.py\b", README)
    assert not [path for path in named if not (ROOT / path).is_file()]
