"""The documentation builds without warnings, and the Python on its pages runs as written."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [page for page in sorted((ROOT / "docs").glob("*.md")) if "```python" in page.read_text()]


def test_docs_build_without_warnings(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    answer = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "WARNING" not in answer.stderr
    reference = (tmp_path / "site/api/index.html").read_text()
    import rlpre

    paths = {name: f"rlpre.{name}" for name in rlpre.__all__} | {"compare": "rlpre.compare.compare.compare"}
    assert [name for name, path in paths.items() if f'id="{path}"' not in reference] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    """All blocks of a page in order, as one program, in an empty directory; blocks with a title are files there."""
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    for name, content in re.findall(r'^```python title="(.+?)"\n(.*?)^```', page.read_text(), re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(content)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "\n".join(blocks)]
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr


def test_every_page_is_in_the_navigation_and_names_files_that_exist() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name in navigation
        for path in re.findall(r"\b(?:scripts|rlpre|envs|agents|tests)/[\w/]+\.py\b", page.read_text()):
            assert (ROOT / path).is_file() or path == "rlpre/objectives/mine.py", f"{page.name} names {path}"
