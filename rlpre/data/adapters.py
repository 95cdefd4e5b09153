"""Gymnasium's vector environments, EnvPool, and single environments as an SB3 `VecEnv`."""

import warnings
from collections.abc import Sequence
from typing import Any, cast

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlpre.errors import RlpreError


def as_vec_env(env: Any) -> VecEnv:
    """Gives SB3 and rlpre an environment in the form that they read.

    Args:
        env: an SB3 ``VecEnv`` (returned as it is), a Gymnasium ``Env``, a Gymnasium ``VectorEnv`` in any autoreset mode
            (``SyncVectorEnv``, ``AsyncVectorEnv``, ale_py's ``AtariVectorEnv``, ...), or a synchronous EnvPool made by
            ``envpool.make_gymnasium``.

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

    Args:
        env: see `as_vec_env`.

    Raises:
        RlpreError: if an EnvPool is asynchronous or has several players.
    """

    def __init__(self, env: Any) -> None:
        self.env, self.pool = env, _is_pool(env)
        if self.pool:
            _check_pool(env)
            count, spaces = int(env.config["num_envs"]), (env.observation_space, env.action_space)
        else:
            count, spaces = env.num_envs, (env.single_observation_space, env.single_action_space)
        self.same_step = (env.metadata or {}).get("autoreset_mode") == AutoresetMode.SAME_STEP
        super().__init__(count, *spaces)
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
        first = self._seeds[0] if self._seeds else None
        observations, infos = self.env.reset() if self.pool else self.env.reset(seed=first)
        observations, infos = self._sorted(observations, infos)
        self.reset_infos = _split(infos, self.num_envs)
        self._reset_seeds()
        self._reset_options()
        return cast(VecEnvObs, observations)

    def step_async(self, actions: npt.NDArray[Any]) -> None:
        """As in SB3."""
        self._actions = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        observations, rewards, terminated, truncated, infos = self.env.step(self._actions)
        if self.pool:
            order = np.argsort(infos["env_id"])
            rewards, terminated, truncated = rewards[order], terminated[order], truncated[order]
            observations, infos = self._sorted(observations, infos)
        done = np.asarray(terminated) | np.asarray(truncated)
        last = infos.pop("final_obs") if self.same_step and done.any() else observations
        each = _split(infos, self.num_envs)
        for i in np.flatnonzero(done).tolist():
            if self.same_step:  # the info of the step is in "final_info", the others are of the reset
                ended = each[i].pop("final_info", {})
                self.reset_infos[i], each[i] = each[i], ended
            each[i]["terminal_observation"] = _pick(last, i)
        for i, info in enumerate(each):
            info["TimeLimit.truncated"] = bool(truncated[i] and not terminated[i])
        if done.any() and not self.same_step:
            observations = self._restart(observations, done)
        return observations, np.asarray(rewards, np.float32), done, each

    def _restart(self, observations: Any, done: npt.NDArray[np.bool_]) -> Any:
        """The observations with those of finished environments replaced by the first ones of new episodes."""
        ids = np.flatnonzero(done)
        if self.pool:
            first, infos = self.env.reset(ids)
            first, infos = self._sorted(first, infos)
            places = list(range(len(ids)))
        else:
            first, infos = self.env.reset(options={"reset_mask": done.copy()})
            # ale_py returns the environments that were reset, Gymnasium all of them
            places = list(range(len(ids))) if _length(first) == len(ids) < self.num_envs else ids.tolist()
        started = _split(infos, _length(first))
        for i, place in zip(ids.tolist(), places, strict=True):
            self.reset_infos[i] = started[place]
        return _replaced(observations, ids, first, places)

    def _sorted(self, observations: Any, infos: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """In the order of the environments; an EnvPool may answer in another one."""
        if not self.pool:
            return observations, infos
        order = np.argsort(infos["env_id"])
        return _ordered(observations, order), _ordered(infos, order)

    def close(self) -> None:
        """As in SB3."""
        self.env.close()

    def get_images(self) -> Sequence[npt.NDArray[np.uint8] | None]:
        """The rendered frame of each environment, None where the environment does not render."""
        frames = self.env.render() if self.render_mode == "rgb_array" and not self.pool else None
        return [None] * self.num_envs if frames is None else list(frames)

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """An attribute of the environments, or of the vector environment that holds them."""
        picked = list(self._get_indices(indices))
        if hasattr(self.env, "get_attr") and not hasattr(self.env, attr_name):
            values = self.env.get_attr(attr_name)
            return [values[i] for i in picked]
        return [getattr(self.env, attr_name) for _ in picked]

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


def _check_pool(env: Any) -> None:
    config = env.config
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
        holds = infos.get(f"_{name}", np.ones(count, bool))
        for i in np.flatnonzero(holds[:count]):
            if isinstance(values, dict):
                each[i][name] = _split(values, count)[i]
            elif len(values) == count:
                each[i][name] = values[i]
    return each


def _length(observations: Any) -> int:
    return _length(next(iter(observations.values()))) if isinstance(observations, dict) else len(observations)


def _pick(observations: Any, place: int) -> Any:
    """A copy of one environment's observation."""
    if isinstance(observations, dict):
        return {name: _pick(part, place) for name, part in observations.items()}
    picked = observations[place]
    return {name: np.array(part) for name, part in picked.items()} if isinstance(picked, dict) else np.array(picked)


def _ordered(values: Any, order: npt.NDArray[np.int64]) -> Any:
    if isinstance(values, dict):
        return {name: _ordered(part, order) for name, part in values.items()}
    return values[order] if len(values) == len(order) else values


def _replaced(observations: Any, ids: npt.NDArray[np.int64], first: Any, places: list[int]) -> Any:
    if isinstance(observations, dict):
        return {name: _replaced(part, ids, first[name], places) for name, part in observations.items()}
    changed = np.array(observations)
    changed[ids] = np.asarray(first)[places]
    return changed
