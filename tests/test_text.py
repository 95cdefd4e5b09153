"""Texts of any alphabet: the vocabulary of characters, masked modelling, and encoders that grow."""

from pathlib import Path

import numpy as np
import pytest
import torch

from rlpre import Encoder, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.objectives.text import masked_text, mixed_symbols, text_encoder, text_features

DNA = Vocabulary("ACGT", 12, characters=True)
PERIODIC = torch.from_numpy(DNA.encode([("ACGT" * 4)[k : k + 12] for k in np.arange(64) % 4]))
SMALL = {"width": 16, "layers": 1}


def test_a_vocabulary_of_characters_reads_any_alphabet() -> None:
    assert DNA.encode(["GAT", ""]).tolist() == [[3, 1, 4] + [0] * 9, [0] * 12]
    with pytest.raises(RlpreError, match="lacks 'N'"):
        DNA.encode(["GATN"])
    with pytest.raises(RlpreError, match="13 words"):
        DNA.encode(["A" * 13])


def test_masked_text_learns_what_stands_between_two_letters() -> None:
    start = text_encoder(DNA, **SMALL)
    trained = masked_text(start, PERIODIC, steps=150, batch=32)
    hidden = PERIODIC.clone()
    hidden[:, 6] = 0
    with torch.no_grad():
        found = {name: mixed_symbols(each, hidden, PERIODIC > 0)[:, 6] for name, each in (("a", start), ("b", trained))}
    spread = {
        name: torch.cdist(each, each)[PERIODIC[:, 6, None] == PERIODIC[:, 6]].mean() for name, each in found.items()
    }
    away = {
        name: torch.cdist(each, each)[PERIODIC[:, 6, None] != PERIODIC[:, 6]].mean() for name, each in found.items()
    }
    assert spread["b"] < 1e-3
    assert away["b"] / away["a"] > 3
    features = text_features(trained, PERIODIC)
    assert features.shape == (64, 12, 16)
    assert torch.allclose(features.flatten(0, 1).mean(0), torch.zeros(16), atol=1e-3)


def test_padding_has_no_features_and_changes_no_others() -> None:
    encoder = text_encoder(DNA, **SMALL).eval()
    short, long = (torch.from_numpy(Vocabulary("ACGT", n, characters=True).encode(["GATTACA"])) for n in (7, 12))
    with torch.no_grad():
        here, there = (mixed_symbols(encoder, each, each > 0) for each in (short, long))
    assert torch.allclose(here[0], there[0, :7], atol=1e-6)
    assert not there[0, 7:].any()


def test_a_text_encoder_is_saved_and_loaded(tmp_path: Path) -> None:
    encoder = text_encoder(DNA, **SMALL)
    loaded = SequenceEncoder.load(encoder.save(tmp_path))
    assert torch.equal(text_features(loaded, PERIODIC), text_features(encoder, PERIODIC))


def test_masked_text_refuses() -> None:
    with pytest.raises(RlpreError, match="causal=False"):
        masked_text(text_encoder(DNA, causal=True, **SMALL), PERIODIC)
    with pytest.raises(RlpreError, match="100 of 64 texts"):
        masked_text(text_encoder(DNA, **SMALL), PERIODIC, batch=100)
    with pytest.raises(RlpreError, match="symbols are frames of 1 x 1 x 1"):
        Encoder("symbols", InputSpec((3, 8, 8)), count=4)


def test_a_grown_encoder_gives_known_missions_the_same_features() -> None:
    vision = Encoder("cnn", InputSpec((3, 36, 36)), features=8)
    old, new = Vocabulary(["go", "red"], 2), Vocabulary(["a", "go", "red", "to"], 4)
    encoder = SequenceEncoder("gru", vision, 3, old, width=8, layers=1).eval()
    larger = encoder.grown(new, actions=7)
    features, actions, present = (
        torch.randn(1, 5, 8),
        torch.tensor([[-1, 0, 1, 2, 0]]),
        torch.ones(1, 5, dtype=torch.bool),
    )
    missions = [torch.from_numpy(each.encode(["go red"])) for each in (old, new)]
    before, after = (each(features, actions, m, present) for each, m in zip((encoder, larger), missions, strict=True))
    assert torch.equal(before, after)
    larger(features, actions + 4, torch.from_numpy(new.encode(["go to a red"])), present)
    assert encoder.grown(layers=2).layers == 2
    with pytest.raises(RlpreError, match="would lack 'a'"):
        larger.grown(old)
    with pytest.raises(RlpreError, match="would lack actions"):
        larger.grown(actions=3)
    with pytest.raises(RlpreError, match="places for missions of 4 words"):
        larger.grown(Vocabulary(["a", "go", "red", "to"], 3))
