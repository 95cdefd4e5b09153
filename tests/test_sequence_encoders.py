"""Sequence encoders: which steps a step depends on, whole or step by step, and a checkpoint of their own kind."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pixel_world import FRAME, odd_encoder, same
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre import Encoder, RlpreError, SequenceEncoder, Vocabulary
from rlpre.encoders import BACKBONES, as_encoder
from rlpre.encoders.sequence import MissionEmbedding

MISSIONS = ["go to the red ball", "put the red ball next to the blue key", "put the blue key next to the red ball"]
VOCABULARY = Vocabulary.from_missions(MISSIONS)
WINDOW, ACTIONS, FEATURES = 9, 5, 16
both = pytest.mark.parametrize("backbone", sorted(BACKBONES))
causal_or_not = pytest.mark.parametrize("causal", [True, False])
Inputs = tuple[Tensor, Tensor, Tensor]


def make(backbone: str = "transformer", vocabulary: Vocabulary | None = VOCABULARY, **arguments) -> SequenceEncoder:
    """A small encoder whose features are standardised differently from a fresh one's."""
    torch.manual_seed(0)
    sizes = {"width": 16, "heads": 2, "layers": 2, "window": WINDOW} | arguments
    encoder = SequenceEncoder(backbone, odd_encoder(), ACTIONS, vocabulary, **sizes)
    encoder.standardise(0.5 * torch.randn(100, encoder.width) + 1)
    return encoder


def inputs(steps: int, batch: int = 3, seed: int = 0) -> Inputs:
    """Features, previous actions and missions."""
    rng = torch.Generator().manual_seed(seed)
    actions = torch.randint(-1, ACTIONS, (batch, steps), generator=rng)
    mission = torch.from_numpy(VOCABULARY.encode([MISSIONS[row % 3] for row in range(batch)]))
    return torch.randn(batch, steps, FEATURES, generator=rng), actions, mission


def everywhere(features: Tensor) -> Tensor:
    return torch.ones(features.shape[:2], dtype=torch.bool)


def whole(encoder: SequenceEncoder, features: Tensor, actions: Tensor, mission: Tensor) -> Tensor:
    return encoder(features, actions, mission, everywhere(features))


def stepped(encoder: SequenceEncoder, given: Inputs, starts: Tensor) -> Tensor:
    features, actions, mission = given
    state, out = encoder.begin(len(features)), []
    for t in range(features.shape[1]):
        one, state = encoder.step(features[:, t], actions[:, t], mission, state, starts[:, t])
        out.append(one)
    return torch.stack(out, dim=1)


@pytest.mark.parametrize(
    ("backbone", "causal", "window", "reached"),
    [
        ("gru", True, WINDOW, range(16)),
        ("gru", False, WINDOW, range(30)),
        ("transformer", True, WINDOW, range(15 - 8, 16)),
        ("transformer", False, WINDOW, range(15 - 8, 16 + 8)),
        ("transformer", True, 1, range(15, 16)),
    ],
)
def test_a_step_depends_on_these_steps_and_no_others(backbone: str, causal: bool, window: int, reached: range) -> None:
    encoder, (features, actions, mission) = make(backbone, causal=causal, window=window), inputs(30)
    features.requires_grad_(True)
    whole(encoder, features, actions, mission)[:, 15, 0].sum().backward()
    for row in features.grad.abs().amax(2):
        assert row.nonzero().flatten().tolist() == list(reached)
    before = whole(encoder, features, actions, mission)
    for t in set(range(30)) - set(reached):
        actions[:, t] = (actions[:, t] + 1) % ACTIONS
    assert torch.allclose(whole(encoder, features, actions, mission)[:, 15], before[:, 15], atol=1e-5)


@pytest.mark.parametrize("heads", [1, 2, 8])
def test_a_reversed_neighbourhood_gives_another_feature(heads: int) -> None:
    encoder = make(vocabulary=None, causal=False, previous_action=False, heads=heads)
    features, actions, _ = inputs(5)
    there, back = (encoder(each, actions, None, everywhere(each))[:, 2] for each in (features, features.flip(1)))
    assert (there - back).abs().amax(1).min() > 1e-3


@both
@causal_or_not
def test_padding_changes_nothing_and_gets_zeros(backbone: str, causal: bool) -> None:
    encoder, (features, actions, mission) = make(backbone, causal=causal), inputs(20)
    parts = [slice(4, 20), slice(0, 13), slice(2, 9)]  # padding left, right, and on both sides
    present = torch.zeros(3, 20, dtype=torch.bool)
    for row, part in enumerate(parts):
        present[row, part] = True
    alone = [whole(encoder, *(x[[r], p] for x in (features, actions)), mission[[r]]) for r, p in enumerate(parts)]
    for content in (0.0, 1e6, torch.inf):
        features[~present] = content
        padded = encoder(features, actions, mission, present)
        assert not padded[~present].any()
        torch.testing.assert_close(padded[present], torch.cat(alone, dim=1)[0], rtol=0, atol=1e-5)
        actions[~present] = ACTIONS - 1


@both
@causal_or_not
def test_rows_without_a_step_give_zeros_and_finite_gradients(backbone: str, causal: bool) -> None:
    encoder, given = make(backbone, causal=causal), inputs(5)
    features = encoder(*given, torch.tensor([[True] * 5, [False] * 5, [False, True, True, False, False]]))
    assert not features[1].any()
    features.square().sum().backward()
    assert all(weight.grad.isfinite().all() and weight.grad.any() for weight in encoder.parameters())


@both
def test_an_episode_whole_in_windows_and_step_by_step_is_the_same(backbone: str) -> None:
    """Over five windows, with episodes that begin in the middle; a GRU is not the same in windows."""
    encoder, given = make(backbone).eval(), inputs(47)
    features, actions, mission = given
    starts = torch.zeros(3, 47, dtype=torch.bool)
    starts[0, 17] = starts[1, [0, 30, 31]] = True
    episode = starts.cumsum(1)
    steps = stepped(encoder, given, starts)
    for row in range(3):
        for number in range(int(episode[row, -1]) + 1):
            part = episode[row] == number
            if part.any():
                alone = whole(encoder, features[[row]][:, part], actions[[row]][:, part], mission[[row]])
                torch.testing.assert_close(steps[row, part], alone[0], rtol=0, atol=1e-5)
    rows = torch.arange(47)[:, None] + torch.arange(1 - WINDOW, 1)  # (steps, window)
    inside = (rows >= 0) & (episode[:, rows.clamp_min(0)] == episode[:, :, None])  # else another episode's steps
    seen, done = (x[:, rows.clamp_min(0)].flatten(0, 1) for x in (features, actions))
    windows = encoder(seen, done, mission.repeat_interleave(47, 0), inside.flatten(0, 1))[:, -1]
    apart = (windows.unflatten(0, (3, 47)) - steps).abs().amax(2)
    cut = inside.all(2) & ~starts[:, rows[:, 0].clamp_min(0)]
    assert (apart[~cut] < 1e-5).all()
    assert cut.sum() > 60
    assert (apart[cut] < 1e-5).all() if backbone == "transformer" else (apart[cut] > 1e-4).any()


def mixed_tokens(encoder: SequenceEncoder) -> list[int]:
    """Grows by the number of tokens that each layer mixes."""
    mixer, counts = encoder.stages[1], []
    for layer in [layer.linear1 for layer in mixer.layers] if encoder.backbone == "transformer" else [mixer.gru]:
        layer.register_forward_hook(lambda _module, given, _out: counts.append(given[0].shape[:-1].numel()))
    return counts


@both
def test_a_step_mixes_one_token_where_a_window_mixes_all(backbone: str) -> None:
    encoder, (features, actions, mission) = make(backbone), inputs(WINDOW)
    counts, layers = mixed_tokens(encoder), 2 if backbone == "transformer" else 1
    whole(encoder, features, actions, mission)
    _, state = encoder.step(features[:, 0], actions[:, 0], mission, encoder.begin(3))
    assert counts == [3 * WINDOW] * layers + [3] * layers
    again = [encoder.step(features[:, 1], actions[:, 1], mission, state)[0] for _ in range(2)]
    assert torch.equal(*again), "a step does not change the state that it reads"


@both
@causal_or_not
def test_the_last_step_alone_is_the_last_of_all(backbone: str, causal: bool) -> None:
    """In windows as policies see them, padded on the left, some of them empty; gradients too."""
    encoder = make(backbone, causal=causal)
    for steps in (1, 4, WINDOW, 30):
        features, actions, mission = inputs(steps)
        present = torch.arange(steps) >= torch.tensor([[0], [steps // 2], [steps]])
        answers = []
        for alone in (encoder.last(features, actions, mission, present), encoder(features, actions, mission, present)):
            last = alone if alone.ndim == 2 else alone[:, -1]
            answers.append([last, *torch.autograd.grad(last.square().sum(), list(encoder.stages[0].parameters()))])
        torch.testing.assert_close(*answers, rtol=0, atol=1e-4)
        assert answers[0][0].abs().amax(1).gt(0).tolist() == [True, True, False]


def test_the_last_step_alone_mixes_only_what_it_depends_on() -> None:
    encoder, given = make(), inputs(WINDOW)
    counts = mixed_tokens(encoder)
    encoder.last(*given, everywhere(given[0]))
    assert counts == [3 * 5, 3], "four steps back in each of two layers"


def test_a_bidirectional_transformer_acts_as_a_causal_one_with_its_weights() -> None:
    bidirectional, causal = make(causal=False), make(causal=True)
    causal.load_state_dict(bidirectional.state_dict())
    given, copied = inputs(20), bidirectional.causal_copy()
    assert torch.equal(whole(copied, *given), whole(causal, *given))
    assert not torch.allclose(whole(copied, *given), whole(bidirectional, *given))
    assert copied.fingerprint() == causal.fingerprint()
    with pytest.raises(RlpreError, match="a bidirectional GRU reads from both ends and cannot act"):
        make("gru", causal=False).causal_copy()


@causal_or_not
def test_the_transformer_is_torchs_own_layers_with_linear_biases(causal: bool) -> None:
    encoder, (features, actions, mission) = make(causal=causal), inputs(12)
    distance = torch.arange(12)[:, None] - torch.arange(12)
    seen = (distance.abs() <= 4) & ((distance >= 0) | (not causal))
    # Press et al. 2022: 2^(-8 / heads), squared for the second head; ahead half an exponent less, and more
    slopes = [torch.where(distance < 0, *each) for each in ((1 / 4, 1 / 16), (1 / 1024, 1 / 256))]
    bias = torch.stack([torch.where(seen, -slope * distance.abs(), -torch.inf) for slope in slopes])
    x = encoder.stages[0](features, actions, mission)
    for layer in encoder.stages[1].layers.train():
        x = layer(x, src_mask=bias.repeat(3, 1, 1))
    expected = F.layer_norm(x, (16,), encoder.stages[1].norm.weight, encoder.stages[1].norm.bias)
    features = whole(encoder, features, actions, mission) * encoder.feature_std + encoder.feature_mean
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5)


@both
def test_it_learns_to_recall_what_it_saw_seven_steps_ago(backbone: str) -> None:
    encoder = make(backbone, vocabulary=None, width=32)
    head = nn.Linear(32, 4)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], lr=3e-3)
    actions = torch.full((64, WINDOW), -1)
    for _ in range(100):
        features, cue = 0.3 * torch.randn(64, WINDOW, FEATURES), torch.randint(4, (64,))
        features[:, 1, :4] = 3 * F.one_hot(cue, 4).float()
        logits = head(encoder(features, actions, None, everywhere(features))[:, -1])
        optimizer.zero_grad()
        F.cross_entropy(logits, cue).backward()
        optimizer.step()
    assert (logits.argmax(1) == cue).float().mean() > 0.9


@both
def test_frames_are_encoded_by_a_copy_that_nothing_trains(backbone: str) -> None:
    frames = odd_encoder().train()
    encoder = SequenceEncoder(backbone, frames, ACTIONS, width=16).train().requires_grad_(True)
    assert same(encoder.frames, frames)
    assert encoder.stages.training
    assert not any(module.training for module in encoder.frames.modules())
    assert {name.split(".")[0] for name, _ in encoder.named_parameters()} == {"stages"}
    images = torch.randint(0, 256, (4, *FRAME.shape), dtype=torch.uint8)
    features = encoder.encode_frames(images)
    assert not features.requires_grad
    assert torch.equal(features, frames.eval()(images))
    with torch.no_grad():
        next(frames.parameters()).add_(1)
    assert torch.equal(encoder.encode_frames(images), features), "training the original later changes nothing"


def test_tokens_include_the_action_and_the_order_of_the_words() -> None:
    (features, actions, mission), encoder = inputs(4), make()
    for previous_action in (True, False):
        made = make(previous_action=previous_action)
        ignored = torch.equal(whole(made, features, actions, mission), whole(made, features, actions * 0, mission))
        assert ignored != previous_action
    first, second = (encoder.stages[0](features, actions, mission[[row] * 3]) for row in (1, 2))  # the same words
    assert ((first - second).abs().amax(2) > 0.1).all()


def test_padding_of_a_mission_changes_nothing() -> None:
    mission = torch.from_numpy(VOCABULARY.encode(MISSIONS))
    short, long = (MissionEmbedding(replace(VOCABULARY, length=VOCABULARY.length + more), 8) for more in (0, 4))
    long.load_state_dict({**short.state_dict(), "places": torch.cat([short.places, torch.randn(4, 8)])})
    torch.testing.assert_close(long(F.pad(mission, (0, 4))), short(mission))


def test_a_vocabulary_numbers_its_words() -> None:
    vocabulary = Vocabulary.from_missions(["go to the Ball", "open a door, go"])
    assert vocabulary == Vocabulary(["a", "ball", "door", "go", "open", "the", "to"], 4)
    encoded = vocabulary.encode(["GO to a, door", "ball"])
    assert encoded.dtype == np.int64
    assert encoded.tolist() == [[4, 7, 1, 3], [2, 0, 0, 0]]


@both
@pytest.mark.parametrize("vocabulary", [None, VOCABULARY])
def test_a_checkpoint_gives_the_same_encoder(backbone: str, vocabulary: Vocabulary | None, tmp_path) -> None:
    encoder = make(backbone, vocabulary, causal=False, previous_action=False, pretraining={"objective": "cpc"})
    loaded = SequenceEncoder.load(encoder.save(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((tmp_path / "config.json").read_text())["kind"] == "sequence"
    assert same(loaded, encoder)
    assert (loaded.config, loaded.fingerprint()) == (encoder.config, encoder.fingerprint())
    features, actions, mission = inputs(12)
    given = features, actions, mission if vocabulary else None
    assert torch.equal(whole(loaded, *given), whole(encoder, *given))


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_saved_and_read(backbone: str, dtype: torch.dtype, tmp_path) -> None:
    encoder, given = make(backbone).eval(), inputs(WINDOW)
    half = make(backbone).eval().to(dtype)
    loaded = SequenceEncoder.load(half.save(tmp_path)).eval()
    assert (loaded.dtype, loaded.fingerprint()) == (dtype, half.fingerprint())
    assert loaded.encode_frames(torch.zeros(1, *FRAME.shape)).dtype == dtype
    with torch.no_grad():
        torch.testing.assert_close(whole(loaded, *given).float(), whole(encoder, *given), rtol=0, atol=0.2)
        steps = stepped(loaded, given, torch.zeros(3, WINDOW, dtype=torch.bool))
        torch.testing.assert_close(steps.float(), whole(encoder, *given), rtol=0, atol=0.2)


def test_a_fingerprint_covers_what_decides_the_features() -> None:
    encoder = make()
    assert make(pretraining={"seed": 3}).fingerprint() == encoder.fingerprint()
    others = [make(causal=False), make(window=5), make(vocabulary=None), make("gru")]
    others.append(make(vocabulary=Vocabulary(VOCABULARY.words[::-1], VOCABULARY.length)))
    for changed in ("stages.1.norm.bias", "frames.feature_mean", "feature_std"):
        others.append(make())
        others[-1].state_dict()[changed][0] += 1
    others.append(make())
    others[-1].frames.input = replace(FRAME, mean=0.5)
    assert len({encoder.fingerprint(), *(other.fingerprint() for other in others)}) == 1 + len(others)


F3, A3, M3 = inputs(4)


def refuse(features: Tensor = F3, actions: Tensor = A3, mission: Tensor | None = M3, **arguments) -> None:
    whole(make(**arguments), features, actions, mission)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: make("gur"), "unknown backbone 'gur': did you mean 'gru'"),
        (lambda: make(heads=3), "3 heads do not divide width=16: choose a multiple"),
        (lambda: make(window=2, layers=3), "a window of 2 is too short for 3 layers: give 4 or more, or 1"),
        (lambda: make(window=0), "window is 0: it must be at least 1"),
        (lambda: make("gru", width=15, causal=False), "a bidirectional GRU of width=15 cannot halve it"),
        (lambda: make(causal=False).begin(3), "a bidirectional encoder cannot go step by step"),
        (lambda: make().step(F3[:, 0], A3[:, 0], M3, make().begin(2)), "the state is of 2 episodes, features of 3"),
        (lambda: make()(F3, A3, M3, everywhere(F3)[:, 1:]), r"present has shape \(3, 3\) for tokens \(3, 4, 16\)"),
        (lambda: make().encode_frames(torch.zeros(2, 36, 36, 3)), r"frames have shape \(2, 36, 36, 3\): give \(n, C"),
        (lambda: refuse(F3[..., 1:]), r"features have shape \(3, 4, 15\): give \(batch, steps, 16\)"),
        (lambda: refuse(actions=A3[:, 1:]), r"previous actions have shape \(3, 3\) for features \(3, 4, 16\)"),
        (lambda: refuse(actions=A3.clamp_min(2) * 3 - 1), r"the previous action is \d+: it must lie in \[-1, 4\]"),
        (lambda: refuse(actions=A3 - 2), r"the previous action is -[23]: it must lie in \[-1, 4\]"),
        (lambda: refuse(mission=None), r"missions have shape None, the encoder reads \(3, 9\): give what its voc"),
        (lambda: refuse(mission=M3[:, 1:]), r"missions have shape \(3, 8\), the encoder reads \(3, 9\)"),
        (lambda: refuse(mission=M3 + 9), r"the number of a word is 1\d: it must lie in \[0, 9\]"),
        (lambda: refuse(vocabulary=None), r"missions have shape \(3, 9\), the encoder reads None: it has no vocab"),
        (lambda: VOCABULARY.encode(["go to the purple ball"]), "lacks 'purple' of the mission 'go to the purple ball'"),
        (lambda: VOCABULARY.encode(["put the red ball next to the blue blue key"]), "has 10 words, the vocabulary's"),
        (lambda: Vocabulary.from_missions([]), "0 words and missions of 0 at most: give missions with words"),
        (lambda: Vocabulary(["go"], 0), "1 words and missions of 0 at most"),
        (lambda: Vocabulary(["go", "to", "to"], 3), "the vocabulary has 'to' twice"),
    ],
)
def test_what_does_not_fit_is_refused(call, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        call()


def test_an_encoder_is_given_as_itself_its_directory_or_a_result(tmp_path) -> None:
    for encoder in (make(), odd_encoder()):
        path = encoder.save(tmp_path / encoder.kind)
        assert as_encoder(encoder) is as_encoder(SimpleNamespace(encoder=encoder)) is encoder
        for given in (path, str(path)):
            assert same(as_encoder(given), encoder)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (nn.Sequential(nn.Flatten()), r"^Sequential is a torch module.*rlpre.register_encoder\('mine', build\), then"),
        (nn.Flatten, "^Flatten is a torch module, not an encoder: register"),
        ("cnn", r"^'cnn' is an architecture: give rlpre.Encoder\('cnn', rlpre.InputSpec\(shape\)\)"),
        ("nowhere", "^nowhere/config.json is missing: is nowhere the right directory"),
        (None, "^NoneType is no encoder: give an rlpre.Encoder"),
        (SimpleNamespace(encoder=3), "^int is no encoder"),
    ],
)
def test_what_is_no_encoder_is_one_sentence(given: object, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence) as caught:
        as_encoder(given)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_of_the_other_kind_is_one_sentence(tmp_path) -> None:
    sequence, vision = make().save(tmp_path / "sequence"), odd_encoder().save(tmp_path / "vision")
    with pytest.raises(RlpreError, match=r"^this is a sequence encoder, not a vision encoder: load it with rlpre.Seq"):
        Encoder.load(sequence)
    with pytest.raises(RlpreError, match=r"^this is a vision encoder, not a sequence encoder: load it with rlpre.Enc"):
        SequenceEncoder.load(vision)
    config = json.loads((sequence / "config.json").read_text())
    del config["frames"]
    with pytest.raises(RlpreError, match=r"lacks or misstates 'frames'"):
        SequenceEncoder.from_config(config)
