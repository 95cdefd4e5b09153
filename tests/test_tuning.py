"""Reinforcement learning from a clone: PPO starts as the clone, waits for its values, and gives a policy back."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO

from agents.policy import SequencePolicy
from agents.train import PPOConfig
from agents.tuning import Tuning, from_ppo, to_ppo, tune, worlds
from envs.layouts import is_test, layout
from rlpre import Encoder, InputSpec, RlpreError, SequenceEncoder
from rlpre.encoders import Vocabulary
from rlpre.files import read_json

LEVEL = "BabyAI-GoToLocal-v0"
COLORS, THINGS = ("red", "green", "blue", "purple", "yellow", "grey"), ("ball", "box", "key")
MISSIONS = [f"go to {article} {color} {thing}" for article in ("a", "the") for color in COLORS for thing in THINGS]
WINDOW, STEPS = 6, 64
TINY = Tuning(ppo=PPOConfig(n_envs=4, n_steps=8, batch_size=16, learning_rate=1e-2, n_epochs=1))


@pytest.fixture(scope="module")
def policy() -> SequencePolicy:
    """Opinionated, so that its probabilities are not all alike."""
    torch.manual_seed(0)
    frames = Encoder("cnn", InputSpec((3, 56, 56)), features=16)
    encoder = SequenceEncoder("transformer", frames, 7, Vocabulary.of(MISSIONS), width=16, heads=2, window=WINDOW)
    policy = SequencePolicy(encoder).eval()
    torch.nn.init.normal_(policy.head.weight)
    return policy


def probabilities(model: PPO, observation: dict[str, np.ndarray]) -> torch.Tensor:
    """(n_envs, actions) of PPO's policy."""
    with torch.no_grad():
        return model.policy.get_distribution(model.policy.obs_to_tensor(observation)[0]).distribution.probs


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return all(ours[name].equal(theirs[name]) for name in theirs)


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_first_policy_of_ppo_is_the_clone(policy: SequencePolicy, beta: float) -> None:
    """Along episodes much longer than the window, which the clone reads step by step."""
    encoder = policy.encoder
    model = to_ppo(policy, worlds(LEVEL, 4, seed=100), replace(TINY, beta=beta), STEPS)
    observation, starts = model.env.reset(), np.ones(4, bool)
    state, token = encoder.begin(4), torch.full((4,), -1)
    longest = age = np.zeros(4, int)
    for _ in range(5 * WINDOW):
        features = torch.from_numpy(observation["features"][:, -1])
        mission = torch.from_numpy(observation["mission"])
        token = torch.where(torch.from_numpy(starts), -1, token)
        with torch.no_grad():
            logits, state = policy.step(features, token, mission, state, torch.from_numpy(starts))
        torch.testing.assert_close(probabilities(model, observation), logits.softmax(-1), atol=1e-5, rtol=0)
        token = logits.argmax(-1)
        observation, _, starts, _ = model.env.step(token.numpy())
        age = np.where(starts, 0, age + 1)
        longest = np.maximum(longest, age)
    assert longest.max() > 2 * WINDOW


def test_there_and_back_is_the_same_policy(policy: SequencePolicy) -> None:
    back = from_ppo(to_ppo(policy, worlds(LEVEL, 2, seed=100), TINY), policy)
    assert back is not policy
    assert same(back, policy)


def test_value_head_learns_alone_first(policy: SequencePolicy) -> None:
    """Two gradient steps a rollout: the actor waits for the two of the first of four."""
    tuning = replace(TINY, value_first=0.25)
    model = to_ppo(policy, worlds(LEVEL, 4, seed=100), tuning, steps=4 * 32)
    values = model.policy.value_net.weight.clone()
    model.learn(32)
    assert same(from_ppo(model, policy), policy)
    assert not model.policy.value_net.weight.equal(values)
    model.learn(32)
    assert not same(from_ppo(model, policy).encoder, policy.encoder)
    assert not same(from_ppo(model, policy).head, policy.head)


def test_divergence_costs_less_and_less(policy: SequencePolicy) -> None:
    tuning = replace(TINY, beta=0.2, beta_left=0.25, value_first=0.5)
    model = to_ppo(policy, worlds(LEVEL, 4, seed=100), tuning, steps=2 * 32)
    model.learn(32)
    assert np.abs(model.rollout_buffer.kl).max() < 1e-5, "nothing but the value head has learned"
    model.learn(32)
    assert model.rollout_buffer.beta == pytest.approx(0.2 * 0.25)


def test_tuning_leaves_the_clone_and_writes_what_it_cost(policy: SequencePolicy, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    reported: list[int] = []
    tuned = tune(policy, LEVEL, tmp_path, 2 * STEPS, 100, TINY, reported.append)
    assert all(before[name].equal(tensor) for name, tensor in policy.state_dict().items())
    assert not same(tuned.head, policy.head)
    assert same(tuned.encoder.frames, policy.encoder.frames)
    assert same(SequencePolicy.load(tmp_path), tuned)
    assert reported[-1] == 2 * STEPS
    said = read_json(tmp_path / "run.json")
    assert (said["environment_steps"], said["gradient_steps"]) == (2 * STEPS, 2 * STEPS // 16)
    assert said["configuration"]["level"] == LEVEL
    assert list(tmp_path.glob("tensorboard*"))


def test_scratch_keeps_the_architecture_alone(policy: SequencePolicy) -> None:
    model = to_ppo(policy, worlds(LEVEL, 2, seed=100), replace(TINY, mode="scratch", value_first=0.0), seed=1)
    fresh = from_ppo(model, policy)
    assert same(fresh.encoder.frames, policy.encoder.frames)
    assert fresh.encoder.vocabulary == policy.encoder.vocabulary
    assert not same(fresh.encoder.stages, policy.encoder.stages)
    assert not same(fresh.head, policy.head)


def test_layouts_for_tests_are_never_learned_from() -> None:
    venv = worlds(LEVEL, 2, seed=0)
    seen = set()
    for _ in range(40):
        venv.reset()
        seen |= {layout(world.grid_env) for world in venv.envs}
    assert len(seen) > 60
    assert not any(is_test(number) for number in seen)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mode": "fintuned"}, "did you mean 'finetuned'"),
        ({"mode": "frozen"}, "mode 'frozen' trains no encoder"),
        ({"beta": -1.0}, "beta is -1.0: it must be at least 0"),
        ({"value_first": 1.5}, "value_first is 1.5: it is a share"),
        ({"ppo": PPOConfig()}, "give both"),
        ({"ppo": replace(TINY.ppo, n_envs=0)}, "n_envs is 0"),
    ],
)
def test_bad_settings(changes: dict[str, object], sentence: str, policy: SequencePolicy, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        tune(policy, LEVEL, tmp_path / "run", STEPS, 100, replace(TINY, **changes))
    assert not (tmp_path / "run").exists()


def test_level_of_another_vocabulary_is_one_sentence(policy: SequencePolicy, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match="the vocabulary lacks"):
        tune(policy, "BabyAI-PutNextLocal-v0", tmp_path, STEPS, 100, TINY)
