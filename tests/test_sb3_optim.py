"""Optimisers: the encoder's own rate, warm-up and anchor survive SB3, and frozen weights are not theirs."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import CORE, Algorithm, build, encoders_in, normed_encoder, odd_encoder, plain, same, worlds_for
from sb3_contrib import TRPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.sb3 import encoder_optimizer, policy_kwargs, value_first
from rlpre.sb3.optim import OPTIMIZERS, EncoderAdam, set_anchors

RATES: dict[str, float | Callable[[float], float]] = {"constant": 1e-3, "linear": lambda left: 1e-3 * left + 1e-4}


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    return normed_encoder(monkeypatch)


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
    algorithm: Algorithm, base: type[Optimizer], schedule: str, encoder: Encoder
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
    algorithm: Algorithm, base: type[Optimizer], encoder: Encoder
) -> None:
    ours = policy_kwargs(encoder, "scratch", optimizer_class=base)
    theirs = {**ours, "optimizer_class": base}
    assert same(*(build(algorithm, arguments).learn(48).policy for arguments in (ours, theirs)))


@pytest.mark.parametrize(("algorithm", "base"), [(PPO, Adam), (A2C, RMSprop)])
def test_defaults_are_those_of_stock_sb3(algorithm: Algorithm, base: type[Optimizer], encoder: Encoder) -> None:
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
def test_frozen_weights_are_not_the_optimisers(algorithm: Algorithm, encoder: Encoder) -> None:
    usual = build(algorithm, plain(encoder, optimizer_class=Adam)).learn(16)
    ours = build(algorithm, policy_kwargs(encoder, "frozen")).learn(16)
    weights = len(list(encoder.parameters()))
    assert len(indices(usual)) == len(indices(ours)) + weights, "plain SB3 keeps the frozen ones"
    assert len(indices(ours)) == len(ours.policy.optimizer.state) > 0
    assert not any("encoder" in name for name, _ in ours.policy.named_parameters())


# Warm-up: first the heads, then everything.


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_until_it_is_over_a_warm_up_is_the_frozen_mode(
    algorithm: Algorithm, base: type[Optimizer], normed: Encoder
) -> None:
    waiting, frozen = (
        build(algorithm, policy_kwargs(normed, mode, optimizer_class=base, optimizer_kwargs={}, **way)).learn(32)
        for mode, way in (("finetuned", {"warmup_updates": 1000}), ("frozen", {}))
    )
    mine, theirs = (
        {name: tensor for name, tensor in model.policy.state_dict().items() if "features_extractor" not in name}
        for model in (waiting, frozen)
    )
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg="gradients of the encoder in the clipped norm?")
    assert same(encoders_in(waiting)[0], normed), "batch norm moves?"


@pytest.mark.parametrize("algorithm", [*CORE, SAC])
def test_then_the_encoder_trains(algorithm: Algorithm, normed: Encoder) -> None:
    model = build(algorithm, policy_kwargs(normed, "finetuned", warmup_updates=2))
    inside, optimizer = encoders_in(model)[0], getattr(model.policy, "actor", model.policy).optimizer
    weight, head = inside.stages[0][0].weight, optimizer.param_groups[-1]["params"][0]
    start, moved = weight.detach().clone(), {}
    optimizer.register_step_post_hook(
        lambda *_: moved.update({int(optimizer.state[head]["step"]): not weight.equal(start)})
    )
    model.learn(64)
    assert [moved[step] for step in (1, 2, 3, 4)] == [False, False, True, True]
    assert int(optimizer.state[weight]["step"]) == max(moved) - 2, "its moments start when it does"


@pytest.mark.parametrize(
    ("mode", "options"),
    [("finetuned", {"optimizer_kwargs": {"weight_decay": 0.5}}), ("anchored", {"parent": (odd_encoder(2), 1e30)})],
)
def test_waiting_weights_neither_decay_nor_are_pulled(mode: str, options: dict[str, Any], encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, mode, warmup_updates=1000, **options)
    assert same(encoders_in(build(PPO, arguments).learn(32))[0], encoder)


def test_a_warm_up_goes_on_after_loading(encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder, "finetuned", warmup_updates=6)).learn(16)  # 4 updates
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=worlds_for(PPO), device="cpu")
    assert not any(parameter.requires_grad for parameter in encoders_in(again)[0].parameters())
    assert [set(group["warmup_updates"]) for group in again.policy.optimizer.param_groups] == [{2}, {0}]
    again.learn(16)
    assert not same(encoders_in(again)[0], encoder)
    again.save(tmp_path / "model")
    after = PPO.load(tmp_path / "model", env=worlds_for(PPO), device="cpu")
    assert all(parameter.requires_grad for parameter in encoders_in(after)[0].parameters())


# Algorithms that do not train their policy with its optimiser.


class MyTRPO(TRPO):
    """A user's own variant."""


@pytest.mark.parametrize("algorithm", [TRPO, MyTRPO])
@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mode": "finetuned"}, "ignore the encoder's learning rate and anchor"),
        ({"mode": "anchored", "encoder_lr_scale": 1.0}, "ignore the encoder's learning rate and anchor"),
        ({"mode": "scratch", "warmup_updates": 3}, "ignore the warm-up"),
    ],
)
def test_what_trpo_would_ignore_is_refused_when_the_policy_is_built(
    algorithm: Algorithm, options: dict[str, Any], named: str, encoder: Encoder
) -> None:
    with pytest.raises(RlpreError, match=f"{algorithm.__name__} changes .* without its optimizer.*{named}"):
        build(algorithm, policy_kwargs(encoder, **options))


@pytest.mark.parametrize("mode", ["frozen", "random", "scratch"])
def test_trpo_is_right_in_the_other_modes(mode: str, encoder: Encoder, tmp_path: Path) -> None:
    model = build(TRPO, policy_kwargs(encoder, mode))
    before = copy.deepcopy(encoders_in(model)[0])
    assert same(encoders_in(model.learn(64))[0], before) is (mode != "scratch")
    model.save(tmp_path / "model")
    assert same(TRPO.load(tmp_path / "model", device="cpu").policy, model.policy)
    with pytest.raises(RlpreError, match="it would ignore the warm-up"):
        value_first(model.policy, 3)


# Anchors, on a quadratic.


def anchored(weights: Tensor, strength: float, anchor: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weights.clone())
    set_anchors(module, strength, {"weight": anchor})
    return module


WAYS = [(base, {}) for base in OPTIMIZERS] + [(Adam, {"amsgrad": True}), (RMSprop, {"momentum": 0.5})]


@pytest.mark.parametrize(("base", "options"), WAYS)
def test_on_a_quadratic_weights_end_in_the_bayesian_mean(base: type[Optimizer], options: dict[str, Any]) -> None:
    """Also where the data agree with the prior, so that the gradient ends at zero."""
    generator = torch.Generator().manual_seed(0)
    data, own, theirs = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 8), (8,), (8,)))
    mu, lam = 3.0, 2.0
    data[:, 0] += (mu * own[0] + lam * theirs[0]) / (mu + lam) - data[:, 0].mean()
    module = anchored(own, mu + lam, (mu * own + lam * theirs) / (mu + lam))
    optimizer = encoder_optimizer(base)(module.parameters(), lr=0.05, **options)
    for _ in range(900):
        optimizer.zero_grad()
        ((module.weight - data) ** 2 / 2).sum().backward()
        optimizer.step()
    wanted = (data.sum(0) + lam * theirs + mu * own) / (len(data) + lam + mu)
    assert (module.weight - wanted).abs().max() < 1e-6


def test_a_step_by_hand() -> None:
    """Adam's first step is lr whatever the gradient; its gain on a gradient of 4 is lr / 4."""
    module = anchored(torch.ones(1), 2.0, torch.zeros(1))
    module.weight.lr_scale = 0.1
    optimizer = EncoderAdam(module.parameters(), lr=1.0, eps=0.0)
    module.double()  # anchors follow the weights to their type
    module.weight.grad = torch.full((1,), 4.0, dtype=torch.float64)
    optimizer.step()
    assert module.weight.item() == pytest.approx((1 - 0.1) / (1 + 2 * 0.1 / 4))
    assert optimizer.param_groups[0]["anchor"][0].dtype == torch.float64
    module.weight.grad = None
    before = module.weight.item()
    optimizer.step()
    assert module.weight.item() == before, "what does not learn is not pulled"


# Anchors, in Stable-Baselines3.


def distance(model: BaseAlgorithm, encoder: Encoder) -> float:
    """Between the weights of the policy's encoder and those of ``encoder``, Euclidean."""
    pairs = zip(encoders_in(model)[0].parameters(), encoder.parameters(), strict=True)
    return float(torch.cat([(weight - own).detach().flatten() for weight, own in pairs]).norm())


@pytest.mark.parametrize("algorithm", [*CORE, SAC])
def test_without_strength_it_is_finetuned_bit_for_bit(algorithm: Algorithm, encoder: Encoder) -> None:
    ways = [{"mode": "finetuned"}, {"mode": "anchored", "anchor": 0.0, "parent": (odd_encoder(2), 0.0)}]
    assert same(*(build(algorithm, policy_kwargs(encoder, **way)).learn(32).policy for way in ways))


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_the_stronger_the_nearer_and_heads_are_free(
    algorithm: Algorithm, base: type[Optimizer], encoder: Encoder
) -> None:
    distances = []
    for mu in (0.0, 100.0, 1e30):
        arguments = policy_kwargs(encoder, "anchored", anchor=mu, optimizer_class=base)
        model = build(algorithm, arguments, learning_rate=0.01)
        optimizer = getattr(model.policy, "actor", model.policy).optimizer
        head = optimizer.param_groups[-1]["params"][-1]
        before = head.detach().clone()
        distances.append(distance(model.learn(32), encoder))
        assert not head.equal(before)
    assert distances[0] > 1.1 * distances[1] > 0
    assert distances[2] == 0, "frozen"
    strengths = {group["anchor_strength"]: len(group["anchor"]) for group in optimizer.param_groups}
    assert strengths == {1e30: len(list(encoder.parameters())), 0.0: 0}


@pytest.mark.parametrize("algorithm", [*CORE, SAC])
def test_a_strong_parent_draws_the_encoder_to_itself(algorithm: Algorithm, encoder: Encoder) -> None:
    model = build(algorithm, policy_kwargs(encoder, "anchored", anchor=1e30, parent=(odd_encoder(2), 3e30)))
    assert distance(model, encoder) == 0, "it starts from the pretrained weights"
    model.learn(32)
    for weight, own in zip(encoders_in(model)[0].parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(weight, own + 1.5, msg="a quarter of the strength is the encoder's own")


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, SAC])
def test_a_loaded_model_goes_on_bit_for_bit(algorithm: Algorithm, encoder: Encoder, tmp_path: Path) -> None:
    """The anchor is neither the weights at the time of saving nor lost."""
    arguments = policy_kwargs(encoder, "anchored", anchor=0.5, parent=(odd_encoder(2), 0.5))
    model = build(algorithm, arguments, learning_rate=0.01).learn(32)
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=worlds_for(algorithm), device="cpu")
    for optimizer in (getattr(one.policy, "actor", one.policy).optimizer for one in (model, again)):
        optimizer.zero_grad()
        (group,) = (group for group in optimizer.param_groups if group["anchor_strength"])
        for anchor, own in zip(group["anchor"], encoder.parameters(), strict=True):
            torch.testing.assert_close(anchor, own + 1)
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert same(model.policy, again.policy)


def test_a_policy_saved_alone_acts_but_does_not_train_without_its_anchors(encoder: Encoder, tmp_path: Path) -> None:
    arguments = policy_kwargs(encoder, "anchored")
    model = build(PPO, copy.deepcopy(arguments))
    model.policy.save(str(tmp_path / "policy"))
    policy = ActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    frames = worlds_for(PPO).reset()
    assert np.array_equal(*(one.predict(frames, deterministic=True)[0] for one in (model.policy, policy)))
    policy.value_net(policy.extract_features(torch.from_numpy(frames))[:, :1].expand(-1, 64)).sum().backward()
    with pytest.raises(RlpreError, match="anchored to were not saved with the policy alone: load the whole model"):
        policy.optimizer.step()
    with torch.no_grad():
        encoder.stages[0][0].weight.zero_()
    factory = arguments["features_extractor_kwargs"]["encoder"]
    assert factory.anchors["stages.0.0.weight"].abs().sum() > 0, "anchors are copies"
