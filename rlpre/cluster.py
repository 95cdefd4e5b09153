"""A dask cluster as an executor: the same studies on the cores and GPUs of several machines."""

import asyncio
import importlib
import multiprocessing
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from tqdm import tqdm

from rlpre.errors import RlpreError
from rlpre.pool import Workers

T = TypeVar("T")

ANSWER_SECONDS = 10.0
POLL_SECONDS = 0.5
WATCH_SECONDS = 10.0
WAITING = "waiting for workers: start some with `dask worker {}{}`, or interrupt; nothing already written is lost"


@contextmanager
def cluster(address: str, *, gpus: float = 0) -> Iterator[Executor]:
    """The workers of a running dask cluster, as the ``executor`` of `rlpre.study.run_study`.

    Start a scheduler, and workers on any machines that share the file system and the Python environment, in the same
    folder; ``--nthreads`` is the number of cells that a worker runs at a time::

        dask scheduler                                                          # prints tcp://HOST:8786
        dask worker tcp://HOST:8786 --nthreads 8                                # a machine with 8 cores
        CUDA_VISIBLE_DEVICES=0 dask worker tcp://HOST:8786 --nthreads 4 --resources GPU=1   # one worker per GPU

    Every call runs in a fresh process of its worker, as in the process pool: what it does to random number generators
    and threads stays there, and it ends at once when the study is interrupted or the worker is lost. The call of a lost
    worker is tried on another one, up to four times (dask's ``distributed.scheduler.allowed-failures`` + 1). While no
    worker is there the study waits, and says so on stderr; workers may come and go at any time.

    Args:
        address: of the scheduler, such as ``tcp://host:8786``.
        gpus: what each call takes of the resource ``GPU`` that workers offer: 1 for a GPU alone, 0.25 to share one by
            four, 0 if calls may run on workers without.

    Yields:
        The executor. Functions and arguments must be importable where the workers are.

    Raises:
        RlpreError: if dask is not installed, or no scheduler answers.
    """
    if gpus < 0:
        raise RlpreError(f"gpus={gpus} is no share of a GPU: give 0, 1, or a number between")
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise RlpreError("a cluster needs dask.distributed: pip install 'rlpre[cluster]'") from error
    _greet(address, distributed)
    with distributed.Client(address, timeout=ANSWER_SECONDS, set_as_default=False) as client, _watched(client, gpus):
        # not pure: dask would give a cell that is tried again the outcome of the last time
        yield _Cluster(client.get_executor(pure=False, resources={"GPU": gpus} if gpus else None))


def _greet(address: str, distributed: Any) -> None:
    """Refuses what does not answer: dask's own time limit spares servers that stay silent, such as its dashboard."""

    async def greet() -> None:
        secure = distributed.Security().get_connection_args("client")
        comm = await asyncio.wait_for(distributed.connect(address, timeout=ANSWER_SECONDS, **secure), ANSWER_SECONDS)
        await comm.close()

    try:
        with ThreadPoolExecutor(1) as thread:  # a notebook's thread has a loop that is running
            thread.submit(asyncio.run, greet()).result()
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
    """Runs in a thread of a dask worker: calls ``fn`` in a fresh process, and ends it when nobody waits for it."""
    from distributed import Status, get_worker

    # A nanny makes its workers daemons, which may start no processes lest they outlive them: those of Workers do not.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    worker = get_worker()
    key = worker.get_current_task()
    with Workers(1) as process:
        future = process.submit(fn, *args, **kwargs)
        while not wait([future], POLL_SECONDS).done:
            task = worker.state.tasks.get(key)
            if task is None or task.state == "cancelled" or worker.status in (Status.closing, Status.closed):
                raise RlpreError("nobody waits for this call any more")
        return future.result()


@contextmanager
def _watched(client: Any, gpus: float) -> Iterator[None]:
    """Says when the study has to wait for workers, and when it goes on."""
    over = threading.Event()
    waits = WAITING.format(client.scheduler.address, f" --resources GPU={gpus:g}" if gpus else "")

    def watch() -> None:
        """Looks every few seconds until the study is over."""
        waiting = False
        while not over.wait(WATCH_SECONDS):
            with suppress(OSError):  # the client itself sees to a scheduler that is gone
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
