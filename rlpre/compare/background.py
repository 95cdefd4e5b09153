"""What a report shows beside results: offline frames, pretraining, films, provenance, and runs that did not end."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rlpre.compare.runner import DONE, FAILED, STUDY, Run, finished_runs, flat
from rlpre.errors import RlpreError
from rlpre.evaluation.page import (
    Cell,
    Figure,
    Gallery,
    Provenance,
    Section,
    Table,
    Toned,
    percent,
    short_names,
    thousands,
)
from rlpre.files import read_json
from rlpre.frames import FrameStore
from rlpre.framewriter import MANIFEST
from rlpre.report.pictures import grid, rgb

RUN, CHECKPOINT = "run.json", "config.json"
FRAMES, ENCODERS = "frames", "encoders"
STRIP = 12  # frames that a page shows of an environment
MOST_BYTES = 500_000  # of a film


def notices(directory: Path, home: Path) -> list[str]:
    """What a reader must know first: unfinished and failed runs of a study, and of the pretraining beside it."""
    failed = {**_failed(home / ENCODERS, home), **_failed(directory, home)}
    unfinished = _count_unfinished(directory)
    lines = [f"Unfinished runs: {unfinished}. This is as far as the study has come."] if unfinished else []
    lines += [f"Failed runs: {len(failed)}."] if failed else []
    return [*lines, *(f"{run}: {error}" for run, error in failed.items())]


def read_provenance(directory: Path) -> Provenance:
    """What the finished runs of a study say about their making."""
    versions: dict[str, None] = {}
    commits: dict[str, None] = {}
    for run in finished_runs(directory).values():
        facts = read_json(run / RUN) if (run / RUN).exists() else {}
        versions |= {f"{package} {version}": None for package, version in facts.get("versions", {}).items()}
        if facts.get("commit"):
            commits[facts["commit"] + (" with changes" if facts.get("dirty") else "")] = None
    return Provenance(list(versions), list(commits), flat(read_json(directory / STUDY)))


def films(directory: Path, task: str, arms: Iterable[str]) -> list[Figure]:
    """The film (GIF) of the first seed that has one, of each arm; one that is too large is only mentioned."""
    found: dict[str, Figure] = {}
    for run, path in finished_runs(directory).items():
        for film in sorted(path.glob("*.gif"))[:1] if run.task == task and run.arm not in found else ():
            large = film.stat().st_size > MOST_BYTES
            note = f"{film.stat().st_size / 1e6:.1f} MB, too large for this page" if large else ""
            found[run.arm] = Figure(f"{run.arm}, seed {run.seed}", b"" if large else film.read_bytes(), note)
    return [found[arm] for arm in arms if arm in found]


def pretraining_sections(home: Path) -> list[Section]:
    """The offline frames and the pretrained encoders in a directory, as far as there are any.

    Args:
        home: may hold frame stores, ``frames/<name>``, and runs of pretraining, ``encoders/<objective>/seed-<seed>``.
    """
    sections = []
    if stores := sorted(manifest.parent for manifest in (home / FRAMES).glob(f"*/{MANIFEST}")):
        sections.append(_attempt("Offline frames", lambda: _frames(stores)))
    if encoders := finished_runs(home / ENCODERS):
        sections.append(_attempt("Pretraining", lambda: _pretraining(encoders)))
    return sections


def _attempt(title: str, make: Callable[[], Section]) -> Section:
    """The section, or why there is none: damaged files are no reason to withhold the results."""
    try:
        return make()
    except RlpreError as error:
        return Section(title, [f"Not known: {error}."])


def _frames(stores: Sequence[Path]) -> Section:
    blocks: list[Table | Gallery] = []
    for path in stores:
        store = FrameStore.open(path)
        tasks, names = store.column("task"), short_names(store.tasks)
        rows = {name: np.flatnonzero(tasks == number) for number, name in enumerate(store.tasks)}
        behaviour = store.manifest["spec"].get("behaviour") or "not recorded"
        note = (
            f"{len(store):,} frames, of which {store.distinct:,} are distinct; {percent(store.unchanged)} of the "
            f"transitions change nothing. Behaviour: {behaviour}."
        )
        blocks.append(
            Table(["environment", "frames"], [[name, f"{len(of):,}"] for name, of in rows.items()], path.name, note)
        )
        blocks.append(Gallery([Figure(names[name], _strip(store, of)) for name, of in rows.items() if len(of)]))
    return Section("Offline frames", [], blocks)


def _strip(store: FrameStore, rows: np.ndarray) -> bytes:
    """Different frames, evenly spread over ``rows``, side by side as PNG."""
    _, first = np.unique(store.ids[rows], return_index=True)
    chosen = np.sort(first)[np.linspace(0, len(first) - 1, min(STRIP, len(first))).astype(int)]
    picture = grid(rgb(torch.from_numpy(store.frames(rows[chosen]))), len(chosen))
    content = io.BytesIO()
    Image.fromarray((255 * picture).byte().permute(1, 2, 0).numpy()).save(content, format="PNG")
    return content.getvalue()


def _pretraining(encoders: Mapping[Run, Path]) -> Section:
    facts = {run: _facts(path) for run, path in encoders.items()}
    labels = list(dict.fromkeys(label for of in facts.values() for kind in ("probes", "control") for label in of[kind]))
    rows: list[list[Cell]] = []
    for run, path in encoders.items():
        of = facts[run]
        seconds = f"{read_json(path / DONE)['seconds']:.0f}"
        scores = [_score(of["probes"].get(label), of["control"].get(label)) for label in labels]
        rows.append([run.arm, str(run.seed), thousands(of["steps"]), str(of["batch"]), seconds, *scores])
    text = []
    if labels:
        text.append(
            "Linear probes: what can be read from the frozen features (balanced accuracy; R² for quantities); in "
            "brackets the same for fresh weights."
        )
    if len({run.arm for run in encoders}) == len(encoders):
        text.append("One encoder was pretrained per objective: intervals span seeds of training, not of pretraining.")
    head = ["objective", "seed", "updates", "batch", "seconds", *labels]
    return Section("Pretraining", text, [Table(head, rows)])


def _facts(path: Path) -> dict[str, Any]:
    content = read_json(path / CHECKPOINT).get("pretraining", {})
    if not {"steps", "batch"} <= content.keys():
        raise RlpreError(f"{path / CHECKPOINT} does not say how the encoder was pretrained: pretrain it again")
    return {"probes": {}, "control": {}, **content}


def _score(score: float | None, fresh: float | None) -> Cell:
    if score is None:
        return "-"
    if fresh is None:
        return f"{score:.2f}"
    return Toned(f"{score:.2f} ({fresh:.2f})", "bad" if score < fresh else "")


def _failed(directory: Path, home: Path) -> dict[str, str]:
    """The errors of failed runs below a directory, by run directory."""
    markers = sorted(directory.resolve().rglob(FAILED))
    return {str(marker.parent.relative_to(home)): read_json(marker)["error"] for marker in markers}


def _count_unfinished(directory: Path) -> int:
    """The number of run directories that are neither finished nor failed."""
    runs = [path for path in directory.rglob("seed-*") if path.is_dir()]
    return sum(not (path / DONE).exists() and not (path / FAILED).exists() for path in runs)
