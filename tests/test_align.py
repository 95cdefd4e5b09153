"""`rlpre.align`: two encoders learn one space; `recall` by hand; what it refuses."""

import pytest
import torch
from torch import nn

from rlpre import RlpreError, align
from rlpre.objectives.align import Aligned, recall

torch.manual_seed(0)
THINGS = torch.randn(400, 6)
PAIRS = THINGS, torch.tanh(THINGS @ torch.linalg.qr(torch.randn(6, 6))[0])  # another view of the same things


def network() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 8), nn.LayerNorm(8))


def test_aligned_encoders_find_each_others_views_of_unseen_things() -> None:
    first, second = network(), network()
    seen, unseen = ([view[:300] for view in PAIRS], [view[300:] for view in PAIRS])
    aligned = align(first, second, tuple(seen), steps=300, batch=64)
    assert recall(aligned, tuple(unseen), 100) > 0.6
    assert recall(Aligned(first, second, 0.0), tuple(unseen), 100) < 0.1
    shuffled = align(first, second, (seen[0], seen[1][torch.randperm(300)]), steps=100, batch=64)
    assert recall(shuffled, tuple(unseen), 100) < 0.1
    here, there = (encoder(view) for encoder, view in zip(aligned[:2], unseen, strict=True))
    assert (here - there).square().mean() < 0.3 * (here - here.flip(0)).square().mean()  # the features, not their angle


def test_the_same_seed_gives_the_same_weights_and_the_originals_do_not_change() -> None:
    first, second = network(), network()
    before = [weight.clone() for weight in first.parameters()]
    results = [align(first, second, PAIRS, steps=3, batch=16, seed=1) for _ in range(2)]
    assert all(map(torch.equal, results[0].second.parameters(), results[1].second.parameters()))
    assert all(map(torch.equal, before, first.parameters()))


def test_an_encoder_without_trainable_weights_stays_as_it_is() -> None:
    first = network().requires_grad_(False)
    aligned = align(first, network(), PAIRS, steps=500, batch=64)
    assert all(map(torch.equal, first.parameters(), aligned.first.parameters()))
    assert recall(aligned, PAIRS, 100) > 0.5
    with pytest.raises(RlpreError, match="unfreeze one"):
        align(first, first, PAIRS)


def test_pairs_that_show_the_same_item_count_as_one() -> None:
    ambiguous = torch.arange(8.0)[:, None] // 4, torch.arange(8.0)[:, None]  # each first view is that of four things
    blurred = Aligned(nn.Identity(), nn.Linear(1, 1), 0.0)
    with torch.no_grad():
        blurred.second.weight[:], blurred.second.bias[:] = 0.0, 0.0  # all second views are alike and at 0
    assert recall(Aligned(nn.Identity(), _Quarter(), 0.0), ambiguous, 8) == 1.0
    assert recall(blurred, ambiguous, 8) < 1.0


class _Quarter(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x // 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": (THINGS, THINGS[:5])}, "400 first and 5 second"),
        ({"steps": 0}, "0 steps"),
        ({"batch": 500}, "500 of 400 pairs"),
        ({"second": nn.Linear(6, 4)}, "8 and 4 numbers"),
        ({"pairs": (THINGS, THINGS * torch.inf)}, "not finite"),
    ],
)
def test_it_refuses(change: dict, message: str) -> None:
    arguments = {"first": network(), "second": network(), "pairs": PAIRS, "steps": 2, "batch": 16} | change
    with pytest.raises(RlpreError, match=message):
        align(**arguments)
    with pytest.raises(RlpreError, match="500 candidates among 400"):
        recall(Aligned(nn.Identity(), nn.Identity(), 0.0), PAIRS, 500)
