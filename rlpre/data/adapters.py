"""Adapters of what others make: any environment as an SB3 `VecEnv`, images of any layout as (C, H, W) frames."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlpre.data.store import Frames
from rlpre.errors import AXIS, RlpreError, lookup

LAYOUTS = ("CHW", "HWC", "HW")


def as_vec_env(env: Any) -> VecEnv:
    """Gives SB3 and rlpre an environment in the form that they read.

    Args:
        env: an SB3 ``VecEnv`` (returned as it is), a Gymnasium ``Env``, a Gymnasium ``VectorEnv`` in any autoreset mode
            (``SyncVectorEnv``, ale_py's ``AtariVectorEnv``, ...), or a synchronous ``envpool.make_gymnasium``.

    Returns:
        A ``VecEnv`` in a ``VecMonitor``. An episode that ends is followed by the first observation of the next one in
        the same step, and ``infos[i]["terminal_observation"]`` holds its last observation, as SB3 expects.

    Raises:
        RlpreError: for anything else, an asynchronous EnvPool, or one with several players.
    """
    if isinstance(env, VecEnv):
        return env
    if _is_pool(env) or isinstance(env, VectorEnv):
        return VecMonitor(VectorVecEnv(env))
    if isinstance(env, gym.Env):
        return VecMonitor(DummyVecEnv([lambda: env]))
    pool = "EnvPool" in type(env).__name__
    hint = "make it with envpool.make_gymnasium" if pool else "wrap it in one of these"
    raise RlpreError(
        f"{type(env).__name__} is not an environment that rlpre reads (an SB3 VecEnv, a Gymnasium Env or VectorEnv, an "
        f"EnvPool): {hint}"
    )


class VectorVecEnv(VecEnv):
    """A Gymnasium ``VectorEnv`` or an EnvPool with the interface of SB3.

    SB3 needs the first observation of the next episode in the step that ends an episode. In Gymnasium's mode
    ``SAME_STEP`` the environment gives it. In the modes ``NEXT_STEP`` and ``DISABLED`` the finished environments are
    reset at once, with Gymnasium's ``reset_mask`` or EnvPool's ``reset(ids)``, and the others are not touched.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.pool = env, _is_pool(env)
        if self.pool:
            _check_pool(env.config)
            super().__init__(int(env.config["num_envs"]), env.observation_space, env.action_space)
        else:
            super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)
        self.same_step = (env.metadata or {}).get("autoreset_mode") == AutoresetMode.SAME_STEP
        self._actions: npt.NDArray[Any] = np.zeros(0)

    def seed(self, seed: int | None = None) -> Sequence[int | None]:
        """Seeds the next reset; an EnvPool takes its seed only when it is made, and warns."""
        if self.pool and seed is not None:
            warnings.warn(
                f"an EnvPool is seeded when it is made (here with seed={self.env.config['seed']}): seed={seed} has no "
                "effect on its episodes",
                stacklevel=2,
            )
        return super().seed(seed)

    def reset(self) -> VecEnvObs:
        """As in SB3."""
        seed = {"seed": self._seeds[0]} if self._seeds and not self.pool else {}
        observations, infos = self._sorted(*self.env.reset(**seed))
        self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return cast(VecEnvObs, observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """As in SB3."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        observations, rewards, terminated, truncated, infos = self._sorted(*self.env.step(self._actions))
        done = np.asarray(terminated) | np.asarray(truncated)
        last = infos.pop("final_obs") if self.same_step and done.any() else observations
        each = _split(infos, self.num_envs)
        for i in np.flatnonzero(done).tolist():
            if self.same_step:  # the info of the step is in "final_info", the others are of the reset
                ended = each[i].pop("final_info", {})
                self.reset_infos[i], each[i] = each[i], ended
            each[i]["terminal_observation"] = copy.deepcopy(_map(lambda values, i=i: values[i], last))
        for i, info in enumerate(each):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        if done.any() and not self.same_step:
            observations = self._restart(observations, done)
        return observations, np.asarray(rewards, np.float32), done, each

    def _restart(self, observations: Any, done: npt.NDArray[np.bool_]) -> Any:
        """The observations with those of finished environments replaced by the first ones of new episodes."""
        ids = np.flatnonzero(done)
        answer = self.env.reset(ids) if self.pool else self.env.reset(options={"reset_mask": done.copy()})
        first, infos = (
            # Gymnasium answers for all environments, ale_py and EnvPool for those that were reset
            _map(lambda values: values[ids] if len(values) == self.num_envs else values, part)
            for part in self._sorted(*answer)
        )
        for i, info in zip(ids.tolist(), _split(infos, len(ids)), strict=True):
            self.reset_infos[i] = info

        def replaced(old: npt.ArrayLike, new: npt.ArrayLike) -> npt.NDArray[Any]:
            changed = np.array(old)
            changed[ids] = new
            return changed

        return _map(replaced, observations, first)

    def _sorted(self, *answer: Any) -> Sequence[Any]:
        """The parts of an answer, the last one infos, in the order of the environments; an EnvPool may use another."""
        if not self.pool:
            return answer
        order = np.argsort(answer[-1]["env_id"])
        return [_map(lambda values: values[order] if len(values) == len(order) else values, part) for part in answer]

    def close(self) -> None:
        """As in SB3."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """The rendered frame of each environment, None where the environment does not render."""
        frames = self.env.render() if self.render_mode == "rgb_array" and not self.pool else None
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environments, or of the vector environment that holds them."""
        if hasattr(self.env, "get_attr") and not hasattr(self.env, attr_name):
            values = self.env.get_attr(attr_name)
        else:
            values = [getattr(self.env, attr_name)] * self.num_envs
        return [values[i] for i in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refused: vector environments do not set attributes of single environments."""
        raise RlpreError(f"{type(self.env).__name__} cannot set {attr_name!r}: set it when the environment is made")

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        """Calls a method of each environment, where the vector environment can."""
        if not hasattr(self.env, "call"):
            raise RlpreError(f"{type(self.env).__name__} cannot call {method_name!r} of its environments")
        values = self.env.call(method_name, *args, **kwargs)
        return [values[i] for i in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper[Any, Any, Any, Any]], indices: Any = None) -> list[bool]:
        """Always False: the wrappers of single environments are not visible."""
        return [False for _ in self._get_indices(indices)]


def _is_pool(env: Any) -> bool:
    return all(hasattr(env, name) for name in ("send", "recv", "config")) and isinstance(env, gym.Env)


def _check_pool(config: dict[str, Any]) -> None:
    if config["batch_size"] not in (0, config["num_envs"]):
        raise RlpreError(
            f"this EnvPool is asynchronous (batch_size={config['batch_size']} of num_envs={config['num_envs']}), SB3 "
            "steps all environments together: leave batch_size out"
        )
    if config.get("max_num_players", 1) > 1:
        raise RlpreError(f"this EnvPool has up to {config['max_num_players']} players, SB3 trains one: use one player")


def _split(infos: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """One dict for each environment; Gymnasium's key ``_name`` says for which of them ``name`` holds."""
    each: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, values in infos.items():
        if name.startswith("_") and name[1:] in infos:
            continue
        parts = _split(values, count) if isinstance(values, dict) else values
        for i in np.flatnonzero(infos.get(f"_{name}", np.ones(count, bool))) if len(parts) == count else ():
            each[i][name] = parts[i]
    return each


def _map(function: Callable[..., Any], *trees: Any) -> Any:
    """Applies ``function`` to arrays, or to those in nested dicts."""
    if isinstance(trees[0], dict):
        return {name: _map(function, *(tree[name] for tree in trees)) for name in trees[0]}
    return function(*trees)


class Images(NamedTuple):
    """The images of an observation space.

    Attributes:
        key: of the image in a Dict observation, "outer/inner" in a nested one; None if the observation is the image.
        layout: "CHW", "HWC" or "HW" (gray, without an axis of channels).
        shape: (C, H, W).
        scale: what images of floats are multiplied by to range over 0..255; None for uint8 images.
    """

    key: str | None
    layout: str
    shape: tuple[int, ...]
    scale: float | None = None

    def pick(self, observations: Any) -> Frames:
        """Frames (N, C, H, W) of a batch of observations, or (C, H, W) of one."""
        names = () if self.key is None else [self.key] if self.key in observations else self.key.split("/")
        for name in names:
            observations = observations[name]
        images = np.asarray(observations)
        if self.scale is not None:
            images = (images * self.scale).round()
            if not (images.min() >= 0 and images.max() <= 255):
                raise RlpreError(f"images of floats must lie in 0..{255 / self.scale:g}: rescale them")
            images = images.astype(np.uint8)
        return channels_first(images, self.layout)


def find_images(
    space: spaces.Space[Any] | None,
    where: str,
    key: str | None = None,
    layout: str | None = None,
    floats: bool = False,
) -> Images:
    """Finds the images in an observation space, a Box or a Dict with one, nested at any depth.

    Args:
        space: the space.
        where: where the observations come from, for messages.
        key: of the image in a Dict with several.
        layout: as in `layout_of`.
        floats: whether images may be floats in 0..1 or 0..255, besides uint8.

    Raises:
        RlpreError: if there is no such image, or more than one and no key.
    """
    if key is not None and not isinstance(space, spaces.Dict):
        raise RlpreError(f"the observations of {where} are not a Dict, so there is no image {key!r}: leave it out")
    boxes = parts(space) if isinstance(space, spaces.Dict) else {"": space}
    images = {name: box for name, box in boxes.items() if _is_image(box, floats)}
    if not images:
        raise RlpreError(f"the observations of {where} are {space}: frames are uint8 images (C, H, W) or (H, W, C)")
    if key is None:
        key, *others = [name for name, box in images.items() if box.dtype == np.uint8] or list(images)
        if others:
            raise RlpreError(
                f"the observations of {where} hold several images, {', '.join([key, *others])}: name one with image=..."
            )
    box = lookup("image", key, images)
    layout = layout_of(box.shape, where, layout)
    scale = None if box.dtype == np.uint8 else 255 / float(box.high.max())
    return Images(key or None, layout, channels_first(np.empty(box.shape, np.uint8), layout).shape, scale)


def parts(space: spaces.Dict, prefix: str = "") -> dict[str, spaces.Space[Any]]:
    """The spaces in a Dict, those in nested ones by names such as "outer/inner"."""
    by_name: dict[str, spaces.Space[Any]] = {}
    for name, inner in space.spaces.items():
        by_name |= parts(inner, f"{prefix}{name}/") if isinstance(inner, spaces.Dict) else {prefix + name: inner}
    return by_name


def _is_image(space: spaces.Space[Any] | None, floats: bool) -> TypeGuard[spaces.Box]:
    if not isinstance(space, spaces.Box) or len(space.shape) not in (2, 3):
        return False
    known_range = any((space.low == 0).all() and (space.high == high).all() for high in (1, 255))
    return space.dtype == np.uint8 or (floats and known_range)


def layout_of(shape: Sequence[int], where: str, layout: str | None = None) -> str:
    """The layout of images of a shape: the channels are the axis that is shorter than the two others.

    A ``layout`` given by the user decides; an `RlpreError` if it does not fit, or is missing for an ambiguous shape.
    """
    if len(shape) == 2 and layout == "CHW":
        raise RlpreError(f"images of {where} have shape {tuple(shape)}, without an axis of channels: {AXIS}")
    if layout is not None:
        return lookup("layout", layout, {name: name for name in LAYOUTS if len(name) == len(shape)})
    if len(shape) == 2:
        return "HW"
    first, last = shape[0] < min(shape[1:]), shape[-1] < min(shape[:-1])
    if first == last:
        raise RlpreError(
            f"images of {where} have shape {tuple(shape)}, in which the channels are ambiguous: give layout='CHW' or "
            "layout='HWC'"
        )
    return "CHW" if first else "HWC"


def channels_first(images: Frames, layout: str) -> Frames:
    """(..., C, H, W) of images of a layout; a view."""
    if layout == "HWC":
        return np.moveaxis(images, -1, -3)
    return images[..., None, :, :] if layout == "HW" else images


def from_channels_first(frames: Frames, layout: str) -> Frames:
    """Undoes `channels_first`; a view."""
    if layout == "HWC":
        return np.moveaxis(frames, -3, -1)
    return frames[..., 0, :, :] if layout == "HW" else frames
