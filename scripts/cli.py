"""How every script reads its command line and reports bad input, and where those that run studies run them."""

import sys
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import tyro

from rlpre import RlpreError
from rlpre.compare.executors import cluster
from rlpre.utils import keep_memory


@dataclass(frozen=True)
class Where:
    """Where the runs of a study run."""

    workers: int | None = None
    """Runs at a time, default one per core; on a cluster, what the cores of each machine are shared by."""
    dask: str | None = None
    """Address of a dask scheduler, such as tcp://host:8786; `rlpre.compare.executors.cluster` says how to start
    them. They must see the results directory under the same path."""
    gpus: float = 0
    """What each run takes of the resource GPU of dask workers: 1, or 0.25 for four runs on one."""

    def executor(self) -> AbstractContextManager[Executor | None]:
        """The cluster's; None for processes of this machine."""
        if self.dask is not None:
            return cluster(self.dask, gpus=self.gpus)
        if self.gpus:
            raise RlpreError(f"gpus={self.gpus:g} are asked of dask workers: give --dask ADDRESS, or leave gpus out")
        return nullcontext()


def run(main: Callable[..., Any]) -> None:
    """Calls ``main`` with the command line's arguments; bad input ends with one sentence and exit code 2."""
    keep_memory()
    sys.path.append("")  # functions of the current directory, such as --env mine:make
    try:
        tyro.cli(main, config=(tyro.conf.FlagConversionOff, tyro.conf.CascadeSubcommandArgs))
    except RlpreError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; nothing already written is lost", file=sys.stderr)
        sys.exit(130)
