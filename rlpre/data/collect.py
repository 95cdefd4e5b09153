"""Collecting frames: any environment is played into a store, complete episodes only."""

import copy
import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, unwrap_vec_normalize
from torch.nn import functional as F
from tqdm import tqdm

from rlpre.data.adapters import as_vec_env, find_images
from rlpre.data.store import (
    UNKNOWN,
    Columns,
    Frames,
    FrameStore,
    FrameWriter,
    end_values,
    frame_space,
    resume_store,
    space_to_json,
)
from rlpre.errors import RlpreError, whole

Policy = Any  # an SB3 model, a callable, or None
Labels = Callable[[VecEnv], Mapping[str, npt.ArrayLike]]  # of the current states of environments, by name
LUMA = np.array([19595, 38470, 7471], np.uint32)  # of red, green and blue, in 1 / 65,536, as in Pillow


def collect(
    env: Any,
    out: str | Path,
    steps: int,
    policy: Policy = None,
    seed: int = 0,
    image: str | None = None,
    layout: str | None = None,
    size: tuple[int, int] | None = None,
    gray: bool = False,
    task: str | None = None,
    labels: Labels | None = None,
) -> FrameStore:
    """Collects frames, actions and rewards until the store holds at least ``steps`` transitions.

    Episodes are stored with their final frame. Episodes that are unfinished at the end, or longer than a shard, are cut
    (neither terminated nor truncated). An interrupted collection leaves a store that opens. The same call again, or a
    call for more steps, continues it with new episodes.

    Args:
        env: an SB3 ``VecEnv``, a Gymnasium ``Env`` or ``VectorEnv``, or an EnvPool, see
            `rlpre.data.adapters.as_vec_env`. It observes uint8 images, (C, H, W), (H, W, C) or (H, W), or a Dict with
            one; it is seeded and reset.
        out: the directory of the store.
        steps: transitions in all; rounded up to a multiple of the number of environments.
        policy: an SB3 or sb3-contrib model (its stochastic actions), or a callable from the observations to actions
            (n_envs, ...); None acts at random. Random actions and MaskablePPO respect the masks of environments
            that have sb3-contrib's method ``action_masks``.
        seed: of the environments, of random actions and of torch.
        image: the key of the image, if a Dict observation holds several.
        layout: "CHW" or "HWC", if the shape of the images is ambiguous.
        size: (H, W) to resize frames to, before they are stored.
        gray: whether colours are stored as gray, one channel instead of three.
        task: a name for what the frames show; default the id of the environment, where it has one.
        labels: gives what probes shall find in the frames: from the ``VecEnv``, by name, an integer (n_envs,) for each
            current state, -1 if unknown. For example the memory of Atari games:
            ``lambda venv: {"ram 49": [env.unwrapped.ale.getRAM()[49] for env in venv.unwrapped.envs]}``.

    Raises:
        RlpreError: if the observations are no images, a store cannot hold the actions or labels, the policy does not
            fit, ``out`` belongs to another collection, or the disk is full.
    """
    venv = as_vec_env(env)
    whole(steps=steps, seed=seed)
    if steps < 1 or seed < 0 or (size and min(size) < 1):
        raise RlpreError(f"cannot collect {steps} steps with seed {seed} and size {size}: use positive numbers")
    images = find_images(venv.observation_space, "the environment", image, layout)
    space: Any = venv.action_space
    shape = converted(np.zeros(images.shape, np.uint8), size, gray).shape
    names: list[str] = []
    if labels:
        venv.reset()  # before it, there is no state to describe
        names = list(labels(venv))
    spec = {
        "frames": shape,
        "actions": space_to_json(space),
        "image": images.key,
        "layout": images.layout,
        "policy": _policy_name(policy),
        "seed": seed,
        "n_envs": venv.num_envs,
        "size": size,
        "gray": gray or None,  # stores without this setting can be continued
        "task": task or _env_id(venv) or "default",
        "labels": names or None,
    }
    tasks = [spec["task"]]
    writer = resume_store(Path(out), spec, space=frame_space(shape), action_space=space, tasks=tasks, labels=names)
    with Recorder(writer, steps) as recorder, torch.random.fork_rng(devices=[]):
        env_seed, policy_seed = seeds(seed, len(writer.manifest["shards"]))
        torch.manual_seed(policy_seed)
        player = _PolicyPlayer(venv, lambda seen: converted(images.pick(seen), size, gray), policy, policy_seed)
        player.labels, player.read_labels = names, labels
        lengths = segments(1, steps - recorder.transitions, venv.num_envs, writer.shard_rows // 2)
        if lengths:
            venv.seed(env_seed)
            observations = venv.reset()
        for number, (_, length) in enumerate(lengths, start=1):
            observations = recorder.play(venv, player, observations, length, last=number == len(lengths))
    return FrameStore.open(out)


def converted(frames: Frames, size: tuple[int, int] | None, gray: bool) -> Frames:
    """Frames (..., C, H, W) in gray, (..., C // 3, H, W), and resized to ``size`` (H, W), bilinear with antialiasing.

    Raises:
        RlpreError: if colours are to be gray but 3 does not divide the number of channels.
    """
    *batch, channels, height, width = frames.shape
    if gray and channels > 1:
        if channels % 3:
            raise RlpreError(f"frames of {channels} channels are no colours: leave gray out")
        colors = np.moveaxis(frames.reshape(*batch, channels // 3, 3, height, width), -3, -1)
        frames = ((colors @ LUMA + 2**15) >> 16).astype(np.uint8)
    if size and (height, width) != tuple(size):
        pixels = torch.tensor(frames.reshape(-1, 1, height, width), dtype=torch.float32)
        pixels = F.interpolate(pixels, size, mode="bilinear", antialias=True).round().clamp(0, 255)
        frames = pixels.byte().numpy().reshape(*batch, -1, *size)
    return frames


def segments(tasks: int, steps: int, n_envs: int, most: int) -> list[tuple[int, int]]:
    """Cuts ``steps`` transitions of each task into (task, steps per environment), at most ``most`` transitions each."""
    longest, total = max(1, most // n_envs), -(-steps // n_envs)
    return [(task, min(longest, total - start)) for task in range(tasks) for start in range(0, total, longest)]


def seeds(seed: int, number: int) -> tuple[int, int]:
    """Seeds of the environments and of the policy for a segment; close values of ``seed`` give independent streams."""
    environments, policy = (np.random.SeedSequence([seed, number]).generate_state(2) >> 1).tolist()
    return environments, policy


class Player(Protocol):
    """Chooses the actions, and gives the frames and labels to store."""

    labels: Sequence[str]  # names of the integer label columns

    def frames(self, observed: Any) -> Frames:
        """The frames to store, (n_envs, ...), of a batch of observations."""

    def known(self) -> npt.NDArray[np.int16]:
        """The labels of the current states, (n_envs, len(labels)); called once per step."""

    def act(self, observed: Any, known: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
        """Actions (n_envs, ...) for the observations and their labels."""

    def end(self, env: int, info: dict[str, Any]) -> Frames:
        """The final frame of the episode that environment ``env`` has just ended."""


class Recorder:
    """Plays environments and appends the complete episodes to a store, with a progress bar.

    Unfinished episodes wait in memory. One that reaches the length of a shard is cut and continues as another.

    Args:
        writer: of the store.
        steps: transitions in all, for the progress bar; ``transitions`` counts those that the store held before.
    """

    def __init__(self, writer: FrameWriter, steps: int) -> None:
        self.writer = writer
        self.transitions = int(FrameStore.open(writer.path).acted.sum()) if writer.manifest["shards"] else 0
        self._waiting: dict[int, Columns] = {}  # rows of the unfinished episodes by environment
        self._bar = tqdm(total=steps, initial=self.transitions, unit="step", desc=writer.path.name, disable=None)

    def play(self, venv: VecEnv, player: Player, observed: Any, length: int, last: bool, task: int = 0) -> Any:
        """Plays ``length`` steps of each environment from the observations ``observed``, and returns the next ones.

        Episodes that ended are written. The last call cuts the others; before it, they wait for the next call.
        """
        steps = (length, venv.num_envs)
        stored = ("action", "reward", "terminated", "truncated", *player.labels)
        rows: Columns = {name: np.zeros(steps, self.writer.row_dtype[name]) for name in stored}
        rows["frames"] = np.empty((*steps, *self.writer.manifest["frame_shape"]), np.uint8)
        rows["mission"] = np.empty(steps, object)
        ends: list[dict[int, Frames]] = [{} for _ in range(venv.num_envs)]  # the final frames, by step
        normalize = unwrap_vec_normalize(venv)  # stored rewards are the environment's own
        for t in range(length):
            known = player.known()
            rows["frames"][t], rows["mission"][t] = player.frames(observed), _missions(venv)
            for label, values in zip(player.labels, known.T, strict=True):
                rows[label][t] = values
            rows["action"][t] = player.act(observed, known)
            observed, rewards, done, infos = venv.step(rows["action"][t])
            rows["reward"][t] = normalize.get_original_reward() if normalize else rewards
            for env in np.flatnonzero(done).tolist():
                kind = "truncated" if infos[env].get("TimeLimit.truncated", False) else "terminated"
                rows[kind][t, env] = True
                ends[env][t] = player.end(env, infos[env])
            self._bar.update(venv.num_envs)
        for env, frame in enumerate(player.frames(observed)):
            self._append(env, {name: column[:, env] for name, column in rows.items()}, ends[env], frame, last, task)
        self.writer.flush()
        return observed

    def _append(
        self, env: int, rows: Columns, ends: dict[int, Frames], next_frame: Frames, last: bool, task: int
    ) -> None:
        """Appends the episodes of an environment that ended; keeps the rows of the unfinished one."""
        if env in self._waiting:
            earlier = self._waiting.pop(env)
            ends = {t + len(earlier["frames"]): frame for t, frame in ends.items()}
            rows = {name: np.concatenate([earlier[name], column]) for name, column in rows.items()}
        total, ended = len(rows["frames"]), max(ends, default=-1) + 1
        if total > ended and (last or total - ended >= self.writer.shard_rows):
            ends, ended = {**ends, total - 1: next_frame}, total
        elif total > ended:
            self._waiting[env] = {name: column[ended:].copy() for name, column in rows.items()}
        if ended:
            past = {name: column[:ended] for name, column in rows.items()}
            self.writer.append(**insert_ends(past, ends, end_values(self.writer.action_space)), task=task)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def insert_ends(rows: Columns, ends: Mapping[int, Frames], values: Mapping[str, float]) -> Columns:
    """Inserts a row with the final frame after each step that ended an episode, and adds "episode_start".

    The last of the ``rows`` (T, ...) ends an episode. In inserted rows, with ``values``, missions continue and labels
    are unknown.
    """
    after = np.array(list(ends)) + 1
    start = np.isin(np.arange(len(rows["frames"])), [0, *after])
    new = {"frames": list(ends.values()), "mission": rows["mission"][after - 1], "episode_start": False, **values}
    columns = {**rows, "episode_start": start}
    return {name: np.insert(column, after, new.get(name, UNKNOWN), axis=0) for name, column in columns.items()}


def _missions(venv: VecEnv) -> list[str | None]:
    """The mission text of each environment's current episode, from the infos of its reset."""
    # SB3's wrappers do not pass these infos on, and the innermost environment of an adapter need not be a VecEnv
    infos = getattr(getattr(venv, "unwrapped", None), "reset_infos", None) or [{}] * venv.num_envs
    missions = (info.get("mission") for info in infos)
    return [text if isinstance(text, str) else None for text in missions]


def _env_id(venv: VecEnv) -> str | None:
    """The id under which the environment is registered, if it says so."""
    try:
        (spec,) = venv.get_attr("spec", 0)
    except AttributeError:
        return None
    return getattr(spec, "id", None)


def _has_masks(venv: VecEnv) -> bool:
    """Whether the environments have sb3-contrib's method that says which actions are allowed."""
    try:
        return venv.has_attr("action_masks")
    except AttributeError:  # the innermost environment of an adapter need not be a VecEnv
        return False


class _PolicyPlayer:
    """Acts by a policy or at random; stores the images of the observations, and labels if ``read_labels`` is set."""

    labels: Sequence[str] = ()
    read_labels: Labels | None = None

    def __init__(self, venv: VecEnv, frames: Callable[[Any], Frames], policy: Policy, seed: int) -> None:
        self.venv, self.frames, self.policy = venv, frames, policy
        self.space, self.n_envs = copy.deepcopy(venv.action_space), venv.num_envs
        self.space.seed(seed)
        self.masked = isinstance(self.space, spaces.Discrete) and _has_masks(venv)
        self.memory: Any = None  # of a recurrent policy
        self.starts = np.ones(self.n_envs, bool)

    def known(self) -> npt.NDArray[np.int16]:
        """The labels that the user's function reads from the environments, checked."""
        if self.read_labels is None:
            return np.empty((self.n_envs, 0), np.int16)
        given = {name: np.asarray(values) for name, values in self.read_labels(self.venv).items()}
        if missing := [name for name in self.labels if name not in given]:
            raise RlpreError(f"labels() gave {missing[0]!r} at first and now does not: give -1 where it is unknown")
        most = np.iinfo(np.int16).max
        for name, values in given.items():
            whole = values.shape == (self.n_envs,) and values.dtype.kind in "iub"
            if not whole or values.min() < UNKNOWN or values.max() > most:
                raise RlpreError(
                    f"label {name!r} is {values.tolist()}, {values.dtype} {values.shape}: give one integer for each of "
                    f"the {self.n_envs} environments, 0 to {most}, or -1 where it is unknown"
                )
        return np.stack([given[name] for name in self.labels], axis=1).astype(np.int16)

    def act(self, observed: Any, known: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
        """The actions of the user's policy, checked; it does not see the labels."""
        chosen, expected = np.asarray(self._choose(observed)), (self.n_envs, *(self.space.shape or ()))
        if chosen.shape != expected or not np.can_cast(chosen.dtype, self.space.dtype or float, "same_kind"):
            raise RlpreError(
                f"the policy gave actions {chosen.shape} {chosen.dtype}: expected {expected} {self.space.dtype}, one "
                "for each environment"
            )
        self.starts[:] = False
        return chosen

    def _choose(self, observed: Any) -> npt.ArrayLike:
        masks = np.array(self.venv.env_method("action_masks"), np.int8) if self.masked else None
        if self.policy is None:
            allowed = [None] * self.n_envs if masks is None else masks
            return np.stack([self.space.sample(mask) for mask in allowed])
        if not hasattr(self.policy, "predict"):
            return cast(npt.ArrayLike, self.policy(observed))
        reads_masks = self.masked and "action_masks" in inspect.signature(self.policy.predict).parameters
        extra = {"action_masks": masks} if reads_masks else {}
        try:
            chosen, self.memory = self.policy.predict(observed, self.memory, self.starts, **extra)
        except ValueError as error:  # SB3 raises it for observations of another shape
            raise RlpreError(f"the policy cannot act on these observations: {error}") from error
        return cast(npt.ArrayLike, chosen)

    def end(self, env: int, info: dict[str, Any]) -> Frames:
        """The frame of the terminal observation, which SB3's environments keep in ``info``."""
        self.starts[env] = True
        if info.get("terminal_observation") is None:
            raise RlpreError(
                f"environment {env} ended an episode without infos[{env}]['terminal_observation']: use a VecEnv that "
                "keeps it, as those of Stable-Baselines3 do"
            )
        return self.frames(info["terminal_observation"])


def _policy_name(policy: Policy) -> str:
    """The policy in a store's specification: its name, and a hash of its weights or of its code."""
    if policy is None:
        return "random"
    digest = hashlib.sha256()
    if hasattr(policy, "policy"):
        for tensor in policy.policy.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
    else:  # two functions of one name, such as lambdas, are two policies
        function = getattr(policy, "__func__", policy if hasattr(policy, "__code__") else type(policy).__call__)
        _update_code(digest, getattr(function, "__code__", None))
    return f"{getattr(policy, '__qualname__', type(policy).__name__)} {digest.hexdigest()[:12]}"


def _update_code(digest: "hashlib._Hash", code: Any) -> None:
    """Adds the instructions, names and constants of a function, and those of functions in it."""
    if code is None:
        return
    digest.update(code.co_code + repr(code.co_names).encode())
    for constant in code.co_consts:
        if hasattr(constant, "co_code"):
            _update_code(digest, constant)
        else:
            digest.update(repr(constant).encode())
