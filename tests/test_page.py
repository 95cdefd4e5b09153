"""Pages of reports, in a terminal and in a real browser that has no network."""

import html
import io
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from browser import DARK, look
from matplotlib.figure import Figure as Picture
from PIL import Image
from studies import METRIC, NEVER, write_study

from rlpre import FrameStore, pretrain
from rlpre.compare.report import MOST_BYTES, report, style
from rlpre.compare.runner import Run
from rlpre.evaluation.page import (
    Figure,
    Page,
    Section,
    Table,
    Toned,
    as_text,
    short_names,
    show_interval,
    show_ratio,
    signed,
    thousands,
    write_html,
)
from rlpre.evaluation.stats import Interval, StepsRatio
from rlpre.utils import write_json

DOOR, EMPTY = "MiniGrid-DoorKey-5x5-v0", "MiniGrid-Empty-5x5-v0"


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (show_interval(Interval(0.5, 0.4, 0.6, 3)), "0.50 [0.40, 0.60]"),
        (show_interval(Interval(5000, None, None, 2), thousands), "5k (n<3)"),
        (show_interval(Interval(0.5, None, None, 3)), "0.50 (?)"),
        (show_interval(Interval(float("nan"), None, None, 3)), "-"),
        (show_interval(Interval(0.5, 0.4, 0.6, 3), bound="<="), "<=0.50 [0, 0.60]"),
        (show_ratio(StepsRatio(Interval(2, 1.5, 3, 3), ">=", 1, 3)), ">=2.00 [1.50, inf]"),
        (show_ratio(StepsRatio(Interval(1, None, None, 3), "?", 0, 0)), "? (none reach)"),
        (show_ratio(StepsRatio(Interval(1.25, None, None, 3), "", 3, 3)), "1.25 (all runs are equal, no interval)"),
        (show_ratio(StepsRatio(Interval(1.25, None, None, 2), "", 3, 2)), "1.25 (n<3)"),
        (signed(Interval(0.1, -0.1, 0.3, 3)), "+0.10 [-0.10, +0.30]"),
        (" ".join(map(thousands, (500, 12_345, 999_499, 1_234_567))), "0.5k 12.3k 999k 1.23M"),
    ],
)
def test_numbers_in_words(shown, text):
    assert shown == text


def test_short_names_stay_different():
    names = ("MiniGrid-DoorKey-5x5-v0", "BabyAI-GoToLocal-v0", "ALE/Pong-v5", "Door", "Ant-v4", "Ant-v5")
    assert list(short_names(names).values()) == ["DoorKey-5x5", "GoToLocal", "Pong", "Door", "Ant-v4", "Ant-v5"]


def test_every_kind_of_block_is_shown(tmp_path):
    picture = Picture(figsize=(3, 2))
    picture.subplots().plot([0, 1], color="black")
    png = io.BytesIO()
    picture.savefig(png, format="png")
    table = Table(["arm", "score"], [[Toned("<b>", "strong"), "0.5 [0.4, 0.6]"], ["other", "-"]], "Scores", "A note.")
    figures = [Figure("as SVG", picture), Figure("as PNG", png.getvalue(), "below it")]
    page = Page(
        "Why?", "Because.", notices=["One failed."], sections=[Section("All & more", ["Text."], [table, *figures])]
    )
    assert as_text(page).splitlines() == [
        *("Because.", "", "One failed.", "", "ALL & MORE", "", "Text.", "", "Scores"),
        *("arm    score", "---------------------", "<b>    0.5 [0.4, 0.6]", "other  -", "", "A note."),
    ]
    write_html(page, tmp_path / "page.html")
    seen = look(tmp_path / "page.html")
    assert (seen["headline"], seen["images"]) == ("Because.", [["as PNG", 300]])
    assert [name for name, _ in seen["charts"]] == ["as SVG"]
    for words in ("Why?", "One failed.", "<b> 0.5 [0.4, 0.6]", "below it", "A note.", "All & more"):
        assert words in seen["text"]
    source = (tmp_path / "page.html").read_text()
    assert '<td class="strong">&lt;b&gt;' in source
    assert '<a href="#all-more">' in source
    assert '<section id="all-more">' in source


@pytest.fixture(scope="module")
def page(doorkey: FrameStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a comparison on two tasks, with a run that failed and one that has not ended."""
    runs = tmp_path_factory.mktemp("comparison") / "runs"
    shutil.copytree(doorkey.path, runs / "frames" / "mixed")
    encoder = runs / "encoders/inverse/seed-0"
    pretrain(doorkey, out=encoder, objective="inverse", steps=2, batch=16, features=16)
    write_json(encoder / "done.json", {**asdict(Run("encoders", "inverse", 0)), "seconds": 12.0, "threads": 1})
    write_json(encoder / "rows.json", [["probe/front", 0.5, None]])
    write_study(runs, {"scratch": [8000, 9000, NEVER], "random": [NEVER], "best": [2000, 3000, 4000]}, task=DOOR)
    write_study(runs, {"scratch": [2000, 3000, 4000], "best": [8000, 9000, 10_000]}, task=EMPTY)
    error = "RuntimeError: <script>document.title = 'taken'</script> & more"
    write_json(runs / DOOR / "jigsaw/seed-0/failed.json", {"error": error})
    write_json(runs / DOOR / "jigsaw/seed-1/run.json", {})
    write_json(runs / DOOR / "jigsaw/seed-1/history/run.json", {})  # below a run, not one of its own
    write_json(runs / DOOR / "best/seed-0/run.json", {"commit": "abc123", "dirty": True, "versions": {"torch": "2.0"}})
    Image.new("RGB", (8, 8)).save(
        runs / DOOR / "best/seed-1/policy.gif", save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]
    )
    report(runs)
    return runs / "report.html"


@pytest.fixture(scope="module")
def seen(page: Path) -> dict[str, Any]:
    return look(page)


def test_page_stands_alone(page: Path, seen: dict[str, Any]) -> None:
    assert seen["scripts"] == 1  # the inspector
    assert seen["loads"] == []
    assert dict(seen["images"]) == {"best, seed 1": 8, "DoorKey-5x5": 12 * 58 + 2}
    assert len(seen["charts"]) == 2 * 2 + 3  # curves and ratios on both tasks, arms against the baseline
    assert all(width > 200 for _, width in seen["charts"])
    assert page.stat().st_size < 1_000_000


def test_page_gives_the_answer_first_and_hides_no_failure(seen: dict[str, Any]) -> None:
    assert seen["headline"] == "Pretraining saved environment steps on 1 of 2 tasks and cost steps on 1."
    for words in (
        "Saved on DoorKey-5x5; cost on Empty-5x5",
        f"Failed runs: 1. {DOOR}/jigsaw/seed-0: RuntimeError: <script>document.title = 'taken'</script> & more",
        "Unfinished runs: 1.",
        "Arms without a finished run: jigsaw on DoorKey-5x5; random, jigsaw on Empty-5x5.",
        "Pretraining cost 6k environment steps: to reach 0.8, scratch needs 0.33 [",
        "all 1 won, 1 lost of 2 0 won, 0 lost of 1",
        "0.5*random + 0.5*expert:0.2",
        "inverse 0 2 16 12",
        "torch 2.0",
        "abc123 with changes",
    ):
        assert words in seen["text"]


def test_page_is_dark_for_those_who_like_it_and_fits_a_phone(page: Path, seen: dict[str, Any]) -> None:
    dark = look(page, width=500, scheme=DARK)  # headless Chromium's narrowest
    assert dark["beyond"] <= 0
    assert seen["beyond"] <= 0
    red, green, blue = (int(style("best", METRIC)[0][i : i + 2], 16) for i in (1, 3, 5))
    for shown, ink in ((seen, "rgb(27, 29, 32)"), (dark, "rgb(233, 232, 228)")):
        assert {ink, f"rgb({red}, {green}, {blue})"} <= set(shown["strokes"])


def test_page_without_anything_around_it(tmp_path: Path) -> None:
    runs = write_study(tmp_path / "runs", {"scratch": [8000, 9000, 9000], "best": [2000, 3000, 4000]})
    report(runs)
    source = (runs / "report.html").read_text()
    assert source.count("not recorded") == 2
    for title in ("Offline frames", "Pretraining</h2>", "Final policies", "Every task"):
        assert title not in source


def test_damaged_facts_do_not_withhold_the_answer(page: Path, tmp_path: Path) -> None:
    runs = shutil.copytree(page.parent, tmp_path / "copy")
    (runs / "frames/mixed/manifest.json").write_text("{")
    (runs / "encoders/inverse/seed-0/config.json").write_text("half")
    (runs / DOOR / "best/seed-1/policy.gif").write_bytes(bytes(MOST_BYTES + 1))
    report(runs)
    source = html.unescape((runs / "report.html").read_text())
    for words in (
        "frames/mixed/manifest.json is damaged",
        "config.json is damaged",
        "0.5 MB, too large for this page",
        "saved environment steps on 1 of 2 tasks",
    ):
        assert words in source
