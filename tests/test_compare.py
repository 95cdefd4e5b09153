"""`rlpre.compare` on environments without MiniGrid."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformObservation
from pixel_world import FRAME, Quadrant, refuse, worlds
from stable_baselines3 import DQN
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

import rlpre
from rlpre import Arm, Backbone, Encoder, InputSpec, PretrainConfig, RlpreError, SequenceEncoder
from rlpre.utils import read_json

ROOT = Path(__file__).parents[1]
PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 1, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
PRETRAIN = PretrainConfig(steps=2, batch=8, features=8, checkpoint_every=2, seed=5, device="cpu")
MEMORY = PretrainConfig(steps=1, batch=4, device="cpu")
SMALL = {"steps": 64, "seeds": 1, "n_envs": 2, "frames": 100, "pretrain": PRETRAIN, "eval_every": 32}
SMALL |= {"pretrain_memory": MEMORY, "eval_episodes": 2, "algorithm_kwargs": PPO, "threshold": 1.5}

ENVIRONMENT = """
import gymnasium as gym, numpy as np
from stable_baselines3.common.env_util import make_vec_env

class Side(gym.Env):
    observation_space, action_space = gym.spaces.Box(0, 255, (36, 36, 3), np.uint8), gym.spaces.Discrete(2)
    render_mode, metadata = "rgb_array", {"render_modes": ["rgb_array"]}
    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.side, self.time = int(self.np_random.integers(2)), 0
        return self.render(), {}
    def step(self, action):
        reward, self.side, self.time = float(action == self.side), int(self.np_random.integers(2)), self.time + 1
        return self.render(), reward, self.time == 8, False, {}
    def render(self):
        frame = np.zeros((36, 36, 3), np.uint8)
        frame[12:24, 18 * self.side : 18 * self.side + 18] = 200
        return frame

def make(n_envs, seed):
    return make_vec_env(Side, n_envs, seed)
"""
PROGRAM = """
import rlpre
from side import make
if __name__ == "__main__":
    arms = {"mine": rlpre.Arm("frozen", "inverse", whiten=True)}
    settings = {"frames": 100, "pretrain": rlpre.PretrainConfig(steps=2, batch=8), "eval_episodes": 2, "n_envs": 2}
    result = rlpre.compare(make, arms, steps=64, seeds=1, out="runs", algorithm_kwargs={"n_steps": 16}, **settings)
    print(result.ratio("mine", over="fresh")["n"])
"""
COMMAND = "--out runs own --env side:make --arm mine=frozen:inverse,whiten --steps 64 --frames 100 --eval-episodes 2"
COMMAND += " --n-envs 2 --pretrain.steps 2 --pretrain.batch 8 --seeds 2"


def make(n_envs: int, seed: int) -> VecEnv:
    return worlds(n_envs, seed)


def compare(out: Path, arms: dict[str, Arm], make_env: Any = make, **settings: Any) -> rlpre.ComparisonResult:
    """In this process."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        return rlpre.compare(make_env, arms, out=out, **{**SMALL, "executor": here, "workers": 99, **settings})


def test_own_environment_outside_the_checkout(tmp_path: Path) -> None:
    (tmp_path / "side.py").write_text(ENVIRONMENT)
    (tmp_path / "program.py").write_text(PROGRAM)
    assert len(PROGRAM.splitlines()) <= 10

    def call(*command: Any) -> str:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = (sys.executable, *map(str, command))
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert call("program.py") == "1\n"
    arms = {path.name for path in (tmp_path / "runs" / "comparison").iterdir()}
    assert arms == {"mine", "scratch", "fresh", "fresh-map"}
    assert len(list((tmp_path / "runs").rglob("policy.gif"))) == 4
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("done.json")}
    shown = call(ROOT / "scripts" / "compare.py", *COMMAND.split(), "--algo-kwargs", '{"n_steps": 16}')
    assert "mine" in shown
    assert {path: path.stat().st_mtime_ns for path in before} == before, "the command adds a seed to the program's"
    records = read_json(tmp_path / "runs" / "summary.json")["records"]
    assert {record["n"] for record in records} == {2}


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder("impala", FRAME, features=8)


@pytest.fixture(scope="module")
def arms(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Arm]:
    memory = Backbone(width=8, layers=1, heads=2, window=3)
    path = encoder.save(tmp_path_factory.mktemp("encoders") / "a")
    return {
        "pretrained": Arm("finetuned", "inverse", policy_kwargs={"warmup_updates": 1}),
        "given": Arm("frozen", encoder),
        "whitened": Arm("frozen", str(path), whiten=True),
        "like given": Arm("random", path),
        "remembers": Arm("frozen", "inverse", whiten=True, memory=memory, memory_objective="cpc"),
        "fresh memory": Arm("scratch", "inverse", memory=memory),
    }


@pytest.fixture(scope="module")
def result(arms: dict[str, Arm], tmp_path_factory: pytest.TempPathFactory) -> rlpre.ComparisonResult:
    return compare(tmp_path_factory.mktemp("runs"), arms, seeds=[4, 5])


def start(result: rlpre.ComparisonResult, arm: str, seed: int = 4) -> Any:
    """Where a run's encoder was loaded from."""
    return read_json(result.path / "comparison" / arm / f"seed-{seed}" / "run.json")["configuration"]["encoder"]


def test_arms_start_where_they_should(result: rlpre.ComparisonResult, encoder: Encoder) -> None:
    home = result.path / "encoders"
    own = home / "inverse@comparison" / "seed-9"  # that of the run is added to that of PRETRAIN
    assert start(result, "pretrained") == str(own)
    assert start(result, "pretrained", seed=5) == str(own.with_name("seed-10")), "every seed pretrains its own"
    assert Encoder.load(start(result, "given")).fingerprint() == encoder.fingerprint()
    assert start(result, "whitened") == str(home / "whitened@comparison" / "seed-9" / "whitened")
    white = Encoder.load(start(result, "whitened"))
    assert (white.architecture, white.num_features) == ("whitened:impala", 8)
    assert white.stages[0].state_dict().keys() == encoder.stages[0].state_dict().keys()
    assert start(result, "remembers") == str(own / "whitened" / "cpc-transformer-8-1-2-3" / "causal")
    assert SequenceEncoder.load(start(result, "remembers")).pretraining["objective"] == "cpc"
    assert start(result, "scratch") is None
    said = {arm: read_json(result.path / "comparison" / arm / "seed-4" / "run.json")["encoder"] for arm in ARMS}
    assert {arm: of.get("architecture", "memory") for arm, of in said.items()} == ARMS


ARMS = {
    "scratch": "cnn",
    "fresh": "whitened:cnn",
    "fresh-map": "map:cnn",
    "pretrained": "cnn",
    "given": "impala",
    "whitened": "whitened:impala",
    "like given": "impala",
    "remembers": "memory",
    "fresh memory": "memory",
}


def test_result(result: rlpre.ComparisonResult) -> None:
    assert result.page.exists()
    assert list(dict.fromkeys(record["arm"] for record in result.table())) == list(ARMS)
    curve = [row for row in result.rows if (row["arm"], row["seed"], row["metric"]) == ("given", 5, "return")]
    assert [row["step"] for row in curve] == [32, 64]
    evaluated = np.load(result.path / "comparison" / "given" / "seed-5" / "evaluations.npz")["results"]
    assert [row["value"] for row in curve] == evaluated.mean(axis=1).tolist()
    assert result.ratio("given", over="like given")["n"] == 2
    metric = read_json(result.path / "study.json")["metric"]
    assert metric["answer"] == "pretrained"
    assert metric["controls"] == ["fresh", "fresh-map", "like given"]
    assert [arm for arm, frames in metric["arms"].items() if not frames] == ["scratch", "given", "like given"]
    with pytest.raises(RlpreError, match="compares no arm 'given' with 'whitened'"):
        result.ratio("given", over="whitened")


def test_a_comparison_goes_on_and_repeats_itself(
    result: rlpre.ComparisonResult, arms: dict[str, Arm], tmp_path: Path
) -> None:
    written = {path: path.stat().st_mtime_ns for path in result.path.rglob("done.json")}
    assert compare(result.path, arms, seeds=[4, 5]).text == result.text
    assert {path: path.stat().st_mtime_ns for path in result.path.rglob("done.json")} == written
    again = compare(tmp_path, {"given": arms["given"]}, seeds=[5], controls=False, baseline="given").rows
    assert again == [row for row in result.rows if (row["arm"], row["seed"]) == ("given", 5)]
    with pytest.raises(RlpreError, match=r"belongs to another study: metric\.threshold is 1\.5 there and 2 here"):
        compare(result.path, arms, seeds=[4, 5], threshold=2)


def test_every_task_has_frames_of_its_own_and_any_algorithm(tmp_path: Path) -> None:
    settings = {"learning_starts": 4, "buffer_size": 64, "device": "cpu"}
    gym.register("Quadrant-v0", entry_point="pixel_world:Quadrant")
    tasks = {"one": "Quadrant-v0", "two": "test_compare:make"}
    arms = {"frozen": Arm("frozen", "contrastive", algorithm_kwargs={"learning_rate": 1e-3})}
    result = compare(tmp_path, arms, tasks, steps={"one": 64, "two": 32}, algorithm="dqn", algorithm_kwargs=settings)
    model = DQN.load(tmp_path / "two" / "frozen" / "seed-0" / "last_model.zip")
    assert (model.num_timesteps, model.learning_rate) == (32, 1e-3)
    assert {path.name for path in (tmp_path / "encoders").iterdir()} >= {"contrastive@one", "contrastive@two"}
    assert {record["task"] for record in result.table()} == {"one", "two", "all tasks"}


def test_frames_that_are_given(tmp_path: Path) -> None:
    store = rlpre.collect(make(2, 0), tmp_path / "frames", steps=60)
    arms = {name: Arm("frozen", "jigsaw", data=name) for name in ("a", "b")}
    frames = {"a": store, "b": lambda: store, "another task": lambda: pytest.fail("nobody needs them")}
    out = tmp_path / "out"
    compare(out, arms, frames=frames, controls=False, baseline="a", pretrain_each_seed=False, seeds=2)
    assert [str(path.relative_to(out / "encoders")) for path in sorted(out.glob("encoders/*/*"))] == [
        "jigsaw@a/seed-5",
        "jigsaw@b/seed-5",
    ]
    assert json.loads((out / "study.json").read_text())["frames"] == {"a": store.hash, "b": store.hash}


MEMORY_ARM = Arm("frozen", "inverse", memory=Backbone(width=8))


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (Arm("frosen"), "unknown mode 'frosen': did you mean 'frozen'"),
        (Arm("frozen"), "arm 'a': mode 'frozen' starts from pretrained weights: give encoder"),
        (Arm("frozen", "jigsow"), "unknown objective 'jigsow': did you mean 'jigsaw'"),
        (Arm("frozen", "cpc"), "objective 'cpc' pretrains a sequence encoder"),
        (Arm("frozen", "nowhere/a"), r"nowhere/a/config\.json is missing"),
        (Arm("frozen", Encoder("cnn", rlpre.InputSpec((3, 40, 40)))), r"\(3, 40, 40\)"),
        (Arm("scratch", "jigsaw"), "mode 'scratch' starts from fresh weights: leave out encoder 'jigsaw'"),
        (Arm("scratch", whiten=True), "mode 'scratch' starts from fresh weights: leave out whiten"),
        (Arm("frozen", "jigsaw", step=3), "arm 'a': pretraining has no step 3: choose one from 0 to 2"),
        (Arm("frozen", "jigsaw", step=-1), "pretraining has no step -1"),
        (Arm("random", step=0), "there is no pretraining to take step 0 of"),
        (Arm("frozen", "jigsaw", data="b"), "unknown data 'b'"),
        (Arm("partial", "jigsaw"), "mode 'partial' with stages=None"),
        (Arm("frozen", "jigsaw", policy_kwargs={"augment": True}), "augment has no effect on mode 'frozen'"),
        (MEMORY_ARM, "mode 'frozen' starts from pretrained weights: give memory_objective"),
        (Arm("scratch", "inverse", memory=Backbone(), memory_objective="cpc"), "leave out memory_objective"),
        (Arm("scratch", memory=Backbone()), "memory needs an encoder of frames"),
        (Arm("frozen", "inverse", memory_objective="cpc"), "there is a memory_objective, but no memory"),
        (Arm("frozen", "inverse", memory=Backbone(), memory_objective="cp"), "unknown objective 'cp': did you mean"),
    ],
)
def test_bad_arms(arm: Arm, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        compare(tmp_path / "new", {"a": arm})
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"answer": "b"}, "unknown arm 'b'"),
        ({"baseline": "b"}, "unknown arm 'b'"),
        ({"seeds": 0}, "there are no seeds: give at least 1"),
        ({"steps": 64.5}, "steps is 64.5: give a whole number"),
        ({"steps": 16}, "steps=16 end before the first evaluation: lower eval_every=32"),
        ({"steps": {"b": 16}}, "unknown task 'comparison'"),
        ({"n_envs": 0}, "n_envs is 0"),
        ({"algorithm": "ppoo"}, "unknown algorithm 'ppoo': did you mean 'ppo'"),
        ({"make_env": "CarRacing-v33"}, "unknown environment 'CarRacing-v33': did you mean 'CarRacing-v3'"),
        ({"make_env": "CartPole-v1"}, "the observations of the environment are Box.*: frames are uint8 images"),
        ({"make_env": "test_compare:nothing"}, "'test_compare:nothing' cannot be imported"),
        ({"make_env": lambda n_envs, seed: None}, r"make_env\(1, 0\): NoneType is not an environment that rlpre reads"),
        ({"make_env": lambda n_envs, seed: make(n_envs, seed), "executor": None}, "cannot import a function"),
        ({"algorithm_kwargs": {"device": "abacus"}}, "device 'abacus' cannot be used here"),
        ({"make_env": {}}, "there are no environments: give at least one"),
    ],
)
def test_bad_settings(settings: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        compare(tmp_path / "new", {"a": Arm("random")}, **settings)
    assert not (tmp_path / "new").exists()


class Masked(Quadrant):
    """Takes no action that its mask forbids; it is filmed too."""

    render_mode, metadata = "rgb_array", {"render_modes": ["rgb_array"]}

    def render(self) -> np.ndarray:
        return np.zeros((8, 8, 3), np.uint8)

    def step(self, action: Any) -> Any:
        assert self.action_masks()[action]
        return super().step(action)


def test_masks_hold_in_training_and_in_evaluation(tmp_path: Path) -> None:
    def make(n_envs: int, seed: int) -> VecEnv:
        venv = DummyVecEnv([Masked] * n_envs)
        venv.seed(seed)
        return venv

    arms = {"scratch": Arm("scratch"), "random": Arm("random")}
    with ThreadPoolExecutor(1) as here:
        settings = {**SMALL, "controls": False, "executor": here, "algorithm": "maskableppo"}
        result = rlpre.compare(make, arms, out=tmp_path, **settings)
    assert {row["arm"] for row in result.rows} == {"scratch", "random"}
    assert list(tmp_path.rglob("policy.gif"))


def test_whole_numbers_of_every_kind(tmp_path: Path) -> None:
    arms = {"random": Arm("random", whiten=True)}
    settings = {"controls": False, "baseline": "random", "frames": 1e2, "steps": 64.0, "threshold": np.float32(1.5)}
    result = compare(tmp_path, arms, **settings, seeds=np.int64(1))
    assert {row["seed"] for row in result.rows} == {0}
    more = compare(tmp_path, arms, **settings, seeds=np.arange(1, 3))
    assert {row["seed"] for row in more.rows} == {0, 1, 2}
    encoders = {read_json(path)["configuration"]["encoder"] for path in tmp_path.glob("comparison/random/*/run.json")}
    assert len(encoders) == 3, "seeds that are added later have encoders of their own"


def large(n_envs: int, seed: int) -> VecEnv:
    wide = [lambda: gym.wrappers.TransformObservation(Quadrant(), lambda frame: frame.repeat(2, 2), WIDE)] * n_envs
    venv = DummyVecEnv(wide)
    venv.seed(seed)
    return venv


WIDE = gym.spaces.Box(0, 255, (3, 36, 72), np.uint8)


def test_frames_of_tasks_may_have_different_sizes(tmp_path: Path) -> None:
    arms = {"frozen": Arm("frozen", "contrastive")}
    result = compare(tmp_path, arms, {"one": make, "two": large}, controls=False, baseline="frozen")
    assert {row["task"] for row in result.rows} >= {"one", "two"}


def test_grey_images_without_channels_get_one_sentence(tmp_path: Path) -> None:
    def grey(n_envs: int = 1, seed: int = 0) -> VecEnv:
        plain = spaces.Box(0, 255, (36, 36), np.uint8)
        return DummyVecEnv([lambda: TransformObservation(Quadrant(), lambda seen: seen[0], plain)] * n_envs)

    named = r"without an axis of channels: gymnasium.wrappers.GrayscaleObservation\(env, keep_dim=True\) adds"
    with pytest.raises(RlpreError, match=named):
        compare(tmp_path, {"a": Arm("random")}, make_env=grey)
    with pytest.raises(RlpreError, match=r"GrayscaleObservation\(env, keep_dim=True\) adds an axis"):
        rlpre.EncodedVecEnv(grey(), Encoder("cnn", InputSpec((1, 36, 36))))


def test_frames_of_another_shape_are_refused_before_pretraining(tmp_path: Path) -> None:
    frames = rlpre.from_arrays(
        np.random.default_rng(0).integers(0, 256, (40, 1, 84, 84), np.uint8), tmp_path / "frames"
    )
    with pytest.raises(RlpreError, match=r"arm '.*' reads frames \[3, 36, 36\], .* holds \[1, 84, 84\]"):
        compare(tmp_path / "study", {"a": Arm("frozen", "contrastive")}, frames=frames)
    assert not list(tmp_path.glob("study/encoders/*"))


@pytest.mark.parametrize(
    ("make_env", "arms", "sentence"),
    [
        (gym.make("CartPole-v1"), {"a": Arm("random")}, r"TimeLimit makes no environments: give a function"),
        (worlds, ["frozen"], r"arms are \['frozen'\]: give a dict by name"),
        (worlds, {"a": "frozen"}, r"arms are \{'a': 'frozen'\}: give a dict by name"),
    ],
)
def test_what_is_handed_over_by_mistake(make_env: Any, arms: Any, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=sentence):
        rlpre.compare(make_env, arms, 64, out=tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_some_arms_run_now_and_the_others_later(tmp_path: Path) -> None:
    arms = {"one": Arm("random"), "two": Arm("random", whiten=True)}
    first = compare(tmp_path, arms, only=["one"])
    assert {row["arm"] for row in first.rows} == {"one"}
    assert "two" in first.text
    before = (tmp_path / "comparison/one/seed-0/done.json").stat().st_mtime_ns
    assert {"scratch", "one", "two"} <= {row["arm"] for row in compare(tmp_path, arms).rows}
    assert (tmp_path / "comparison/one/seed-0/done.json").stat().st_mtime_ns == before
    refuse("unknown arm 'three'", lambda: compare(tmp_path, arms, only=["three"]))
    for more in ({**arms, "three": Arm("random")}, arms):  # a control that is added later, and the command as before
        assert "three" in {row["arm"] for row in compare(tmp_path, more).rows}


def test_a_later_arm_reads_an_encoder_in_another_way(tmp_path: Path) -> None:
    arms = {"plain": Arm("frozen", "contrastive"), "white": Arm("frozen", "contrastive", whiten=True)}
    arms["soft"] = Arm("frozen", "contrastive", whiten=True, power=0.5)
    compare(tmp_path, arms, only=["plain"])
    assert set(arms) <= {row["arm"] for row in compare(tmp_path, arms, only=["white", "soft"]).rows}
    starts = {Encoder.load(path.parent).fingerprint() for path in tmp_path.glob("encoders/*/*/**/config.json")}
    assert len(starts) == len(arms)
