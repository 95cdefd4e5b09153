"""Studies: cells over (environment, arm, seed) on any executor, resumable, with one progress bar.

A study directory holds ``study.json`` (the configuration it belongs to) and one run directory per cell,
``<environment>/<arm>/seed-<seed>``. A run that has ended well holds ``done.json`` (its cell, seconds and threads), one
that failed ``failed.json`` and, if it had the time, ``traceback.txt``.
"""

import json
import os
import shutil
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from rlpre.errors import RlpreError
from rlpre.files import read_json, write_json
from rlpre.pool import Workers

STUDY, LOCK = "study.json", "lock"
DONE, FAILED, TRACEBACK, PROGRESS = "done.json", "failed.json", "traceback.txt", "progress"
ABSENT = "absent"
POLL_SECONDS = 1.0
# Errors that are an executor's, by the names of their classes, because the package of some need not be installed.
LOST = {
    "BrokenProcessPool": "its worker process was killed (out of memory?): give fewer workers and run the study again",
    "KilledWorker": "every worker that tried it was lost: look at the workers' logs and run the study again",
    "CancelledError": "it was cancelled, or the scheduler is gone: run the study again",
}


@dataclass(frozen=True, order=True)
class Cell:
    """One training run of a study."""

    environment: str
    arm: str
    seed: int

    @property
    def path(self) -> Path:
        """The run directory, relative to the study's."""
        return Path(self.environment, self.arm, f"seed-{self.seed}")

    def __str__(self) -> str:
        return self.path.as_posix()


# Trains one cell: work(cell, run directory, report). It leaves its results in the run directory and calls report(steps)
# with the environment steps so far, as often as it likes. It must be importable: a module's function, or a
# functools.partial of one.
Work = Callable[[Cell, Path, Callable[[int], None]], None]


@dataclass(frozen=True)
class StudyResult:
    """The cells that have ended well, in the order given, and the one-sentence errors of those that have not."""

    done: tuple[Cell, ...]
    failed: dict[Cell, str]


def run_study(
    directory: Path,
    cells: Sequence[Cell],
    work: Work,
    configuration: Mapping[str, Any],
    steps: Mapping[str, int],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    keep: bool = False,
) -> StudyResult:
    """Runs the cells that have no done-marker; a study killed at any moment goes on from there.

    A cell that raises, or whose process is killed twice, is recorded, the others go on, and the next call tries it
    again.

    Args:
        directory: where the study lives; on a shared file system if the executor's workers are on other machines.
        cells: in the order of their start; put the longest first.
        work: see `Work`.
        configuration: JSON-like; all that the results depend on except the cells, which may be added later.
        steps: environment -> steps of each of its cells, for the progress bar.
        executor: where cells run, such as `rlpre.cluster.cluster`. Default: `rlpre.pool.Workers`.
        workers: cells at a time on one machine; each gets its cores // workers threads (at least one). Default: one per
            core. An executor decides itself how many it runs, and takes only the threads from here.
        keep: an attempt finds what an earlier one has left in the run directory, for work that resumes. Default: the
            run directory is emptied.

    Raises:
        RlpreError: if the directory belongs to another configuration, another process is writing it, or there are no
            workers.
    """
    if workers is not None and workers < 1:
        raise RlpreError(f"workers={workers} would run nothing: give at least 1, or leave it out for one per core")
    directory, cells = directory.resolve(), list(dict.fromkeys(cells))
    with _alone(directory), nullcontext(executor) if executor else Workers(workers or _cores()) as pool:
        _claim(directory, configuration)
        todo = [cell for cell in cells if not (directory / cell.path / DONE).exists()]
        futures = {pool.submit(_run, work, cell, directory / cell.path, workers, keep): cell for cell in todo}
        failed = _follow(futures, cells, directory, steps)
    return StudyResult(tuple(cell for cell in cells if cell not in failed), failed)


def succeed(*results: StudyResult) -> None:
    """Does nothing if every cell has ended well.

    Raises:
        RlpreError: naming the first that has not, and its error.
    """
    failed = {cell: error for result in results for cell, error in result.failed.items()}
    if failed:
        cell, error = next(iter(failed.items()))
        raise RlpreError(f"{len(failed)} runs failed, {cell} with: {error}; the same command tries them again")


def finished_runs(directory: Path) -> dict[Cell, Path]:
    """The cells of a study that have ended well, sorted, and their run directories."""
    runs = {}
    for marker in directory.rglob(DONE):
        done = read_json(marker)
        runs[Cell(done["environment"], done["arm"], done["seed"])] = marker.parent
    return dict(sorted(runs.items()))


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Keeps other processes out; the operating system lifts the lock when this one ends, even by SIGKILL."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = path.open("a+")
    except OSError as error:
        raise RlpreError(f"cannot write {path}: {error.strerror}") from error
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise RlpreError(f"{directory} is in use by {file.read()}: wait for it or give another one") from error
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield


def _claim(directory: Path, configuration: Mapping[str, Any]) -> None:
    path, wanted = directory / STUDY, json.loads(json.dumps(configuration))
    if not path.exists():
        write_json(path, wanted)
        return
    there, here = flat(read_json(path)), flat(wanted)
    for key in dict.fromkeys([*there, *here]):
        if there.get(key, ABSENT) != here.get(key, ABSENT):
            raise RlpreError(
                f"{directory} belongs to another study: {key} is {there.get(key, ABSENT)} there and "
                f"{here.get(key, ABSENT)} here: give another directory or the same configuration"
            )


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries as JSON, by dotted name."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        leaves |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: json.dumps(value)}
    return leaves


def _follow(
    futures: dict[Future[str | None], Cell], cells: Sequence[Cell], directory: Path, steps: Mapping[str, int]
) -> dict[Cell, str]:
    """Waits for the futures behind a bar over the steps of all cells; returns the errors."""
    pending, failed = set(futures), dict[Cell, str]()
    shown = {cell: steps[cell.environment] for cell in cells}
    total = sum(shown.values())
    shown |= dict.fromkeys(futures.values(), 0)
    bar = tqdm(
        total=total, initial=sum(shown.values()), unit="step", unit_scale=True, desc=directory.name, disable=None
    )
    try:
        while pending:
            wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            ended = {future for future in pending if future.done()}  # wait() overlooks those cancelled by an executor
            pending -= ended
            for future in ended:
                # not kept: dask would run a cell again whose result was on a worker that is lost later
                cell, error = futures.pop(future), _outcome(future)
                if error:
                    failed[cell] = error
                    write_json(directory / cell.path / FAILED, {"error": error})
                    bar.write(f"{cell} failed: {error}")
                else:
                    shown[cell] = steps[cell.environment]
            for cell in (futures[future] for future in pending):
                with suppress(OSError, ValueError):
                    shown[cell] = int((directory / cell.path / PROGRESS).read_text())
            done = len(cells) - len(pending) - len(failed)
            bar.n = sum(shown.values())
            bar.set_postfix_str(f"{done}/{len(cells)} cells, {len(failed)} failed")
    finally:
        bar.close()
        for future in pending:
            future.cancel()
    return failed


def _outcome(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except Exception as error:
        return LOST.get(type(error).__name__) or _sentence(error)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RlpreError) else f"{type(error).__name__}: {text}"


def _run(work: Work, cell: Cell, run: Path, workers: int | None, keep: bool) -> str | None:
    """Runs one cell in a worker, perhaps on another machine; returns the error if it fails."""
    if (run / DONE).exists():  # by a worker that was lost before it could say so
        return None
    threads = max(1, _cores() // (workers or _cores()))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that the work starts
    torch.set_num_threads(threads)
    started = time.perf_counter()
    try:
        if not keep:
            shutil.rmtree(run, ignore_errors=True)  # what an attempt that was killed has left
        run.mkdir(parents=True, exist_ok=True)
        for leftover in (FAILED, TRACEBACK, PROGRESS):
            (run / leftover).unlink(missing_ok=True)
        work(cell, run, _Report(run / PROGRESS))
        seconds = time.perf_counter() - started
        write_json(run / DONE, {**asdict(cell), "seconds": round(seconds, 3), "threads": threads})
    except Exception as error:
        with suppress(OSError):
            (run / TRACEBACK).write_text(traceback.format_exc())
        return _sentence(error)
    return None


class _Report:
    """Writes the step count for the parent's bar, at most once per poll."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._next = 0.0

    def __call__(self, steps: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + POLL_SECONDS
            with suppress(OSError):  # a bar that stands still is no reason to lose the run
                self._path.write_text(str(steps))


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
