"""Frames of any Stable-Baselines3 vectorised environment."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from stable_baselines3.common.vec_env import VecEnv

from rlpre import actions
from rlpre.errors import RlpreError
from rlpre.frames import FrameStore
from rlpre.sources.layout import Frames, Images, find_images
from rlpre.sources.rollout import Recorder, begin, seeds, segments

Policy = Any  # an SB3 model, a callable, or None


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

    Episodes are kept whole, with the frame that they ended on. Those that go on at the end, or for more frames than a
    shard holds, are cut (neither terminated nor truncated). A killed collection leaves a store that opens; the same
    call again, or one for more steps, goes on from fresh episodes.

    Args:
        vec_env: observes uint8 images, (C, H, W), (H, W, C) or (H, W), or a Dict with one; it is seeded and reset.
        out: the directory of the store.
        steps: transitions in all; rounded up to a multiple of ``vec_env.num_envs``.
        policy: an SB3 or sb3-contrib model (its stochastic actions), or a callable from the observations to actions
            (n_envs, ...); None acts at random.
        seed: of the environments, of random actions and of torch.
        image: the key of the image, where a Dict observation holds several.
        layout: "CHW" or "HWC", where the shape of the images does not tell their channels.

    Returns:
        The store; `distinct` and `unchanged` say how rich it is.

    Raises:
        RlpreError: if the observations are no images, a store cannot hold the actions, the policy does not fit,
            ``out`` belongs to another collection, or the disk is full.
    """
    if not isinstance(vec_env, VecEnv):
        raise RlpreError(f"collect takes a vectorised environment, not {vec_env!r}: wrap it in SB3's DummyVecEnv")
    if steps < 1 or seed < 0:
        raise RlpreError(f"cannot collect {steps} steps with seed {seed}: use positive numbers")
    images = find_images(vec_env.observation_space, "the environment", image, layout)
    space = vec_env.action_space
    actions.check(space)
    spec = {
        "frames": images.shape,
        "actions": actions.describe(space),  # type: ignore[arg-type]
        "image": images.key,
        "layout": images.layout,
        "policy": _name(policy),
        "seed": seed,
        "n_envs": vec_env.num_envs,
    }
    writer = begin(Path(out), spec, space=images.space, action_space=space)
    with Recorder(writer, steps) as recorder, torch.random.fork_rng(devices=[]):
        world_seed, player_seed = seeds(seed, len(writer.manifest["shards"]))
        torch.manual_seed(player_seed)
        actor = _Actor(vec_env, images, policy, player_seed)
        lengths = segments(1, steps - recorder.transitions, vec_env.num_envs, writer.shard_rows // 2)
        if lengths:
            vec_env.seed(world_seed)
            observed = vec_env.reset()
        for number, (_, length) in enumerate(lengths, start=1):
            observed = recorder.play(vec_env, actor, observed, length, last=number == len(lengths))
    return FrameStore.open(out)


def _name(policy: Policy) -> str:
    """What tells one policy from another in a store's specification: for models, their weights too."""
    if policy is None:
        return "random"
    digest = hashlib.sha256()
    weights = policy.policy.state_dict() if hasattr(policy, "policy") else {}
    for tensor in weights.values():
        digest.update(tensor.cpu().numpy().tobytes())
    name = getattr(policy, "__qualname__", type(policy).__name__)
    return f"{name} {digest.hexdigest()[:12]}" if weights else name


class _Actor:
    """Acts at random or by a policy; what is stored are the observed images."""

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
        """The policy's actions, one for each environment, refused if they are of another shape or kind."""
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
        except ValueError as error:  # what SB3 raises for observations of another shape
            raise RlpreError(f"the policy cannot act on these observations: {error}") from error
        return cast(npt.ArrayLike, chosen)

    def end(self, env: int, info: dict[str, Any]) -> Frames:
        """The frame that an environment's episode ended on."""
        self.starts[env] = True
        if info.get("terminal_observation") is None:
            raise RlpreError(
                f"environment {env} ended an episode without infos[{env}]['terminal_observation']: give a VecEnv that "
                "keeps it, as those of Stable-Baselines3 do"
            )
        return self.images.one(info["terminal_observation"])
