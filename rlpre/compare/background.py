"""What a report shows beside results: offline frames, pretraining, films, provenance, and runs that did not end."""

import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rlpre.compare.runner import DONE, FAILED, STUDY, Run, finished_runs, flat
from rlpre.data.store import FrameStore
from rlpre.data.writer import MANIFEST
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
)
from rlpre.utils import image_grid, read_json, to_rgb

RUN, CHECKPOINT = "run.json", "config.json"
FRAMES, ENCODERS = "frames", "encoders"
STRIP = 12  # frames that a page shows of an environment
MOST_BYTES = 500_000  # of a film


def notices(directory: Path) -> list[str]:
    """What a reader must know first: how many runs of a study are unfinished, and which ones failed with what error."""
    markers = sorted(directory.rglob(FAILED))
    failed = [f"{marker.parent.relative_to(directory)}: {read_json(marker)['error']}" for marker in markers]
    runs = [path for path in directory.rglob("seed-*") if path.is_dir()]
    unfinished = sum(not (path / DONE).exists() and not (path / FAILED).exists() for path in runs)
    lines = [f"Unfinished runs: {unfinished}. This is as far as the study has come."] if unfinished else []
    return [*lines, *([f"Failed runs: {len(failed)}.", *failed] if failed else [])]


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


def films(directory: Path, task: str) -> dict[str, Figure]:
    """By arm the film (GIF) of its first seed that has one; of one that is too large only the size."""
    figures: dict[str, Figure] = {}
    for run, path in finished_runs(directory).items():
        for film in sorted(path.glob("*.gif"))[:1] if run.task == task and run.arm not in figures else ():
            large = film.stat().st_size > MOST_BYTES
            note = f"{film.stat().st_size / 1e6:.1f} MB, too large for this page" if large else ""
            figures[run.arm] = Figure(f"{run.arm}, seed {run.seed}", b"" if large else film.read_bytes(), note)
    return figures


def pretraining_sections(directory: Path) -> list[Section]:
    """The offline frames and the pretrained encoders of a study, as far as there are any.

    Args:
        directory: may hold frame stores, ``frames/<name>``, and runs of the task "encoders".
    """
    sections = []
    if stores := sorted(manifest.parent for manifest in (directory / FRAMES).glob(f"*/{MANIFEST}")):
        sections.append(_attempt("Offline frames", lambda: _frames(stores)))
    if runs := {run: path for run, path in finished_runs(directory).items() if run.task == ENCODERS}:
        sections.append(_attempt("Pretraining", lambda: _pretraining(runs)))
    return sections


def _attempt(title: str, make: Callable[[], Section]) -> Section:
    """The section, or why there is none: damaged files are no reason to withhold the results."""
    try:
        return make()
    except RlpreError as error:
        return Section(title, [f"Not known: {error}."])


def _frames(stores: Sequence[Path]) -> Section:
    blocks: list[Table | Figure | Gallery] = []
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
            Table(
                ["environment", "frames"],
                [[name, f"{len(places):,}"] for name, places in rows.items()],
                path.name,
                note,
            )
        )
        blocks += [Figure(names[name], _strip(store, places)) for name, places in rows.items() if len(places)]
    return Section("Offline frames", [], blocks)


def _strip(store: FrameStore, rows: np.ndarray) -> bytes:
    """Different frames, evenly spread over ``rows``, side by side as PNG."""
    _, first = np.unique(store.ids[rows], return_index=True)
    chosen = np.sort(first)[np.linspace(0, len(first) - 1, min(STRIP, len(first))).astype(int)]
    picture = image_grid(to_rgb(torch.from_numpy(store.frames(rows[chosen]))), len(chosen))
    content = io.BytesIO()
    Image.fromarray((255 * picture).byte().permute(1, 2, 0).numpy()).save(content, format="PNG")
    return content.getvalue()


def _pretraining(runs: Mapping[Run, Path]) -> Section:
    facts = {run: read_json(path / CHECKPOINT).get("pretraining", {}) for run, path in runs.items()}
    facts = {run: {"probes": {}, "control": {}, **fact} for run, fact in facts.items() if fact}
    labels = list(dict.fromkeys(label for fact in facts.values() for label in (*fact["probes"], *fact["control"])))
    rows: list[list[Cell]] = []
    for run, fact in facts.items():
        numbers = [f"{fact[name]:,}" if name in fact else "-" for name in ("steps", "batch")]
        seconds = f"{read_json(runs[run] / DONE)['seconds']:.0f}"
        scores = [_score(fact["probes"].get(label), fact["control"].get(label)) for label in labels]
        rows.append([run.arm, str(run.seed), *numbers, seconds, *scores])
    probes = "Linear probes: what can be read from the frozen features (balanced accuracy; R² for quantities); in "
    text = [f"{probes}brackets the same for fresh weights."] if labels else []
    if len({run.arm for run in facts}) == len(facts):
        text.append("One encoder was pretrained per objective: intervals span seeds of training, not of pretraining.")
    return Section("Pretraining", text, [Table(["objective", "seed", "updates", "batch", "seconds", *labels], rows)])


def _score(score: float | None, fresh: float | None) -> Cell:
    if score is None or fresh is None:
        return "-" if score is None else f"{score:.2f}"
    return Toned(f"{score:.2f} ({fresh:.2f})", "bad" if score < fresh else "")
