"""Measure every speed that rlpre claims: ``python scripts/bench.py``."""

import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from agents.bench import MEASURES, Bench, Row, hardware, table
from cli import run
from rlpre import RlpreError
from rlpre.utils import provenance, resolve_device, write_json

THREADS = 1  # as in a study with one run for each core


def main(out: Path = Path("runs/bench.json"), size: float = 1.0, device: str = "auto") -> None:
    """Measures every speed that rlpre claims against the stock alternative in the same run.

    Args:
        out: JSON file.
        size: factor on the work of each run; 1 takes about four minutes on two idle cores.
        device: where encoders run, "cpu", "cuda", ...
    """
    if not 0 < size < float("inf"):
        raise RlpreError(f"size is {size:g}, it must be a positive number: 1 is the full bench")
    torch.set_num_threads(THREADS)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as home, tqdm(MEASURES.items(), unit="measure", disable=None) as bar:
        bench = Bench(resolve_device(device), Path(home), size)
        for name, measure in bar:
            bar.set_description(name)
            rows += measure(bench)
    machine = hardware(bench.device)
    write_json(out, {"rows": [asdict(row) for row in rows], "size": size, **machine, **provenance()})
    print(table(rows))
    print(f"{machine['cpu']}, {machine['threads']} thread(s), encoders on {machine['device']}; figures: {out}")


if __name__ == "__main__":
    run(main)
