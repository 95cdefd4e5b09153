"""Optimisers that give an encoder its own learning rate, a warm-up, and an anchor.

SB3 writes one learning rate into every parameter group at each update. These optimisers keep a *scale* beside the rate
and apply it inside ``step``. During a *warm-up* of some steps, parameters get no gradients, and so no moments, no decay
and no part in the clipped norm. Training first the heads and then everything is LP-FT [0].

An *anchor* pulls weights toward the pretrained ones, as if the loss had a term ``strength / 2 * |w - anchor|^2``
(L2-SP [1]), a Gaussian prior of that precision. As in AdamW [2] the pull is not part of the gradient. With AdamW's own
pull of ``lr * strength``, weights would settle about ``1 / strength`` from the anchor however steep the loss is, since
Adam normalises the gradient. Instead the pull is a proximal step [3] in the metric of the optimiser, where ``gain`` is
how far a steady gradient of 1 moves a weight:

    w <- (w + gain * strength * anchor) / (1 + gain * strength)

Whatever the gain, this rests only where ``gradient + strength * (w - anchor) = 0``: a quadratic
``n / 2 * |w - data|^2`` ends in the Bayesian mean ``(n * data + strength * anchor) / (n + strength)``. It is stable at
any strength: 0 is the plain optimiser bit for bit, and infinity freezes. A loss that is a mean over a batch counts as
one sample; where gradients are clipped, the pull is relative to the clipped ones.

References:
    [0] Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
    [1] Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks".
    [2] Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    [3] Yun et al. 2021, "Adaptive Proximal Gradient Methods for Structured Neural Networks".
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.errors import RlpreError

SCALE, WARMUP = "lr_scale", "warmup_updates"  # attributes of parameters, and keys of parameter groups
STRENGTH, ANCHOR = "anchor_strength", "anchor"
BYPASSES = {"TRPO"}  # algorithms of sb3-contrib that change a policy's weights without its optimiser


def calling_algorithm() -> BaseAlgorithm | None:
    """The model in whose method, such as its constructor or ``save``, this is called; None if there is none.

    SB3 gives policies, optimisers and spaces no reference to their model.
    """
    frame = inspect.currentframe()
    while frame:
        caller = frame.f_locals.get("self")
        if isinstance(caller, BaseAlgorithm):
            return caller
        frame = frame.f_back
    return None


def set_learning_rate(module: nn.Module, scale: float, warmup: int) -> None:
    """Marks ``module`` to be trained at ``lr * scale`` after ``warmup`` steps."""
    for parameter in module.parameters():
        setattr(parameter, SCALE, scale)
        setattr(parameter, WARMUP, warmup)


def set_anchors(module: nn.Module, strength: float, anchors: Mapping[str, Tensor] | None) -> None:
    """Marks ``module`` to be pulled toward ``anchors``, weights by name; None if an optimiser to be loaded has them."""
    for name, parameter in module.named_parameters():
        setattr(parameter, STRENGTH, strength)
        setattr(parameter, ANCHOR, None if anchors is None else anchors[name])


class EncoderOptimizer(Optimizer):
    """Steps each group at ``lr * lr_scale``, then pulls it to its anchors; SB3 sees the rate ``lr``.

    Warm-ups and anchors are lists in the parameter groups, so torch saves and loads them.

    Raises:
        RlpreError: if the algorithm does not train its policy with the policy's optimiser.
    """

    _bypassed_by: str | None = None

    def __init__(self, params: Iterable[nn.Parameter], **arguments: Any) -> None:
        algorithm = type(calling_algorithm())
        if BYPASSES & {kind.__name__ for kind in algorithm.__mro__}:
            self._bypassed_by = algorithm.__name__
        groups: dict[tuple[float, float], dict[str, Any]] = {}
        for parameter in params:
            key = scale, strength = getattr(parameter, SCALE, 1.0), getattr(parameter, STRENGTH, 0.0)
            new: dict[str, Any] = {"params": [], SCALE: scale, STRENGTH: strength, WARMUP: [], ANCHOR: []}
            group = groups.setdefault(key, new)
            group["params"].append(parameter)
            group[WARMUP].append(getattr(parameter, WARMUP, 0))
            if strength:
                group[ANCHOR].append(getattr(parameter, ANCHOR))
        super().__init__(list(groups.values()), **arguments)
        if any(scale != 1 or strength for scale, strength in groups):
            self._check_reached("the encoder's learning rate and anchor")
        self.wait([], 0)  # applies the warm-ups above

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # torch overloads it
        """One step with each group at its own rate; afterwards the groups' rates are as before."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= group[SCALE]
        try:
            loss = super().step(closure)
            for group in self.param_groups:
                if group[STRENGTH]:
                    self._pull(group)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
        with self._changing_warmups():
            for group in self.param_groups:
                group[WARMUP] = [max(0, left - 1) for left in group[WARMUP]]
        return loss

    def wait(self, parameters: Iterable[nn.Parameter], updates: int) -> None:
        """Lets ``parameters`` wait for at least ``updates`` more steps."""
        waiting = {id(parameter) for parameter in parameters}
        with self._changing_warmups():
            for group in self.param_groups:
                for i, parameter in enumerate(group["params"]):
                    if id(parameter) in waiting:
                        group[WARMUP][i] = max(group[WARMUP][i], updates)

    def waiting(self, parameter: nn.Parameter) -> int:
        """The steps that a parameter still waits; 0 if it is not trained here."""
        pairs = (pair for group in self.param_groups for pair in zip(group["params"], group[WARMUP], strict=True))
        return next((left for trained, left in pairs if trained is parameter), 0)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; warm-ups continue where they were, and anchors are the saved ones."""
        with self._changing_warmups():
            super().load_state_dict(state_dict)

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """How far a steady gradient of 1 moves the weights of ``state`` in a step, with the present moments."""
        raise NotImplementedError

    @torch.no_grad()
    def _pull(self, group: dict[str, Any]) -> None:
        if any(anchor is None for anchor in group[ANCHOR]):
            raise RlpreError(
                "the weights that this encoder is anchored to were not saved with the policy alone: load the whole "
                "model, or call policy_kwargs again with the encoder"
            )
        for i, parameter in enumerate(group["params"]):
            group[ANCHOR][i] = anchor = group[ANCHOR][i].to(parameter)  # SB3 moves the policy after building it
            if parameter.grad is not None:
                pull = group[STRENGTH] * self.gain(group, self.state[parameter])
                parameter.lerp_(anchor, 1 / (1 + 1 / pull))  # pull / (1 + pull), 1 where it is infinite

    def _waiting(self) -> list[nn.Parameter]:
        pairs = (pair for group in self.param_groups for pair in zip(group["params"], group[WARMUP], strict=True))
        return [parameter for parameter, left in pairs if left]

    @contextmanager
    def _changing_warmups(self) -> Iterator[None]:
        """Around a change of warm-ups: afterwards those parameters that wait, and no others, get no gradients."""
        for parameter in self._waiting():
            parameter.requires_grad_(True)
        yield
        if waiting := self._waiting():
            self._check_reached("the warm-up")
        for parameter in waiting:
            parameter.requires_grad_(False)

    def _check_reached(self, what: str) -> None:
        if self._bypassed_by:
            raise RlpreError(
                f"{self._bypassed_by} changes the policy's weights without its optimizer, so it would ignore {what}: "
                "use mode 'frozen', 'random' or 'scratch' without warm-up, or another algorithm such as PPO"
            )


class EncoderAdam(EncoderOptimizer, Adam):
    """``torch.optim.Adam`` with rates and anchors per parameter."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """``lr`` over the root of the second moment, with Adam's corrections."""
        second: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        correction = 1 - group["betas"][1] ** float(state["step"])
        gain: Tensor = group["lr"] / ((second / correction).sqrt() + group["eps"])
        return gain


class EncoderRMSprop(EncoderOptimizer, RMSprop):
    """``torch.optim.RMSprop`` (SB3's choice for A2C) with rates and anchors per parameter."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """``lr`` over the root of the second moment; momentum adds steps up."""
        gain: Tensor = group["lr"] / (1 - group["momentum"]) / (_second_moment(state).sqrt() + group["eps"])
        return gain


class EncoderRMSpropTFLike(EncoderOptimizer, RMSpropTFLike):
    """SB3's ``RMSpropTFLike`` with rates and anchors per parameter."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """As for RMSprop, but epsilon is inside the root."""
        gain: Tensor = group["lr"] / (1 - group["momentum"]) / (_second_moment(state) + group["eps"]).sqrt()
        return gain


def _second_moment(state: dict[str, Any]) -> Tensor:
    """RMSprop's second moment, around the mean if it is centred."""
    second: Tensor = state["square_avg"]
    return second - state["grad_avg"] ** 2 if "grad_avg" in state else second


OPTIMIZERS: dict[type[Optimizer], type[EncoderOptimizer]] = {
    Adam: EncoderAdam,
    RMSprop: EncoderRMSprop,
    RMSpropTFLike: EncoderRMSpropTFLike,
}


def encoder_optimizer(optimizer: type[Optimizer]) -> type[EncoderOptimizer]:
    """Returns the variant of ``optimizer`` with learning rates, warm-ups and anchors per parameter.

    Raises:
        RlpreError: for another one than Adam, RMSprop and SB3's RMSpropTFLike.
    """
    if optimizer not in OPTIMIZERS:
        known = ", ".join(base.__name__ for base in OPTIMIZERS)
        raise RlpreError(f"optimizer {optimizer.__name__!r} cannot scale an encoder's learning rate: use {known}")
    return OPTIMIZERS[optimizer]
