"""The study of clones: each part runs on tiny levels, one by one, and its figures are of the right kind."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from agents.habits import ALONE, READOUTS, Habits
from agents.presets import AgentConfig, PPOConfig
from rlpre import CloneConfig, FrameStore, PretrainConfig, RlpreError
from rlpre.utils import read_json

EMPTY, RANDOM, DOORS = "MiniGrid-Empty-5x5-v0", "MiniGrid-Empty-Random-5x5-v0", "MiniGrid-DoorKey-5x5-v0"
OTHER = "MiniGrid-Empty-6x6-v0"
PPO = PPOConfig(n_envs=2, n_steps=16, batch_size=32, n_epochs=1)
TINY = Habits(
    environments=(EMPTY,),
    steps=64,
    seeds=1,
    labels=(40, 80),
    compared=80,
    demonstrations=320,
    clone=CloneConfig(steps=4, check_every=2, device="cpu"),
    pretrain=PretrainConfig(steps=2, batch=8, features=8, checkpoint_every=2, device="cpu"),
    encoders=PretrainConfig(steps=2, batch=8, features=8, checkpoint_every=2, device="cpu"),
    train=AgentConfig(eval_every=32, eval_episodes=2, device="cpu", ppo=PPO),
)


def run(habits: Habits, out: Path) -> list[dict[str, object]]:
    """In this process; the records of the joint report."""
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        return habits.run(out, workers=99, executor=here).table()


def test_environments_are_run_one_by_one_and_reported_together(tmp_path: Path) -> None:
    assert {record["task"] for record in run(TINY, tmp_path)} == {EMPTY}
    records = run(replace(TINY, environments=(RANDOM,)), tmp_path)
    assert {record["task"] for record in records} == {EMPTY, RANDOM, "all tasks"}
    metric = read_json(tmp_path / "labels/study.json")["metric"]
    assert set(metric["thresholds"]) == {EMPTY, RANDOM}
    assert metric["labels"]["cloned-40+frozen"] == 40
    assert (metric["answer"], metric["baseline"]) == ("cloned+frozen", "scratch")
    assert set(metric["arms"]) > {"cloned-40", "cloned-80", "cloned+frozen, no KL", "cloned+finetuned", "advised-40"}
    other = replace(TINY, environments=(DOORS,), labels=(80, 120), only=("cloned-120",))
    records = run(other, tmp_path)
    assert {record["arm"] for record in records if record["task"] == DOORS} == {"cloned-120"}
    assert read_json(tmp_path / "labels/study.json")["metric"]["labels"]["cloned-120"] == 120
    with pytest.raises(RlpreError, match=r"arm 'cloned.* has other numbers of labels in"):
        run(replace(TINY, environments=(OTHER,), compared=40, only=("cloned-40",)), tmp_path)


def test_settings_that_do_not_fit_a_part_get_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=r"compared is 90, labels are \(40, 80\): give one of them"):
        run(replace(TINY, compared=90), tmp_path)
    with pytest.raises(RlpreError, match="take no steps: leave out steps"):
        run(replace(TINY, part="features"), tmp_path)


def test_players_are_clones_advice_and_mediocre_agents(tmp_path: Path) -> None:
    records = run(replace(TINY, part="players"), tmp_path)
    assert {record["arm"] for record in records} > {*ALONE, "noise-0", "mediocre+frozen", "noise-60-weighted", "dagger"}
    frames = tmp_path / "parts/players" / EMPTY / "frames"
    behaviours = {path.name: FrameStore.open(path).manifest["spec"]["behaviour"] for path in frames.iterdir()}
    assert behaviours["mediocre"].endswith("300.zip")
    assert behaviours["dagger"].startswith("0.5*expert:0.3 + 0.5*agent:")


def test_features_are_compared_by_the_labels_that_they_need(tmp_path: Path) -> None:
    records = run(
        replace(TINY, part="features", labels=(40, 120), steps=None), tmp_path
    )  # as words, "120" comes before "40"
    assert {record["arm"] for record in records} == set(READOUTS)
    assert {record["steps_to_threshold"] for record in records} <= {40, 120}
    assert " labels" in (tmp_path / "features/report.html").read_text()
