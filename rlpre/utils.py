"""Small helpers that every part shares: atomic files, devices, provenance and image grids."""

import ctypes
import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from rlpre.errors import RlpreError

PACKAGES = ("rlpre", "torch", "stable-baselines3", "gymnasium", "minigrid", "numpy", "lightning-fabric")
# Options of glibc's mallopt (malloc.h) and their values: never trim the heap, grow it by 64 MB, map no block by itself.
MALLOC = {-1: 2**31 - 1, -2: 2**26, -4: 0}
QUERIES, NEIGHBOURS = 8, 6  # rows, and frames beside the query, in a picture of nearest frames


def keep_memory() -> None:
    """Makes this process keep memory that it has freed, instead of returning it to Linux.

    By default glibc returns blocks of megabytes at once, and Linux must map and clear every page of the next one. Each
    minibatch of frames needs such blocks. On a virtual machine with slow page faults training a "cnn" on the CPU took
    1.5 times as long without this. The process stays as large as it ever was. Without glibc, nothing happens.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in MALLOC.items():
            mallopt(option, value)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yields a temporary path in the same folder; it replaces ``path`` on success and is removed on failure.

    Raises:
        RlpreError: if the disk is full or the folder is not writable; an older file at ``path`` is kept.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise RlpreError(f"cannot write {path}: {error.strerror or error}; nothing already written is lost") from error
    finally:
        with suppress(OSError):  # the folder may be a file
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes | memoryview) -> None:
    """Writes a whole file atomically."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Any) -> None:
    """Writes ``content`` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(content, indent=2, default=_number) + "\n").encode())


def python_numbers(settings: Any) -> None:
    """Turns NumPy's numbers in a frozen dataclass into Python's, which files and random streams are made of."""
    for each in fields(settings):
        if isinstance(value := getattr(settings, each.name), np.generic):
            object.__setattr__(settings, each.name, value.item())


def as_json(content: Any) -> Any:
    """``content`` as it will be when it was written as JSON and read again."""
    return json.loads(json.dumps(content, default=_number))


def _number(value: Any) -> Any:
    """A number of NumPy as one of Python, for JSON."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is not JSON")


def read_json(path: Path, kind: type = dict) -> Any:
    """Reads a JSON file that holds an object, or with ``kind=list`` a list.

    Raises:
        RlpreError: if the file is missing, is not JSON or holds something else.
    """
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RlpreError(f"{path} is missing: is {path.parent} the right directory?") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RlpreError(f"{path} is damaged ({error}): restore it or make it again") from error
    if not isinstance(content, kind):
        wanted = "object" if kind is dict else "list"
        raise RlpreError(f"{path} holds no JSON {wanted}: it is damaged, or not a file of rlpre")
    return content


def sha256(path: Path) -> str:
    """The hexadecimal SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """Returns the device of that name; ``"auto"`` is the first GPU if there is one, else the CPU.

    Raises:
        RlpreError: if the name is no device, or this machine does not have it.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RlpreError(f"device {str(name)!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from error
    return device


def to_device(array: Any, device: torch.device) -> Tensor:
    """Copies an array or a CPU tensor to a device; the copy to a GPU does not wait for the GPU's other work."""
    tensor = torch.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def provenance() -> dict[str, Any]:
    """What a run directory records so that the run can be repeated: versions and git commit."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {"versions": versions, "commit": _git("rev-parse", "HEAD"), "dirty": bool(_git("status", "--porcelain"))}


def _git(*arguments: str) -> str | None:
    try:
        return subprocess.check_output(["git", *arguments], stderr=subprocess.DEVNULL, text=True, timeout=10).strip()
    except (OSError, subprocess.SubprocessError):
        return None


def to_rgb(frames: Tensor) -> Tensor:
    """Turns frames (n, C, H, W) into pictures (n, 3, H, W): the newest frame of a stack, in colour if 3 divides C."""
    return frames[:, -3:] if frames.shape[1] % 3 == 0 else torch.cat([frames[:, -1:]] * 3, dim=1)


def image_grid(frames: Tensor, columns: int) -> Tensor:
    """Lays out frames (n, C, H, W) uint8 row by row with thin borders: (3, height, width) in [0, 1]."""
    from torchvision.utils import make_grid  # slow to import

    return cast(Tensor, make_grid(to_rgb(frames).float() / 255, nrow=columns))


def nearest_grid(features: Tensor, frames: Tensor) -> Tensor:
    """Rows of a frame, then the frames (n, C, H, W) uint8 whose features (n, dim) are nearest by cosine similarity."""
    unit = F.normalize(features, dim=1)
    columns = min(NEIGHBOURS + 1, len(unit))
    nearest = (unit[:QUERIES] @ unit.T).topk(columns, dim=1).indices
    return image_grid(frames[nearest.flatten()], columns)
