"""Which algorithm is at work: SB3 gives policies, optimisers and spaces no reference to their model."""

import inspect

from stable_baselines3.common.base_class import BaseAlgorithm


def calling_algorithm() -> BaseAlgorithm | None:
    """The model in whose method, such as its constructor or ``save``, this is called; None if there is none."""
    frame = inspect.currentframe()
    while frame:
        caller = frame.f_locals.get("self")
        if isinstance(caller, BaseAlgorithm):
            return caller
        frame = frame.f_back
    return None
