"""The scripts, as a user runs them: from frames to an answer, killed and resumed, and with bad input."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from agents.presets import PRESETS
from rlpre import Encoder, FrameStore, SequenceEncoder
from rlpre.utils import read_json

ROOT = Path(__file__).parents[1]
SCRIPTS = {path.stem for path in (ROOT / "scripts").glob("*.py")} - {"cli"}
WORLD = "MiniGrid-Empty-5x5-v0"
COLLECT = f"{WORLD} --steps 400 --n-envs 4 --behaviour 0.5*random+0.5*expert:0.3".split()
PRETRAIN = ["--steps=2", "--batch=16", "--features=16"]
PPO = {"n-envs": 4, "n-steps": 32, "batch-size": 32, "n-epochs": 1}
STEPS = "--steps=256"
RUN = {"features": 16, "eval-every": 128, "eval-episodes": 2}
TRAIN = ["--env", WORLD, STEPS, *(f"--{name}={value}" for name, value in (RUN | PPO).items())]
QUICK = [
    *f"quick --data.mixed.steps 400 --seeds 1 --environments {WORLD} --data.mixed.sources {WORLD}".split(),
    STEPS,
    *(setting.replace("--", "--pretrain.") for setting in PRETRAIN),
    *(f"--train.{name}={value}" for name, value in RUN.items() if name != "features"),
    *(f"--train.ppo.{name}={value}" for name, value in PPO.items()),
]
ARMS = PRESETS["quick"].arms

Call = Callable[..., tuple[int, str, str]]


def start(script: str, *arguments: object) -> "subprocess.Popen[str]":
    command = [sys.executable, ROOT / "scripts" / f"{script}.py", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen([str(part) for part in command], env=environment, stdout=pipe, stderr=pipe, text=True)


def succeed(script: str, *arguments: object) -> str:
    """Runs a script in a process of its own; returns what it printed."""
    process = start(script, *arguments)
    printed, complaints = process.communicate()
    assert process.returncode == 0, complaints
    return printed


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Call:
    """Runs a script as ``__main__`` of this process, which spares the imports: exit code, stdout, stderr."""
    monkeypatch.syspath_prepend(ROOT / "scripts")

    def run(script: str, *arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", [f"scripts/{script}.py", *map(str, arguments)])
        code: object = 0
        try:
            runpy.run_path(str(ROOT / "scripts" / f"{script}.py"), run_name="__main__")
        except SystemExit as end:
            code = end.code
        printed = capfd.readouterr()
        return int(str(code)), printed.out, printed.err

    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``frames``, ``encoder``, ``scratch`` and ``frozen``, each made by its script."""
    home = tmp_path_factory.mktemp("home")
    printed = succeed("collect", *COLLECT, "--out", home / "frames")
    assert " distinct, " in printed
    printed = succeed("pretrain", home / "frames", home / "encoder", *PRETRAIN)
    assert "cnn, 16 features" in printed
    return home


def test_collect_then_pretrain(home: Path) -> None:
    frames = FrameStore.open(home / "frames")
    assert len(frames) > 400
    encoder = Encoder.load(home / "encoder")
    assert encoder.pretraining["frames"] == frames.hash
    assert read_json(home / "encoder" / "run.json")["configuration"]["steps"] == 2


def test_pretrain_a_sequence_encoder_on_top(home: Path, tmp_path: Path, call: Call) -> None:
    settings = ["--sequence", "transformer", "--window", "4", "--objective", "masked", "--steps", "2", "--batch", "4"]
    code, printed, complaints = call(
        "pretrain", home / "frames", tmp_path / "b", "--start", home / "encoder", *settings
    )
    assert code == 0, complaints
    assert "transformer, 64 features" in printed
    encoder = SequenceEncoder.load(tmp_path / "b")
    assert not encoder.causal
    assert encoder.frames.fingerprint() == Encoder.load(home / "encoder").fingerprint()
    code, _, complaints = call("likelihood", home / "frames", tmp_path / "b")
    assert code == 2
    assert one_sentence(complaints, "was pretrained on")
    assert call("collect", *COLLECT, "--seed", "1", "--out", tmp_path / "others")[0] == 0
    code, printed, complaints = call("likelihood", tmp_path / "others", tmp_path / "b", "--windows", "20")
    assert code == 0, complaints
    names, _, numbers, means, _, copied = printed.splitlines()
    assert re.split("  +", names)[:4] == ["encoder", "next nll", "next accuracy", "middle nll"]
    assert "front gain" in names
    assert all(np.isfinite(float(number)) for number in numbers.split()[1:])
    assert means.startswith("masked, n=1")
    assert means.count("(n<3)") == len(numbers.split()) - 1
    assert copied.endswith("middle")


def test_import_and_export(home: Path, tmp_path: Path, call: Call) -> None:
    frames = FrameStore.open(home / "frames")
    pixels = frames.frames(np.arange(20))
    np.save(tmp_path / "frames.npy", pixels)
    (tmp_path / "film").mkdir()
    for number, image in enumerate(pixels.transpose(0, 2, 3, 1)):
        Image.fromarray(image).save(tmp_path / "film" / f"{number}.png")
    sets = ["--path", tmp_path / "sets"]
    code, printed, _ = call("import_frames", "export", home / "frames", "empty-v0", *sets)
    assert (code, printed) == (0, f"empty-v0: {frames.episode[-1] + 1} episodes, 400 steps\n")
    for kind, source, rows in (("images", "film", 20), ("arrays", "frames.npy", 20), ("minari", "sets/empty-v0", None)):
        code, printed, complaints = call("import_frames", kind, tmp_path / source, "--out", tmp_path / kind)
        assert code == 0, complaints
        store = FrameStore.open(tmp_path / kind)
        chosen = np.arange(rows or len(frames))
        np.testing.assert_array_equal(store.frames(np.arange(len(store))), frames.frames(chosen))
        assert f"{len(chosen)} frames, {store.distinct} distinct, {store.unchanged:.0%} of steps unchanged" in printed


@pytest.mark.parametrize("agent", ["scratch", "frozen"])
def test_train_ends_with_a_policy_and_a_film_of_it(agent: str, home: Path, tmp_path: Path) -> None:
    encoder = ["--encoder", home / "encoder"] if agent == "frozen" else []
    printed = succeed("train", "--agent", agent, *encoder, *TRAIN, "--out", tmp_path)
    assert "return" in printed
    assert np.load(tmp_path / "evaluations.npz")["timesteps"].tolist() == [128, 256]
    assert {"last_policy.zip", "best_model.zip", "run.json"} <= {path.name for path in tmp_path.iterdir()}
    with Image.open(tmp_path / "policy.gif") as film:
        assert film.n_frames > 3


def test_compare_killed_and_resumed_answers(tmp_path: Path, call: Call) -> None:
    out, markers = tmp_path / "results", lambda: sorted((tmp_path / "results" / WORLD).rglob("done.json"))
    process = start("compare", "--out", out, "--workers", 2, *QUICK)
    deadline = time.monotonic() + 240
    while not markers():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.kill()
    process.communicate()
    before = {marker: marker.stat().st_mtime_ns for marker in markers()}
    assert 0 < len(before) < len(ARMS)

    printed = succeed("compare", "--out", out, "--workers", 2, *QUICK)
    after = {marker: marker.stat().st_mtime_ns for marker in markers()}
    assert before.items() <= after.items()
    assert len(after) == len(ARMS)
    records = read_json(out / "summary.json")["records"]
    assert list(dict.fromkeys(record["arm"] for record in records)) == list(ARMS)
    for name, frames in read_json(out / "study.json")["metric"]["arms"].items():
        assert (frames > 400) == (ARMS[name].encoder is not None)
        assert name in printed
        assert EventAccumulator(str(out / "tensorboard" / name)).Reload().Tags()["scalars"]
    assert (out / "report.png").read_bytes().startswith(b"\x89PNG")
    page = (out / "report.html").read_text()
    assert page.count("data:image/gif") == len(ARMS) == len(list(out.rglob("policy.gif")))

    code, again, complaints = call("compare", "--out", out, *QUICK)
    assert (code, again, complaints) == (0, printed, "")
    assert {marker: marker.stat().st_mtime_ns for marker in markers()} == after

    code, _, complaints = call("compare", "--out", out, *QUICK, "--threshold=0.5")
    assert code == 2
    assert one_sentence(complaints, "results belongs to another study: metric.threshold is 0.8 there and 0.5 here")
    assert {marker: marker.stat().st_mtime_ns for marker in markers()} == after


def small_headroom(*arguments: object) -> str:
    settings = [f"--train.{name}={value}" for name, value in RUN.items() if name != "features"]
    settings += [f"--train.ppo.{name}={value}" for name, value in PPO.items()]
    return succeed("headroom", *arguments, STEPS, "--seeds=1", *settings)


def test_headroom_of_two_worlds(tmp_path: Path) -> None:
    out = tmp_path / "results"
    printed = small_headroom(WORLD, "MiniGrid-Empty-6x6-v0", "--out", out)
    metric = read_json(out / "study.json")["metric"]
    assert (list(metric["arms"]), metric["oracle"]) == (["scratch", "oracle", "transplant"], "oracle")
    assert "the oracle" in printed.splitlines()[0]
    head, _, *rows = printed.splitlines()[2:6]
    assert re.split("  +", head)[-2:] == ["scratch / oracle", "scratch / transplant"]
    assert [row.split()[0] for row in rows] == ["Empty-5x5", "Empty-6x6"]
    rates = {}
    for arm in metric["arms"]:
        said = read_json(out / WORLD / arm / "seed-0" / "run.json")["configuration"]
        rates[arm] = said["algorithm_kwargs"]["learning_rate"]
    assert rates == {"scratch": 5e-4, "oracle": 1e-3, "transplant": 2e-3}


def test_headroom_without_an_oracle_where_the_state_is_not_told(tmp_path: Path) -> None:
    printed = small_headroom("LeaperEasy-v0", "--oracle=False", "--threshold=0", "--out", tmp_path / "results")
    assert list(read_json(tmp_path / "results" / "study.json")["metric"]["arms"]) == ["scratch", "transplant"]
    assert "scratch needs 1.00 (n<3) times the steps of transplant" in printed.splitlines()[0]


def one_sentence(complaints: str, words: str) -> bool:
    lines = complaints.splitlines()
    return len(lines) == 1 and lines[0].startswith("error: ") and words in lines[0]


BAD = [
    ("collect MiniGrid-Emty-5x5-v0 --out {new}", "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ("collect MiniGrid-Empty-5x5-v0 --out {new} --behaviour exprt", "behaviour 'exprt' cannot be read"),
    ("collect MiniGrid-Empty-5x5-v0 --out {frames}", "frames belongs to another collection: steps is 400 there"),
    ("import_frames images {nowhere} --out {new}", "nowhere is not a folder"),
    ("import_frames images {frames} --out {new}", "frames holds no images"),
    ("import_frames arrays {encoder}/config.json --out {new}", "config.json cannot be read as a .npy or .npz file"),
    ("import_frames minari {frames} --out {new}", "frames is no Minari set"),
    ("import_frames export {frames} nameless --path {new}", "'nameless' is no Minari id"),
    ("import_frames export {nowhere} name-v0 --path {new}", "manifest.json is missing"),
    ("pretrain {nowhere} {new}", "manifest.json is missing"),
    ("pretrain {empty} {new}", "empty holds no complete shard"),
    ("pretrain {cut} {new}", "bytes instead of"),
    ("pretrain {frames} {new} --objective jigsow", "unknown objective 'jigsow': did you mean 'jigsaw'"),
    ("pretrain {frames} {new} --encoder impalla", "unknown encoder 'impalla': did you mean 'impala'"),
    ("pretrain {frames} {new} --objective cpc", "objective 'cpc' pretrains a sequence encoder and was given a vision"),
    ("pretrain {frames} {new} --sequence gru", "sees through a pretrained encoder of frames: give it with --start"),
    ("pretrain {frames} {new} --sequence gro --start {encoder}", "unknown backbone 'gro': did you mean 'gru'"),
    ("pretrain {frames} {new} --sequence gru --start {encoder} --window 999 --objective cpc", "a window of 999 steps"),
    ("likelihood {nowhere} {encoder}", "manifest.json is missing"),
    ("likelihood {frames} {encoder}", "this is a vision encoder, not a sequence encoder"),
    ("likelihood {frames}", "no encoder is given"),
    ("pretrain {frames} {new} --device abacus", "device 'abacus' cannot be used here"),
    ("pretrain {frames} {new} --batch 1", "batch is 1: it must be at least 2"),
    ("pretrain {frames} {encoder} --batch 32", "encoder holds a pretraining with"),
    ("train --env MiniGrid-Emty-5x5-v0 --out {new}", "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ("train --agent frosen --out {new}", "unknown agent 'frosen': did you mean 'frozen'"),
    ("train --architecture impalla --out {new}", "unknown encoder 'impalla': did you mean 'impala'"),
    ("train --agent frozen --encoder {nowhere} --out {new}", "nowhere/config.json is missing"),
    ("train --agent frozen --encoder {damaged} --out {new}", "model.safetensors cannot be read"),
    ("train --agent frozen --encoder {other} --out {new}", "tensor 'feature_mean' has shape (16,), expected (8,)"),
    ("train --agent frozen --encoder {encoder} --tile-size 9 --out {new}", "the observation shape is (3, 63, 63)"),
    ("train --device abacus --out {new}", "device 'abacus' cannot be used here"),
    ("train --steps 100 --out {new}", "steps=100 end before the first evaluation"),
    ("headroom MiniGrid-Emty-5x5-v0 --out {new}", "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ("headroom pixel_world:worlds --out {new}", "arm 'oracle': environment 0 does not tell its true state"),
    ("headroom LeaperEasy-v0 --out {new}", "does not tell the state of LeaperEasy-v0: leave out state=True, or"),
    (
        "headroom --oracle False --transplant False --out {new}",
        "oracle and transplant are both False: scratch has nothing to be compared with",
    ),
    ("headroom --steps 2000 --out {new}", "the levels of our own table have steps of their own"),
    ("compare --out {new} own --env {world} --arm a=random --arm a=scratch --steps 9", "two arms have one name among"),
    ("compare --out {new} own --env {world} --arm a=oracle --steps 9", "does not tell its true state"),
    ("compare --out {new} quick --answer scrach", "unknown arm 'scrach': did you mean 'scratch'"),
    ("compare --out {new} quick --baseline scrach", "unknown arm 'scrach': did you mean 'scratch'"),
    ("compare --out {new} quick --pretrain.encoder impalla", "unknown encoder 'impalla': did you mean 'impala'"),
    ("compare --out {new} quick --environments MiniGrid-Emty-5x5-v0", "did you mean 'MiniGrid-Empty-5x5-v0'"),
    ("compare --out {new} quick --train.device abacus", "device 'abacus' cannot be used here"),
    ("compare --out {new} quick --steps 2048 2048", "2 numbers of steps for 1 environments"),
    ("compare --out {new} own --env CarRacing-v33 --arm a=random --steps 9", "did you mean 'CarRacing-v3'"),
    ("compare --out {new} own --env {world} --arm random --steps 9", "arm 'random' has no mode: give NAME=MODE"),
    (
        "compare --out {new} own --env {world} --arm a=random,white --steps 9",
        "unknown option of arm 'a' 'white': did you mean 'whiten'",
    ),
    ("compare --out {new} own --env {world} --arm a=frosen --steps 9", "unknown mode 'frosen': did you mean 'frozen'"),
    ("compare --out {new} own --env {world} --arm a=random --steps 9 --algo-kwargs [", "--algo-kwargs is no JSON"),
    ("compare --out {new} quick --seeds 0", "seeds is 0: it must be at least 1"),
]


@pytest.fixture(scope="module")
def places(home: Path) -> dict[str, Path]:
    """Directories that are whole, damaged, or not there."""
    places = {name: home / name for name in ("frames", "encoder", "empty", "cut", "damaged", "other", "nowhere", "new")}
    for copy, whole in {"empty": "frames", "cut": "frames", "damaged": "encoder", "other": "encoder"}.items():
        shutil.copytree(places[whole], places[copy])
    manifest = places["empty"] / "manifest.json"
    manifest.write_text(json.dumps({**read_json(manifest), "shards": []}))
    for file in (places["cut"] / "frames-00000.npy", places["damaged"] / "model.safetensors"):
        os.truncate(file, file.stat().st_size - 100)
    config = places["other"] / "config.json"
    config.write_text(json.dumps({**read_json(config), "arguments": {"features": 8}}))
    return places


@pytest.mark.parametrize(("command", "words"), BAD, ids=[command for command, _ in BAD])
def test_bad_input_is_one_sentence(command: str, words: str, places: dict[str, Path], call: Call) -> None:
    script, *arguments = command.split()
    code, _, complaints = call(script, *(argument.format(**places, world=WORLD) for argument in arguments))
    assert code == 2
    assert one_sentence(complaints, words), complaints
    assert not places["new"].exists()
    assert Encoder.load(places["encoder"]).num_features == 16


def test_bad_input_in_a_process_of_its_own(tmp_path: Path) -> None:
    process = start("train", "--agent", "frosen", "--out", tmp_path)
    _, complaints = process.communicate()
    assert process.returncode == 2
    assert one_sentence(complaints, "did you mean 'frozen'")


@pytest.mark.parametrize("script", sorted(SCRIPTS))
def test_help(script: str, call: Call) -> None:
    code, printed, _ = call(script, "--help")
    assert code == 0
    assert f"scripts/{script}.py" in printed.splitlines()[0]
    assert not re.search(r"• \S+ +│", printed), "every preset says what it is for"
