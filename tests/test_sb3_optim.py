"""Optimisers: the encoder's own rate survives SB3, and what is frozen is not theirs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from pixel_world import CORE, FRAME, build, encoders_in, plain, same
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from torch.optim import Adam, Optimizer

from rlpre.encoders import Encoder
from rlpre.sb3 import policy_kwargs
from rlpre.sb3.optim import OPTIMIZERS

RATES: dict[str, float | Callable[[float], float]] = {"constant": 1e-3, "linear": lambda left: 1e-3 * left + 1e-4}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", FRAME, features=16)


def first_steps(model: BaseAlgorithm) -> tuple[float, float]:
    """How far the optimiser's next step moves encoder and heads, from an empty state and gradients of one."""
    optimizer, encoder = model.policy.optimizer, encoders_in(model)[0]
    optimizer.state.clear()
    theirs = {id(parameter) for parameter in encoder.parameters()}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = {True: 0.0, False: 0.0}
    for parameter, old in zip(parameters, before, strict=True):
        inside = id(parameter) in theirs
        moved[inside] = max(moved[inside], float((parameter.detach().double() - old.double()).abs().max()))
    return moved[True], moved[False]


# Trap 3: SB3 writes one learning rate into every group.


def test_plain_sb3_loses_the_encoders_rate(encoder: Encoder) -> None:
    model = build(PPO, plain(encoder), learning_rate=1e-3)
    inside = list(encoders_in(model)[0].requires_grad_(True).parameters())
    theirs = {id(parameter) for parameter in inside}
    heads = [parameter for parameter in model.policy.parameters() if id(parameter) not in theirs]
    model.policy.optimizer = Adam([{"params": inside, "lr": 1e-4}, {"params": heads, "lr": 1e-3}])
    assert first_steps(model) == pytest.approx((1e-4, 1e-3), rel=1e-2)
    model.learn(16)
    assert first_steps(model) == pytest.approx((1e-3, 1e-3), rel=1e-2)


@pytest.mark.parametrize("schedule", RATES)
@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", CORE)
def test_the_encoders_rate_survives_learn(
    algorithm: type[BaseAlgorithm], base: type[Optimizer], schedule: str, encoder: Encoder
) -> None:
    arguments = policy_kwargs(encoder, "finetuned", encoder_lr_scale=0.25, optimizer_class=base)
    model = build(algorithm, arguments, learning_rate=RATES[schedule])
    at_first = [group["lr"] for group in model.policy.optimizer.param_groups]
    model.learn(32)
    at_last = [group["lr"] for group in model.policy.optimizer.param_groups]
    assert (at_last < at_first) is (schedule == "linear")
    assert len(set(at_last)) == 1
    slow, fast = first_steps(model)
    assert slow / fast == pytest.approx(0.25, rel=1e-2)
    if base is Adam:
        assert fast == pytest.approx(at_last[0], rel=1e-2)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == at_last


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", CORE)
def test_scale_one_is_the_plain_optimiser_bit_for_bit(
    algorithm: type[BaseAlgorithm], base: type[Optimizer], encoder: Encoder
) -> None:
    ours = policy_kwargs(encoder, "scratch", optimizer_class=base)
    theirs = {**ours, "optimizer_class": base}
    assert same(*(build(algorithm, arguments).learn(48).policy for arguments in (ours, theirs)))


@pytest.mark.parametrize(("algorithm", "base"), [(PPO, Adam), (A2C, torch.optim.RMSprop)])
def test_defaults_are_those_of_stock_sb3(
    algorithm: type[BaseAlgorithm], base: type[Optimizer], encoder: Encoder
) -> None:
    stock = build(algorithm, {}).policy.optimizer
    ours = build(algorithm, policy_kwargs(encoder, "scratch", optimizer_class=base)).policy.optimizer
    assert isinstance(stock, base)
    assert isinstance(ours, base)
    assert stock.defaults == ours.defaults


# Trap 4: frozen parameters stay in the optimiser and in its saved state.


def indices(model: BaseAlgorithm) -> list[int]:
    """Parameters named in the optimiser's saved state."""
    saved: dict[str, Any] = model.get_parameters()["policy.optimizer"]
    return [index for group in saved["param_groups"] for index in group["params"]]


@pytest.mark.parametrize("algorithm", CORE)
def test_frozen_weights_are_not_the_optimisers(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    usual = build(algorithm, plain(encoder, optimizer_class=Adam)).learn(16)
    ours = build(algorithm, policy_kwargs(encoder, "frozen")).learn(16)
    weights = len(list(encoder.parameters()))
    assert len(indices(usual)) == len(indices(ours)) + weights, "plain SB3 keeps the frozen ones"
    assert len(indices(ours)) == len(ours.policy.optimizer.state) > 0
    assert not any("encoder" in name for name, _ in ours.policy.named_parameters())
