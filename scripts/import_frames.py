"""Frames from elsewhere into a store: ``python scripts/import_frames.py images FOLDER --out runs/frames/film``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

import rlpre
from cli import run

Positional = tyro.conf.Positional


@dataclass(frozen=True)
class Images:
    """A folder of images, or of folders of images: one sequence a folder."""

    folder: Positional[Path]
    out: Path  # directory of the frame store
    size: tuple[int, int] | None = None  # height and width to resize all to
    channels: Literal[1, 3, 4] | None = None  # to convert all to


@dataclass(frozen=True)
class Arrays:
    """A .npy or .npz file of uint8 frames; columns (action, reward, ...) are read from a .npz file too."""

    source: Positional[Path]  # the file
    out: Path  # directory of the frame store
    key: str | None = None  # the array of the frames
    layout: str | None = None  # "CHW" or "HWC", where the shape does not tell


@dataclass(frozen=True)
class Minari:
    """A local Minari data set."""

    source: Positional[str]  # its id or its directory
    out: Path  # directory of the frame store
    image: str | None = None  # the key of the image in Dict observations
    layout: str | None = None  # "CHW" or "HWC", where the shape does not tell


@dataclass(frozen=True)
class Export:
    """A frame store into a Minari data set."""

    store: Positional[Path]  # directory of the frame store
    dataset_id: Positional[str]  # "name-v0" or "namespace/name-v0"
    path: Path | None = None  # the folder of data sets; default: Minari's own


DOORS: dict[type, Callable[..., rlpre.FrameStore]] = {
    Images: rlpre.from_images,
    Arrays: rlpre.from_arrays,
    Minari: rlpre.from_minari,
}
Job = (
    Annotated[Images, tyro.conf.subcommand("images")]
    | Annotated[Arrays, tyro.conf.subcommand("arrays")]
    | Annotated[Minari, tyro.conf.subcommand("minari")]
    | Annotated[Export, tyro.conf.subcommand("export")]
)


def main(job: tyro.conf.OmitArgPrefixes[tyro.conf.OmitSubcommandPrefixes[Job]]) -> None:
    """Imports or exports, and says what was made."""
    arguments: dict[str, Any] = dict(vars(job))
    if isinstance(job, Export):
        dataset = rlpre.to_minari(rlpre.FrameStore.open(arguments.pop("store")), **arguments)
        print(f"{dataset.id}: {len(dataset):,} episodes, {dataset.total_steps:,} steps")
        return
    store = DOORS[type(job)](**arguments)
    print(f"{store.path}: {len(store):,} frames, {store.distinct:,} distinct, {store.unchanged:.0%} of steps unchanged")


if __name__ == "__main__":
    run(main)
