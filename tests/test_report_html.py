"""The page of a comparison, opened in a real browser that has no network."""

import html
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from browser import DARK, look
from PIL import Image
from stable_baselines3 import PPO
from studies import METRIC, NEVER, write_study

import envs
from agents import TrainConfig
from agents.film import EPISODES, MOST_STEPS, SIDE, film
from rlpre import FrameStore, RlpreError, pretrain
from rlpre.files import write_json
from rlpre.report.comparison.curves import style
from rlpre.report.comparison.html import MOST_BYTES
from rlpre.report.comparison.report import report
from rlpre.report.facts import STRIP, read_pretrained
from rlpre.study import Cell

DOOR, EMPTY = "MiniGrid-DoorKey-5x5-v0", "MiniGrid-Empty-5x5-v0"


def make_home(home: Path, doorkey: FrameStore) -> Path:
    """A comparison on two tasks with frames, an encoder and films."""
    shutil.copytree(doorkey.path, home / "frames" / "mixed")
    encoder = home / "encoders/inverse/seed-0"
    pretrain(doorkey, out=encoder, objective="inverse", steps=2, batch=16, features=16)
    write_json(encoder / "done.json", {**asdict(Cell("encoders", "inverse", 0)), "seconds": 12.0, "threads": 1})
    runs = home / "runs"
    write_study(runs, {"scratch": [8000, 9000, NEVER], "random": [NEVER], "best": [2000, 3000, 4000]}, env=DOOR)
    write_study(runs, {"scratch": [2000, 3000, 4000], "best": [8000, 9000, 10_000]}, env=EMPTY)
    policy = PPO("CnnPolicy", envs.make_vec(EMPTY, 1, 0), device="cpu").policy
    for env in (DOOR, EMPTY):
        film(policy, TrainConfig(env), runs / env / "best/seed-0/policy.gif")
    return home


@pytest.fixture(scope="module")
def page(doorkey: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of that comparison, with one run that failed and one that has not ended."""
    runs = make_home(tmp_path_factory.mktemp("comparison"), doorkey) / "runs"
    error = "RuntimeError: <script>document.title = 'taken'</script> & more"
    write_json(make_run(runs, Cell(DOOR, "jigsaw", 0)) / "failed.json", {"error": error})
    make_run(runs, Cell(DOOR, "jigsaw", 1))
    write_json(runs / DOOR / "best/seed-0/run.json", {"commit": "abc123", "dirty": True, "versions": {"torch": "2.0"}})
    report(runs)
    return runs / "report.html"


def make_run(runs: Path, cell: Cell) -> Path:
    """A run that has begun."""
    write_json(runs / cell.path / "run.json", {"configuration": {}})
    return runs / cell.path


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return look(page)


def test_browser_finds_every_figure_and_loads_nothing(page: Path, seen: dict[str, Any]) -> None:
    source = page.read_text()
    assert not re.search(r"https?://|<link|<script|@import|src=\"(?!data:)", source)
    assert (seen["loads"], seen["scripts"]) == ([], 1)  # the one that looked
    assert all(width > 0 for _, width in seen["images"])
    alts = [alt for alt, _ in seen["images"]]
    assert (alts.count("best"), alts.count("offline frame")) == (2, STRIP)
    # Two profiles, an overview for each task, and each arm against scratch.
    assert len(seen["charts"]) == 2 + 2 + (2 + 1)
    assert all(width > 200 for _, width in seen["charts"])
    assert seen["strips"] == 2 + 1 + 3  # tasks, arms over all tasks, arms; random never reaches, yet scratch does
    assert len(source) < 1_000_000


def test_page_says_the_answer_first_and_hides_no_failure(seen: dict[str, Any]) -> None:
    assert seen["headline"] == "Pretraining saved environment steps on 1 of 2 tasks and cost steps on 1."
    text = " ".join(seen["text"].split())
    for words in (
        "Saved on DoorKey-5x5; cost on Empty-5x5",
        "Failed runs: 1. "
        + f"runs/{DOOR}/jigsaw/seed-0 RuntimeError: <script>document.title = 'taken'</script> & more",
        "Unfinished runs: 1.",
        "Arms without a finished run: jigsaw on DoorKey-5x5; random, jigsaw on Empty-5x5.",
        "Pretraining cost 6k environment steps: to reach 0.8, scratch needs 0.33 [",
        "MiniGrid-Empty-5x5-v0, 10k steps a run; the encoder has never seen it.",
        "0.5*random + 0.5*expert:0.2",
        "inverse 2 16 12",
        "torch 2.0",
        "abc123 with changes",
    ):
        assert words in text


def test_page_is_dark_for_those_who_like_it_and_fits_a_phone(page: Path, seen: dict[str, Any]) -> None:
    dark = look(page, width=500, scheme=DARK)  # headless Chromium's narrowest
    assert dark["beyond"] <= 0
    assert seen["beyond"] <= 0
    red, green, blue = (int(style("best", METRIC)[0][i : i + 2], 16) for i in (1, 3, 5))
    for shown, ink in ((seen, "rgb(27, 29, 32)"), (dark, "rgb(233, 232, 228)")):
        assert {ink, f"rgb({red}, {green}, {blue})"} <= set(shown["strokes"])


def test_page_without_facts_says_so(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", {"scratch": [8000, 9000, 9000], "best": [2000, 3000, 4000]})
    report(runs)
    source = (runs / "report.html").read_text()
    assert "The offline frames are not known" in source
    assert "frames holds no frame store" in source
    assert "encoders holds no finished encoder" in source
    assert "Final policies" not in source
    assert source.count("not recorded") == 2
    assert "Every task" not in source


def test_damaged_facts_do_not_withhold_the_answer(page: Path, tmp_path: Path) -> None:
    home = tmp_path / "copy"
    shutil.copytree(page.parents[1], home)
    (home / "frames/mixed/manifest.json").write_text("{")
    (home / "encoders/inverse/seed-0/config.json").write_text("half")
    (home / "runs" / DOOR / "best/seed-0/policy.gif").write_bytes(bytes(MOST_BYTES + 1))
    report(home / "runs")
    source = html.unescape((home / "runs/report.html").read_text())
    for words in (
        "The offline frames are not known",
        "frames/mixed/manifest.json is damaged",
        "What pretraining cost is not known",
        "config.json is damaged",
        "0.5 MB, too large for this page",
        "saved environment steps on 1 of 2 tasks",
    ):
        assert words in source


def test_encoder_that_does_not_say_its_pretraining(tmp_path: Path) -> None:
    run = tmp_path / "mine/seed-0"
    write_json(run / "done.json", {**asdict(Cell("encoders", "mine", 0)), "seconds": 1.0, "threads": 1})
    for content in ({}, {"pretraining": {"objective": "mine"}}):
        write_json(run / "config.json", content)
        with pytest.raises(RlpreError, match=r"config\.json does not say how the encoder was pretrained"):
            read_pretrained(tmp_path)


def test_films_stay_small(page: Path) -> None:
    for path in page.parent.rglob("policy.gif"):
        assert path.stat().st_size < MOST_BYTES
        with Image.open(path) as picture:
            assert 1 < picture.n_frames <= EPISODES * (MOST_STEPS + 1)
            assert max(picture.size) <= SIDE
