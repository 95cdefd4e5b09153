"""Claims about what pretraining gives: their verdicts flip when it gives nothing.

Frames, encoders, heads and probes are real; pretraining is planted. Encoders start blind, or nearly, and a planted
pretraining lets them see, or leaves them as they are.
"""

import copy
import math
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from agents.claims import night, promoters, tools
from agents.claims.claim import Verdict
from agents.claims.life import BOXES
from agents.claims.tasks import LEVELS
from rlpre import Encoder, FrameStore, InputSpec
from rlpre.evaluation.probes import linear_probe
from rlpre.objectives import make_reader
from rlpre.sb3.optim import set_learning_rate

Learning = Callable[[nn.Conv2d, FrameStore], Any]


def first_layer(encoder: nn.Module) -> nn.Conv2d:
    return getattr(encoder, "frames", encoder).stages[0][0]  # of a sequence encoder: that of its vision


def nothing(layer: nn.Conv2d, frames: FrameStore) -> None:
    pass


def sight(layer: nn.Conv2d, frames: FrameStore) -> None:
    nn.init.orthogonal_(layer.weight, 2**0.5)


def sight_by_new_words(layer: nn.Conv2d, frames: FrameStore) -> None:
    if len(frames.missions) > 2:
        sight(layer, frames)


def sight_by_many_frames(layer: nn.Conv2d, frames: FrameStore) -> None:
    if len(np.unique(frames.ids)) > 100:
        sight(layer, frames)


def blur(layer: nn.Conv2d, frames: FrameStore) -> None:
    layer.weight[:] = torch.randn(*layer.weight.shape[:2], 1, 1)  # means of patches ignore shifts, and no other colours


# What the planted pretraining does with the effect and without it, how many of 64 pixels encoders see before, and sizes
FLIPS: dict[str, tuple[Learning, Learning, int, dict[str, Any]]] = {
    "tasks": (sight, nothing, 0, {}),
    "moving": (sight_by_new_words, sight, 1, {}),
    "jigsaw": (sight, nothing, 0, {}),
    "night": (sight, nothing, 0, {}),
    "landscape": (sight, nothing, 1, {}),
    "scaling": (sight_by_many_frames, sight, 0, {"few": 50, "many": 300}),
    "invariances": (blur, nothing, 64, {}),
    "modes": (sight, nothing, 0, {}),
}


# Measurements that take long are planted too: how much an encoder sees
READ: dict[str, tuple[str, Callable[..., Any]]] = {
    "moving": ("mean_probe", lambda encoder, frames: first_layer(encoder).weight.count_nonzero().item()),
    "night": ("_translated", lambda *rest: (first_layer(rest[3]).weight.count_nonzero().item(), 0.0, 0.0)),
}


@pytest.mark.parametrize("name", FLIPS)
def test_the_verdict_flips_with_what_pretraining_gives(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_effect, without, seen, sizes = FLIPS[name]
    found = measured(monkeypatch, tmp_path / "with", name, with_effect, seen, **sizes)
    control = measured(monkeypatch, tmp_path / "without", name, without, seen, **sizes)
    assert found.verdict == "supported", found
    assert control.verdict != "supported", control


def test_drawn_nights_are_nearer_than_their_mean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(night, "EPISODES", 2)
    frames = tools.collect(tmp_path, night.LEVEL, 2000, view="full")
    known, asked = np.split(tools.distinct(frames)[:300], [240])
    encoder = tools.fresh_cnn(frames.decode(frames.read(known)), 0)
    psnr, objects, played = night._translated(frames, known, asked, encoder, 0)
    real, mean = (night._night(frames, frames.read(rows)).float() for rows in (asked, known))
    assert psnr > 10 * np.log10(255**2 / (real - mean.mean(0)).square().mean().item()) + 1
    assert 0.2 < objects <= 1
    assert 0 <= played <= 1


def test_anchors_help_where_free_fine_tuning_destroys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "set_learning_rate", lambda part, scale, steps: set_learning_rate(part, 100.0, steps))
    for strength, verdict in ((math.inf, "supported"), (0.0, "not supported")):
        found = measured(monkeypatch, tmp_path / f"{strength}", "nearby", sight, 64, strength=strength, labels=100)
        assert found.verdict == verdict, found


def test_promoters_are_found_by_what_raw_dna_taught(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted model has learned a motif if its texts show it more often than by chance."""

    def masked_text(start: nn.Module, numbers: Tensor, **_: Any) -> list[np.ndarray]:
        windows = numbers.unfold(1, 6, 1).numpy()
        return [box for box in BOXES if (windows == box).all(-1).any(-1).mean() > 0.1]

    def tuned(known: Any, numbers: Tensor, labels: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        motifs = known if isinstance(known, list) else []  # from scratch none is known
        noise = torch.Generator().manual_seed(seed + len(numbers))

        def score(texts: Tensor) -> Tensor:
            windows = texts.unfold(1, 6, 1)
            found = sum((windows == torch.from_numpy(box)).sum(-1).amax(-1) for box in motifs)
            return found + torch.rand(len(texts), generator=noise)

        return score

    monkeypatch.setattr(promoters, "masked_text", masked_text)
    monkeypatch.setattr(promoters, "_tuned", tuned)
    assert promoters.measure(Path(), 3).verdict == "supported"
    assert promoters.measure(Path(), 3, grammar=False).verdict != "supported"


def measured(
    monkeypatch: pytest.MonkeyPatch, where: Path, name: str, learn: Learning, seen: int, **arguments: Any
) -> Verdict:
    """What a claim says of three seeds on few frames, after a planted pretraining."""
    file, collect = import_module(f"agents.claims.{name}"), tools.collect

    def start(shape: tuple[int, ...], seed: int) -> Encoder:
        torch.manual_seed(seed)
        encoder = Encoder("cnn", InputSpec(shape), features=64).eval()
        layer = first_layer(encoder)
        if seen < 64:
            layer.weight.data[:, seen:] = 0.0
            layer.weight.data.flatten(2)[:, :, seen:] = 0.0
        return encoder

    def pretrain(frames: FrameStore, *, encoder: nn.Module | None = None, seed: int = 0, **_: Any) -> SimpleNamespace:
        before = encoder or start(frames.space.shape, seed)
        after = copy.deepcopy(before)
        with torch.no_grad():
            learn(first_layer(after), frames)
        probed = [linear_probe(each, make_reader(frames, each)) if name == "jigsaw" else {} for each in (before, after)]
        return SimpleNamespace(encoder=after, control=probed[0], probes=probed[1], metrics={})

    planted = {
        "pretrain": pretrain,
        "collect": lambda path, level, steps, *rest, **look: collect(path, level, 2000, *rest, **look),
        "mean_return": lambda *clone, **look: 0.0,
        "LEVELS": LEVELS[1:3],
        "fresh_cnn": lambda frames, seed: start(frames.shape[1:], seed),
    }
    with monkeypatch.context() as patch:
        patch.setattr(tools, "TUNING", 40)
        for part, value in planted.items():
            for module in {file, tools}:
                patch.setattr(module, part, value, raising=False)
        if name in READ:
            part, read = READ[name]
            patch.setattr(file, part, read)
        return file.measure(where, 3, **arguments)
