"""Repeated frames of a batch are encoded once, with the same features and gradients."""

import copy

import pytest
import torch
from pixel_world import odd_encoder, worlds
from stable_baselines3 import PPO
from torch import Tensor

from rlpre.sb3 import policy_kwargs
from rlpre.sb3.distinct import encode_distinct


def frames(distinct: int, order: list[int]) -> Tensor:
    return torch.randint(256, (distinct, 3, 36, 36), generator=torch.Generator().manual_seed(1)).float()[order]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 2, 2, 1, 0], [0, 0, 0], [0]])
def test_features_and_gradients_are_those_of_the_whole_batch(order: list[int]) -> None:
    batch, whole = frames(3, order), odd_encoder()
    parts = copy.deepcopy(whole)
    weight = torch.randn(len(order), whole.num_features, generator=torch.Generator().manual_seed(2))
    seen: list[int] = []

    def encode(x: Tensor) -> Tensor:
        seen.append(len(x))
        return parts(x)

    expected, given = whole(batch), encode_distinct(encode, batch)
    assert seen == [len(set(order))]
    torch.testing.assert_close(given, expected)
    (expected * weight).sum().backward()
    (given * weight).sum().backward()
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_frames_that_differ_in_one_pixel_are_not_merged() -> None:
    batch = frames(1, [0] * 64)
    for row in range(64):
        batch[row, 0].view(-1)[row] += 1
    torch.testing.assert_close(encode_distinct(lambda x: x.flatten(1), batch), batch.flatten(1), rtol=0, atol=0)


def test_frames_with_the_same_key_are_not_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlpre.sb3.distinct._weights", lambda size, dtype: torch.zeros(size, 2, dtype=dtype))
    batch = frames(3, [0, 1, 2, 1])
    assert encode_distinct(lambda x: x.flatten(1), batch).equal(batch.flatten(1))


def test_a_policy_encodes_repeats_once() -> None:
    model = PPO("CnnPolicy", worlds(), policy_kwargs=policy_kwargs(odd_encoder(), "finetuned"), device="cpu")
    counted: list[int] = []
    model.policy.features_extractor.encoder.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    model.policy.evaluate_actions(frames(2, [0, 1, 0, 0]), torch.zeros(4))
    assert counted == [2]
