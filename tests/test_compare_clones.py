"""Arms that start from a clone: their returns before the first step, their labels, and the demonstrator's threshold."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pixel_world import FRAME, refuse, same, worlds
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.policies import ActorCriticPolicy
from test_compare import PPO as SETTINGS
from test_compare import compare
from test_sb3_clone import LENGTH, quadrants, record

import rlpre
from rlpre import Arm, Backbone, Clone, CloneConfig, Demonstrator, Encoder, FrameStore
from rlpre.compare.summary import ALL, Curves, Metric, summarise
from rlpre.utils import read_json

SHORT = CloneConfig(steps=300, lr=3e-3, check_every=20, device="cpu")
FEW = CloneConfig(steps=300, lr=3e-3, check_every=20, device="cpu", limit=100)
torch.manual_seed(0)
FRESH = Encoder("cnn", FRAME, features=16)


def make(n_envs: int, seed: int) -> Any:
    return worlds(n_envs, seed, noise=20, length=LENGTH)


def perfect(path: Path) -> FrameStore:
    return record(path, quadrants, steps=400)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> rlpre.ComparisonResult:
    home = tmp_path_factory.mktemp("runs")
    frames = {"random": record(home / "random", None, steps=200), "expert": perfect(home / "expert")}
    arms = {
        "cloned+frozen": Arm("random", whiten=True, clone=Clone(SHORT, "expert", start={"value_first": 32})),
        "cloned": Arm("random", whiten=True, clone=Clone(SHORT, "expert", tuned=False)),
        "few": Arm("random", whiten=True, clone=Clone(FEW, "expert", tuned=False)),
        "cloned+finetuned": Arm("finetuned", FRESH, clone=Clone(SHORT, "expert", start={"kl": 0})),
    }
    goal = Demonstrator(0.5, "expert")
    return compare(
        home / "study",
        arms,
        make,
        frames=frames,
        threshold=goal,
        seeds=3,
        eval_episodes=8,
        algorithm_kwargs={**SETTINGS, "policy_kwargs": {"net_arch": [32]}},
    )


def curve(result: rlpre.ComparisonResult, arm: str, seed: int = 0) -> dict[int, float]:
    return {
        row["step"]: row["value"]
        for row in result.rows
        if (row["arm"], row["seed"], row["metric"]) == (arm, seed, "return")
    }


def test_every_agent_is_evaluated_before_its_first_step(result: rlpre.ComparisonResult) -> None:
    for arm in ("scratch", "fresh", "cloned", "few", "cloned+frozen", "cloned+finetuned"):
        assert list(curve(result, arm)) == [0, 32, 64]
    starts = {record["arm"]: record["start"] for record in result.table()}
    assert starts["cloned+frozen"] > 2 * starts["scratch"] > 0
    assert starts["cloned"] == pytest.approx(starts["cloned+frozen"], abs=0.5)


def test_a_clone_alone_keeps_its_return(result: rlpre.ComparisonResult) -> None:
    assert len(set(curve(result, "cloned").values())) == 1
    run = result.path / "comparison" / "cloned" / "seed-0"
    clone = ActorCriticPolicy.load(str(run / "clone" / "policy.zip"), device="cpu")
    model = PPO.load(run / "last_model.zip", device="cpu").policy
    for name in ("action_net.weight", "mlp_extractor.policy_net.0.weight"):
        assert model.state_dict()[name].equal(clone.state_dict()[name])
    pixels = [ActorCriticPolicy.load(str(run / name), device="cpu") for name in ("best_policy.zip", "last_policy.zip")]
    assert same(*pixels)


def test_labels_are_part_of_the_cost(result: rlpre.ComparisonResult) -> None:
    metric = read_json(result.path / "study.json")["metric"]
    assert metric["labels"] == {"cloned+frozen": 400, "cloned": 400, "few": 100, "cloned+finetuned": 400}
    assert metric["controls"] == ["fresh", "fresh-map"], "clones on fresh features are no controls"
    assert read_json(result.path / "comparison/few/seed-1/clone/run.json")["labels"] == 100
    assert "the clone learned from 0.4k labels" in " ".join(result.text.split())


def test_the_threshold_is_a_share_of_the_demonstrators_return(result: rlpre.ComparisonResult) -> None:
    metric = read_json(result.path / "study.json")["metric"]
    assert (metric["threshold"], metric["thresholds"]) == (0.8, {"comparison": 0.5 * 4})
    assert "steps to 2" in result.text
    assert "To a return of 0.8 instead" in result.text


def test_who_starts_above_the_threshold_counts_the_first_evaluation(result: rlpre.ComparisonResult) -> None:
    records = {(record["arm"], record["over"]): record for record in result.table()}
    assert records["cloned", "scratch"]["reached"] == 3
    assert records["cloned", "scratch"]["steps_to_threshold"] == 32
    steps = np.array([0, 100, 200])
    runs = Curves((0, 1), steps, np.array([[0.9, 0.5, 0.5], [0.1, 0.2, 0.9]]))
    assert [part.tolist() for part in runs.times(0.8)] == [[100, 200], [True, True]]


def test_each_task_has_its_own_threshold() -> None:
    steps, seeds = np.array([10, 20]), (0, 1, 2)
    rising, flat = (Curves(seeds, steps, np.array([[low, high]] * 3)) for low, high in ((0.3, 0.9), (0.3, 0.4)))
    tasks = {"hard": {"scratch": flat, "mine": rising}, "easy": {"scratch": flat, "mine": rising}}
    metric = Metric({"scratch": 0, "mine": 0}, "mine", thresholds={"hard": 0.35})
    reached = {(each.task, each.arm): each.reached for each in summarise(tasks, metric)}
    assert (reached["hard", "scratch"], reached["easy", "scratch"], reached[ALL, "scratch"]) == (3, 0, 3)
    assert (metric.goal("hard"), metric.goal("easy"), metric.goal()) == ("0.35", "0.8", "each task's threshold")


@pytest.mark.parametrize(
    ("named", "arm", "settings"),
    [
        ("mode 'scratch' starts from fresh weights, which no clone knows", Arm("scratch", clone=Clone(SHORT)), {}),
        ("which no clone knows", Arm("random", FRESH, memory=Backbone(), clone=Clone(SHORT)), {}),
        ("unknown data 'expert'", Arm("random", clone=Clone(SHORT, "expert")), {}),
        ("a clone starts PPO or A2C, not DQN", Arm("random", clone=Clone(SHORT)), {"algorithm": DQN}),
        (
            "auxiliary reads rollouts, DQN has none",
            Arm("scratch", auxiliary={"objective": "inverse", "updates": 1}),
            {"algorithm": DQN},
        ),
        ("has 104 labels 'action', limit is 1,000", Arm("random", clone=Clone(CloneConfig(limit=1000))), {}),
        ("mode 'oracle' reads the true state: leave out", Arm("oracle", clone=Clone(SHORT)), {}),
        (r"Demonstrator\(\) is the player of the frames", Arm("random"), {"threshold": Demonstrator()}),
        ("unknown data 'best'", Arm("random"), {"threshold": Demonstrator(data="best")}),
        ("arm 'mine': clone is CloneConfig.*: give rlpre.Clone", Arm("random", clone=SHORT), {}),  # type: ignore[arg-type]
        ("unknown weights 'returns'", Arm("random", clone=Clone(CloneConfig(weights="returns"))), {}),
        (
            "unknown argument of start in arm 'mine': 'value_frist': did you mean 'value_first'",
            Arm("random", clone=Clone(SHORT, start={"value_frist": 3})),
            {},
        ),
        ("start concerns agents that learn", Arm("random", clone=Clone(SHORT, tuned=False, start={"kl": 0})), {}),
    ],
)
def test_clones_that_cannot_be_get_one_sentence(named: str, arm: Arm, settings: dict[str, Any], tmp_path: Path) -> None:
    settings = {"algorithm_kwargs": {**SETTINGS, "n_steps": 16}, "controls": False, "baseline": "scratch", **settings}
    arms = {"mine": arm, "scratch": Arm("scratch")}
    refuse(named, lambda: compare(tmp_path, arms, make, **settings))


@pytest.mark.parametrize("share", [-1, 0, float("nan"), "0.9"])
def test_a_share_is_a_positive_number(share: Any) -> None:
    refuse(r"Demonstrator\(.*\): give a share of the mean return", lambda: Demonstrator(share))


def test_clones_have_the_heads_of_the_agents(tmp_path: Path) -> None:
    heads = {"net_arch": {"pi": [16], "vf": [8]}, "activation_fn": torch.nn.ReLU}
    arms = {"mine": Arm("random", whiten=True, clone=Clone(FEW))}
    settings = {"algorithm_kwargs": {**SETTINGS, "policy_kwargs": heads}, "controls": False, "baseline": "mine"}
    result = compare(tmp_path / "study", arms, make, frames=perfect(tmp_path / "frames"), **settings)
    (run,) = (tmp_path / "study").glob("*/mine/seed-0/clone/run.json")
    configuration = read_json(run)["configuration"]
    assert (configuration["net_arch"], configuration["activation"]) == ([16], "ReLU")
    assert result.rows


def test_a_demonstrator_who_earns_nothing_is_no_threshold(tmp_path: Path) -> None:
    frames = record(tmp_path / "frames", lambda seen: (quadrants(seen) + 1 + seen[:, 0, 0, 0] % 2) % 4, steps=64)
    refuse("of the 16 complete episodes of .* is 0, of which no share", lambda: Demonstrator().of(frames))
    cut = record(tmp_path / "cut", quadrants, steps=8)
    refuse("of the 0 complete episodes", lambda: Demonstrator().of(cut))
