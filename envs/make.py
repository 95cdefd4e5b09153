"""Any environment by its name: MiniGrid and BabyAI levels as pixels, other Gymnasium ids, and functions of your own."""

from functools import partial
from typing import Any

from envs.minigrid.worlds import make_vec
from rlpre.compare.train import MakeEnv, find_env

LEVELS = ("MiniGrid-", "BabyAI-")  # ids whose own observations are no images: `make_vec` renders them


def find(name: str, **look: Any) -> MakeEnv:
    """The function ``(n_envs, seed) -> VecEnv`` that makes environments of this name.

    Args:
        name: an id of MiniGrid or BabyAI, any other Gymnasium id, or "module:function" of such a function.
        **look: for MiniGrid and BabyAI, arguments of `make_vec` such as ``view``.

    Raises:
        RlpreError: if there is no such id or function.
    """
    return partial(make_vec, name, **look) if name.startswith(LEVELS) else find_env(name)
