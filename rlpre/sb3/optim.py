"""Optimisers that give an encoder its own learning rate, its own start, and an anchor, and keep them.

SB3 writes one learning rate into every parameter group at each update, so a rate of the encoder's own does not last.
A *scale* that lies beside the rate and is applied inside ``step`` does, and follows any schedule. So does a *warm-up*:
a number of steps, counted here and saved with the optimiser, for which parameters get no gradients, and therefore no
moments, no decay, and no part in the clipped norm. First the heads, then everything is LP-FT [0].

An *anchor* pulls weights toward pretrained ones, as if the loss had a term ``strength / 2 * |w - anchor|^2`` (L2-SP
[1]), a Gaussian prior of that precision. As in AdamW [2] the pull is decoupled: no part of the gradient, so that
moments and clipped norm do not see it. AdamW pulls by ``lr * strength``, which Adam balances against a gradient of
normalised size: weights then settle about ``1 / strength`` from the anchor, however steep the loss is. Here the pull
is a proximal step [3] in the metric in which the optimiser measures gradients, ``gain``, what a steady gradient of 1
would move a weight by:

    w <- (w + gain * strength * anchor) / (1 + gain * strength)

Whatever the gain, this rests only where ``gradient + strength * (w - anchor) = 0``: with each of the optimisers below a
quadratic ``n / 2 * |w - data|^2`` ends in the Bayesian mean ``(n * data + strength * anchor) / (n + strength)``. It is
stable at any strength: none is the plain optimiser bit for bit, more and more is frozen. A loss that is a mean over a
batch counts as one sample, not as many; where gradients are clipped, the pull is relative to the clipped ones.

References:
    [0] Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution".
    [1] Li et al. 2018, "Explicit Inductive Bias for Transfer Learning with Convolutional Networks".
    [2] Loshchilov & Hutter 2019, "Decoupled Weight Decay Regularization".
    [3] Yun et al. 2021, "Adaptive Proximal Gradient Methods for Structured Neural Networks".
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.sb2_compat.rmsprop_tf_like import RMSpropTFLike
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.errors import RlpreError

SCALE, WARMUP = "lr_scale", "warmup_updates"
STRENGTH, ANCHOR = "anchor_strength", "anchor"


def pace(module: nn.Module, scale: float, warmup: int) -> None:
    """Marks the parameters of ``module`` for the optimisers below: a rate of ``lr * scale`` after ``warmup`` steps."""
    for parameter in module.parameters():
        setattr(parameter, SCALE, scale)
        setattr(parameter, WARMUP, warmup)


def tie(module: nn.Module, strength: float, anchors: Mapping[str, Tensor] | None) -> None:
    """Marks the parameters of ``module`` for the optimisers below: each is pulled toward the anchor of its name.

    Args:
        module: an encoder that trains.
        strength: precision of the prior, in units of the loss's curvature.
        anchors: weights by name; None if a saved optimiser will bring them.
    """
    for name, parameter in module.named_parameters():
        setattr(parameter, STRENGTH, strength)
        setattr(parameter, ANCHOR, None if anchors is None else anchors[name])


def value_first(policy: ActorCriticPolicy, updates: int) -> None:
    """Lets the value head learn alone for so many gradient steps: until then the policy acts as it does now.

    A cloned policy meets PPO with a value head that knows nothing, whose advantages would undo the clone. Encoder,
    action head and exploration noise wait; they go on waiting in a model that is saved and loaded.

    Args:
        policy: of PPO or A2C, before it learns, with an optimiser of ``rlpre.policy_kwargs``.
        updates: gradient steps, not rollouts.

    Raises:
        RlpreError: for another optimiser, or a number below 0.
    """
    if not isinstance(policy.optimizer, _Paced):
        name = type(policy.optimizer).__name__
        raise RlpreError(
            f"optimizer {name!r} cannot let parameters wait: give PPO optimizer_class=rlpre.sb3.paced(Adam) in its "
            "policy_kwargs, or those of rlpre.policy_kwargs"
        )
    if updates < 0:
        raise RlpreError(
            f"updates is {updates}: give the number of gradient steps in which the value head learns alone"
        )
    learning = [policy.value_net, policy.mlp_extractor.value_net]
    if not policy.share_features_extractor:
        learning.append(policy.vf_features_extractor)
    free = {id(parameter) for part in learning for parameter in part.parameters()}
    policy.optimizer.wait([parameter for parameter in policy.parameters() if id(parameter) not in free], updates)


class _Paced(Optimizer):
    """Steps each group at ``lr * lr_scale``, then pulls it; to everyone else the group's rate is ``lr``.

    Warm-ups and anchors are lists beside a group's parameters, and so part of the state that torch saves and loads.
    """

    def __init__(self, params: Iterable[nn.Parameter], **arguments: Any) -> None:
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        for parameter in params:
            groups.setdefault((getattr(parameter, SCALE, 1.0), getattr(parameter, STRENGTH, 0.0)), []).append(parameter)
        super().__init__(
            [
                {
                    "params": members,
                    SCALE: scale,
                    STRENGTH: strength,
                    WARMUP: [getattr(parameter, WARMUP, 0) for parameter in members],
                    ANCHOR: [getattr(parameter, ANCHOR) for parameter in members] if strength else [],
                }
                for (scale, strength), members in groups.items()
            ],
            **arguments,
        )
        self._hold()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step at each group's own rate; the rates that others see are as before."""
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= group[SCALE]
        try:
            loss = super().step(closure)
            for group in self.param_groups:
                if group[STRENGTH]:
                    self._pull(group)
            return loss
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate
                self._count(group)

    def wait(self, parameters: Iterable[nn.Parameter], updates: int) -> None:
        """Lets ``parameters`` wait for at least so many more steps."""
        waiting = {id(parameter) for parameter in parameters}
        for group in self.param_groups:
            group[WARMUP] = [
                max(left, updates) if id(parameter) in waiting else left
                for parameter, left in zip(group["params"], group[WARMUP], strict=True)
            ]
        self._hold()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As in torch; warm-ups go on where they were, and anchors stay."""
        for parameter in self._waiting():
            parameter.requires_grad_(True)
        super().load_state_dict(state_dict)
        self._hold()

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """What a steady gradient of 1 would move the weights of ``state`` by in a step, at the present moments."""
        raise NotImplementedError

    @torch.no_grad()
    def _pull(self, group: dict[str, Any]) -> None:
        if any(anchor is None for anchor in group[ANCHOR]):
            raise RlpreError(
                "the weights that this encoder stays near were left behind: load the whole model and not its policy "
                "alone, or call policy_kwargs again with the encoder"
            )
        pairs = zip(group["params"], group[ANCHOR], strict=True)
        group[ANCHOR] = [anchor.to(parameter) for parameter, anchor in pairs]  # SB3 moves the policy after we are made
        for parameter, anchor in zip(group["params"], group[ANCHOR], strict=True):
            if parameter.grad is not None:
                pull = group[STRENGTH] * self.gain(group, self.state[parameter])
                parameter.lerp_(anchor, 1 / (1 + 1 / pull))  # pull / (1 + pull), 1 where it is infinite

    def _waiting(self) -> list[nn.Parameter]:
        pairs = (pair for group in self.param_groups for pair in zip(group["params"], group[WARMUP], strict=True))
        return [parameter for parameter, left in pairs if left]

    def _hold(self) -> None:
        for parameter in self._waiting():
            parameter.requires_grad_(False)

    def _count(self, group: dict[str, Any]) -> None:
        for parameter, left in zip(group["params"], group[WARMUP], strict=True):
            if left == 1:
                parameter.requires_grad_(True)
        group[WARMUP] = [max(0, left - 1) for left in group[WARMUP]]


class EncoderAdam(_Paced, Adam):
    """``torch.optim.Adam`` with a pace and an anchor per parameter; bit for bit the same at scale 1 and strength 0."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """``lr`` over the root of the second moment, both as Adam corrects them."""
        second: Tensor = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
        seen = 1 - group["betas"][1] ** float(state["step"])
        return group["lr"] / ((second / seen).sqrt() + group["eps"])  # type: ignore[no-any-return]


class EncoderRMSprop(_Paced, RMSprop):
    """``torch.optim.RMSprop`` (SB3's choice for A2C) with a pace and an anchor per parameter."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """``lr`` over the root of the second moment; momentum adds steps up."""
        return group["lr"] / (1 - group["momentum"]) / (_second(state).sqrt() + group["eps"])  # type: ignore[no-any-return]


class EncoderRMSpropTFLike(_Paced, RMSpropTFLike):
    """SB3's ``RMSpropTFLike`` with a pace and an anchor per parameter."""

    def gain(self, group: dict[str, Any], state: dict[str, Any]) -> Tensor:
        """As for RMSprop, but for where its epsilon stands."""
        return group["lr"] / (1 - group["momentum"]) / (_second(state) + group["eps"]).sqrt()  # type: ignore[no-any-return]


def _second(state: dict[str, Any]) -> Tensor:
    """RMSprop's second moment, around the first if it is centred."""
    second: Tensor = state["square_avg"]
    return second - state["grad_avg"] ** 2 if "grad_avg" in state else second


OPTIMIZERS: dict[type[Optimizer], type[Optimizer]] = {
    Adam: EncoderAdam,
    RMSprop: EncoderRMSprop,
    RMSpropTFLike: EncoderRMSpropTFLike,
}


def paced(optimizer: type[Optimizer]) -> type[Optimizer]:
    """Returns the variant of ``optimizer`` that knows the pace and the anchor of each parameter.

    Raises:
        RlpreError: if there is none.
    """
    if optimizer not in OPTIMIZERS:
        known = ", ".join(base.__name__ for base in OPTIMIZERS)
        raise RlpreError(f"optimizer {optimizer.__name__!r} cannot scale an encoder's learning rate: use {known}")
    return OPTIMIZERS[optimizer]
