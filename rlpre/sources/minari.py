"""Minari data sets, read and written without loss."""

import os
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from tqdm import tqdm

from rlpre import actions
from rlpre.errors import RlpreError, lookup
from rlpre.files import read_json
from rlpre.frames import FrameStore
from rlpre.sources.layout import find_images, lay_out
from rlpre.sources.rollout import UNKNOWN
from rlpre.sources.whole import whole

if TYPE_CHECKING:
    from minari import EpisodeData, MinariDataset
    from minari.data_collector import EpisodeBuffer

Columns = dict[str, npt.NDArray[Any]]
ROOT = "MINARI_DATASETS_PATH"  # where Minari looks for data sets
ABOUT = (  # what is said about a data set and kept on the way there and back
    "env_spec",
    "eval_env_spec",
    "algorithm_name",
    "author",
    "author_email",
    "code_permalink",
    "description",
    "requirements",
    "ref_min_score",
    "ref_max_score",
)


def from_minari(
    source: "MinariDataset | str | Path",
    out: str | Path,
    image: str | None = None,
    layout: str | None = None,
    labels: Sequence[str] | None = None,
) -> FrameStore:
    """Makes a store of a Minari data set: every frame, action, float64 reward and flag of every episode.

    Needs the extra ``rlpre[minari]``. Other parts of Dict observations are left out. A set whose frames Minari keeps as
    JPEG, its default, is read with a warning: they are not what the environment showed.

    Args:
        source: a data set, the id of a local one, or its directory.
        out: the directory of the store; it appears when all is read.
        image: the key of the image, where a Dict observation holds several.
        layout: "CHW" or "HWC", where the shape of the images does not tell their channels.
        labels: infos to keep as label columns, nested ones as "outer/inner"; default: all that are whole numbers within
            16 bits, one a frame, in the first episode.

    Raises:
        RlpreError: if Minari is missing, there is no such set, its observations are no images, a store cannot hold its
            actions or its labels, or something stands at ``out``.
    """
    dataset = _load(source)
    where = f"Minari set {dataset.id}"
    images = find_images(dataset.observation_space, where, image, layout)
    actions.check(space := dataset.action_space)
    _warn_of_jpeg(dataset, images.key, where)
    episodes = iter(dataset)
    first = next(episodes, None)
    if first is None:
        raise RlpreError(f"{where} holds no episodes: record some first")
    metadata = read_json(Path(dataset.storage.data_path) / "metadata.json")
    tasks = metadata.get("rlpre", {}).get("tasks", [dataset.id])
    labels = _labels(first, where) if labels is None else list(labels)
    about = {name: metadata[name] for name in ABOUT if name in metadata}
    spec = {"minari": dataset.id, "about": about, "image": images.key, "layout": images.layout}
    infos = (*labels, "task") if len(tasks) > 1 else tuple(labels)
    with (
        whole(Path(out), space=images.space, action_space=space, spec=spec, tasks=tasks, labels=labels) as writer,
        tqdm(total=len(dataset), unit="episode", desc=Path(out).name, disable=None) as bar,
    ):
        for episode in chain([first], episodes):
            frames = images.pick(episode.observations)
            columns = _rows(episode, infos, actions.missing(space), f"episode {episode.id} of {where}")
            writer.append(frames, **{"task": 0} | columns)
            bar.update()
    return FrameStore.open(out)


def to_minari(store: FrameStore, dataset_id: str, path: str | Path | None = None) -> "MinariDataset":
    """Writes a store as a Minari data set, losslessly: raw pixels, never JPEG.

    Needs the extra ``rlpre[minari]``. Labels become infos; images have the layout and the key that they came with. What
    the store was told about its origin by `from_minari` (environment, authors, ...) is written again.

    Args:
        store: frames with actions.
        dataset_id: "name-v0" or "namespace/name-v0".
        path: the folder of data sets; default: Minari's own.

    Returns:
        The data set; it appears when all is written.

    Raises:
        RlpreError: if Minari is missing, the id is taken or none, an episode has no actions, or the disk is full.
    """
    minari = _minari()
    starts = np.flatnonzero(store.column("episode_start"))
    bounds = np.append(starts, len(store))
    if store.action_space is None or np.diff(bounds).min() < 2:
        raise RlpreError(f"{store.path} holds frames without actions, which a Minari set cannot: collect with actions")
    root = Path(path) if path else minari.storage.get_dataset_path()
    try:
        namespace, _, _ = minari.dataset.minari_dataset.parse_dataset_id(dataset_id)
    except (ValueError, TypeError) as error:
        raise RlpreError(f"{dataset_id!r} is no Minari id: write it as 'name-v0' or 'namespace/name-v0'") from error
    target, part = root / dataset_id, root / f".{dataset_id.replace('/', '.')}.part"
    if target.exists():
        raise RlpreError(f"{target} is there already: choose another id for the Minari set")
    try:
        with _root(part):
            _write(store, dataset_id, bounds)
        with _root(root):
            if namespace and namespace not in minari.namespace.list_local_namespaces():
                minari.namespace.create_namespace(namespace)
        (part / dataset_id).replace(target)
    except OSError as error:
        raise RlpreError(f"cannot write {target}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return minari.MinariDataset(target / "data")


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
    with warnings.catch_warnings(action="ignore"):  # of other sets that are damaged
        lookup("Minari set", str(source), minari.list_local_datasets())
    return minari.load_dataset(str(source))


def _warn_of_jpeg(dataset: "MinariDataset", key: str | None, where: str) -> None:
    from minari.dataset.minari_storage import is_image_space

    space = dataset.observation_space if key is None else dataset.observation_space[key]
    if dataset.storage.jpeg_encoding and is_image_space(space):
        warnings.warn(
            f"{where} keeps its frames as JPEG, so they are not the pixels that the environment showed: record it with "
            "jpeg_encoding=False",
            stacklevel=3,
        )


def _flat(infos: Mapping[str, Any] | None, prefix: str = "") -> Columns:
    """Nested infos by names such as "outer/inner"."""
    flat: Columns = {}
    for name, value in (infos or {}).items():
        flat |= _flat(value, f"{prefix}{name}/") if isinstance(value, Mapping) else {prefix + name: np.asarray(value)}
    return flat


def _labels(episode: "EpisodeData", where: str) -> list[str]:
    """The infos of an episode that a label column can hold; warns of the others."""
    fits: list[str] = []
    others: list[str] = []
    for name, values in _flat(episode.infos).items():
        whole_numbers = values.dtype.kind in "biu" and values.shape in ((len(episode),), (len(episode) + 1,))
        limits = np.iinfo(np.int16)
        fit = whole_numbers and values.size and limits.min <= values.min() and values.max() <= limits.max
        (fits if fit else others).append(name)
    if others:
        warnings.warn(
            f"infos {', '.join(others)} of {where} are left out: labels are whole numbers within 16 bits, one a frame",
            stacklevel=3,
        )
    return [name for name in fits if name not in ("task", "mission")]


def _rows(episode: "EpisodeData", infos: Sequence[str], no_action: float, where: str) -> Columns:
    """The columns of an episode: T + 1 rows for T steps."""
    steps, known = len(episode), _flat(episode.infos)
    columns = {"reward": (episode.rewards, 0.0), "terminated": (episode.terminations, False)}
    columns |= {"truncated": (episode.truncations, False), "action": (episode.actions, no_action)}
    rows = {name: _longer(np.asarray(values), last) for name, (values, last) in columns.items()}
    for name in infos:
        values = lookup(f"info of {where}", name, known)
        rows[name] = values if len(values) == steps + 1 else _longer(values.astype(np.int64), UNKNOWN)
    return rows | {"episode_start": np.arange(steps + 1) == 0}


def _longer(values: npt.NDArray[Any], last: float) -> npt.NDArray[Any]:
    return np.concatenate([values, np.full((1, *values.shape[1:]), last, values.dtype)])


@contextmanager
def _root(path: Path) -> Iterator[None]:
    """Minari's folder of data sets, for a while."""
    before = os.environ.get(ROOT)
    os.environ[ROOT] = str(path)
    try:
        yield
    finally:
        del os.environ[ROOT]
        if before is not None:
            os.environ[ROOT] = before


def _write(store: FrameStore, dataset_id: str, bounds: npt.NDArray[np.int64]) -> None:
    import minari

    spec = store.manifest["spec"]
    layout, key = spec.get("layout", "CHW"), spec.get("image")
    space: Any = spaces.Box(0, 255, lay_out(np.empty((1, *store.space.shape), np.uint8), layout).shape[1:], np.uint8)
    with warnings.catch_warnings(action="ignore"):  # of what is not said about the set
        dataset = minari.create_dataset_from_buffers(
            dataset_id,
            buffer=_buffers(store, bounds, layout, key),
            observation_space=spaces.Dict({key: space}) if key else space,
            action_space=store.action_space,
            jpeg_encoding=False,
        )
    about = {name: set(value) if name.startswith("author") else value for name, value in spec.get("about", {}).items()}
    dataset.storage.update_metadata({**about, "rlpre": {"tasks": store.tasks}})


def _buffers(
    store: FrameStore, bounds: npt.NDArray[np.int64], layout: str, key: str | None
) -> "Iterator[EpisodeBuffer]":
    """One episode after the other."""
    from minari.data_collector import EpisodeBuffer

    names = [*store.labels, "task"] if len(store.tasks) > 1 else store.labels
    for start, end in tqdm(pairwise(bounds), total=len(bounds) - 1, unit="episode", desc=store.path.name, disable=None):
        frames = np.ascontiguousarray(lay_out(store.frames(np.arange(start, end)), layout))
        yield EpisodeBuffer(
            observations={key: frames} if key else frames,
            actions=store.column("action")[start : end - 1],
            rewards=store.column("reward")[start : end - 1],
            terminations=store.column("terminated")[start : end - 1],
            truncations=store.column("truncated")[start : end - 1],
            infos={name: store.column(name)[start:end] for name in names} or None,
        )
