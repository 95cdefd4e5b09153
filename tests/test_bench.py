"""The bench: its arithmetic by hand, and the whole script at its smallest size."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from agents.bench import Row, compare, interleave, table

ROOT = Path(__file__).parent.parent
# What rlpre promises: the start of a row, and its aim.
AIMS = {
    "16 worlds, partial": "ratio >= 15",
    "  stepped by EnvPool / the same": "ratio >= 60",
    "16 worlds, full": "ratio >= 15",
    "16 of CoinrunEasy-v0": "ours <= 200",
    "16 worlds, distract": "ratio >= 8",
    "random batches of 256 frames": "ours <= 5",
    "pretraining": "ratio >= 0.85",
    "PPO frozen": "ratio >= 6",
    "  stepped by EnvPool / in SB3": "ratio >= 8",
    "PPO finetuned": "ratio >= 2",
    "  rlpre, stepped by EnvPool": "ratio >= 2.5",
    "gru": "ratio >= 32",
    "transformer": "ratio >= 32",
}


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "bench.py"), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_every_row_is_there_and_the_json_equals_the_table(tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    done = bench("--out", str(out), "--size", "0.01", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    written = json.loads(out.read_text())
    rows = [Row(**row) for row in written["rows"]]
    assert table(rows) in done.stdout
    for start, aim in AIMS.items():
        assert [row.aim for row in rows if row.what.startswith(start)] == [aim]
    assert len(rows) == 22
    for row in rows:
        assert all(math.isfinite(number) and number > 0 for number in (row.stock, row.ours, row.low, row.high))
        assert row.low <= row.ratio <= row.high
        assert (row.met is None) == (row.aim == "")
    assert written["threads"] == 1
    assert written["device"] == "cpu"
    assert written["cpu"]
    assert set(written) >= {"versions", "commit", "dirty", "size"}


@pytest.mark.parametrize(("option", "value"), [("size", "nan"), ("device", "nonsense")])
def test_bad_input_is_one_sentence(tmp_path: Path, option: str, value: str) -> None:
    done = bench("--out", str(tmp_path / "bench.json"), f"--{option}", value)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_rates_and_ratios_by_hand() -> None:
    stock, ours = [2.0, 4.0, 12.0], [1.0, 1.0, 4.0]  # ratios 2, 4, 3
    row = compare("a / b", stock, ours, 20, "steps/s", at_least=3)
    assert row == Row("a / b", 5.0, 20.0, "steps/s", 3.0, 2.0, 4.0, "ratio >= 3", True)
    assert compare("a / b", stock, ours, 20, "steps/s", at_least=3.1).met is False
    assert compare("a / b", stock, ours, 20, "steps/s").met is None


def test_times_per_thing_by_hand() -> None:
    row = compare("a / b", [2e-3], [1e-3], 100, "us/frame", at_most=9)
    assert (row.stock, row.ours, row.ratio) == pytest.approx((20.0, 10.0, 2.0))
    assert (row.aim, row.met) == ("ours <= 9", False)


def test_ways_take_turns_and_the_first_round_is_not_counted() -> None:
    turns: list[str] = []
    ways = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    seconds = interleave(ways, torch.device("cpu"), rounds=3)
    assert turns == ["a", "b"] * 4
    assert [len(times) for times in seconds.values()] == [3, 3]
