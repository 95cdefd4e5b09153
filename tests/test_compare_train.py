"""One run: every kind of agent trains, leaves a run directory with everything in it, and repeats itself."""

import copy
import json
import subprocess
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from pixel_world import Quadrant, odd_encoder, refuse, worlds
from sb3_contrib import ARS
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecMonitor, VecNormalize
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import envs
from agents.presets import AGENTS, PPOConfig, TrainConfig
from rlpre import Backbone, EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, policy_kwargs
from rlpre.compare.train import (
    EPISODE_STEPS,
    EPISODES,
    SIDE,
    Training,
    described,
    film,
    make_model,
    make_venv,
    observed,
    starting_encoder,
    train,
)
from rlpre.utils import read_json

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
MEMORY = {  # agents that remember, and what they start from
    "history": ("history", "frames"),
    "history-random": ("history-random", "frames"),
    "frozen sequence": ("frozen", "sequence"),
    "finetuned sequence": ("finetuned", "sequence"),
}
FORGETFUL = {name: (name, "" if AGENTS[name].fresh else "frames") for name in AGENTS if not AGENTS[name].memory}

# All of them in another process; arguments are the directories of the runs and of the encoders.
ELSEWHERE = """
import sys
from pathlib import Path
import torch
sys.path.append("tests")
from test_compare_train import FORGETFUL, tiny, train

torch.set_num_threads(1)
for name in FORGETFUL:
    train(tiny(name, Path(sys.argv[2])).training(), Path(sys.argv[1]) / name)
"""


def tiny(name: str, home: Path, **changes: Any) -> TrainConfig:
    agent, start = (FORGETFUL | MEMORY)[name]
    if name in MEMORY:
        changes = {"env": "MiniGrid-MemoryS7-v0", "features": None, "steps": 256, "eval_episodes": 2, **changes}
    return replace(TINY, **{"agent": agent, "encoder": str(home / start) if start else "", **changes})


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of frames, and one of a sequence encoder."""
    home = tmp_path_factory.mktemp("encoders")
    torch.manual_seed(0)
    frames = Encoder("cnn", FRAMES, features=32)
    frames.save(home / "frames")
    SequenceEncoder("transformer", frames, actions=7, width=16, heads=2, window=5).save(home / "sequence")
    return home


@pytest.fixture(scope="module")
def elsewhere(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("elsewhere")
    subprocess.run([sys.executable, "-c", ELSEWHERE, out, home], check=True, cwd=ROOT)
    return out


@pytest.fixture(scope="module")
def remembering(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("remembering")
    for name in MEMORY:
        train(replace(tiny(name, home).training(), film=name == "history"), out / name)
    return out


def weights(run: Path) -> dict[str, torch.Tensor]:
    return ActorCriticPolicy.load(run / "last_policy.zip", device="cpu").state_dict()


def inside(run: Path) -> dict[str, torch.Tensor]:
    """The weights of the encoder in a run's final policy."""
    policy = ActorCriticPolicy.load(run / "last_policy.zip", device="cpu")
    return policy.features_extractor.encoder.state_dict()


def same(run: Path, other: Path) -> bool:
    """Whether two runs have the same evaluations and the same final weights."""
    ours, theirs = (np.load(each / "evaluations.npz") for each in (run, other))
    left, right = weights(run), weights(other)
    return all(np.array_equal(ours[name], theirs[name]) for name in ("timesteps", "results", "ep_lengths")) and (
        left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)
    )


@pytest.mark.parametrize("name", FORGETFUL)
def test_an_agent_trains_and_repeats_itself(name: str, home: Path, elsewhere: Path, tmp_path: Path) -> None:
    reported: list[int] = []
    measured = train(tiny(name, home).training(), tmp_path / "a", reported.append)
    assert same(tmp_path / "a", elsewhere / name)
    train(tiny(name, home, seed=1).training(), tmp_path / "c")
    assert not same(tmp_path / "a", tmp_path / "c")
    assert reported == sorted(reported)
    assert reported[-1] == 512
    results = np.load(tmp_path / "a" / "evaluations.npz")["results"]
    assert measured == {"return": list(zip([256, 512], results.mean(axis=1).tolist(), strict=True))}
    acts_on_pixels(tmp_path / "a")
    holds_everything(tmp_path / "a", name)


def acts_on_pixels(run: Path) -> None:
    """The saved policy acts as the trained model does on what it observed."""
    policy, model = ActorCriticPolicy.load(run / "last_policy.zip", device="cpu"), PPO.load(run / "last_model.zip")
    venv = envs.make_vec(TINY.env, 3, seed=5)
    if model.observation_space != venv.observation_space:
        venv = EncodedVecEnv(venv, policy.features_extractor.encoder, device="cpu")
    agree(model, policy, venv, 20)


def agree(model: PPO, policy: ActorCriticPolicy, venv: Any, steps: int) -> None:
    for each in (model.policy, policy):
        each.set_training_mode(False)  # no random shifts
    observations = venv.reset()
    for step in range(steps):
        shown = venv.frames if hasattr(venv, "frames") else observations
        wanted, given = (
            each.get_distribution(each.obs_to_tensor(seen)[0]).distribution.probs
            for each, seen in ((model.policy.cpu(), observations), (policy, shown))
        )
        torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)
        observations, *_ = venv.step(np.full(3, step % 3))


def holds_everything(run: Path, name: str) -> None:
    """A run directory holds its settings, curves, models and TensorBoard events."""
    said = json.loads((run / "run.json").read_text())
    fresh = AGENTS[name].fresh and not AGENTS[name].frozen
    assert said["configuration"]["algorithm_kwargs"]["learning_rate"] == (5e-4 if fresh else 2e-3)
    assert said["configuration"]["make_env"]["args"][0] == TINY.env
    assert said["versions"]["stable-baselines3"]
    assert said["commit"] is None or len(said["commit"]) == 40
    assert said["encoder"]["num_features"] == 32
    assert PPO.load(run / "best_model.zip", device="cpu").num_timesteps in (256, 512)
    assert ActorCriticPolicy.load(run / "best_policy.zip").observation_space == FRAMES.space
    (events,) = run.glob("tensorboard*")
    scalars = EventAccumulator(str(events)).Reload().Tags()["scalars"]
    assert {"eval/mean_reward", "train/loss", "time/fps"} <= set(scalars)


@pytest.mark.parametrize("name", [name for name, (_, start) in FORGETFUL.items() if start])
def test_pretrained_agents_start_from_the_encoder(name: str, home: Path, elsewhere: Path) -> None:
    """The frozen one has the same weights at the end, the others are near but have moved."""
    before, after = Encoder.load(home / "frames").state_dict(), inside(elsewhere / name)
    moved = max(float((after[part] - tensor).abs().max()) for part, tensor in before.items())
    assert (moved == 0) == (name == "frozen")
    assert moved < 0.1


@pytest.mark.parametrize("name", MEMORY)
def test_agents_that_remember(name: str, home: Path, remembering: Path) -> None:
    """The frozen part keeps its weights; the policy acts on windows of pixels as the model does on features."""
    run = remembering / name
    after, vision = inside(run), Encoder.load(home / "frames").state_dict()
    assert all(after[f"frames.{part}"].equal(tensor) for part, tensor in vision.items())
    if MEMORY[name][1] == "sequence":
        before = SequenceEncoder.load(home / "sequence").state_dict()
        moved = max(float((after[part] - tensor).abs().max()) for part, tensor in before.items())
        assert (moved == 0) == (name == "frozen sequence")
        assert moved < 0.1
    else:
        built = read_json(run / "run.json")["encoder"]
        assert (built["backbone"], built["window"]) == ("gru", Backbone.window)
    policy = ActorCriticPolicy.load(run / "last_policy.zip", device="cpu")
    wrapper = EncodedVecEnv if name == "frozen sequence" else HistoryVecEnv
    venv = wrapper(envs.make_vec("MiniGrid-MemoryS7-v0", 3, seed=5), policy.features_extractor.encoder, device="cpu")
    agree(PPO.load(run / "last_model.zip", device="cpu"), policy, venv, Backbone.window + 8)


def test_a_run_with_memory_repeats_itself_and_its_film(home: Path, remembering: Path, tmp_path: Path) -> None:
    train(replace(tiny("history", home).training(), film=True), tmp_path)
    assert same(remembering / "history", tmp_path)
    assert (remembering / "history" / "policy.gif").read_bytes() == (tmp_path / "policy.gif").read_bytes()
    with Image.open(tmp_path / "policy.gif") as picture:
        assert 10 < picture.n_frames <= EPISODES * EPISODE_STEPS
        assert max(picture.size) == SIDE


class Counting(Quadrant):
    """Shows the time of an episode of 6 steps when it is rendered."""

    render_mode = "rgb_array"

    def render(self) -> np.ndarray:
        return np.full((8, 8, 3), 40 * self.time, np.uint8)


def test_a_film_shows_the_last_frames(tmp_path: Path) -> None:
    venv = DummyVecEnv([Counting])
    film(PPO("CnnPolicy", venv, device="cpu", policy_kwargs=policy_kwargs(odd_encoder())), venv, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as picture:
        shown = [np.asarray(page.convert("L")).mean() for page in ImageSequence.Iterator(picture)]
    assert shown == pytest.approx([40 * time for time in range(7)] * EPISODES, abs=2)


def test_an_algorithm_without_policies_of_images_is_refused() -> None:
    arguments = Training(envs.find(TINY.env), 0, 1, algorithm=ARS)
    venv = worlds()
    refuse(
        "ARS has no CnnPolicy, which reads images", lambda: make_model(arguments, venv, odd_encoder(), "cpu", Path())
    )


def test_updates_of_a_run(home: Path) -> None:
    ppo = PPOConfig(n_envs=4, n_steps=64, batch_size=100, n_epochs=2)
    assert ppo.updates(513) == 3 * 2 * 3, "rollouts of 256 steps, passes, minibatches"
    training = tiny("lp-ft", home, steps=2048, ppo=ppo).training()
    assert training.policy_kwargs == {"warmup_updates": round(0.25 * 8 * 2 * 3)}


def test_an_agent_learns(tmp_path: Path) -> None:
    ppo = PPOConfig(n_envs=8, n_steps=64, batch_size=128)
    config = TrainConfig(
        env="MiniGrid-Empty-5x5-v0", agent="random-frozen", steps=8192, eval_episodes=16, device="cpu", ppo=ppo
    )
    assert train(config.training(), tmp_path)["return"][-1][1] > 0.8, "chance is 0.2"


class Hundredfold(VecEnvWrapper):
    """Rewards times a hundred, before they are summed to returns."""

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        frames, rewards, dones, infos = self.venv.step_wait()
        return frames, rewards * 100, dones, infos


@pytest.mark.parametrize("normalized", [False, True])
def test_large_returns_are_a_reason_to_normalize_rewards(normalized: bool, home: Path, tmp_path: Path) -> None:
    def make(n_envs: int, seed: int) -> VecEnv:
        venv = VecMonitor(Hundredfold(envs.make_vec(TINY.env, n_envs, seed)))
        return VecNormalize(venv, norm_obs=False) if normalized else venv

    training = replace(tiny("scratch", home).training(), make_env=make)
    with warnings.catch_warnings(record=True) as said:
        returns = [value for _, value in train(training, tmp_path)["return"]]
    assert max(returns) > 20, "plain returns are reported"
    advice = [str(each.message) for each in said if "VecNormalize(venv, norm_obs=False)" in str(each.message)]
    assert len(advice) == (0 if normalized else 1)


def test_returns_are_plain_where_rewards_are_normalized() -> None:
    make = lambda n_envs, seed: VecNormalize(VecNormalize(Hundredfold(worlds(n_envs, seed)), norm_obs=False))  # noqa: E731
    venv, ended = make_venv(make, 4, 0), []
    venv.reset()
    for _ in range(12):  # two episodes
        ended += [info["episode"]["r"] for info in venv.step(np.zeros(4, int))[3] if "episode" in info]
    assert len(ended) == 8
    assert set(np.mod(ended, 100)) == {0}, "rewards are 0 or 100"
    assert max(ended) > 0
    with pytest.raises(RlpreError, match="would report divided returns: put VecNormalize around VecMonitor"):
        make_venv(lambda n_envs, seed: VecMonitor(VecNormalize(worlds(n_envs, seed))), 2, 0)


@pytest.mark.parametrize("algorithm", [PPO, A2C, DQN])
def test_all_arms_have_the_same_optimiser_and_no_values(
    algorithm: type[BaseAlgorithm], home: Path, tmp_path: Path
) -> None:
    """SB3's A2C takes RMSprop where its policy names no optimiser, and its DQN another epsilon."""
    found = set()
    for agent in ("scratch", "random-frozen"):
        spec = replace(tiny(agent, home).training(), algorithm=algorithm, algorithm_kwargs={"learning_rate": 1e-3})
        venv, device = make_venv(spec.make_env, 1, 0), torch.device("cpu")
        encoder = starting_encoder(spec, venv)
        model = make_model(spec, observed(spec, venv, encoder, device), encoder, device, tmp_path)
        kind = next(kind for kind in type(model.policy.optimizer).mro() if kind.__module__.startswith("torch."))
        found.add((kind, model.policy.optimizer.param_groups[-1]["eps"]))
        if algorithm is not DQN:
            plain = make_model(replace(spec, zero_value=False), model.env, None, device, tmp_path)
            assert [bool(each.policy.value_net.weight.any()) for each in (model, plain)] == [False, True]
    assert found == {(torch.optim.Adam, 1e-5)}


def test_settings_that_differ_are_described_differently() -> None:
    schedules = [LinearSchedule(1e-3, 0, 1), LinearSchedule(1e-5, 0, 1)]
    noises = [NormalActionNoise(np.zeros(2), np.full(2, deviation)) for deviation in (0.1, 0.2)]
    assert described({"b", "a"}) == ["a", "b"]
    assert described(range(2)) != described(range(3))
    for one, other in (
        schedules,
        noises,
        (np.float32(0.5), np.float32(0.25)),
        (torch.device("cpu"), torch.device("meta")),
    ):
        assert described(one) == described(copy.deepcopy(one)) != described(other)
        assert json.loads(json.dumps(described(one))) == described(one)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"env": "MiniGrid-Empty-Random-5x5"}, "did you mean 'MiniGrid-Empty-Random-5x5-v0'"),
        ({"agent": "scrach"}, "unknown agent 'scrach': did you mean 'scratch'"),
        ({"architecture": "cn"}, "unknown encoder 'cn': did you mean 'cnn'"),
        ({"agent": "frozen"}, "mode 'frozen' starts from pretrained weights: give encoder"),
        ({"agent": "frozen", "encoder": "nowhere"}, r"nowhere/config\.json is missing"),
        ({"agent": "finetuned", "encoder": "{home}/frames", "tile_size": 9}, r"\(3, 63, 63\), .* \(3, 56, 56\)"),
        ({"agent": "history", "encoder": "{home}/sequence"}, "memory needs an encoder of frames"),
        ({"encoder": "{home}/frames"}, "agent 'scratch' starts from fresh weights: leave out the encoder"),
        ({"device": "abacus"}, "device 'abacus' cannot be used here"),
        ({"view": "ful"}, "did you mean 'full'"),
        ({"palette": "dusk"}, "unknown palette 'dusk'"),
    ],
)
def test_bad_input(changes: dict[str, Any], sentence: str, home: Path) -> None:
    if "encoder" in changes:
        changes = {**changes, "encoder": str(changes["encoder"]).format(home=home)}
    with pytest.raises(RlpreError, match=sentence):
        replace(TINY, **changes).training()
