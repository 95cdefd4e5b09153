"""Moved to rlpre.evaluation.health and rlpre.features."""  # ALIAS

from typing import Any

from rlpre.features import covariance  # noqa: F401


def __getattr__(name: str) -> Any:
    from rlpre.evaluation import health  # not at import: objectives import this module

    return getattr(health, name)
