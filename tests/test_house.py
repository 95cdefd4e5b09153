"""The rules of the house: short files and functions, documented names, imports one way, a light import."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("rlpre", "envs", "agents", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
LINES = {"scripts": 100}
MOST_LINES = 300
MOST_LINES_OF_A_FUNCTION = 40
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines from ``def`` to the end, without the docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    docstring = (first.end_lineno or 0) - first.lineno + 1 if documented else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    """Functions and classes that users can see, the methods of those classes too."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_all_rooms_are_inspected() -> None:
    assert {name.split("/")[0] for name in FILES} == {"rlpre", "envs", "agents", "scripts"}
    assert len(FILES) > 50


@pytest.mark.parametrize("name", FILES)
def test_files_and_functions_are_short(name: str) -> None:
    assert len(FILES[name].splitlines()) <= LINES.get(name.split("/")[0], MOST_LINES)
    functions = [x for x in ast.walk(ast.parse(FILES[name])) if isinstance(x, ast.FunctionDef | ast.AsyncFunctionDef)]
    assert not [x.name for x in functions if length(x) > MOST_LINES_OF_A_FUNCTION]


def test_length_leaves_out_the_docstring() -> None:
    code = 'def f(a: int,\n      b: int) -> int:\n    """One.\n\n    Two.\n    """\n    return a\n'
    (function,) = ast.parse(code).body
    assert isinstance(function, ast.FunctionDef)
    assert length(function) == 3


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("rlpre/")])
def test_public_names_are_documented(name: str) -> None:
    tree = ast.parse(FILES[name])
    assert ast.get_docstring(tree)
    assert not [node.name for node in public(tree) if not ast.get_docstring(node)]


def lint(where: str, code: str) -> str:
    """What ruff says about ``code`` if it stood in the file ``where``."""
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", where, "-"]
    answer = subprocess.run(command, input=code, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode in (0, 1), answer.stderr
    return answer.stdout


@pytest.mark.parametrize(
    ("room", "banned"),
    [
        ("rlpre", ["envs", "agents", "cli", "scripts", "minigrid"]),
        ("rlpre/sb3", ["envs", "agents", "cli", "scripts", "minigrid"]),
        ("envs", ["agents", "cli", "scripts"]),
        ("agents", ["cli", "scripts"]),
    ],
)
def test_lint_refuses_an_import_that_goes_the_wrong_way(room: str, banned: list[str]) -> None:
    for module in ("rlpre", "envs", "agents", "cli", "scripts", "minigrid"):
        for statement in (f"import {module}.planted", f"from {module} import planted"):
            refused = "TID251" in lint(f"{room}/planted.py", f"def f() -> None:\n    {statement}\n")
            assert refused == (module in banned), f"{statement} in {room}"


def test_make_says_which_python_it_needs(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    answer = subprocess.run(["make", "PYTHON=false", "study"], cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode != 0
    assert "rlpre needs Python 3.11 or newer: make PYTHON=/path/to/python3.11 study\n" in answer.stdout
    assert not (tmp_path / ".venv").exists()


def test_import_is_light() -> None:
    """``import rlpre`` costs no more than torch and SB3: what pretraining, probes and plots need comes later."""
    code = "import sys, rlpre; print(*sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    heavy = {"lightning_fabric", "sklearn", "scipy", "torch._dynamo", "torchvision", "minigrid", "envs", "agents"}
    assert not heavy & set(answer.stdout.split())
