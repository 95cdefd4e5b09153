"""Optimisers that give an encoder its own learning rate and keep it.

SB3 writes one learning rate into every parameter group at each update, so a rate of the encoder's own does not last.
A *scale* that lies beside the rate and is applied inside ``step`` does, and follows any schedule.
"""

from collections.abc import Callable, Iterable
from typing import Any

from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.errors import RlpreError

SCALE = "lr_scale"


class _ScaledRates(Optimizer):
    """Steps each group at ``lr * lr_scale``; to everyone else the group's rate is ``lr``."""

    def __init__(self, params: Iterable[nn.Parameter], **arguments: Any) -> None:
        groups: dict[float, list[nn.Parameter]] = {}
        for parameter in params:
            groups.setdefault(getattr(parameter, SCALE, 1.0), []).append(parameter)
        super().__init__([{"params": listed, SCALE: scale} for scale, listed in groups.items()], **arguments)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step at each group's own rate; the rates that others see are as before."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= group[SCALE]
        try:
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate


class EncoderAdam(_ScaledRates, Adam):
    """``torch.optim.Adam`` with a learning-rate scale per parameter; bit for bit the same where the scale is 1."""


class EncoderRMSprop(_ScaledRates, RMSprop):
    """``torch.optim.RMSprop`` (SB3's choice for A2C) with a learning-rate scale per parameter."""


class EncoderRMSpropTFLike(_ScaledRates, RMSpropTFLike):
    """SB3's ``RMSpropTFLike`` with a learning-rate scale per parameter."""


OPTIMIZERS: dict[type[Optimizer], type[Optimizer]] = {
    Adam: EncoderAdam,
    RMSprop: EncoderRMSprop,
    RMSpropTFLike: EncoderRMSpropTFLike,
}


def scaled(optimizer: type[Optimizer]) -> type[Optimizer]:
    """Returns the variant of ``optimizer`` that knows learning-rate scales.

    Raises:
        RlpreError: if there is none.
    """
    if optimizer not in OPTIMIZERS:
        known = ", ".join(base.__name__ for base in OPTIMIZERS)
        raise RlpreError(f"optimizer {optimizer.__name__!r} cannot scale an encoder's learning rate: use {known}")
    return OPTIMIZERS[optimizer]
