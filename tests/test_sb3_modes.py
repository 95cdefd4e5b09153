"""What the modes mean, and the options of ``policy_kwargs``."""

import copy
from typing import Any

import pytest
import torch
from pixel_world import FRAME, WAYS, build, encoders_in, odd_encoder, same, worlds
from stable_baselines3 import PPO

from rlpre.encoders import Encoder
from rlpre.errors import RlpreError
from rlpre.sb3 import MODES, policy_kwargs

FROZEN = [name for name, mode in MODES.items() if not mode.trainable]
TRAINABLE = [name for name, mode in MODES.items() if mode.trainable]


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


@pytest.mark.parametrize("mode", ["scratch", "random"])
def test_fresh_weights_come_from_the_models_seed(mode: str, encoder: Encoder) -> None:
    first, again, other = (encoders_in(build(PPO, policy_kwargs(encoder, mode), seed))[0] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, encoder)
    assert first.config == {**encoder.config, "pretraining": {}}
    weight = first.stages[0][0].weight.flatten(1).detach()
    assert torch.linalg.svdvals(weight).numpy() == pytest.approx(2**0.5, rel=1e-4)


def test_heads_start_alike_in_every_mode(encoder: Encoder) -> None:
    heads = [build(PPO, policy_kwargs(encoder, **way)).policy.mlp_extractor for way in WAYS.values()]
    assert all(same(head, heads[0]) for head in heads)


def test_the_callers_encoder_and_the_policys_are_two(encoder: Encoder) -> None:
    arguments, before = policy_kwargs(encoder, "finetuned"), copy.deepcopy(encoder)
    build(PPO, arguments).learn(16)
    assert same(encoder, before)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        encoder.stages[0][0].weight.zero_()
    assert same(encoders_in(build(PPO, arguments))[0], before)


@pytest.mark.parametrize("mode", TRAINABLE)
def test_shifts_only_while_gradients_flow(mode: str, encoder: Encoder) -> None:
    policy = build(PPO, policy_kwargs(encoder, **WAYS[mode], augment=True)).policy
    extractor, frames = policy.features_extractor, torch.from_numpy(worlds().reset()).float()
    policy.set_training_mode(True)
    assert not extractor(frames).equal(extractor(frames))
    with torch.no_grad():
        assert extractor(frames).equal(extractor.encoder(frames))
    policy.set_training_mode(False)
    assert extractor(frames).equal(extractor.encoder(frames))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mode": "frosen"}, "did you mean 'frozen'"),
        ({"optimizer_class": torch.optim.SGD}, "optimizer 'SGD'"),
        ({"normalize_images": True}, "'normalize_images'"),
        ({"mode": "finetuned", "encoder_lr_scale": 0.0}, "must be positive"),
        ({"mode": "finetuned", "warmup_updates": -1}, "warmup_updates is -1"),
        ({"mode": "finetuned", "stages": 2}, "stages has no effect on mode 'finetuned'"),
        ({"stack": 0}, "stack is 0"),
        ({"mode": "finetuned", "anchor": 0.1}, "anchor has no effect on mode 'finetuned'"),
        ({"mode": "frozen", "parent": (odd_encoder(), 1.0)}, "parent has no effect on mode 'frozen'"),
        ({"mode": "anchored", "anchor": -1.0}, "anchor is -1.0: it must be 0 or more"),
        ({"mode": "anchored", "anchor": float("inf")}, "anchor is inf: .* mode 'frozen'"),
        ({"mode": "anchored", "parent": (odd_encoder(), -1.0)}, "the parent's strength is -1.0"),
        ({"mode": "anchored", "parent": (Encoder("cnn", FRAME, features=8), 1.0)}, "the parent encoder: tensor"),
        *[({"mode": "partial", "stages": count}, "'cnn' has 4") for count in (None, 0, 4, -1)],
        *[({"mode": mode, "warmup_updates": 5}, "warmup_updates has no effect") for mode in FROZEN],
        *[({"mode": mode, "augment": True}, "augment has no effect") for mode in FROZEN],
        *[({"mode": mode, "encoder_lr_scale": 0.5}, "encoder_lr_scale has no effect") for mode in FROZEN],
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict[str, Any], named: str, encoder: Encoder) -> None:
    with pytest.raises(RlpreError, match=named) as caught:
        policy_kwargs(encoder, **arguments)
    assert "\n" not in str(caught.value)
