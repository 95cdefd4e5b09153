"""Moved to rlpre.evaluation.probes and rlpre.features."""  # ALIAS

from typing import Any

from rlpre.features import encode, finite  # noqa: F401


def __getattr__(name: str) -> Any:
    from rlpre.evaluation import probes  # not at import: objectives import this module

    return getattr(probes, name)
