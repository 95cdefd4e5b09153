"""The structure of the project: few short files, documented names, imports in one direction, a light import."""

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = {
    str(path.relative_to(ROOT)): path.read_text()
    for folder in ("rlpre", "envs", "agents", "scripts")
    for path in sorted((ROOT / folder).rglob("*.py"))
}
MOST_FILES, MOST_LINES, MOST_LINES_OF_A_FILE = 147, 25_700, 600  # 27 files are one claim each
MOST_FILES_OF_THE_MAIN_JOB = 18
# A part imports only the parts before it. The first four are the parts of rlpre that others of it use everywhere.
PARTS = (
    "rlpre/errors",
    "rlpre/utils",
    "rlpre/hub",
    "rlpre/data",
    "rlpre/encoders",
    "rlpre/features",
    "rlpre/objectives",
    "rlpre/evaluation",
    "rlpre/callbacks",
    "rlpre/pretrain",
    "rlpre/sb3",
    "rlpre/compare",
    "rlpre/__init__",
    "envs",
    "agents",
    "scripts",
)
Documented = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def part(name: str) -> str:
    """The part that a file belongs to."""
    return next(part for part in PARTS if name.removesuffix(".py") == part or name.startswith(f"{part}/"))


def resolve(module: str) -> str | None:
    """The file of a module of this project; None for others."""
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in FILES), None)


def statements(tree: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """All imports, those in functions too, but not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from statements(node)


def imported(name: str) -> set[str]:
    """The files that a file imports."""
    found = set()
    for node in statements(ast.parse(FILES[name])):
        if isinstance(node, ast.Import):
            found |= {resolve(alias.name) for alias in node.names}
        elif node.module:
            found |= {resolve(f"{node.module}.{alias.name}") or resolve(node.module) for alias in node.names}
    return {path for path in found if path and path != name}


GRAPH = {name: imported(name) for name in FILES}


def public(tree: ast.Module | ast.ClassDef) -> Iterator[Documented]:
    """Functions and classes that users can see, the methods of those classes too."""
    for node in tree.body:
        if isinstance(node, Documented) and not node.name.startswith("_"):
            if "overload" not in map(ast.unparse, node.decorator_list):  # the implementation is documented
                yield node
            if isinstance(node, ast.ClassDef):
                yield from public(node)


def test_the_project_stays_small() -> None:
    assert {name.split("/")[0] for name in FILES} == {"rlpre", "envs", "agents", "scripts"}
    assert len(FILES) <= MOST_FILES
    assert sum(len(text.splitlines()) for text in FILES.values()) <= MOST_LINES
    assert [name for name, text in FILES.items() if len(text.splitlines()) > MOST_LINES_OF_A_FILE] == []
    top = {name for name in FILES if name.startswith("rlpre/") and name.count("/") == 1}
    modules = ("__init__", "errors", "utils", "hub", "features", "callbacks", "pretrain")
    assert top == {f"rlpre/{name}.py" for name in modules}


def test_every_import_goes_to_an_earlier_part() -> None:
    order = {name: position for position, name in enumerate(PARTS)}
    wrong = [
        f"{name} imports {other}"
        for name, others in GRAPH.items()
        for other in others
        if order[part(other)] > order[part(name)]
    ]
    assert wrong == []


def test_no_file_and_no_folder_imports_itself_through_others() -> None:
    TopologicalSorter(GRAPH).prepare()
    folders: dict[str, set[str]] = {}
    for name, others in GRAPH.items():
        here = str(Path(name).parent)
        folders.setdefault(here, set()).update({str(Path(other).parent) for other in others} - {here, "rlpre"})
    del folders["rlpre"]  # its single files are parts of their own, see above
    TopologicalSorter(folders).prepare()


MAIN_JOB = """
import sys, numpy as np, gymnasium as gym, rlpre
from pathlib import Path
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

class Noise(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 255, (3, 36, 36), np.uint8), gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (3, 36, 36), np.uint8), {}
    def step(self, action):
        return self.np_random.integers(0, 256, (3, 36, 36), np.uint8), 0.0, self.np_random.random() < 0.2, False, {}

venv = make_vec_env(Noise, 2, seed=0)
frames = rlpre.collect(venv, "frames", 64)
used, home = set(), str(Path(rlpre.__file__).parent)
def watch(frame, event, argument):
    if event == "call" and frame.f_code.co_name != "<module>" and frame.f_code.co_filename.startswith(home):
        used.add(frame.f_code.co_filename.removeprefix(home))
sys.setprofile(watch)
encoder = rlpre.pretrain(frames, objective="contrastive", steps=2, batch=8, out="encoder").encoder
PPO("CnnPolicy", venv, n_steps=8, batch_size=8, policy_kwargs=rlpre.policy_kwargs(encoder, "finetuned")).learn(16)
sys.setprofile(None)
print(*sorted(used))
"""


def test_a_reader_who_follows_the_main_job_opens_few_files(tmp_path: Path) -> None:
    """The files of rlpre that run from `rlpre.pretrain` with one objective to PPO with the encoder in its policy."""
    command, environment = [sys.executable, "-c", MAIN_JOB], {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert len(answer.stdout.split()) <= MOST_FILES_OF_THE_MAIN_JOB, answer.stdout


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
