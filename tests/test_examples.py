"""Each example runs outside the checkout, in an environment that holds the wheel and no other part of the project."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_six_short_examples() -> None:
    assert len(EXAMPLES) == 6
    assert {path.name: lines for path in EXAMPLES if (lines := len(path.read_text().splitlines())) > 60} == {}


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_with_the_wheel_alone(example: Path, wheel_python: Path, tmp_path: Path) -> None:
    answer = subprocess.run(
        [wheel_python, example], cwd=tmp_path, capture_output=True, text=True, env={"OMP_NUM_THREADS": "1"}
    )
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout
