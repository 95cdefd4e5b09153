"""Where the runs of a study are executed: worker processes of this machine, or a dask cluster."""

import asyncio
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

from tqdm import tqdm

from rlpre.errors import RlpreError

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 2  # calls of one function whose worker process is killed
ANSWER_SECONDS = 10.0  # that a scheduler may take to answer
POLL_SECONDS = 0.5  # between two looks at a call on a cluster
WATCH_SECONDS = 10.0  # between two looks at the workers of a cluster
WAITING = "waiting for workers: start some with `dask worker {}{}`, or interrupt; nothing already written is lost"


class Workers(Executor):
    """``count`` spawned processes side by side, each a `ProcessPoolExecutor` of one process.

    One pool of many processes (of the standard library or of loky) breaks as a whole when the operating system kills
    one of them, and every other call is lost with it. Here only the call of the killed process is affected: it is
    tried once more in a new process, then its future raises `BrokenProcessPool`. The processes end with their parent,
    also if it is killed by SIGKILL, and at once when the ``with`` block is left by an exception.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)
        self._idle: SimpleQueue[ProcessPoolExecutor | None] = SimpleQueue()
        for _ in range(count):
            self._idle.put(None)  # not started yet
        # Nothing is ever sent: the processes read the end of the file when the parent closes its end or is gone.
        self._follow, self._lead = multiprocessing.Pipe(duplex=False)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Schedules ``fn(*args, **kwargs)``; function, arguments and result must be picklable."""
        return self._threads.submit(lambda: self._call(fn, *args, **kwargs))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See `Executor.shutdown`."""
        self._threads.shutdown(wait=wait, cancel_futures=cancel_futures)
        while not self._idle.empty():
            if pool := self._idle.get():
                pool.shutdown(wait=wait)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Waits for all calls, or ends them if the block failed."""
        if kind is not None:
            self._lead.close()
        self.shutdown(cancel_futures=kind is not None)

    def _call(self, fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        attempt = 0
        while True:
            attempt += 1
            pool = self._idle.get() or self._start()
            kept: ProcessPoolExecutor | None = pool
            try:
                return pool.submit(fn, *args, **kwargs).result()
            except BrokenProcessPool:
                kept = None
                if attempt == ATTEMPTS or self._lead.closed:
                    raise
            finally:
                self._idle.put(kept)

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(1, context, initializer=_end_with_parent, initargs=(self._follow,))


def _end_with_parent(follow: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides

    def watch() -> None:
        """Waits for the end of the pipe, which closes when the parent ends; then ends what a run started, and it."""
        with suppress(EOFError, OSError):
            follow.recv_bytes()
        for children in Path("/proc/self/task").glob("*/children"):  # Linux: games of ViZDoom would play on
            with suppress(OSError):
                for child in children.read_text().split():
                    os.kill(int(child), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address: str, *, gpus: float = 0) -> Iterator[Executor]:
    """The workers of a running dask cluster, as the ``executor`` of `run_study` or `rlpre.compare`.

    Start a scheduler, and workers on any machines that share the file system and the Python environment, in the same
    folder; ``--nthreads`` is the number of runs that a worker executes at a time::

        dask scheduler                                                          # prints tcp://HOST:8786
        dask worker tcp://HOST:8786 --nthreads 8                                # a machine with 8 cores
        CUDA_VISIBLE_DEVICES=0 dask worker tcp://HOST:8786 --nthreads 4 --resources GPU=1   # one worker per GPU

    Every call runs in a fresh process, as with `Workers`: it shares no random number generator and no thread with
    others, and it ends at once when the study is interrupted or the worker is lost. The call of a lost worker is
    tried on another one, up to four times (dask's ``distributed.scheduler.allowed-failures`` + 1). While there is no
    worker the study waits and says so on stderr; workers may join and leave at any time.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.
        gpus: what each call takes of the resource ``GPU`` that workers offer: 1 for a GPU alone, 0.25 to share one
            among four, 0 if calls may run on workers without.

    Yields:
        The executor. Functions and arguments must be importable on the workers.

    Raises:
        RlpreError: if dask is not installed, or no scheduler answers.
    """
    if gpus < 0:
        raise RlpreError(f"gpus={gpus} is no share of a GPU: give 0, 1, or a number between")
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise RlpreError("a cluster needs dask.distributed: pip install 'rlpre[cluster]'") from error
    _check_scheduler(address, distributed)
    with distributed.Client(address, timeout=ANSWER_SECONDS, set_as_default=False) as client, _watched(client, gpus):
        # not pure: dask would return the outcome of the first attempt to a run that is tried again
        yield _Cluster(client.get_executor(pure=False, resources={"GPU": gpus} if gpus else None))


def _check_scheduler(address: str, distributed: Any) -> None:
    """Refuses an address that does not answer: dask's own time limit does not cover servers that stay silent."""

    async def connect() -> None:
        secure = distributed.Security().get_connection_args("client")
        comm = await asyncio.wait_for(distributed.connect(address, timeout=ANSWER_SECONDS, **secure), ANSWER_SECONDS)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # the thread of a notebook already runs an event loop
            thread.submit(asyncio.run, connect()).result()
    except Exception as error:
        reason = str(error) or f"no answer within {ANSWER_SECONDS:g} s"
        raise RlpreError(
            f"no dask scheduler can be reached at {address!r} ({reason}): give the address that `dask scheduler` "
            "prints, such as tcp://host:8786"
        ) from error


class _Cluster(Executor):
    """Sends calls to dask, each to run in a process of its own."""

    def __init__(self, workers: Executor) -> None:
        self._workers = workers

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._workers.submit(_in_own_process, fn, args, kwargs)


def _in_own_process(fn: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> T:
    """Runs in a thread of a dask worker: calls ``fn`` in a fresh process, and ends it when the result is not needed."""
    from distributed import Status, get_worker

    # A nanny makes its workers daemons, which may not start processes; those of Workers end with their parent.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # private
    worker = get_worker()
    key = worker.get_current_task()
    with Workers(1) as process:
        future = process.submit(fn, *args, **kwargs)
        while not wait([future], POLL_SECONDS).done:
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled" or worker.status in (Status.closing, Status.closed):
                raise RlpreError("the result of this call is no longer needed")
        return future.result()


@contextmanager
def _watched(client: Any, gpus: float) -> Iterator[None]:
    """Prints when the study has to wait for workers, and when it goes on."""
    over = threading.Event()
    waits = WAITING.format(client.scheduler.address, f" --resources GPU={gpus:g}" if gpus else "")

    def watch() -> None:
        """Says when no worker can take a run, and when one can again."""
        waiting = False
        while not over.wait(WATCH_SECONDS):
            with suppress(OSError):  # the client itself reports a scheduler that is gone
                workers = client.scheduler_info(n_workers=-1)["workers"].values()
                if waiting == any(worker["resources"].get("GPU", 0) >= gpus for worker in workers):
                    waiting = not waiting
                    tqdm.write(waits if waiting else "workers are back", sys.stderr)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
