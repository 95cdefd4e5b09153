"""Studies: runs over (task, arm, seed) on any executor, resumable, each leaving tidy rows.

A study directory holds ``study.json`` (the configuration) and one run directory per run, ``<task>/<arm>/seed-<seed>``.
A finished run holds ``rows.json`` (what was measured) and ``done.json`` (the run, its seconds and threads). A failed
run holds ``failed.json`` and, if it had the time, ``traceback.txt``.
"""

import json
import os
import shutil
import socket
import sys
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
    fcntl = None  # type: ignore[assignment]  # a module elsewhere

from rlpre.compare.executors import Workers
from rlpre.errors import RlpreError
from rlpre.utils import as_json, keep_memory, read_json, write_json

STUDY, LOCK = "study.json", "lock"
DONE, FAILED, TRACEBACK, PROGRESS, ROWS = "done.json", "failed.json", "traceback.txt", "progress", "rows.json"
FORMAT = 2  # of a study directory; format 1 had no tidy rows and was never released
ABSENT = "absent"
# Parts of a configuration that describe tasks and arms, to which others may be added.
GROWING = ("tasks", "arms", "frames", "metric.arms", "metric.controls", "metric.labels", "metric.thresholds")
LARGEST = ("metric.arms", "metric.labels")  # numbers of frames and labels: the most of any task
POLL_SECONDS = 1.0
LINE_SECONDS = 60.0  # between two lines where no terminal shows a bar
# Errors of executors, by the names of their classes, because the package of some need not be installed.
LOST = {
    "BrokenProcessPool": "its worker process was killed: give fewer workers if memory ran out, or, if your own script "
    "runs this, put the call below `if __name__ == '__main__':`, because workers import the script",
    "KilledWorker": "every worker that tried it was lost: look at the workers' logs and run the study again",
    "CancelledError": "it was cancelled, or the scheduler is gone: run the study again",
}


@dataclass(frozen=True, order=True)
class Run:
    """One run of a study."""

    task: str
    arm: str
    seed: int

    @property
    def path(self) -> Path:
        """The run directory, relative to the study's."""
        return Path(self.task, self.arm, f"seed-{self.seed}")

    def __str__(self) -> str:
        return self.path.as_posix()


@dataclass(frozen=True)
class Row:
    """One measured value of one run.

    Attributes:
        study: name of the study.
        task: what was learned, such as an environment id.
        arm: what was compared, such as a way to use an encoder.
        seed: of the run.
        metric: what was measured.
        value: the measurement.
        step: environment steps (or updates) at which it was measured, for curves; None for a single value.
    """

    study: str
    task: str
    arm: str
    seed: int
    metric: str
    value: float
    step: int | None = None


Measurements = Mapping[str, float | Sequence[tuple[int, float]]]  # metric -> value, or a curve of (step, value)

# Executes one run: work(run, run directory, report). It calls report(steps) with the steps so far, as often as it
# likes, and returns what it measured. It must be importable: a function of a module, or a functools.partial of one.
Work = Callable[[Run, Path, Callable[[int], None]], Measurements | None]


@dataclass(frozen=True)
class StudyResult:
    """The finished runs, in the order given, and the one-sentence errors of the others."""

    done: tuple[Run, ...]
    failed: dict[Run, str]


def run_study(
    directory: Path,
    runs: Sequence[Run],
    work: Work,
    configuration: Mapping[str, Any],
    steps: Mapping[str, int],
    *,
    executor: Executor | None = None,
    workers: int | None = None,
    keep: bool = False,
) -> StudyResult:
    """Executes the runs that are not finished; a study killed at any moment goes on from there.

    A run that raises, or whose process is killed twice, is recorded as failed. The others go on, and the next call
    tries it again.

    Args:
        directory: of the study; on a shared file system if the executor's workers are on other machines.
        runs: in the order of their start; put the longest first.
        work: see `Work`.
        configuration: JSON-like; everything that the results depend on. Runs, tasks and arms may be added later, the
            last two as keys of the parts `GROWING`. ``configuration["study"]`` is the name of the study in the rows.
        steps: task -> steps of each of its runs, for the progress bar.
        executor: where runs are executed, such as `rlpre.compare.executors.cluster`. Default: processes of this
            machine.
        workers: runs at a time on one machine; each gets its cores // workers threads (at least one). Default: one per
            core. An executor decides itself how many it executes, and takes only the threads from here.
        keep: an attempt finds what an earlier one has left in the run directory, for work that resumes. Default: the
            run directory is emptied.

    Raises:
        RlpreError: if the directory belongs to another configuration or to an earlier layout, another process is
            writing it, or there are no workers.
    """
    if workers is not None and workers < 1:
        raise RlpreError(f"workers={workers} would run nothing: give at least 1, or leave it out for one per core")
    directory, runs = directory.resolve(), list(dict.fromkeys(runs))
    with _locked(directory), nullcontext(executor) if executor else Workers(workers or _cores()) as pool:
        _claim(directory, configuration)
        todo = [run for run in runs if not (directory / run.path / DONE).exists()]
        futures = {pool.submit(_execute, work, run, directory / run.path, workers, keep): run for run in todo}
        failed = _follow(futures, runs, directory, steps)
    return StudyResult(tuple(run for run in runs if run not in failed), failed)


def succeed(*results: StudyResult) -> None:
    """Does nothing if every run is finished.

    Raises:
        RlpreError: naming the first that is not, and its error.
    """
    failed = {run: error for result in results for run, error in result.failed.items()}
    if failed:
        run, error = next(iter(failed.items()))
        raise RlpreError(f"{len(failed)} runs failed, {run} with: {error}; the same command tries them again")


def restore(directory: Path, published: Path, again: Collection[str] = ()) -> None:
    """Puts the runs of a published study, ``study.json`` and ``rows.json``, into a study directory as finished runs.

    So the same study goes on where another machine has published it: `run_study` executes what is missing, or refuses
    the directory if the configuration differs.

    Args:
        directory: of the study; runs that are finished there stay as they are.
        published: a directory that holds the two files.
        again: tasks whose runs are executed again, because other runs need their files.

    Raises:
        RlpreError: if a file is missing or damaged, or the directory belongs to another configuration.
    """
    configuration, content = read_study(published), read_json(published / ROWS)
    with _locked(directory):
        _claim(directory, configuration)
        for entry in content["runs"]:
            run, measured = Run(entry["task"], entry["arm"], entry["seed"]), dict(entry["measured"])
            path = directory / run.path
            if run.task not in again and not (path / DONE).exists():
                seconds = measured.pop("seconds", None)
                write_json(path / ROWS, list(_entries(measured)))
                write_json(path / DONE, {**asdict(run), "seconds": seconds, "threads": None})


def read_study(directory: Path) -> dict[str, Any]:
    """The configuration of a study directory.

    Raises:
        RlpreError: if there is none, or an earlier version of rlpre wrote the directory.
    """
    content: dict[str, Any] = read_json(directory / STUDY)
    if content.get("format") != FORMAT:
        raise RlpreError(
            f"{directory} was written by an earlier version of rlpre, whose studies cannot be read: run the study "
            "again in another directory"
        )
    return content


def finished_runs(directory: Path) -> dict[Run, Path]:
    """The finished runs of a study, sorted, and their run directories."""
    runs = {}
    for marker in directory.rglob(DONE):
        done = read_json(marker)
        if "task" not in done:
            read_study(directory)
        runs[Run(done["task"], done["arm"], done["seed"])] = marker.parent
    return dict(sorted(runs.items()))


def read_rows(directory: Path) -> list[Row]:
    """What the finished runs of a study measured, sorted by run.

    Raises:
        RlpreError: if there is no study, or the rows of a run are missing or damaged.
    """
    name = str(read_study(directory).get("study", directory.name))
    rows = []
    for run, path in finished_runs(directory).items():
        try:
            found = [Row(name, *asdict(run).values(), *entry) for entry in read_json(path / ROWS, list)]
        except (TypeError, ValueError) as error:
            raise RlpreError(f"{path / ROWS} is damaged ({error}): delete {path} and run the study again") from error
        rows += found
    return rows


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """The leaves of nested dictionaries as JSON, by dotted name."""
    leaves: dict[str, str] = {}
    for key, value in tree.items():
        nested = isinstance(value, dict) and value
        leaves |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: json.dumps(value)}
    return leaves


@contextmanager
def _locked(directory: Path) -> Iterator[None]:
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
    """Writes the configuration; if there is one, adds the new tasks and arms, and refuses any other difference."""
    path, wanted = directory / STUDY, as_json({"format": FORMAT, **configuration})
    if not path.exists():
        write_json(path, wanted)
        return
    known = read_study(directory)
    grown = _merged(known, wanted)
    there, here = flat(grown), flat(_merged(wanted, known))
    for key in dict.fromkeys([*there, *here]):
        if there.get(key, ABSENT) != here.get(key, ABSENT):
            raise RlpreError(
                f"{directory} belongs to another study: {key} is {there.get(key, ABSENT)} there and "
                f"{here.get(key, ABSENT)} here: give another directory or the same configuration"
            )
    if grown != known:
        write_json(path, grown)


def _merged(first: Any, second: Any, place: str = "") -> Any:
    """The first configuration, with the tasks and arms that only the second one has."""
    if place in GROWING and isinstance(first, list) and isinstance(second, list):
        return first if first == second else sorted({*first, *second})
    if isinstance(first, int) and isinstance(second, int) and place.startswith(LARGEST):
        return max(first, second)
    if not (isinstance(first, dict) and isinstance(second, dict)):
        return first
    added = {key: value for key, value in second.items() if key not in first} if place in GROWING else {}
    inner = {key: _merged(value, second.get(key), f"{place}.{key}".lstrip(".")) for key, value in first.items()}
    return {**inner, **added}


def _follow(
    futures: dict[Future[str | None], Run], runs: Sequence[Run], directory: Path, steps: Mapping[str, int]
) -> dict[Run, str]:
    """Waits for the futures behind a progress bar over the steps of all runs; returns the errors."""
    pending, failed = set(futures), dict[Run, str]()
    shown = {run: steps[run.task] for run in runs}
    total = sum(shown.values())
    shown |= dict.fromkeys(futures.values(), 0)
    bar = _Bar(
        total=total, initial=sum(shown.values()), unit="step", unit_scale=True, desc=directory.name, disable=None
    )
    try:
        while pending:
            wait(pending, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
            ended = {future for future in pending if future.done()}  # wait() overlooks those cancelled by an executor
            pending -= ended
            for future in ended:
                # not kept: dask would execute a run again whose result was on a worker that is lost later
                run, error = futures.pop(future), _outcome(future)
                if error:
                    failed[run] = error
                    write_json(directory / run.path / FAILED, {"error": error})
                    bar.write(f"{run} failed: {error}")
                else:
                    shown[run] = steps[run.task]
            for run in (futures[future] for future in pending):
                with suppress(OSError, ValueError):
                    shown[run] = int((directory / run.path / PROGRESS).read_text())
            done = len(runs) - len(pending) - len(failed)
            bar.show(sum(shown.values()), f"{done}/{len(runs)} runs, {len(failed)} failed")
    finally:
        bar.close()
        for future in pending:
            future.cancel()
    return failed


class _Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """A progress bar on a terminal, else a line a minute on stderr."""

    def __init__(self, total: int, desc: str, **options: Any) -> None:
        super().__init__(total=total, desc=desc, **options)
        self.line, self.shown = f"{desc}: {{}}, {{:,}} of {total:,} steps", time.monotonic()

    def show(self, steps: int, text: str) -> None:
        """Shows the steps of all runs so far, and how the runs stand."""
        self.n = steps
        self.set_postfix_str(text)
        if self.disable and time.monotonic() - self.shown >= LINE_SECONDS:
            self.shown = time.monotonic()
            print(self.line.format(text, steps), file=sys.stderr, flush=True)


def _outcome(future: "Future[str | None]") -> str | None:
    try:
        return future.result()
    except Exception as error:
        return LOST.get(type(error).__name__) or _sentence(error)


def _sentence(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, RlpreError) else f"{type(error).__name__}: {text}"


def _execute(work: Work, run: Run, path: Path, workers: int | None, keep: bool) -> str | None:
    """Executes one run in a worker, perhaps on another machine; returns the error if it fails."""
    if (path / DONE).exists():  # by a worker that was lost before it could report
        return None
    threads = max(1, _cores() // (workers or _cores()))
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for processes that the work starts
    torch.set_num_threads(threads)
    keep_memory()
    started = time.perf_counter()
    try:
        if not keep:
            shutil.rmtree(path, ignore_errors=True)  # what an attempt that was killed has left
        path.mkdir(parents=True, exist_ok=True)
        for leftover in (FAILED, TRACEBACK, PROGRESS):
            (path / leftover).unlink(missing_ok=True)
        measured = work(run, path, _Report(path / PROGRESS)) or {}
        write_json(path / ROWS, list(_entries(measured)))
        seconds = time.perf_counter() - started
        write_json(path / DONE, {**asdict(run), "seconds": round(seconds, 3), "threads": threads})
    except Exception as error:
        with suppress(OSError):
            (path / TRACEBACK).write_text(traceback.format_exc())
        return _sentence(error)
    return None


def _entries(measured: Measurements) -> Iterator[tuple[str, float, int | None]]:
    """(metric, value, step) of every measured value."""
    for metric, values in measured.items():
        if isinstance(values, Sequence):
            yield from ((metric, float(value), int(step)) for step, value in values)
        else:
            yield metric, float(values), None


class _Report:
    """Writes the step count for the parent's progress bar, at most once per poll."""

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
