"""Recipes: each trains, leaves a run directory that says everything, and repeats itself; one must learn."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
from agents import RECIPES, PPOConfig, TrainConfig
from rlpre import Encoder, InputSpec, RlpreError

ROOT = Path(__file__).parents[1]
TINY = TrainConfig(
    env="MiniGrid-Empty-Random-5x5-v0",  # random agents reach the goal now and then, so that evaluations differ
    features=32,
    steps=512,
    eval_every=256,
    eval_episodes=4,
    device="cpu",
    ppo=PPOConfig(n_envs=4, n_steps=64, batch_size=64, n_epochs=1),
)
FRAMES = InputSpec((3, 56, 56))
FORGETFUL = [name for name, recipe in RECIPES.items() if not recipe.history]

# Each of them in a process of its own, as a user would run it: arguments are the home of the runs and of the encoder.
ELSEWHERE = """
import sys
from pathlib import Path
import torch
sys.path.append("tests")
from test_agents import FORGETFUL, tiny, train

torch.set_num_threads(1)
for agent in FORGETFUL:
    train(tiny(agent, Path(sys.argv[2])), Path(sys.argv[1]) / agent)
"""


def tiny(agent: str, encoder: Path, **changes: object) -> TrainConfig:
    return replace(TINY, agent=agent, encoder=str(encoder) if RECIPES[agent].pretrained else "", **changes)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return Encoder("cnn", FRAMES, features=32).save(tmp_path_factory.mktemp("encoders") / "cnn")


@pytest.fixture(scope="module")
def elsewhere(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run directories of all recipes, made by another process."""
    home = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-c", ELSEWHERE, home, encoder], check=True, cwd=ROOT)
    return home


def weights(run: Path) -> dict[str, torch.Tensor]:
    return ActorCriticPolicy.load(run / "last_policy.zip", device="cpu").state_dict()


def same_weights(run: Path, other: Path) -> bool:
    ours, theirs = weights(run), weights(other)
    return ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)


def same_evaluations(run: Path, other: Path) -> bool:
    ours, theirs = np.load(run / "evaluations.npz"), np.load(other / "evaluations.npz")
    return all(np.array_equal(ours[name], theirs[name]) for name in ("timesteps", "results", "ep_lengths"))


@pytest.mark.parametrize("agent", FORGETFUL)
def test_recipe_trains_and_repeats_itself(agent: str, encoder: Path, elsewhere: Path, tmp_path: Path) -> None:
    reported: list[int] = []
    policy = train(tiny(agent, encoder), tmp_path / "a", reported.append)
    train(tiny(agent, encoder), tmp_path / "b")
    train(tiny(agent, encoder, seed=1), tmp_path / "c")
    for other in (tmp_path / "b", elsewhere / agent):
        assert same_evaluations(tmp_path / "a", other)
        assert same_weights(tmp_path / "a", other)
    assert not same_evaluations(tmp_path / "a", tmp_path / "c")
    assert not same_weights(tmp_path / "a", tmp_path / "c")
    assert reported[-1] == 512
    assert reported == sorted(reported)
    acts_on_pixels(policy, tmp_path / "a")
    says_everything(tmp_path / "a", tiny(agent, encoder))


def acts_on_pixels(policy: ActorCriticPolicy, run: Path) -> None:
    """The saved policy acts in a plain environment as the one that ``train`` returned."""
    env, again = envs.make(TINY.env), ActorCriticPolicy.load(run / "last_policy.zip", device="cpu")
    observation, _ = env.reset(seed=0)
    for step in range(20):
        actions = []
        for actor in (policy, again):
            torch.manual_seed(step)
            actions.append(int(actor.predict(observation)[0]))
        assert actions[0] == actions[1]
        observation, *_ = env.step(actions[0])


def says_everything(run: Path, config: TrainConfig) -> None:
    """A run directory repeats its configuration and holds curves, models and TensorBoard events."""
    said = json.loads((run / "run.json").read_text())
    suited = replace(config, ppo=config.ppo.suited(RECIPES[config.agent]))
    assert said["configuration"] == asdict(suited)
    assert suited.ppo.learning_rate == RECIPES[config.agent].learning_rate
    assert said["versions"]["stable-baselines3"]
    assert said["commit"] is None or len(said["commit"]) == 40
    assert said["encoder"]["num_features"] == 32
    evaluations = np.load(run / "evaluations.npz")
    assert evaluations["timesteps"].tolist() == [256, 512]
    assert evaluations["results"].shape == (2, 4)
    assert json.loads((run / "time.json").read_text())["steps"] == 512
    assert PPO.load(run / "best_model.zip", device="cpu").num_timesteps in (256, 512)
    assert PPO.load(run / "last_model.zip", device="cpu").num_timesteps == 512
    assert ActorCriticPolicy.load(run / "best_policy.zip").observation_space == FRAMES.space
    (events,) = run.glob("tensorboard*")
    scalars = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"eval/mean_reward", "train/loss", "time/fps"} <= set(scalars)


@pytest.mark.parametrize("agent", [name for name in FORGETFUL if RECIPES[name].pretrained])
def test_pretrained_recipes_start_from_the_encoder(agent: str, encoder: Path, elsewhere: Path) -> None:
    """The frozen one still has its weights at the end, the fine-tuned one is near them but has moved."""
    before = Encoder.load(encoder).state_dict()
    after = weights(elsewhere / agent)
    distances = [(after[f"features_extractor.encoder.{name}"] - tensor).abs().max() for name, tensor in before.items()]
    assert (max(distances) == 0) == (agent == "frozen")
    assert max(distances) < 0.1


def test_a_share_of_the_run_in_gradient_steps() -> None:
    ppo = PPOConfig(n_envs=4, n_steps=64, batch_size=100, n_epochs=2)
    assert ppo.updates(513) == 3 * 2 * 3, "rollouts of 256 steps, passes, minibatches"
    assert RECIPES["lp-ft"].plug(100)["warmup_updates"] == 25


def test_an_agent_learns(tmp_path: Path) -> None:
    ppo = PPOConfig(n_envs=8, n_steps=64, batch_size=128)
    config = TrainConfig("MiniGrid-Empty-5x5-v0", "random-frozen", steps=8192, eval_episodes=16, device="cpu", ppo=ppo)
    train(config, tmp_path)
    returns = np.load(tmp_path / "evaluations.npz")["results"].mean(axis=1)
    assert returns[-1] > 0.8, "chance is 0.2"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "MiniGrid-Empty-Random-5x5"}, "did you mean 'MiniGrid-Empty-Random-5x5-v0'"),
        ({"agent": "scrach"}, "unknown agent 'scrach': did you mean 'scratch'"),
        ({"architecture": "cn"}, "unknown encoder 'cn': did you mean 'cnn'"),
        ({"agent": "frozen"}, "agent 'frozen' starts pretrained: give encoder=DIRECTORY"),
        ({"agent": "frozen", "encoder": "nowhere"}, r"nowhere/config\.json is missing"),
        ({"agent": "finetuned", "encoder": "{encoder}", "tile_size": 9}, r"shape is \(3, 63, 63\), .* \(3, 56, 56\)"),
        ({"agent": "frozen", "encoder": "{encoder}", "tile_size": 9}, r"shape is \(3, 63, 63\), .* \(3, 56, 56\)"),
        ({"encoder": "{encoder}"}, "agent 'scratch' starts from fresh weights: leave out the encoder"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"view": "ful"}, "did you mean 'full'"),
        ({"palette": "dusk"}, "unknown palette 'dusk'"),
    ],
)
def test_bad_input(changes: dict[str, object], sentence: str, encoder: Path, tmp_path: Path) -> None:
    if "encoder" in changes:
        changes = {**changes, "encoder": str(changes["encoder"]).format(encoder=encoder)}
    with pytest.raises(RlpreError, match=sentence):
        train(replace(TINY, **changes), tmp_path / "run")
    assert not (tmp_path / "run" / "evaluations.npz").exists()
