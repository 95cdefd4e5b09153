"""Corrections: one budget, counted; each learns from what its name says; PPO starts as the clone and gives it back."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from clones import LEVEL, SHORT, demos, home, small
from pixel_world import same

from agents.cloning import SequencePolicy, clone
from agents.corrections import CORRECTIONS, Tuning, correct, from_ppo, label, to_ppo, training_envs, tune
from agents.presets import PPOConfig
from envs.minigrid.trials import ExpertActor, is_test, layout
from rlpre import FrameStore, RlpreError
from rlpre.utils import read_json

LABELS = 131
CONFIG = replace(SHORT, steps=17, check_every=5)
WINDOW, STEPS = 6, 64
TINY = Tuning(ppo=PPOConfig(n_envs=4, n_steps=8, batch_size=16, learning_rate=1e-2, n_epochs=1))


@cache
def cloned() -> SequencePolicy:
    return clone(demos(), small(), home(), replace(CONFIG, steps=10))


@cache
def corrected(name: str) -> tuple[SequencePolicy, Path]:
    out = home() / name
    return correct(name, cloned(), demos(), out, LABELS, CONFIG), out


def labelled(name: str) -> list[FrameStore]:
    """The stores of newly labelled episodes."""
    return [FrameStore.open(path) for path in sorted(corrected(name)[1].glob("labels-*"))]


@pytest.mark.parametrize("name", CORRECTIONS)
def test_every_correction_costs_the_budget(name: str) -> None:
    before = {key: tensor.clone() for key, tensor in cloned().state_dict().items()}
    policy, out = corrected(name)
    run, correction = read_json(out / "run.json"), CORRECTIONS[name]
    assert run["gradient_steps"] == CONFIG.steps
    assert run["labels"] == (LABELS if correction.player else 0)
    assert len(run["rounds"]) == correction.rounds
    assert run["configuration"]["history_dropout"] == correction.history_dropout
    assert sum((store.column("expert") >= 0).sum() for store in labelled(name)) == run["labels"]
    assert not any(is_test(number) for store in labelled(name) for number in store.column("layout"))
    assert all(tensor.equal(before[key]) for key, tensor in cloned().state_dict().items()), "the clone is left alone"
    assert same(SequencePolicy.load(out), policy)
    assert same(policy, cloned()) == all(each["kept_step"] == 0 for each in run["rounds"])


def test_players_act_as_their_names_say() -> None:
    strayed = {}
    for name in ("more-labels", "dart", "dagger"):
        stores = labelled(name)
        action, advice = (np.concatenate([s.column(c)[s.acted] for s in stores]) for c in ("action", "expert"))
        strayed[name] = (action != advice).mean()
        assert len(stores) == CORRECTIONS[name].rounds
    noise = read_json(corrected("dart")[1] / "run.json")["noise"]
    assert 0 < noise <= 0.5
    assert strayed["more-labels"] == 0
    assert strayed["dart"] == pytest.approx(noise * 6 / 7, abs=0.15), "a random action can be the expert's"
    assert strayed["dagger"] > 0.1


def test_a_correction_repeats_itself(tmp_path: Path) -> None:
    for seed in (0, 1):
        again = correct("dagger", cloned(), demos(), tmp_path / str(seed), LABELS, replace(CONFIG, seed=seed))
        assert same(again, corrected("dagger")[0]) == (seed == 0)


def test_labels_are_counted_to_the_last_step() -> None:
    trials = label(LEVEL, ExpertActor(), labels=50, longest=4, first=0)
    assert sum(len(trial.actions) for trial in trials) == 50
    assert max(len(trial.actions) for trial in trials) == 4
    for trial in trials:
        assert len(trial.codes) == len(trial.advice) + 1 == len(trial.actions) + 1
    assert {trial.terminated for trial in trials} == {True, False}, "some are cut short"


@pytest.mark.parametrize(
    ("name", "labels", "steps", "sentence"),
    [
        ("dager", LABELS, 17, "unknown correction 'dager': did you mean 'dagger'"),
        ("dagger", 4, 17, "labels=4 cannot be divided among 5 rounds: give at least 5"),
        ("dagger", LABELS, 4, "steps is 4: it must be at least 5"),
    ],
)
def test_bad_budgets(name: str, labels: int, steps: int, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        correct(name, cloned(), demos(), tmp_path, labels, replace(CONFIG, steps=steps))


@pytest.fixture(scope="module")
def policy() -> SequencePolicy:
    """A policy with different probabilities."""
    policy = SequencePolicy(small("transformer", features=16, width=16, heads=2, window=WINDOW)).eval()
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.head.weight)
    return policy


@pytest.mark.parametrize("beta", [0.0, 0.2])
def test_first_policy_of_ppo_is_the_clone(policy: SequencePolicy, beta: float) -> None:
    """Along episodes much longer than the window, which the clone reads step by step."""
    encoder = policy.encoder
    model = to_ppo(policy, training_envs(LEVEL, 4, seed=100), replace(TINY, beta=beta), STEPS)
    observation, starts = model.env.reset(), np.ones(4, bool)
    state, token = encoder.begin(4), torch.full((4,), -1)
    longest = age = np.zeros(4, int)
    for _ in range(5 * WINDOW):
        features = torch.from_numpy(observation["features"][:, -1])
        mission = torch.from_numpy(observation["mission"])
        token = torch.where(torch.from_numpy(starts), -1, token)
        with torch.no_grad():
            logits, state = policy.step(features, token, mission, state, torch.from_numpy(starts))
            given = model.policy.get_distribution(model.policy.obs_to_tensor(observation)[0]).distribution.probs
        torch.testing.assert_close(given, logits.softmax(-1), atol=1e-5, rtol=0)
        token = logits.argmax(-1)
        observation, _, starts, _ = model.env.step(token.numpy())
        age = np.where(starts, 0, age + 1)
        longest = np.maximum(longest, age)
    assert longest.max() > 2 * WINDOW


def test_value_head_learns_alone_first(policy: SequencePolicy) -> None:
    """Two gradient steps per rollout: the actor waits for the two of the first of four rollouts."""
    model = to_ppo(policy, training_envs(LEVEL, 4, seed=100), replace(TINY, value_first=0.25), steps=4 * 32)
    assert same(from_ppo(model, policy), policy)
    values = model.policy.value_net.weight.clone()
    model.learn(32)
    assert same(from_ppo(model, policy), policy)
    assert not model.policy.value_net.weight.equal(values)
    model.learn(32)
    assert not same(from_ppo(model, policy).encoder, policy.encoder)
    assert not same(from_ppo(model, policy).head, policy.head)


def test_the_weight_of_the_divergence_falls(policy: SequencePolicy) -> None:
    tuning = replace(TINY, beta=0.2, beta_left=0.25, value_first=0.5)
    model = to_ppo(policy, training_envs(LEVEL, 4, seed=100), tuning, steps=2 * 32)
    model.learn(32)
    assert np.abs(model.rollout_buffer.kl).max() < 1e-5, "only the value head has learned"
    model.learn(32)
    assert model.rollout_buffer.beta == pytest.approx(0.2 * 0.25)


def test_tuning_leaves_the_clone_alone_and_writes_its_cost(policy: SequencePolicy, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    reported: list[int] = []
    tuned = tune(policy, LEVEL, tmp_path, 2 * STEPS, 100, TINY, reported.append)
    assert all(before[name].equal(tensor) for name, tensor in policy.state_dict().items())
    assert not same(tuned.head, policy.head)
    assert same(tuned.encoder.frames, policy.encoder.frames)
    assert same(SequencePolicy.load(tmp_path), tuned)
    assert reported[-1] == 2 * STEPS
    run = read_json(tmp_path / "run.json")
    assert (run["environment_steps"], run["gradient_steps"]) == (2 * STEPS, 2 * STEPS // 16)
    assert list(tmp_path.glob("tensorboard*"))


def test_scratch_keeps_only_the_architecture(policy: SequencePolicy) -> None:
    model = to_ppo(policy, training_envs(LEVEL, 2, seed=100), replace(TINY, mode="scratch", value_first=0.0), seed=1)
    fresh = from_ppo(model, policy)
    assert same(fresh.encoder.frames, policy.encoder.frames)
    assert fresh.encoder.vocabulary == policy.encoder.vocabulary
    assert not same(fresh.encoder.stages, policy.encoder.stages)
    assert not same(fresh.head, policy.head)


def test_ppo_never_learns_from_test_layouts() -> None:
    venv = training_envs("BabyAI-GoToLocal-v0", 2, seed=0)

    def visited() -> Iterator[int]:
        for _ in range(40):
            venv.reset()
            yield from (layout(world.grid_env) for world in venv.envs)

    seen = set(visited())
    assert len(seen) > 60
    assert not any(is_test(number) for number in seen)


@pytest.mark.parametrize(
    ("level", "changes", "sentence"),
    [
        (LEVEL, {"mode": "fintuned"}, "did you mean 'finetuned'"),
        (LEVEL, {"mode": "frozen"}, "mode 'frozen' trains no encoder"),
        (LEVEL, {"beta": -1.0}, "beta is -1.0: it must be at least 0"),
        (LEVEL, {"value_first": 1.5}, "value_first is 1.5: it is a share"),
        (LEVEL, {"ppo": PPOConfig()}, "give both"),
        (LEVEL, {"ppo": replace(TINY.ppo, n_envs=0)}, "n_envs is 0"),
        ("BabyAI-PutNextLocal-v0", {}, "the vocabulary lacks"),
    ],
)
def test_bad_tunings(
    level: str, changes: dict[str, object], sentence: str, policy: SequencePolicy, tmp_path: Path
) -> None:
    with pytest.raises(RlpreError, match=sentence):
        tune(policy, level, tmp_path / "run", STEPS, 100, replace(TINY, **changes))
    assert not (tmp_path / "run").exists()
