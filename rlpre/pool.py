"""Worker processes that fail one by one."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from multiprocessing.connection import Connection
from queue import SimpleQueue
from types import TracebackType
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

ATTEMPTS = 2


class Workers(Executor):
    """``count`` spawned processes side by side, each a `ProcessPoolExecutor` of one.

    One pool of many workers breaks as a whole when the operating system kills one of them, without telling whose call
    it was. Here the call of a killed worker is tried once more in a new process, then its future raises
    `BrokenProcessPool`; the other workers notice nothing. The processes die with their parent, even with one that is
    killed by SIGKILL, and at once when the ``with`` block is left by an exception.
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
        return ProcessPoolExecutor(1, context, initializer=_die_with_parent, initargs=(self._follow,))


def _die_with_parent(follow: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides

    def watch() -> None:
        with suppress(EOFError, OSError):
            follow.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
