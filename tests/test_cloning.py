"""Cloning: a tiny level is cloned, training stops early and is reproducible, and bad input is refused."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from clones import LEVEL, SHORT, demos, small
from gymnasium import spaces
from pixel_world import same
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.cloning import CloneConfig, Episodes, SequencePolicy, action_tokens, clone, sample
from envs.minigrid.demos import demonstrations, stored
from envs.minigrid.trials import ExpertActor, layout_seeds, play
from rlpre import FrameStore, RlpreError, SequenceEncoder, Vocabulary
from rlpre.utils import read_json

EASY = "BabyAI-GoToRedBallNoDists-v0"


@pytest.fixture(scope="module")
def easy(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return demonstrations(EASY, tmp_path_factory.mktemp("easy") / "demos", 200, seed=0)


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_a_tiny_level_is_cloned(backbone: str, easy: FrameStore, tmp_path: Path) -> None:
    policy = clone(easy, small(backbone, features=256), tmp_path / "clone", replace(SHORT, steps=150))
    test = stored(play(EASY, layout_seeds(EASY, "test", 48), ExpertActor()), EASY, tmp_path / "test")
    batch = Episodes.read(test, policy.encoder).batch(np.arange(48))
    with torch.no_grad():
        chosen = policy.logits(batch.features, batch.previous, batch.mission, batch.present).argmax(-1)
    right, label = (chosen == batch.label)[batch.present], batch.label[batch.present]
    chance = np.bincount(label).max() / len(label)
    assert right.float().mean() > chance + 0.08, "better than always the commonest action"
    assert right[label != np.bincount(label).argmax()].float().mean() > 0.35


def test_training_stops_early_with_the_best_weights(tmp_path: Path) -> None:
    steps: list[int] = []
    policy = clone(demos(), small(), tmp_path, replace(SHORT, steps=5000, patience=3), steps.append)
    run, board = read_json(tmp_path / "run.json"), EventAccumulator(str(tmp_path)).Reload()
    losses = {event.step: event.value for event in board.Scalars("held_out/loss")}
    assert run["kept_step"] == min(losses, key=losses.__getitem__) == run["gradient_steps"] - 30
    assert steps == list(range(1, run["gradient_steps"] + 1))
    assert len(steps) < 2000
    episodes = Episodes.read(demos(), policy.encoder)
    batch = episodes.batch(episodes.split()[1])
    with torch.no_grad():
        logits = policy.logits(batch.features, batch.previous, batch.mission, batch.present)[batch.present]
    loss = torch.nn.functional.cross_entropy(logits, batch.label[batch.present], label_smoothing=0.05)
    assert float(loss) == pytest.approx(run["held_out_loss"], abs=1e-5) == min(losses.values())


def test_the_seed_decides_and_the_encoder_is_left_alone(tmp_path: Path) -> None:
    encoder, before = small(), torch.get_rng_state()
    policies = [clone(demos(), encoder, tmp_path / str(n), replace(SHORT, seed=n // 2)) for n in range(3)]
    assert torch.equal(before, torch.get_rng_state())
    assert same(policies[0], policies[1])
    assert not same(policies[0].head, policies[2].head)
    assert same(encoder, small())
    assert same(policies[0].encoder.frames, encoder.frames), "the vision encoder is frozen"
    run = read_json(tmp_path / "0" / "run.json")
    assert run["labels"] == (demos().column("expert") >= 0).sum()
    assert run["gradient_steps"] == SHORT.steps


def test_a_policy_is_saved_and_loaded(tmp_path: Path) -> None:
    policy = SequencePolicy(small("transformer"))
    torch.nn.init.normal_(policy.head.weight)
    policy.save(tmp_path)
    assert same(SequencePolicy.load(tmp_path), policy)
    assert same(SequenceEncoder.load(tmp_path), policy.encoder)
    (tmp_path / "head.safetensors").unlink()
    with pytest.raises(RlpreError, match="is not a saved policy"):
        SequencePolicy.load(tmp_path)


@pytest.mark.parametrize("backbone", ["gru", "transformer"])
def test_actions_depend_on_the_seed_but_not_on_the_number_of_worlds(backbone: str) -> None:
    policy = SequencePolicy(small(backbone))
    torch.nn.init.normal_(policy.head.weight)
    seeds = layout_seeds(LEVEL, "train", 4)
    played = [play(LEVEL, seeds, policy.actor(seed), n_envs=n) for seed, n in ((1, 4), (1, 3), (2, 4))]
    once, again, other = ([trial.actions.tolist() for trial in run] for run in played)
    assert once == again != other


def test_actions_are_sampled_from_the_policy() -> None:
    share = torch.tensor([0.1, 0.2, 0.7])
    uniform = torch.from_numpy(np.random.default_rng(0).random((20_000, 3)))
    drawn = sample(share.log().expand(20_000, 3), uniform)
    assert (drawn.bincount() / 20_000).tolist() == pytest.approx(share.tolist(), abs=0.01)


def test_batches_hold_whole_episodes_once_a_pass() -> None:
    episodes = Episodes.read(demos(), small())
    batches = episodes.batches(np.arange(40), 16, np.random.default_rng(0))
    drawn = [next(batches) for _ in range(6)]
    for a_pass in (drawn[:3], drawn[3:]):
        lengths = np.concatenate([batch.present.sum(1).numpy() for batch in a_pass])
        assert sorted(lengths) == sorted(episodes.lengths[:40])
        assert sum((~batch.present).sum() for batch in a_pass) < 0.4 * lengths.sum(), "unsorted there is more padding"
    start = np.flatnonzero(demos().column("episode_start"))
    batch = episodes.batch(np.array([3, 1]))
    for row, episode in enumerate((3, 1)):
        length = episodes.lengths[episode]
        rows = np.arange(start[episode], start[episode] + length)
        assert batch.label[row].tolist()[:length] == demos().column("expert")[rows].tolist()
        assert batch.previous[row].tolist()[:length] == [-1, *demos().column("action")[rows[:-1]].tolist()]
        assert set(batch.label[row].tolist()[length:]) <= {-1}
        assert batch.present[row].sum() == length
        words = small().vocabulary.encode([demos().missions[demos().column("mission")[rows[0]]]])
        assert batch.mission[row].tolist() == words[0].tolist()


def test_layouts_keep_their_side_when_episodes_are_added() -> None:
    episodes = Episodes.read(demos(), small())
    train, held_out = episodes.split()
    assert sorted([*train, *held_out]) == list(range(64))
    assert 6 <= len(held_out) <= 12
    assert not set(episodes.layout[train]) & set(episodes.layout[held_out])
    twice = episodes + episodes
    assert twice.labels == 2 * episodes.labels
    assert set(twice.split()[1]) == {*held_out, *(held_out + 64)}
    first, second = twice.batch(np.array([5])), twice.batch(np.array([69]))
    assert torch.equal(first.features, second.features)


def test_history_is_dropped_or_sampled_by_the_schedule() -> None:
    policy = SequencePolicy(small())
    batch = Episodes.read(demos(), policy.encoder).batch(np.arange(64))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(action_tokens(policy, batch, CloneConfig(), 0.5, generator), batch.previous)
    later = batch.present & (batch.previous != -1)
    hidden = action_tokens(policy, batch, CloneConfig(history_dropout=0.25), 0.5, generator) == -1
    assert hidden[later].float().mean() == pytest.approx(0.25, abs=0.08)
    with torch.no_grad():
        own = policy.logits(batch.features, batch.previous, batch.mission, batch.present).argmax(-1)[:, :-1]
    differs = later[:, 1:] & (own != batch.previous[:, 1:])
    for progress, share in ((0.0, 0.01), (0.5, 0.5), (1.0, 0.99)):
        tokens = action_tokens(policy, batch, CloneConfig(scheduled_sampling=True), progress, generator)
        assert torch.equal(tokens[:, 0], batch.previous[:, 0])
        assert ((tokens[:, 1:] == own) | (tokens[:, 1:] == batch.previous[:, 1:]))[later[:, 1:]].all()
        assert (tokens[:, 1:] == own)[differs].float().mean() == pytest.approx(share, abs=0.08)


def bare(out: Path) -> FrameStore:
    """One episode of two steps without labels."""
    space = spaces.Box(0, 255, (3, 56, 56), np.uint8)
    columns = {"reward": 0, "terminated": False, "truncated": False, "task": 0, "action": [0, 0, -1]}
    with FrameStore.create(out, space=space, action_space=spaces.Discrete(7), spec={}) as writer:
        frames = np.zeros((3, 3, 56, 56), np.uint8)
        writer.append(frames, mission="go", episode_start=[True, False, False], **columns)
    return FrameStore.open(out)


def test_demonstrations_that_do_not_fit_are_refused(doorkey: FrameStore, tmp_path: Path) -> None:
    other_words = small()
    other_words.vocabulary = Vocabulary(["go"], 1)
    few = stored(play(LEVEL, layout_seeds(LEVEL, "train", 1), ExpertActor()), LEVEL, tmp_path / "few")
    for store, encoder, sentence in (
        (demos(), other_words, "need their own encoder"),
        (few, small(), "1 episodes in 1 layouts are too few to hold some out"),
        (bare(tmp_path / "bare"), small(), "no label 'expert'"),
        (doorkey, small(), "no label 'layout'"),
        (demos(), small(actions=6), "7 actions, the sequence encoder .* 6"),
        (demos(), small(causal=False), "this encoder sees the future"),
    ):
        with pytest.raises(RlpreError, match=sentence):
            clone(store, encoder, tmp_path / "run", SHORT)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is 0"),
        ({"history_dropout": 1.5}, "history_dropout is 1.5: it is a share"),
        ({"label_smoothing": -0.1}, "label_smoothing is -0.1"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"lr": 1e30}, "the loss of the clone is not finite at step .*: lower lr=1e"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        clone(demos(), small(), tmp_path, replace(SHORT, **changes))
