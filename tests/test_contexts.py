"""The four contexts: they agree where they must, and each is what its name says."""

from collections.abc import Sequence
from functools import cache

import numpy as np
import pytest
import torch
from clones import LEVEL, demos, perfect, small

from agents.contexts import contexts, switch_curves
from agents.episodes import Episodes
from agents.policy import SequencePolicy, dice, draw
from envs import atlas, trials
from envs.choices import choice_regrets
from envs.trials import Trial, expert, play, train_seeds
from rlpre import RlpreError
from rlpre.measure.exposure import CONTEXTS, Context

DONE = 6  # MiniGrid's action that does nothing


@cache
def clumsy(previous_action: bool = True) -> SequencePolicy:
    """A policy with strong opinions of its own."""
    policy = SequencePolicy(small(previous_action=previous_action))
    torch.manual_seed(3)
    torch.nn.init.normal_(policy.head.weight)
    return policy.eval()


@cache
def measured(previous_action: bool = True) -> tuple[list[Trial], dict[str, Context]]:
    """The expert's test trials, and a clumsy policy's contexts."""
    seeds = trials.test_seeds(LEVEL, 6)
    shown = play(LEVEL, seeds, expert())
    return shown, contexts(clumsy(previous_action), LEVEL, seeds, shown)


def test_a_perfect_policy_is_perfect_in_all_contexts() -> None:
    policy, seeds = perfect()
    for context in contexts(policy, LEVEL, seeds).values():
        assert context.kept.all()
        assert context.success.all()
        assert not context.wrong[context.alive].any()
        assert (context.regret[context.alive] == 0).all()
        assert context.nll[context.alive].max() < 0.01


def test_a_policy_blind_to_actions_cannot_tell_whose_they_are() -> None:
    _, result = measured(previous_action=False)
    for states in "EO":
        one, other = (result[states + tokens] for tokens in "EO")
        for name in ("wrong", "nll", "regret", "alive", "success"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    _, result = measured()
    assert (result["EE"].nll != result["EO"].nll).any()
    assert (result["OE"].nll != result["OO"].nll).any()


def test_contexts_share_states_by_their_first_letter_and_have_one_shape() -> None:
    shown, result = measured()
    assert tuple(result) == CONTEXTS
    longest = max(len(trial.actions) for trial in shown)
    assert {context.wrong.shape for context in result.values()} == {(6, longest)}
    assert result["EE"].alive.sum() == sum(len(trial.actions) for trial in shown)
    assert result["EE"].success.all()
    for states in "EO":
        assert (result[f"{states}E"].alive == result[f"{states}O"].alive).all()
        assert (result[f"{states}E"].success == result[f"{states}O"].success).all()
    assert (result["EE"].wrong[:, 0] == result["OO"].wrong[:, 0]).all(), "all begin alike"


def test_free_running_is_what_happened() -> None:
    _, result = measured()
    free = result["OO"]
    for number, trial in enumerate(play(LEVEL, trials.test_seeds(LEVEL, 6), clumsy().actor(), regret=True)):
        steps = int(free.alive[number].sum())
        assert steps == min(len(trial.actions), free.alive.shape[1])
        np.testing.assert_array_equal(free.wrong[number, :steps], (trial.actions != trial.advice)[:steps])
        np.testing.assert_array_equal(free.regret[number, :steps], trial.regret[:steps])
        assert free.success[number] == trial.success


def answers(policy: SequencePolicy, trial: Trial, tokens: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (T, actions) by the forward pass over a whole episode of the expert."""
    encoder = policy.encoder
    pixels = torch.from_numpy(atlas(8).decode(trial.codes[:-1]))
    words = torch.from_numpy(encoder.vocabulary.encode([trial.mission]))
    features, told = encoder.encode_frames(pixels)[None], torch.tensor([[-1, *tokens]])
    with torch.no_grad():
        logits = policy.logits(features, told, words, torch.ones_like(told, dtype=torch.bool))
    return logits.log_softmax(-1)[0]


def test_teacher_forced_and_history_channel_by_the_forward_pass() -> None:
    shown, result = measured()
    chance = dice(0)
    luck = torch.from_numpy(np.stack([chance.roll(np.full(6, t == 0), 7) for t in range(20)], axis=1))
    for number, trial in enumerate(shown):
        steps = len(trial.actions)
        own: list[int] = []
        for t in range(steps):
            log = answers(clumsy(), trial, [*own, *[0] * (steps - 1 - t)])
            own.append(int(draw(log, luck[number, :steps])[t]))
        for name, tokens in (("EE", trial.actions[:-1].tolist()), ("EO", own[:-1])):
            log, context = answers(clumsy(), trial, tokens), result[name]
            choice = draw(log, luck[number, :steps]).numpy()
            np.testing.assert_array_equal(context.wrong[number, :steps], choice != trial.advice)
            expected = -log[np.arange(steps), trial.advice]
            np.testing.assert_allclose(context.nll[number, :steps], expected, atol=1e-4)


def test_regret_of_what_was_not_done() -> None:
    shown, _ = measured()
    nothing = [np.full((1, len(trial.actions)), DONE) for trial in shown]
    advised = [trial.advice[None] for trial in shown]
    for waste, follow in zip(*(choice_regrets(LEVEL, shown, asked) for asked in (nothing, advised)), strict=True):
        assert (waste == 1).all(), "the action that does nothing costs a step"
        assert (follow == 0).all()
    with pytest.raises(RlpreError, match="was not played in BabyAI-GoToLocal-v0"):
        choice_regrets("BabyAI-GoToLocal-v0", shown, nothing)


def test_an_episode_that_the_expert_cannot_judge_keeps_its_place() -> None:
    shown, _ = measured()
    failed = [*shown[:-1], Trial(**{**vars(shown[-1]), "success": False})]
    for context in contexts(clumsy(), LEVEL, [t.seed for t in shown], failed, regret=False).values():
        assert context.kept.tolist() == [True] * 5 + [False]
        assert not context.success[-1]
        assert np.isnan(context.regret).all()


def test_switch_curves_join_the_expert_and_the_policy() -> None:
    seeds = trials.test_seeds(LEVEL, 6)
    curves = switch_curves(clumsy(), LEVEL, seeds, [0, 2, 1000])
    alone = [trial.success for trial in play(LEVEL, seeds, clumsy().actor())]
    assert not all(alone)
    assert curves.steps.tolist() == [0, 2, 1000]
    assert curves.learner_first[0].all()
    assert curves.learner_first[-1].tolist() == alone
    assert curves.expert_first[0].tolist() == alone
    assert curves.expert_first[-1].all()


def test_a_policy_that_takes_over_knows_what_was_done_before() -> None:
    policy, seeds = perfect()
    assert switch_curves(policy, LEVEL, seeds, [1, 3]).expert_first.all()
    steps = Episodes.read(demos(), policy.encoder).lengths
    assert steps.max() > 4, "it takes over in the middle"


def test_trials_of_other_seeds_are_refused() -> None:
    with pytest.raises(RlpreError, match="of other seeds"):
        contexts(clumsy(), LEVEL, train_seeds(LEVEL, 6), measured()[0])
