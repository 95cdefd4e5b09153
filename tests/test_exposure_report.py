"""Reports on studies of exposure bias whose policies err with known rates."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DARK, look
from exposures import EPISODES, QUESTION, write_exposure, write_policy
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar.metadata import CONFIG_SUMMARY_TAG

from rlpre.errors import RlpreError
from rlpre.files import write_json
from rlpre.measure.exposure import Context, load_contexts, save_contexts
from rlpre.report.exposure.answers import arm_answer, change_answer, level_answer, overall_answer
from rlpre.report.exposure.figures import summarise
from rlpre.report.exposure.report import report
from rlpre.report.exposure.results import Question, find_runs, load_question
from rlpre.study import Cell

NEAR, FAR = QUESTION.horizons
BIASED = {
    "clone": (0.05, 0.7, 0.55),
    "observation only": (0.1, 0.5, 0.5),
    "dagger": (0.045, 0.12, 0.95),
    "ppo": (0.4, 0.4, 0.3),
    "more labels": (0.05, 0.7, 0.55),
}
UNBIASED = {"clone": (0.05, 0.05, 0.9), "dagger": (0.05, 0.05, 0.9)}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with exposure bias on the far level and none on the near one, where one run has failed."""
    directory = tmp_path_factory.mktemp("exposure")
    write_exposure(directory, BIASED, FAR)
    write_exposure(directory, UNBIASED, NEAR)
    write_json(directory / NEAR / "ppo/seed-0/failed.json", {"error": "RuntimeError: <b>no</b> & more"})
    write_json(directory / NEAR / "ppo/seed-0/run.json", {})
    (directory / "demonstrations").mkdir()  # another stage's, which recorded no contexts
    write_json(directory / "demonstrations/done.json", {"environment": "x", "arm": "y", "seed": 0, "seconds": 1.0})
    (directory / "said.txt").write_text(report(directory))
    return directory


def test_report_says_the_verdicts_and_writes_everything(study: Path) -> None:
    said = (study / "said.txt").read_text()
    content = json.loads((study / "results.json").read_text(), parse_constant=pytest.fail)
    lines = content["answer"]
    assert said.endswith("\n".join(lines))
    assert lines[0] == "exposure bias is measured on 1 of 2 levels, and cured on 1: dagger cures it on Far."
    assert lines[1].startswith("Near: no exposure bias is measured: in 6 steps clone makes 0.")
    assert lines[1].endswith("; the interval of the excess contains 0.")
    assert lines[2].startswith("Far: exposure bias is measured: in 14 steps clone makes 1.")
    assert lines[3:] == [
        "dagger: cures it on Far; no effect on Near.",
        "ppo: harms on Far; no verdict on Near.",
        "more labels: no effect on Far; no verdict on Near.",
    ]
    assert (study / "table.md").read_text().startswith(f"- {lines[0]}\n- {lines[1]}\n")
    assert content["levels"][FAR]["dagger"]["verdict"] == "cures"
    assert content["levels"][FAR]["clone"]["change"] is None
    assert content["levels"][FAR]["clone"]["turns"]["steps"] == [0, 2, 4, 8, 16]
    page = (study / "report.html").read_bytes()
    assert report(study) == said  # no chance in it
    assert (study / "report.html").read_bytes() == page


def test_figures_are_those_of_the_records(study: Path) -> None:
    figures = summarise(study, QUESTION)[FAR]["clone"]
    records = [load_contexts(study / Cell(FAR, "clone", seed).path / "contexts.npz")[0] for seed in range(3)]
    for name in ("EE", "OO"):
        errors = [(of[name].wrong & (of[name].regret > 0) & of[name].alive)[:, :14] for of in records]
        expected = np.mean([of.sum(axis=1).mean() for of in errors])
        assert figures.totals["regret error"][name].value == pytest.approx(expected)
        alive = [of[name].alive[:, 9].sum() for of in records]
        assert figures.curves["regret error"][name][9].value == pytest.approx(
            sum(of[:, 9].sum() for of in errors) / sum(alive)
        )
        assert figures.nll[name].value == pytest.approx(
            np.concatenate([of[name].nll[:, :14][of[name].alive[:, :14]] for of in records]).mean()
        )
    assert figures.success["EE"].value == 1
    assert figures.success["gap"].value == pytest.approx(1 - np.mean([of["OO"].success for of in records]))
    # A chain that goes on erring with .7 recovers with .3; in EE it errs with .05 whatever was before.
    assert figures.recovery["OO"].value == pytest.approx(0.3, abs=0.05)
    assert figures.recovery["EE"].value == pytest.approx(0.95, abs=0.05)
    assert (figures.seeds, figures.episodes, figures.dropped, figures.horizon) == ((0, 1, 2), EPISODES, 0, 14)


def test_tables_have_a_row_for_every_arm(study: Path) -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in (study / "table.md").read_text().splitlines()
        if line.startswith("|")
    ]
    assert [row[0] for row in rows].count("clone") == 4  # errors and growth, on two levels
    (dagger,) = [row for row in rows if row[:2] == ["dagger", "cures"]]
    assert re.fullmatch(r"-\d\.\d\d \[-\d\.\d\d, -\d\.\d\d\]", dagger[2])
    assert re.fullmatch(r"\d+ %", dagger[5])
    assert len({len(row) for row in rows if row[0] == "clone"}) == 2


def test_picture_shows_contexts_and_verdicts(study: Path) -> None:
    pixels = np.asarray(Image.open(study / "exposure.png").convert("RGB")).reshape(-1, 3)
    for colour in ((0, 0, 0), (0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73), (0xD5, 0x5E, 0x00)):
        assert (pixels == colour).all(axis=1).sum() > 500


@pytest.fixture(scope="module")
def seen(study: Path) -> dict[str, Any]:
    return look(study / "report.html")


def test_page_says_the_verdicts_first_and_loads_nothing(study: Path, seen: dict[str, Any]) -> None:
    assert not re.search(r"https?://|<link|<script|@import|src=\"(?!data:)", (study / "report.html").read_text())
    assert (seen["loads"], seen["scripts"]) == ([], 1)  # the one that looked
    assert seen["headline"] == "Exposure bias is measured on 1 of 2 levels, and cured on 1."
    text = " ".join(seen["text"].split())
    places = [
        text.index(words)
        for words in (
            "Dagger cures it on Far.",
            "Without a finished run: observation only, ppo, more labels on Near.",
            f"Failed runs: 1. {NEAR}/ppo/seed-0 RuntimeError: <b>no</b> & more",
            "dagger no effect cures dagger: cures it on Far; no effect on Near.",
            "more labels control",
            "The rule, fixed before anything was measured.",
            "No exposure bias is measured: in 6 steps",
            "there is no excess to remove",
            "Growth, recovery, likelihood",
            "at least half of the excess is removed",
        )
    ]
    assert places == sorted(places)
    assert len(seen["charts"]) == 2 * 4
    assert all(width > 200 for _, width in seen["charts"])
    assert seen["strips"] == 1 + 3  # the arms that are judged


def test_page_is_dark_for_those_who_like_it_and_fits_a_phone(study: Path, seen: dict[str, Any]) -> None:
    dark = look(study / "report.html", width=500, scheme=DARK)
    assert max(dark["beyond"], seen["beyond"]) <= 0
    for shown, ink in ((seen, "rgb(27, 29, 32)"), (dark, "rgb(233, 232, 228)")):
        assert {ink, "rgb(213, 94, 0)"} <= set(shown["strokes"])  # teacher-forced has the colour of the text


def test_tensorboard_has_the_curves_by_step(study: Path) -> None:
    def read(path: Path) -> EventAccumulator:
        return EventAccumulator(str(path)).Reload()

    figures = summarise(study, QUESTION)[FAR]["clone"]
    board = read(study / "exposure/clone/OO")
    for tag, curve in (("regret error", figures.curves["regret error"]["OO"]), ("nll", figures.curves["nll"]["OO"])):
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high")):
            scalars = board.Scalars(f"{FAR}/{tag}{end}")
            assert [event.step for event in scalars] == list(range(1, 15))
            assert [event.value for event in scalars] == pytest.approx([getattr(point, field) for point in curve])
    assert f"{FAR}/AccErr" in board.Tags()["scalars"]
    (event,) = read(study / "exposure").Tensors(CONFIG_SUMMARY_TAG)
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    assert {category.title for category in layout.category} == {"Near", "Far"}
    for category in layout.category:
        (series,) = category.chart[0].margin.series
        assert {series.value, series.lower, series.upper} <= set(board.Tags()["scalars"])


def test_a_null_result_reads_as_one(tmp_path: Path) -> None:
    write_exposure(tmp_path, UNBIASED, NEAR)
    assert report(tmp_path).splitlines()[-4].startswith("no exposure bias is measured on Near: in 6 steps clone makes ")
    source = (tmp_path / "report.html").read_text()
    assert '<h1 class="open">No exposure bias is measured on Near.</h1>' in source
    assert "dagger has no measured effect on exposure bias, there is no excess to remove" in source
    assert "saved" not in source[source.index("<header>") : source.index('<section id="reading">')]


def test_answers_that_cannot_be_given(tmp_path: Path) -> None:
    def answers(directory: Path) -> tuple[str, ...]:
        results = summarise(directory, QUESTION)
        ((_, arms),) = results.items()
        level, dagger = level_answer(arms, QUESTION), change_answer("dagger", arms.get("dagger"), QUESTION)
        assert arm_answer("dagger", results, QUESTION) == dagger
        return overall_answer(results, QUESTION).verdict, level.claim, dagger.claim

    two = write_exposure(tmp_path / "two", {arm: BIASED[arm] for arm in ("clone", "dagger")}, seeds=2)
    few = "fewer than 3 seeds say nothing about the next ones"
    assert answers(two) == ("no verdict", f"no answer, {few}", f"no verdict on dagger, {few}")
    assert "(n<3)" in report(two)
    for seed in range(2):
        write_policy(two, Cell(FAR, "clone", seed + 2), *BIASED["clone"])
        (two / Cell(FAR, "clone", seed).path / "done.json").unlink()
    assert answers(two)[2] == "no verdict on dagger, no seed in common with clone"
    lone = write_exposure(tmp_path / "lone", {"dagger": BIASED["dagger"]})
    reason = "no answer, clone has no finished run"
    assert answers(lone) == ("no verdict", reason, "no verdict on dagger, no seed in common with clone")
    assert "Without a finished run: clone, observation only" in (report(lone) and (lone / "report.html").read_text())
    blind = write_exposure(tmp_path / "blind", {"clone": BIASED["clone"], "dagger": BIASED["dagger"]})
    for path in blind.rglob("contexts.npz"):
        contexts, _ = load_contexts(path)
        save_contexts(path, {name: replace(of, regret=of.regret * np.nan) for name, of in contexts.items()})
    unknown = "the regret was not measured at every step"
    assert answers(blind) == ("no verdict", f"no answer, {unknown}", f"no verdict on dagger, {unknown}")
    report(blind)
    content = json.loads((blind / "results.json").read_text(), parse_constant=pytest.fail)
    assert content["levels"][FAR]["clone"]["totals"]["regret error"]["OO"]["value"] is None
    assert content["levels"][FAR]["clone"]["totals"]["error"]["excess"]["low"] > 0


def test_studies_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=r"study\.json is missing"):
        report(tmp_path)
    write_json(tmp_path / "study.json", {})
    with pytest.raises(RlpreError, match="does not say what is asked"):
        report(tmp_path)
    write_json(tmp_path / "study.json", {"exposure": asdict(QUESTION)})
    assert load_question(tmp_path) == QUESTION
    with pytest.raises(RlpreError, match=r"holds no finished run with contexts\.npz"):
        report(tmp_path)
    write_policy(tmp_path, Cell(FAR, "degger", 0), 0.1, 0.1, 0.9)
    with pytest.raises(RlpreError, match="unknown arm 'degger': did you mean 'dagger'"):
        find_runs(tmp_path, QUESTION)
    write_policy(tmp_path / "level", Cell("BabyAI-Fat-v0", "clone", 0), 0.1, 0.1, 0.9)
    with pytest.raises(RlpreError, match="unknown level 'BabyAI-Fat-v0': did you mean 'BabyAI-Far-v0'"):
        find_runs(tmp_path / "level", QUESTION)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"baseline": "clown"}, "unknown arm 'clown': did you mean 'clone'"),
        ({"arms": {"clone": "clone", "dagger": "correct"}}, "unknown kind of arm 'correct'.*'correction'"),
        ({"horizons": {"Far": 0}}, "the horizon of Far is 0 steps"),
    ],
)
def test_bad_questions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        Question(**{**asdict(QUESTION), **changes})


def test_records_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    def cut(path: Path, change: Any) -> None:
        contexts, turns = load_contexts(path)
        save_contexts(path, {name: change(of) for name, of in contexts.items()}, turns)

    clone = {"clone": BIASED["clone"]}
    fewer = write_exposure(tmp_path / "fewer", clone)
    cut(fewer / FAR / "clone/seed-1/contexts.npz", lambda of: Context(*(array[:9] for array in vars(of).values())))
    with pytest.raises(RlpreError, match=r"seed-0 on 200 and .*seed-1 on 9 episodes were measured"):
        summarise(fewer, QUESTION)
    dropped = write_exposure(tmp_path / "dropped", clone)
    cut(dropped / FAR / "clone/seed-1/contexts.npz", lambda of: replace(of, alive=np.zeros_like(of.alive)))
    with pytest.raises(RlpreError, match="seed-1 dropped all its episodes"):
        summarise(dropped, QUESTION)
    turned = write_exposure(tmp_path / "turned", clone)
    contexts, turns = load_contexts(turned / FAR / "clone/seed-1/contexts.npz")
    assert turns is not None
    save_contexts(turned / FAR / "clone/seed-1/contexts.npz", contexts, replace(turns, steps=turns.steps + 1))
    with pytest.raises(RlpreError, match="the seeds of clone on BabyAI-Far-v0 switched at different steps"):
        summarise(turned, QUESTION)
