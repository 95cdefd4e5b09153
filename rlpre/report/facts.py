"""What a comparison stands on: the offline data, the pretraining, the configuration, and the runs that did not end."""

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rlpre.errors import RlpreError
from rlpre.files import read_json
from rlpre.frames import FrameStore
from rlpre.framewriter import MANIFEST
from rlpre.report.pictures import rgb
from rlpre.study import DONE, FAILED, STUDY, finished_runs, flat

RUN, CHECKPOINT, FILM, FRAMES, FEATURES = "run.json", "config.json", "policy.gif", "frames", "features"
STRIP = 12  # frames of a strip


@dataclass(frozen=True)
class Data:
    """The offline frames.

    Attributes:
        frames: how many.
        distinct: how many different ones.
        unchanged: share of the transitions in [0, 1] that leave the frame as it is.
        behaviour: who acted; None if the store does not say.
        environments: frames by environment.
        strips: by environment, different frames of it as PNG.
    """

    frames: int
    distinct: int
    unchanged: float
    behaviour: str | None
    environments: dict[str, int]
    strips: dict[str, list[bytes]]


@dataclass(frozen=True)
class Pretrained:
    """What one encoder cost and knows; ``probes`` and ``control`` (its fresh weights) score by label."""

    objective: str
    steps: int
    batch: int
    seconds: float
    probes: dict[str, float]
    control: dict[str, float]


@dataclass(frozen=True)
class Provenance:
    """Configuration by dotted name; versions and commits, each with the number of runs that it made."""

    configuration: dict[str, str]
    versions: dict[str, int]
    commits: dict[str, int]


def read_data(directory: Path) -> dict[str, Data]:
    """The facts of the frame stores in a directory, by name.

    Raises:
        RlpreError: if there is none, or one is damaged.
    """
    stores = sorted(manifest.parent for manifest in directory.glob(f"*/{MANIFEST}"))
    if not stores:
        raise RlpreError(f"{directory} holds no frame store")
    return {path.name: _read_store(path) for path in stores}


def _read_store(path: Path) -> Data:
    store = FrameStore.open(path)
    tasks = store.column("task")
    rows = {name: np.flatnonzero(tasks == number) for number, name in enumerate(store.tasks)}
    return Data(
        frames=len(store),
        distinct=store.distinct,
        unchanged=store.unchanged,
        behaviour=store.manifest["spec"].get("behaviour"),
        environments={name: len(of) for name, of in rows.items()},
        strips={name: _strip(store, of) for name, of in rows.items() if len(of)},
    )


def read_pretrained(directory: Path) -> list[Pretrained]:
    """The finished encoders of a study of pretraining; empty without one.

    Raises:
        RlpreError: if a file of one is missing or damaged.
    """
    found = []
    for cell, run in finished_runs(directory).items():
        facts = read_json(run / CHECKPOINT).get("pretraining", {})
        if not {"steps", "batch"} <= facts.keys():
            raise RlpreError(f"{run / CHECKPOINT} does not say how the encoder was pretrained: pretrain it again")
        scores = [facts.get(kind, {}) for kind in ("probes", "control")]
        found.append(Pretrained(cell.arm, facts["steps"], facts["batch"], read_json(run / DONE)["seconds"], *scores))
    return found


def read_provenance(directory: Path) -> Provenance:
    """What the runs of a study say about their making."""
    versions: dict[str, int] = {}
    commits: dict[str, int] = {}
    for run in finished_runs(directory).values():
        facts = read_json(run / RUN) if (run / RUN).exists() else {}
        if facts.get("commit"):
            commit = facts["commit"] + (" with changes" if facts["dirty"] else "")
            commits[commit] = commits.get(commit, 0) + 1
        for package in facts.get("versions", {}).items():
            version = " ".join(package)
            versions[version] = versions.get(version, 0) + 1
    return Provenance(flat(read_json(directory / STUDY)), versions, commits)


def read_failed(directory: Path) -> dict[str, str]:
    """The errors of the runs below a directory that failed, by run."""
    markers = sorted(directory.rglob(FAILED))
    return {str(marker.parent.relative_to(directory)): read_json(marker)["error"] for marker in markers}


def count_unfinished(directory: Path) -> int:
    """How many runs below a directory have begun and neither ended nor failed."""
    begun = [run.parent for run in directory.rglob(RUN)]
    return sum(not (run / DONE).exists() and not (run / FAILED).exists() for run in begun)


def _strip(store: FrameStore, rows: npt.NDArray[np.int64]) -> list[bytes]:
    """Different frames, evenly spread over ``rows``."""
    _, first = np.unique(store.ids[rows], return_index=True)
    chosen = np.sort(first)[np.linspace(0, len(first) - 1, min(STRIP, len(first))).astype(int)]
    return [_png(frame) for frame in rgb(torch.from_numpy(store.frames(rows[chosen])))]


def _png(frame: Tensor) -> bytes:
    content = io.BytesIO()
    Image.fromarray(frame.permute(1, 2, 0).numpy()).save(content, format="PNG")
    return content.getvalue()
