"""Optimisers that give an encoder its own learning rate, and its own start, and keep them.

SB3 writes one learning rate into every parameter group at each update, so a rate of the encoder's own does not last.
A *scale* that lies beside the rate and is applied inside ``step`` does, and follows any schedule. So does a *warm-up*:
a number of steps, counted here and saved with the optimiser, for which the encoder's parameters get no gradients, and
therefore no moments, no decay, and no part in the clipped norm. First the heads, then everything is LP-FT [0].

[0] Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
"""

from collections.abc import Callable, Iterable
from typing import Any

from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.errors import RlpreError

SCALE, WARMUP = "lr_scale", "warmup_updates"


def pace(module: nn.Module, scale: float, warmup: int) -> None:
    """Marks the parameters of ``module`` for the optimisers below: a rate of ``lr * scale`` after ``warmup`` steps."""
    for parameter in module.parameters():
        setattr(parameter, SCALE, scale)
        setattr(parameter, WARMUP, warmup)


class _Paced(Optimizer):
    """Steps each group at ``lr * lr_scale``; to everyone else the group's rate is ``lr``."""

    def __init__(self, params: Iterable[nn.Parameter], **arguments: Any) -> None:
        groups: dict[tuple[float, int], list[nn.Parameter]] = {}
        for parameter in params:
            groups.setdefault((getattr(parameter, SCALE, 1.0), getattr(parameter, WARMUP, 0)), []).append(parameter)
        super().__init__([{"params": groups[key], SCALE: key[0], WARMUP: key[1]} for key in groups], **arguments)
        self._wait()

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
                if group[WARMUP]:
                    group[WARMUP] -= 1
                    self._wait()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch, and the warm-up goes on where it was."""
        super().load_state_dict(state_dict)
        self._wait()

    def _wait(self) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                if getattr(parameter, WARMUP, 0):
                    parameter.requires_grad_(not group[WARMUP])


class EncoderAdam(_Paced, Adam):
    """``torch.optim.Adam`` with a pace per parameter; bit for bit the same where the scale is 1."""


class EncoderRMSprop(_Paced, RMSprop):
    """``torch.optim.RMSprop`` (SB3's choice for A2C) with a pace per parameter."""


class EncoderRMSpropTFLike(_Paced, RMSpropTFLike):
    """SB3's ``RMSpropTFLike`` with a pace per parameter."""


OPTIMIZERS: dict[type[Optimizer], type[Optimizer]] = {
    Adam: EncoderAdam,
    RMSprop: EncoderRMSprop,
    RMSpropTFLike: EncoderRMSpropTFLike,
}


def paced(optimizer: type[Optimizer]) -> type[Optimizer]:
    """Returns the variant of ``optimizer`` that knows the pace of each parameter.

    Raises:
        RlpreError: if there is none.
    """
    if optimizer not in OPTIMIZERS:
        known = ", ".join(base.__name__ for base in OPTIMIZERS)
        raise RlpreError(f"optimizer {optimizer.__name__!r} cannot scale an encoder's learning rate: use {known}")
    return OPTIMIZERS[optimizer]
