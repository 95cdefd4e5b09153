"""First the heads, then everything; and encoders of which a part trains."""

import copy
from pathlib import Path

import pytest
import torch
from pixel_world import CORE, FRAME, TINY, build, encoders_in, odd_encoder, same, worlds_for
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from torch import Tensor, nn
from torch.optim import Optimizer

from rlpre.encoders import ARCHITECTURES, Encoder
from rlpre.sb3 import policy_kwargs
from rlpre.sb3.optim import OPTIMIZERS


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    """Two stages, each with batch norm."""

    def layers(channels: int, height: int, width: int) -> list[nn.Module]:
        first = nn.Sequential(nn.Conv2d(channels, 4, kernel_size=12, stride=12), nn.BatchNorm2d(4), nn.ReLU())
        return [first, nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8))]

    monkeypatch.setitem(ARCHITECTURES, "two norms", layers)
    return Encoder("two norms", FRAME)


def heads(model: BaseAlgorithm) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.policy.state_dict().items() if "features_extractor" not in name}


@pytest.mark.parametrize("base", OPTIMIZERS)
@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_until_it_is_over_a_warm_up_is_the_frozen_mode(
    algorithm: type[BaseAlgorithm], base: type[Optimizer], normed: Encoder
) -> None:
    shared = {"optimizer_class": base, "optimizer_kwargs": {}}
    waiting = build(algorithm, policy_kwargs(normed, "finetuned", warmup_updates=1000, **shared)).learn(32)
    frozen = build(algorithm, policy_kwargs(normed, "frozen", **shared)).learn(32)
    mine, theirs = heads(waiting), heads(frozen)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6, msg="gradients of the encoder in the clipped norm?")
    assert same(encoders_in(waiting)[0], normed), "batch norm moves?"


@pytest.mark.parametrize("algorithm", [*CORE, SAC])
def test_then_the_encoder_trains(algorithm: type[BaseAlgorithm], normed: Encoder) -> None:
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


def test_weights_do_not_decay_while_they_wait(encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "finetuned", warmup_updates=1000, optimizer_kwargs={"weight_decay": 0.5})
    assert same(encoders_in(build(PPO, arguments).learn(32))[0], encoder)


def test_a_warm_up_goes_on_after_loading(encoder: Encoder, tmp_path: Path) -> None:
    updates = 4  # a rollout
    model = build(PPO, policy_kwargs(encoder, "finetuned", warmup_updates=updates + 2)).learn(16)
    model.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=worlds_for(PPO), device="cpu")
    assert not any(parameter.requires_grad for parameter in encoders_in(again)[0].parameters())
    assert [set(group["warmup_updates"]) for group in again.policy.optimizer.param_groups] == [{2}, {0}]
    again.learn(16)
    assert not same(encoders_in(again)[0], encoder)
    again.save(tmp_path / "model")
    after = PPO.load(tmp_path / "model", env=worlds_for(PPO), device="cpu")
    assert all(parameter.requires_grad for parameter in encoders_in(after)[0].parameters())


# Partial freezing.


@pytest.mark.parametrize("stages", [1, 3])
def test_no_gradient_is_computed_through_frozen_stages(stages: int, encoder: Encoder) -> None:
    extractor = build(PPO, policy_kwargs(encoder, "partial", stages=stages)).policy.features_extractor
    needed: list[bool] = []
    for stage in extractor.encoder.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: needed.append(output.requires_grad))
    extractor(torch.zeros(2, *FRAME.shape))
    assert needed == [index >= stages for index in range(4)]
    assert not [name for name, _ in extractor.encoder.stages[:stages].named_parameters()]


@pytest.mark.parametrize("algorithm", [PPO, SAC])
def test_frozen_stages_are_bit_identical_after_learn(algorithm: type[BaseAlgorithm], normed: Encoder) -> None:
    model = build(algorithm, policy_kwargs(normed, "partial", stages=1), **TINY[algorithm])
    before = copy.deepcopy(normed)
    model.learn(32)
    first, second = encoders_in(model)[0].stages
    assert same(first, before.stages[0])
    assert not second[1].weight.equal(before.stages[1][1].weight)


def test_what_trains_of_a_partial_encoder_has_its_own_rate(encoder: Encoder) -> None:
    model = build(PPO, policy_kwargs(encoder, "partial", stages=2))
    scales = {group["lr_scale"]: len(group["params"]) for group in model.policy.optimizer.param_groups}
    assert scales[0.1] == len(list(encoder.stages[2:].parameters()))
