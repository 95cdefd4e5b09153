"""Minari data sets, read and written without loss."""

import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from tqdm import tqdm

from rlpre.data.adapters import find_images, from_channels_first, parts
from rlpre.data.store import (
    COLUMNS,
    UNKNOWN,
    ActionSpace,
    Columns,
    FrameStore,
    Indices,
    end_values,
    fill_store,
    frame_space,
)
from rlpre.errors import RlpreError, lookup
from rlpre.utils import read_json

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset
    from minari.data_collector import EpisodeBuffer

ROOT = "MINARI_DATASETS_PATH"  # the environment variable that tells Minari its folder of data sets
FIELDS = {"action": "actions", "reward": "rewards", "terminated": "terminations", "truncated": "truncations"}
METADATA = (  # of a data set, kept in the store and written back
    *("env_spec", "eval_env_spec", "algorithm_name", "author", "author_email", "code_permalink"),
    *("description", "requirements", "ref_min_score", "ref_max_score"),
)


def from_minari(
    source: "MinariDataset | str | Path",
    out: str | Path,
    image: str | None = None,
    layout: str | None = None,
    labels: Sequence[str] | None = None,
) -> FrameStore:
    """Makes a store of a Minari data set: every frame, action, float64 reward and flag of every episode.

    Needs the extra ``rlpre[minari]``. Images of floats in 0..1 or 0..255 are rounded to uint8. Of Dict observations,
    nested ones too, one image is read, and a text "mission". Warnings name all that is left out, and tell if Minari
    stored the frames as JPEG, its default: they are not the frames that the environment showed.

    Args:
        source: a data set, the id of a local one, or its directory.
        out: the directory of the store; it appears when all is read.
        image: the key of the image, if a Dict observation holds several; "outer/inner" in a nested one.
        layout: "CHW" or "HWC", if the shape of the images is ambiguous.
        labels: infos to keep as label columns, nested ones as "outer/inner"; default: all that are integers within 16
            bits, one per frame or step, in every episode. A warning names the others.

    Raises:
        RlpreError: if Minari is missing, there is no such set, its observations are no images, a store cannot hold its
            actions or its labels, or ``out`` is not empty.
    """
    dataset = _load(source)
    from minari.dataset.minari_storage import is_image_space

    where, action_space = f"Minari set {dataset.id}", dataset.action_space
    images = find_images(dataset.observation_space, where, image, layout, floats=True)
    if not len(dataset):
        raise RlpreError(f"{where} holds no episodes: record some first")
    others = parts(dataset.observation_space) if images.key else {"": dataset.observation_space}
    pixels = others.pop(images.key or "")
    if dataset.storage.jpeg_encoding and is_image_space(pixels):
        warnings.warn(
            f"{where} keeps its frames as JPEG, so they are not the pixels that the environment showed: record it with "
            "jpeg_encoding=False",
            stacklevel=2,
        )
    texts = isinstance(others.get("mission"), spaces.Text) and bool(others.pop("mission"))
    if others:
        warnings.warn(f"observations {', '.join(others)} of {where} are left out: a store holds images", stacklevel=2)
    if images.scale:
        warnings.warn(f"images of {where} are floats and are rounded to 8 bits", stacklevel=2)
    metadata = read_json(Path(dataset.storage.data_path) / "metadata.json")
    tasks, missions = (metadata.get("rlpre", {}).get(name, []) for name in ("tasks", "missions"))
    numbered = _numbered(tasks, missions)  # infos that `to_minari` wrote
    labels = _find_labels(dataset, where, numbered) if labels is None else list(labels)
    about = {name: metadata[name] for name in METADATA if name in metadata}

    def rows() -> Iterator[Mapping[str, Any]]:
        """Reads one episode at a time."""
        for episode in dataset:
            frames, name = images.pick(episode.observations), f"episode {episode.id} of {where}"
            columns = _columns(episode, len(frames), action_space, [*labels, *numbered], name)
            if texts:
                columns["mission"] = np.array(episode.observations["mission"], object)
            elif missions:
                columns["mission"] = np.array([*missions, None], object)[columns["mission"]]
            yield {"frames": frames, "task": 0, **columns}

    return fill_store(
        Path(out),
        rows(),
        int(dataset.total_steps) + len(dataset),
        space=frame_space(images.shape),
        action_space=action_space,
        spec={"minari": dataset.id, "about": about, "image": images.key, "layout": images.layout},
        tasks=tasks or [dataset.id],
        labels=labels,
    )


def to_minari(store: FrameStore, dataset_id: str, path: str | Path | None = None) -> "MinariDataset":
    """Writes a store as a Minari data set, losslessly: raw pixels, never JPEG.

    Needs the extra ``rlpre[minari]``. Labels and the numbers of tasks and missions become infos. A store that
    `from_minari` made gets back the layout and key of its images, and its metadata (environment, authors, ...).

    Args:
        store: frames with actions.
        dataset_id: "name-v0" or "namespace/name-v0".
        path: the folder of data sets; default: Minari's own.

    Returns:
        The data set; it appears when all is written.

    Raises:
        RlpreError: if Minari is missing, the id is taken or malformed, an episode has no actions, or the disk is full.
    """
    minari = _minari()
    bounds = np.append(np.flatnonzero(store.column("episode_start")), len(store))
    if store.action_space is None or np.diff(bounds).min() < 2:
        raise RlpreError(f"{store.path} holds frames without actions, which a Minari set cannot: collect with actions")
    root = Path(path) if path else minari.storage.get_dataset_path()
    try:
        namespace, _, _ = minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise RlpreError(f"{dataset_id!r} is no Minari id: write it as 'name-v0' or 'namespace/name-v0'") from error
    target, unfinished = root / dataset_id, root / f".{dataset_id.replace('/', '.')}.part"
    if target.exists():
        raise RlpreError(f"{target} is there already: choose another id for the Minari set")
    try:
        with _datasets_in(unfinished):
            _write(minari, store, dataset_id, bounds)
        with _datasets_in(root):
            if namespace and namespace not in minari.namespace.list_local_namespaces():
                minari.namespace.create_namespace(namespace)
        (unfinished / dataset_id).replace(target)
    except OSError as error:
        raise RlpreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return minari.MinariDataset(target / "data")


def _numbered(tasks: Sequence[str], missions: Sequence[str]) -> list[str]:
    """The columns of numbers of texts that become infos."""
    return ["task"] * (len(tasks) > 1) + ["mission"] * (len(missions) > 0)


def _minari() -> Any:
    try:
        import h5py  # noqa: F401
        import minari
    except ImportError as error:
        raise RlpreError(f"this needs Minari ({error}): pip install 'rlpre[minari]'") from error
    return minari


def _load(source: "MinariDataset | str | Path") -> "MinariDataset":
    minari = _minari()
    if isinstance(source, minari.MinariDataset):
        return source
    for folder in (Path(source), Path(source, "data")):
        if (folder / "metadata.json").exists():
            return minari.MinariDataset(folder)
    if Path(source).exists():
        raise RlpreError(f"{source} is no Minari set: give the directory that holds its 'data'")
    with warnings.catch_warnings(action="ignore"):  # about other sets that are damaged
        lookup("Minari set", str(source), minari.list_local_datasets())
    return minari.load_dataset(str(source))


def _flat(infos: Mapping[str, Any] | None, prefix: str = "") -> Columns:
    """Nested infos by names such as "outer/inner"."""
    flat: Columns = {}
    for name, value in (infos or {}).items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: np.asarray(value)}
    return flat


def _find_labels(dataset: "MinariDataset", where: str, numbered: Sequence[str]) -> list[str]:
    """The infos that a label column can hold in every episode; warns of the others, except tasks and missions."""
    names: dict[str, int] = {}  # in how many episodes an info fits
    for episode in dataset:
        for name, values in _flat(episode.infos).items():
            names[name] = names.get(name, 0) + (name not in ("action", *COLUMNS) and _fits(values, len(episode)))
    others = [name for name, count in names.items() if count < len(dataset) and name not in numbered]
    if others:
        warnings.warn(
            f"infos {', '.join(others)} of {where} are left out: labels are integers within 16 bits, one per frame or "
            "step, in every episode, and not called like another column",
            stacklevel=3,
        )
    return [name for name, count in names.items() if count == len(dataset)]


def _fits(values: npt.NDArray[Any], steps: int) -> bool:
    limits = np.iinfo(np.int16)
    integers = values.dtype.kind in "biu" and values.shape in ((steps,), (steps + 1,))
    return bool(integers and limits.min <= values.min() and values.max() <= limits.max)


def _columns(episode: "EpisodeData", n: int, space: ActionSpace, infos: Sequence[str], where: str) -> Columns:
    """The columns of an episode of ``n`` frames."""
    steps, known, ends = len(episode), _flat(episode.infos), end_values(space)
    if n != steps + 1:
        raise RlpreError(f"{where} has {n} observations for {steps} steps, not {steps + 1}: its final one is missing")
    rows = {name: _lengthen(np.asarray(getattr(episode, FIELDS[name])), ends[name]) for name in FIELDS}
    for name in infos:
        values = lookup(f"info of {where}", name, known)
        if name not in COLUMNS and not _fits(values, steps):
            raise RlpreError(f"info {name!r} of {where} does not fit 16-bit integers, one per frame: leave it out")
        rows[name] = values if len(values) == n else _lengthen(values.astype(np.int64), UNKNOWN)
    return rows | {"episode_start": np.arange(n) == 0}


def _lengthen(values: npt.NDArray[Any], last: float) -> npt.NDArray[Any]:
    return np.concatenate([values, np.full((1, *values.shape[1:]), last, values.dtype)])


@contextmanager
def _datasets_in(path: Path) -> Iterator[None]:
    """Makes ``path`` Minari's folder of data sets inside the block."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(path)
    try:
        yield
    finally:
        del os.environ[ROOT]
        if before is not None:
            os.environ[ROOT] = before


def _write(minari: Any, store: FrameStore, dataset_id: str, bounds: Indices) -> None:
    from minari.data_collector import EpisodeBuffer

    spec = store.manifest["spec"]
    layout = spec.get("layout", "CHW")
    keys = spec["image"].split("/")[::-1] if spec.get("image") else []  # of nested Dict observations, inside first
    infos = [*store.labels, *_numbered(store.tasks, store.missions)]

    def nested(image: Any, kind: Callable[[Any], Any]) -> Any:
        for key in keys:
            image = kind({key: image})
        return image

    def episodes() -> "Iterator[EpisodeBuffer]":
        """Decodes one episode of the store at a time."""
        for start, end in tqdm(
            pairwise(bounds), total=len(bounds) - 1, unit="episode", desc=store.path.name, disable=None
        ):
            images = np.ascontiguousarray(from_channels_first(store.frames(np.arange(start, end)), layout))
            yield EpisodeBuffer(
                observations=nested(images, dict),
                **{field: store.column(name)[start : end - 1] for name, field in FIELDS.items()},
                infos={name: store.column(name)[start:end] for name in infos} or None,
            )

    shape = from_channels_first(np.empty(store.space.shape, np.uint8), layout).shape
    with warnings.catch_warnings(action="ignore"):  # about missing metadata
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffer=episodes(),
            observation_space=nested(frame_space(shape), spaces.Dict),
            action_space=store.action_space,
            jpeg_encoding=False,
        )
    about = {name: set(value) if name.startswith("author") else value for name, value in spec.get("about", {}).items()}
    dataset.storage.update_metadata({**about, "rlpre": {"tasks": store.tasks, "missions": store.missions}})
