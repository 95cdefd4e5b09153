"""Stores that are imported in one go: there when complete, absent before."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.framewriter import FrameWriter


@contextmanager
def whole(out: Path, **arguments: Any) -> Iterator[FrameWriter]:
    """Yields the writer of a store that stands at ``out`` once the block has ended well.

    Args:
        out: a directory that is empty or not there.
        **arguments: of `FrameStore.create`.

    Raises:
        RlpreError: if something stands at ``out``.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise RlpreError(f"{out} is there already: choose another directory for the frames")
    part = out.absolute().with_name(f".{out.absolute().name}.part")
    shutil.rmtree(part, ignore_errors=True)  # what a killed import left
    try:
        with FrameStore.create(part, **arguments) as writer:
            yield writer
        part.replace(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def rows_at_once(writer: FrameWriter) -> int:
    """How many rows to read before they are appended: some 16 MiB of frames."""
    return max(1, writer.shard_rows // 8)
