"""Studies with real processes: the same results as in this process, and nothing lost when something dies."""

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from rlpre.compare import runner
from rlpre.compare.runner import Row, Run, finished_runs, read_rows, read_study, restore, run_study
from rlpre.compare.summary import save_rows
from rlpre.errors import RlpreError
from rlpre.utils import read_json

STEPS = {"here": 100}


class Terminal(io.TextIOWrapper):
    """A stream on which progress bars are shown."""

    def isatty(self) -> bool:
        return True


def work(run: Run, path: Path, report: Callable[[int], None]) -> None:
    """Does what the arm is called; notes each attempt outside the run directory, which attempts do not share."""
    study = path.parents[2]
    with (study / f"attempts-{run.arm}-{run.seed}").open("a") as attempts:
        attempts.write(".")
    (path / "threads").write_text(str(torch.get_num_threads()))
    if run.arm == "resumes":
        assert not {file.name for file in path.iterdir()} & {"failed.json", "traceback.txt", "progress"}
        state = path / "state"
        done = int(state.read_text()) if state.exists() else 0
        state.write_text(str(done + 50))
        report(done + 50)
        if done == 0:
            raise RuntimeError("half-way")
    if run.arm == "raises":
        raise RuntimeError("no such\nluck")
    if run.arm == "exits" or (run.arm == "exits-once" and attempts_of(study, run) == 1):
        os._exit(1)
    if run.arm == "holds" and not (study / "release").exists():
        (study / f"child-{run.seed}").write_text(str(subprocess.Popen(["sleep", "600"]).pid))
    while run.arm == "holds" and not (study / "release").exists():
        report(40)
        (study / "beat").write_text(str(time.time_ns()))
        time.sleep(0.05)


def train(run: Run, path: Path, report: Callable[[int], None]) -> None:
    env, evaluation = (make_vec_env(run.task, n_envs=2, seed=run.seed) for _ in range(2))
    model = PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=2, seed=run.seed, device="cpu")
    model.learn(256, EvalCallback(evaluation, eval_freq=64, log_path=str(path), n_eval_episodes=2, verbose=0))


def attempts_of(study: Path, run: Run) -> int:
    return len((study / f"attempts-{run.arm}-{run.seed}").read_text())


def runs_of(*arms: str) -> list[Run]:
    return [Run("here", arm, seed) for seed, arm in enumerate(arms)]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_processes_give_the_results_of_this_process(tmp_path):
    runs = [Run("CartPole-v1", "scratch", seed) for seed in (0, 1)]
    with ThreadPoolExecutor(1) as here:
        run_study(tmp_path / "here", runs, train, {}, {"CartPole-v1": 256}, executor=here)
    result = run_study(tmp_path / "there", runs, train, {}, {"CartPole-v1": 256}, workers=2)
    assert (result.done, result.failed) == (tuple(runs), {})
    results = []
    for run in runs:
        one, other = (np.load(tmp_path / side / run.path / "evaluations.npz") for side in ("here", "there"))
        assert np.array_equal(one["results"], other["results"])
        results.append(one["results"])
    assert not np.array_equal(*results)


def measure(run: Run, path: Path, report: Callable[[int], None]) -> dict[str, float | list[tuple[int, float]]]:
    return {"return": [(10, 0.25), (20, 0.5)], "final": run.seed + 0.5}


def test_measurements_are_tidy_rows(tmp_path):
    runs = [Run("world/a", "scratch", 1), Run("world/a", "frozen", 0)]
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, runs, measure, {"study": "demo"}, {"world/a": 1}, executor=executor)
    rows = read_rows(tmp_path)
    assert rows[:3] == [
        Row("demo", "world/a", "frozen", 0, "return", 0.25, 10),
        Row("demo", "world/a", "frozen", 0, "return", 0.5, 20),
        Row("demo", "world/a", "frozen", 0, "final", 0.5, None),
    ]
    assert [row.seed for row in rows[3:]] == [1, 1, 1]


def test_without_a_terminal_a_line_says_how_far_it_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(runner, "LINE_SECONDS", 0.0)
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, runs_of("quick", "raises"), work, {}, STEPS, executor=executor)
    assert f"{tmp_path.name}: 1/2 runs, 1 failed, 100 of 200 steps" in capsys.readouterr().err


@pytest.mark.parametrize("content", ["[[1]]", "{", "[3]"])
def test_damaged_rows_are_one_sentence(tmp_path, content):
    (run,) = runs_of("quick")
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, [run], work, {}, STEPS, executor=executor)
    (tmp_path / run.path / "rows.json").write_text(content)
    with pytest.raises(RlpreError, match=r"rows\.json is damaged .*"):
        read_rows(tmp_path)


def test_study_of_an_earlier_version_is_refused_by_name(tmp_path):
    (tmp_path / "study.json").write_text('{"seeds": 3}')
    (tmp_path / "world/scratch/seed-0").mkdir(parents=True)
    done = '{"environment": "world", "arm": "scratch", "seed": 0, "seconds": 1.0, "threads": 1}'
    (tmp_path / "world/scratch/seed-0/done.json").write_text(done)
    for read in (read_rows, finished_runs, lambda path: run_study(path, [], work, {"seeds": 3}, STEPS)):
        with pytest.raises(RlpreError, match=f"{tmp_path.name} was written by an earlier version of rlpre"):
            read(tmp_path)


@pytest.mark.parametrize("kind", [signal.SIGKILL, signal.SIGINT])
def test_killed_study_redoes_only_the_cells_in_flight(tmp_path, kind):
    done, held = runs_of("quick", "quick"), [Run("here", "holds", 0), Run("here", "holds", 1)]
    stderr = tmp_path / "stderr"
    with stderr.open("w") as stream:
        study = subprocess.Popen([sys.executable, __file__, tmp_path / "study"], stderr=stream)
    markers = [tmp_path / "study" / run.path / "done.json" for run in done]
    wait_until(lambda: all(marker.exists() for marker in markers) and "280/400" in stderr.read_text())
    assert "2/4 runs, 0 failed" in stderr.read_text()
    times = [marker.stat().st_mtime_ns for marker in markers]
    study.send_signal(kind)
    assert study.wait(20) != 0

    def still() -> bool:
        before = (tmp_path / "study/beat").read_text()
        time.sleep(0.5)
        return before == (tmp_path / "study/beat").read_text()

    wait_until(still)  # its processes are gone too, so that the next call does not meet them
    children = [Path("/proc", (tmp_path / f"study/child-{run.seed}").read_text(), "cwd") for run in held]
    wait_until(lambda: not any(child.exists() for child in children))  # and what these had started
    (tmp_path / "study/release").touch()
    with ThreadPoolExecutor(1) as executor:
        result = run_study(tmp_path / "study", [*done, *held], work, {}, STEPS, executor=executor)
    assert result.done == (*done, *held)
    assert [marker.stat().st_mtime_ns for marker in markers] == times
    assert [attempts_of(tmp_path / "study", run) for run in [*done, *held]] == [1, 1, 2, 2]


def test_failures_do_not_lose_other_cells(tmp_path, capsys, monkeypatch):
    screen = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", Terminal(screen, write_through=True))
    raises, exits, once, quick = runs = runs_of("raises", "exits", "exits-once", "quick")
    result = run_study(tmp_path, runs, work, {}, STEPS, workers=2)
    assert result.done == (once, quick)
    assert result.failed[raises] == "RuntimeError: no such luck"
    assert "killed" in result.failed[exits]
    for run, error in result.failed.items():
        assert read_json(tmp_path / run.path / "failed.json") == {"error": error}
    assert "luck" in (tmp_path / raises.path / "traceback.txt").read_text()
    assert [attempts_of(tmp_path, run) for run in runs] == [1, 2, 2, 1]
    assert "2/4 runs, 2 failed" in screen.getvalue().decode()
    assert f"{raises} failed: RuntimeError: no such luck" in capsys.readouterr().out


def test_finished_cells_are_not_run_again_and_cells_can_be_added(tmp_path):
    first, second = Run("here", "quick", 0), Run("here", "quick", 1)
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, [first], work, {"a": (1, 2)}, STEPS, executor=executor)
        result = run_study(tmp_path, [first, second, first], work, {"a": [1, 2]}, STEPS, executor=executor)
    assert result.done == (first, second)
    assert [attempts_of(tmp_path, run) for run in result.done] == [1, 1]
    assert finished_runs(tmp_path) == {run: tmp_path / run.path for run in (first, second)}
    assert read_json(tmp_path / first.path / "done.json")["seconds"] >= 0


def test_failed_cell_is_tried_again_in_an_empty_directory(tmp_path):
    (run,) = runs_of("raises")
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, [run], work, {}, STEPS, executor=executor)
        (tmp_path / run.path / "left-over").touch()
        run_study(tmp_path, [run], work, {}, STEPS, executor=executor)
    assert attempts_of(tmp_path, run) == 2
    assert not (tmp_path / run.path / "left-over").exists()


@pytest.mark.parametrize(("workers", "threads"), [(None, 1), (2, 3), (4, 1), (7, 1)])
def test_cells_share_the_cores_of_the_machine_that_they_run_on(tmp_path, monkeypatch, workers, threads):
    (run,) = runs_of("quick")
    monkeypatch.setattr(runner, "_cores", lambda: 6)
    with ThreadPoolExecutor(1) as executor:
        run_study(tmp_path, [run], work, {}, STEPS, executor=executor, workers=workers)
    assert (tmp_path / run.path / "threads").read_text() == str(threads)
    assert read_json(tmp_path / run.path / "done.json")["threads"] == threads


def test_work_that_resumes_keeps_its_state_and_no_trace_of_the_failure(tmp_path):
    (run,) = runs_of("resumes")
    with ThreadPoolExecutor(1) as executor:
        for attempt in ("fails", "ends"):
            result = run_study(tmp_path, [run], work, {}, STEPS, executor=executor, keep=True)
            assert bool(result.failed) == (attempt == "fails")
            assert (tmp_path / run.path / "failed.json").exists() == (attempt == "fails")
    assert (tmp_path / run.path / "state").read_text() == "100"


class Twice(ThreadPoolExecutor):
    """Calls twice, as a cluster does that loses the machine which holds the outcome."""

    def submit(self, fn, /, *args, **kwargs):
        super().submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)


def test_cell_that_is_done_is_not_run_again_by_its_executor(tmp_path):
    (run,) = runs_of("quick")
    with Twice(1) as executor:
        assert run_study(tmp_path, [run], work, {}, STEPS, executor=executor).done == (run,)
    assert attempts_of(tmp_path, run) == 1


def test_cancelled_cells_are_reported(tmp_path):
    holds, waits = runs_of("holds", "quick")
    with ThreadPoolExecutor(1) as executor, ThreadPoolExecutor(1) as thread:
        study = thread.submit(run_study, tmp_path, [holds, waits], work, {}, STEPS, executor=executor)
        wait_until((tmp_path / "beat").exists)
        executor.shutdown(wait=False, cancel_futures=True)
        (tmp_path / "release").touch()
        result = study.result()
    assert result.done == (holds,)
    assert result.failed == {waits: "it was cancelled, or the scheduler is gone: run the study again"}


def test_second_process_is_refused_until_the_first_is_gone(tmp_path):
    with (tmp_path / "stderr").open("w") as stream:
        first = subprocess.Popen([sys.executable, __file__, tmp_path / "study"], stderr=stream)
    wait_until((tmp_path / "study/beat").exists)
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(RlpreError, match=rf"study is in use by process {first.pid} on .+: wait for it"):
            run_study(tmp_path / "study", [], work, {}, STEPS, executor=executor)
        first.kill()
        first.wait()
        run_study(tmp_path / "study", [], work, {}, STEPS, executor=executor)
    assert f"process {os.getpid()} " in (tmp_path / "study/lock").read_text()


def test_directory_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RlpreError, match=r"cannot write .*lock"):
        run_study(tmp_path / "file/study", [], work, {}, STEPS)


def test_pool_of_the_caller_that_breaks_is_reported(tmp_path):
    (run,) = runs_of("exits")
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        assert "killed" in run_study(tmp_path, [run], work, {}, STEPS, executor=pool).failed[run]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"ppo": {"steps": 64, "rate": 0.1}, "seed": 0}, r"ppo\.steps is 128 there and 64 here"),
        ({"ppo": {"steps": 128, "rate": 0.1}}, "seed is 0 there and absent here"),
        ({"ppo": {"steps": 128, "rate": 0.1}, "seed": 0, "clip": None}, "clip is absent there and null here"),
    ],
)
def test_directory_of_another_study_is_refused(tmp_path, other, message):
    run_study(tmp_path, [], work, {"ppo": {"steps": 128, "rate": 0.1}, "seed": 0}, STEPS)
    with pytest.raises(RlpreError, match=f"{tmp_path.name} belongs to another study: {message}"):
        run_study(tmp_path, [], work, other, STEPS)


def test_tasks_and_arms_are_added_to_a_study(tmp_path):
    first = {"tasks": {"a": {"steps": 1}}, "metric": {"arms": {"x": 0}, "threshold": 1}}
    run_study(tmp_path, [], work, first, STEPS)
    more = {"tasks": {"b": {"steps": 2}}, "metric": {"arms": {"x": 0, "y": 5}, "threshold": 1}}
    run_study(tmp_path, [], work, more, STEPS)
    both = {"tasks": {**first["tasks"], **more["tasks"]}, "metric": more["metric"]}
    assert read_study(tmp_path) == {"format": 2, **both}
    run_study(tmp_path, [], work, first, STEPS)
    assert read_study(tmp_path) == {"format": 2, **both}
    other = {"tasks": {"a": {"steps": 2}}, "metric": first["metric"]}
    with pytest.raises(RlpreError, match=r"tasks\.a\.steps is 1 there and 2 here"):
        run_study(tmp_path, [], work, other, STEPS)


def test_an_arm_has_the_most_frames_and_labels_of_any_task(tmp_path):
    for frames in (7, 9, 8):  # each task has frames of its own
        run_study(tmp_path, [], work, {"metric": {"arms": {"x": frames}, "labels": {"x": frames + 1}}}, STEPS)
    assert read_study(tmp_path)["metric"] == {"arms": {"x": 9}, "labels": {"x": 10}}


def test_a_published_study_goes_on(tmp_path):
    runs = runs_of("quick", "quick")
    run_study(tmp_path / "first", runs[:1], measure, {"study": "s"}, STEPS)
    rows = read_rows(tmp_path / "first")
    (tmp_path / "published").mkdir()
    save_rows(rows, tmp_path / "published/rows.json")
    shutil.copy(tmp_path / "first/study.json", tmp_path / "published")
    restore(tmp_path / "second", tmp_path / "published", again=["other"])
    assert read_rows(tmp_path / "second") == rows
    result = run_study(tmp_path / "second", runs, measure, {"study": "s"}, STEPS)
    assert not result.failed
    done = [read_json(tmp_path / "second" / run.path / "done.json") for run in runs]
    assert [each["threads"] is None for each in done] == [True] + [False] * (len(runs) - 1)
    restore(tmp_path / "third", tmp_path / "published", again=[runs[0].task])
    assert read_rows(tmp_path / "third") == []


def test_no_workers_are_refused(tmp_path):
    with pytest.raises(RlpreError, match="workers=0 would run nothing"):
        run_study(tmp_path, [Run("env", "arm", 0)], print, {}, {"env": 1}, workers=0)
    assert not list(tmp_path.iterdir())


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job would ignore it
    sys.stderr = Terminal(sys.stderr.buffer, write_through=True)
    run_study(Path(sys.argv[1]), [*runs_of("quick", "quick"), *runs_of("holds", "holds")], work, {}, STEPS, workers=2)
