"""Anchored encoders: where the pull ends, at no strength and at any, in every algorithm, saved and loaded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import CORE, build, encoders_in, odd_encoder, same, worlds_for
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.optim import Adam, Optimizer, RMSprop

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.sb3 import policy_kwargs
from rlpre.sb3.extractor import Blueprint
from rlpre.sb3.optim import OPTIMIZERS, EncoderAdam, paced, tie


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def parent_of(encoder: Encoder) -> Encoder:
    """Another encoder of the same shape, two away in every weight."""
    other = odd_encoder()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(2)
    return other


def distance(model: BaseAlgorithm, encoder: Encoder) -> float:
    """Between the weights of the encoder that acts and those of ``encoder``, Euclidean."""
    pairs = zip(encoders_in(model)[0].parameters(), encoder.parameters(), strict=True)
    return float(torch.cat([(weight - own).detach().flatten() for weight, own in pairs]).norm())


# On a quadratic.


def tied(weights: Tensor, strength: float, anchor: Tensor) -> nn.Module:
    module = nn.Module()
    module.weight = nn.Parameter(weights.clone())
    tie(module, strength, {"weight": anchor})
    return module


WAYS = [(base, {}) for base in OPTIMIZERS] + [(Adam, {"amsgrad": True}), (RMSprop, {"momentum": 0.5})]


@pytest.mark.parametrize(("base", "options"), WAYS)
def test_on_a_quadratic_weights_end_in_the_bayesian_mean(base: type[Optimizer], options: dict[str, Any]) -> None:
    """Also where the data agree with the prior, so that the gradient ends at zero."""
    generator = torch.Generator().manual_seed(0)
    data, own, theirs = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((5, 8), (8,), (8,)))
    mu, lam = 3.0, 2.0
    data[:, 0] += (mu * own[0] + lam * theirs[0]) / (mu + lam) - data[:, 0].mean()
    module = tied(own, mu + lam, (mu * own + lam * theirs) / (mu + lam))
    optimizer = paced(base)(module.parameters(), lr=0.05, **options)
    for _ in range(900):
        optimizer.zero_grad()
        ((module.weight - data) ** 2 / 2).sum().backward()
        optimizer.step()
    wanted = (data.sum(0) + lam * theirs + mu * own) / (len(data) + lam + mu)
    assert (module.weight - wanted).abs().max() < 1e-6


def test_a_step_by_hand() -> None:
    """Adam's first step is lr whatever the gradient; its gain on a gradient of 4 is lr / 4."""
    module = tied(torch.ones(1), 2.0, torch.zeros(1))
    module.weight.lr_scale = 0.1
    optimizer = EncoderAdam(module.parameters(), lr=1.0, eps=0.0)
    module.weight.grad = torch.full((1,), 4.0)
    optimizer.step()
    assert module.weight.item() == pytest.approx((1 - 0.1) / (1 + 2 * 0.1 / 4))
    module.weight.grad = None
    before = module.weight.item()
    optimizer.step()
    assert module.weight.item() == before, "what does not learn is not pulled"


# In Stable-Baselines3.


@pytest.mark.parametrize("algorithm", [*CORE, SAC])
def test_without_strength_it_is_finetuned_bit_for_bit(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    ways = [{"mode": "finetuned"}, {"mode": "anchored", "anchor": 0.0, "parent": (parent_of(encoder), 0.0)}]
    assert same(*(build(algorithm, policy_kwargs(encoder, **way)).learn(32).policy for way in ways))


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_the_stronger_the_nearer(algorithm: type[BaseAlgorithm], base: type[Optimizer], encoder: Encoder) -> None:
    distances = []
    for mu in (0.0, 100.0, 1e30):
        arguments = policy_kwargs(encoder, "anchored", anchor=mu, optimizer_class=base)
        distances.append(distance(build(algorithm, arguments, learning_rate=0.01).learn(32), encoder))
    assert distances[0] > 1.1 * distances[1] > 0
    assert distances[2] == 0, "frozen"


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, SAC])
def test_a_strong_parent_draws_the_encoder_to_itself(algorithm: type[BaseAlgorithm], encoder: Encoder) -> None:
    parent = parent_of(encoder)
    arguments = policy_kwargs(encoder, "anchored", anchor=1e30, parent=(parent, 3e30))
    model = build(algorithm, arguments)
    assert distance(model, encoder) == 0, "it starts from the pretrained weights"
    model.learn(32)
    for weight, own in zip(encoders_in(model)[0].parameters(), encoder.parameters(), strict=True):
        torch.testing.assert_close(weight, own + 1.5, msg="a quarter of the strength is the encoder's own")


def test_waiting_weights_are_not_pulled(encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "anchored", parent=(parent_of(encoder), 1e30), warmup_updates=1000)
    assert distance(build(PPO, arguments).learn(16), encoder) == 0


def test_heads_are_free(encoder: Encoder) -> None:
    model = build(PPO, policy_kwargs(encoder, "anchored", anchor=1e30))
    before = model.policy.action_net.weight.detach().clone()
    assert not model.learn(16).policy.action_net.weight.equal(before)
    strengths = {group["anchor_strength"]: len(group["anchor"]) for group in model.policy.optimizer.param_groups}
    assert strengths == {1e30: len(list(encoder.parameters())), 0.0: 0}


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN, SAC])
def test_a_loaded_model_goes_on_bit_for_bit(algorithm: type[BaseAlgorithm], encoder: Encoder, tmp_path: Path) -> None:
    """The anchor is neither the weights at the time of saving nor lost."""
    parent = (parent_of(encoder), 0.5)
    model = build(algorithm, policy_kwargs(encoder, "anchored", anchor=0.5, parent=parent), learning_rate=0.01).learn(
        32
    )
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=worlds_for(algorithm), device="cpu")
    optimizers = [getattr(one.policy, "actor", one.policy).optimizer for one in (model, again)]
    for optimizer in optimizers:
        optimizer.zero_grad()
        (group,) = (group for group in optimizer.param_groups if group["anchor_strength"])
        for anchor, own in zip(group["anchor"], encoder.parameters(), strict=True):
            torch.testing.assert_close(anchor, own + 1)
        for parameter in group["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    assert same(model.policy, again.policy)


def test_a_policy_saved_alone_acts_but_says_what_it_lacks(encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder, "anchored"))
    model.policy.save(str(tmp_path / "policy"))
    policy = ActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    frames = worlds_for(PPO).reset()
    assert np.array_equal(*(one.predict(frames, deterministic=True)[0] for one in (model.policy, policy)))
    policy.value_net(policy.extract_features(torch.from_numpy(frames))[:, :1].expand(-1, 64)).sum().backward()
    with pytest.raises(RlpreError, match="stays near were left behind: load the whole model"):
        policy.optimizer.step()


def test_anchors_are_copies_and_stay_out_of_pickles(encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "anchored")
    blueprint = arguments["features_extractor_kwargs"]["blueprint"]
    assert isinstance(blueprint, Blueprint)
    assert blueprint.__getstate__()["anchors"] is None
    with torch.no_grad():
        encoder.stages[0][0].weight.zero_()
    assert blueprint.anchors["stages.0.0.weight"].abs().sum() > 0


def test_anchors_follow_the_weights_to_their_type(encoder: Encoder) -> None:
    module = tied(torch.ones(2), 1.0, torch.zeros(2))
    optimizer = EncoderAdam(module.parameters(), lr=0.1)
    module.double()
    module.weight.grad = torch.ones(2, dtype=torch.float64)
    optimizer.step()
    assert optimizer.param_groups[0]["anchor"][0].dtype == torch.float64
