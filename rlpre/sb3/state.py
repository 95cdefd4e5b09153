"""The true state of environments in place of their images: what an agent that needs no encoder observes."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from rlpre.data.adapters import as_vec_env
from rlpre.errors import RlpreError

STATE = "state"  # the key of the state in an info, or in a Dict observation


class StateVecEnv(VecEnvWrapper):
    """Gives SB3 the true state of each environment, (n,) float32, and nothing else; train ``"MlpPolicy"`` on it.

    An agent that sees pixels rarely learns in fewer steps. It can where a convolution learns once what the perceptron
    must learn for every place anew.

    An environment puts its state, an array of numbers of constant length, into ``info["state"]`` at every reset and
    step. As in SB3, at the end of an episode the ``info`` of the step belongs to the terminal observation, and
    ``reset_infos`` to the first observation of the next episode. Or its Dict observations hold a key "state".

    Args:
        venv: an environment that `rlpre.as_vec_env` takes. It is reset once, to see how long the state is.

    Raises:
        RlpreError: if there is no state, its length changes, or it holds something else than finite numbers.
    """

    def __init__(self, venv: Any) -> None:
        venv = as_vec_env(venv)
        self._observed = has_state(venv.observation_space)
        self._shape: tuple[int, ...] | None = None
        first = self._read(venv.reset(), venv.unwrapped.reset_infos)
        super().__init__(venv, spaces.Box(-np.inf, np.inf, first.shape[1:], np.float32))

    def reset(self) -> VecEnvObs:
        """As in SB3."""
        return cast(VecEnvObs, self._read(self.venv.reset(), self.unwrapped.reset_infos))

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3; each ``infos[i]["terminal_observation"]`` is a state too."""
        observations, rewards, dones, infos = self.venv.step_wait()
        now = [
            first if done else info for done, info, first in zip(dones, infos, self.unwrapped.reset_infos, strict=True)
        ]
        for i in np.flatnonzero(dones).tolist():
            last = infos[i]["terminal_observation"] if self._observed else infos[i]
            infos[i]["terminal_observation"] = self._check(i, last.get(STATE))
        return self._read(observations, now), rewards, dones, infos

    def _read(self, observations: Any, infos: Sequence[Mapping[str, Any]]) -> np.ndarray:
        """The states (num_envs, n) that observations or infos hold."""
        given = observations[STATE] if self._observed else [info.get(STATE) for info in infos]
        return np.stack([self._check(i, state) for i, state in enumerate(given)])

    def _check(self, env: int, state: Any) -> np.ndarray:
        if state is None:
            raise RlpreError(
                f"environment {env} does not tell its true state: put an array into info['state'] at every reset and "
                "step, or into a Dict observation as its key 'state'"
            )
        try:
            array = np.array(state, np.float32)
        except (TypeError, ValueError) as error:
            raise RlpreError(f"the state of environment {env} is {state!r}: give an array of numbers") from error
        if array.ndim != 1 or not array.size:
            raise RlpreError(f"the state of environment {env} has shape {array.shape}: flatten it to one axis")
        if not np.isfinite(array).all():
            raise RlpreError(f"the state of environment {env} is not finite: {array}")
        self._shape = self._shape or array.shape
        if array.shape != self._shape:
            before = f"{len(array)} numbers, {self._shape[0]} were there before"
            raise RlpreError(f"the state of environment {env} has {before}: give it a constant length")
        return array


class StatelessVecEnv(VecEnvWrapper):
    """Leaves the key "state" out of Dict observations, for agents that are compared with one on `StateVecEnv`."""

    def __init__(self, venv: VecEnv) -> None:
        parts = cast(spaces.Dict, venv.observation_space).spaces
        super().__init__(venv, spaces.Dict({name: part for name, part in parts.items() if name != STATE}))

    def reset(self) -> VecEnvObs:
        """As in SB3."""
        return cast(VecEnvObs, self._without(self.venv.reset()))

    def step_wait(self) -> VecEnvStepReturn:
        """As in SB3."""
        observations, rewards, dones, infos = self.venv.step_wait()
        for i in np.flatnonzero(dones).tolist():
            infos[i]["terminal_observation"] = self._without(infos[i]["terminal_observation"])
        return self._without(observations), rewards, dones, infos

    def _without(self, observation: Any) -> Any:
        return {name: part for name, part in observation.items() if name != STATE}


def has_state(space: spaces.Space[Any]) -> bool:
    """Whether observations are a Dict with a true state."""
    return isinstance(space, spaces.Dict) and STATE in space.spaces


def tells_state(venv: VecEnv) -> bool:
    """Whether environments tell their true state in ``info``; they are reset."""
    venv.reset()
    return all(isinstance(info.get(STATE), np.ndarray) for info in venv.unwrapped.reset_infos)
