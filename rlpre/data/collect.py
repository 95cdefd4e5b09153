"""Collecting frames: any Stable-Baselines3 vectorised environment is played into a store, complete episodes only."""

import copy
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self, cast

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv
from tqdm import tqdm

from rlpre.data.layout import Frames, Images, find_images
from rlpre.data.store import FrameStore, resume_store
from rlpre.data.writer import (
    UNKNOWN,
    FrameWriter,
    action_dtype,
    check_action_space,
    end_values,
    space_to_json,
)
from rlpre.errors import RlpreError

Policy = Any  # an SB3 model, a callable, or None
Columns = dict[str, npt.NDArray[Any]]


def collect(
    vec_env: VecEnv,
    out: str | Path,
    steps: int,
    policy: Policy = None,
    seed: int = 0,
    image: str | None = None,
    layout: str | None = None,
) -> FrameStore:
    """Collects frames, actions and rewards until the store holds at least ``steps`` transitions.

    Episodes are stored with their final frame. Episodes that are unfinished at the end, or longer than a shard, are cut
    (neither terminated nor truncated). An interrupted collection leaves a store that opens. The same call again, or a
    call for more steps, continues it with new episodes.

    Args:
        vec_env: observes uint8 images, (C, H, W), (H, W, C) or (H, W), or a Dict with one; it is seeded and reset.
        out: the directory of the store.
        steps: transitions in all; rounded up to a multiple of ``vec_env.num_envs``.
        policy: an SB3 or sb3-contrib model (its stochastic actions), or a callable from the observations to actions
            (n_envs, ...); None acts at random.
        seed: of the environments, of random actions and of torch.
        image: the key of the image, if a Dict observation holds several.
        layout: "CHW" or "HWC", if the shape of the images is ambiguous.

    Returns:
        The store; `distinct` and `unchanged` say how varied its frames are.

    Raises:
        RlpreError: if the observations are no images, a store cannot hold the actions, the policy does not fit,
            ``out`` belongs to another collection, or the disk is full.
    """
    if not isinstance(vec_env, VecEnv):
        raise RlpreError(
            f"collect takes a vectorised environment, not {vec_env!r}: wrap it as SB3's DummyVecEnv([lambda: env])"
        )
    if steps < 1 or seed < 0:
        raise RlpreError(f"cannot collect {steps} steps with seed {seed}: use positive numbers")
    images = find_images(vec_env.observation_space, "the environment", image, layout)
    space: Any = vec_env.action_space
    check_action_space(space)
    spec = {
        "frames": images.shape,
        "actions": space_to_json(space),
        "image": images.key,
        "layout": images.layout,
        "policy": _policy_name(policy),
        "seed": seed,
        "n_envs": vec_env.num_envs,
    }
    writer = resume_store(Path(out), spec, space=images.space, action_space=space)
    with Recorder(writer, steps) as recorder, torch.random.fork_rng(devices=[]):
        env_seed, policy_seed = seeds(seed, len(writer.manifest["shards"]))
        torch.manual_seed(policy_seed)
        player = _PolicyPlayer(vec_env, images, policy, policy_seed)
        lengths = segments(1, steps - recorder.transitions, vec_env.num_envs, writer.shard_rows // 2)
        if lengths:
            vec_env.seed(env_seed)
            observations = vec_env.reset()
        for number, (_, length) in enumerate(lengths, start=1):
            observations = recorder.play(vec_env, player, observations, length, last=number == len(lengths))
    return FrameStore.open(out)


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
        writer: of the store; its transitions already count.
        steps: transitions in all, for the progress bar.

    Attributes:
        transitions: in the store at the start.
    """

    def __init__(self, writer: FrameWriter, steps: int) -> None:
        self.writer = writer
        self.transitions = int(FrameStore.open(writer.path).acted.sum()) if writer.manifest["shards"] else 0
        self._waiting: dict[int, tuple[Frames, Columns]] = {}
        self._bar = tqdm(total=steps, initial=self.transitions, unit="step", desc=writer.path.name, disable=None)

    def play(self, venv: VecEnv, player: Player, observed: Any, length: int, last: bool, task: int = 0) -> Any:
        """Plays ``length`` steps of each environment and writes the episodes that ended.

        Args:
            venv: the environments.
            player: chooses the actions.
            observed: the current observations.
            length: steps.
            last: cut every episode at the end; otherwise unfinished ones wait for the next call.
            task: value of the column.

        Returns:
            The observations after the last step.
        """
        frames = np.empty((length, *player.frames(observed).shape), np.uint8)
        steps = frames.shape[:2]
        labels = np.empty((*steps, len(player.labels)), np.int16)
        action = np.empty(steps, action_dtype(self.writer.action_space))
        reward, done, truncated = np.empty(steps), np.zeros(steps, bool), np.zeros(steps, bool)
        mission = np.empty(steps, object)
        ends: list[dict[int, Frames]] = [{} for _ in range(venv.num_envs)]  # by step: the final frame
        for t in range(length):
            frames[t], labels[t] = player.frames(observed), player.known()
            mission[t] = _missions(venv)
            action[t] = player.act(observed, labels[t])
            observed, reward[t], done[t], infos = venv.step(action[t])
            for env in np.flatnonzero(done[t]).tolist():
                truncated[t, env] = infos[env].get("TimeLimit.truncated", False)
                ends[env][t] = player.end(env, infos[env])
            self._bar.update(venv.num_envs)
        columns = {"action": action, "reward": reward, "terminated": done & ~truncated, "truncated": truncated}
        columns |= {label: labels[..., i] for i, label in enumerate(player.labels)} | {"mission": mission}
        for env, frame in enumerate(player.frames(observed)):
            own = {name: column[:, env] for name, column in columns.items()}
            self._append(env, frames[:, env], own, ends[env], frame, last, task)
        self.writer.flush()
        return observed

    def _append(
        self,
        env: int,
        frames: Frames,
        columns: Columns,
        ends: dict[int, Frames],
        next_frame: Frames,
        last: bool,
        task: int,
    ) -> None:
        """Appends the episodes of an environment that ended; keeps the steps of the unfinished one."""
        if env in self._waiting:
            before, earlier = self._waiting.pop(env)
            frames = np.concatenate([before, frames])
            columns = {name: np.concatenate([earlier[name], column]) for name, column in columns.items()}
            ends = {t + len(before): frame for t, frame in ends.items()}
        ended = max(ends, default=-1) + 1
        unfinished = len(frames) - ended
        if unfinished and (last or unfinished >= self.writer.shard_rows):
            ended, ends = len(frames), {**ends, len(frames) - 1: next_frame}
        elif unfinished:
            rest = {name: column[ended:].copy() for name, column in columns.items()}
            self._waiting[env] = (frames[ended:].copy(), rest)
        if ended:
            past = {name: column[:ended] for name, column in columns.items()}
            rows, columns = insert_ends(frames[:ended], past, ends, end_values(self.writer.action_space))
            self.writer.append(rows, task=task, **columns)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()


def insert_ends(
    frames: Frames, columns: Columns, ends: Mapping[int, Frames], values: Mapping[str, float]
) -> tuple[Frames, Columns]:
    """Inserts a row with the final frame after each episode of one environment, and adds "episode_start".

    Args:
        frames: (T, ...) at which actions were taken; the last one ends an episode.
        columns: (T, ...) each: action, reward, terminated, truncated, mission, and labels.
        ends: the final frame of each episode, by the step that ended it.
        values: of the inserted rows; missions continue, labels become unknown.
    """
    after = np.array(list(ends)) + 1
    start = np.zeros(len(frames), bool)
    start[[0, *after[after < len(frames)]]] = True
    inserted = {**values, "mission": columns["mission"][after - 1]}
    rows = {name: np.insert(column, after, inserted.get(name, UNKNOWN), axis=0) for name, column in columns.items()}
    rows["episode_start"] = np.insert(start, after, False)
    return np.insert(frames, after, list(ends.values()), axis=0), rows


def _missions(venv: VecEnv) -> list[str | None]:
    """The mission text of each environment's current episode, from the infos of its reset."""
    # SB3's wrappers do not pass these infos on, and the innermost environment of an adapter need not be a VecEnv
    infos = getattr(getattr(venv, "unwrapped", None), "reset_infos", None) or [{}] * venv.num_envs
    missions = (info.get("mission") for info in infos)
    return [text if isinstance(text, str) else None for text in missions]


class _PolicyPlayer:
    """Acts by a policy or at random; stores the images of the observations, without labels."""

    labels: Sequence[str] = ()

    def __init__(self, venv: VecEnv, images: Images, policy: Policy, seed: int) -> None:
        self.images, self.policy = images, policy
        self.space, self.n_envs = copy.deepcopy(venv.action_space), venv.num_envs
        self.space.seed(seed)
        self.memory: Any = None  # of a recurrent policy
        self.starts = np.ones(self.n_envs, bool)

    def frames(self, observed: Any) -> Frames:
        return self.images.pick(observed)

    def known(self) -> npt.NDArray[np.int16]:
        return np.empty((self.n_envs, 0), np.int16)

    def act(self, observed: Any, known: npt.NDArray[np.int16]) -> npt.NDArray[Any]:
        chosen, expected = np.asarray(self._choose(observed)), (self.n_envs, *(self.space.shape or ()))
        if chosen.shape != expected or not np.can_cast(chosen.dtype, self.space.dtype or float, "same_kind"):
            raise RlpreError(
                f"the policy gave actions {chosen.shape} {chosen.dtype}: expected {expected} {self.space.dtype}, one "
                "for each environment"
            )
        self.starts[:] = False
        return chosen

    def _choose(self, observed: Any) -> npt.ArrayLike:
        if self.policy is None:
            return np.stack([self.space.sample() for _ in range(self.n_envs)])
        if not hasattr(self.policy, "predict"):
            return cast(npt.ArrayLike, self.policy(observed))
        try:
            chosen, self.memory = self.policy.predict(observed, state=self.memory, episode_start=self.starts)
        except ValueError as error:  # SB3 raises it for observations of another shape
            raise RlpreError(f"the policy cannot act on these observations: {error}") from error
        return cast(npt.ArrayLike, chosen)

    def end(self, env: int, info: dict[str, Any]) -> Frames:
        self.starts[env] = True
        if info.get("terminal_observation") is None:
            raise RlpreError(
                f"environment {env} ended an episode without infos[{env}]['terminal_observation']: use a VecEnv that "
                "keeps it, as those of Stable-Baselines3 do"
            )
        return self.images.pick(info["terminal_observation"])


def _policy_name(policy: Policy) -> str:
    """The policy in a store's specification; for models with a hash of their weights."""
    if policy is None:
        return "random"
    digest = hashlib.sha256()
    weights = policy.policy.state_dict() if hasattr(policy, "policy") else {}
    for tensor in weights.values():
        digest.update(tensor.cpu().numpy().tobytes())
    name = getattr(policy, "__qualname__", type(policy).__name__)
    return f"{name} {digest.hexdigest()[:12]}" if weights else name


begin = resume_store  # ALIAS
