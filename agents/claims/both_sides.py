"""Claim 18: masked modelling sees both sides and fills in better than autoregressive modelling, which sees the past.

The same transformer is pretrained by either objective, with as many updates on as many frames. Both are asked for the
middle frame of windows of another collection.
"""

import re
from pathlib import Path

import torch

import envs
from agents.claims.cells import copied, fresh_encoder
from agents.claims.claim import RESULTS, Claim, Verdict, judge
from agents.likelihood import conditional_likelihood
from rlpre import FrameStore, SequenceEncoder, pretrain, whiten
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval

WORLD, BEHAVIOUR, FRAMES = "MiniGrid-DoorKey-6x6-v0", "0.5*random + 0.5*expert:0.3", 5000
UPDATES, BATCH, WINDOW, WIDTH, TESTS = 150, 16, 12, 64, 256
STUDY = "exposure-objectives"


def measure(directory: Path, seeds: int, past_updates: int = UPDATES) -> Verdict:
    """The fall of the loss by seeing both sides; ``past_updates`` are those of the model that sees the past."""
    frames, held_out = (
        copied(envs.collect(WORLD, directory / f"{seed}", FRAMES, seed, BEHAVIOUR), directory / f"plain-{seed}")
        for seed in (0, 1)
    )
    losses: dict[str, list[float]] = {"masked": [], "autoregressive": []}
    updates = {"masked": UPDATES, "autoregressive": past_updates}
    copying = []
    for seed in range(seeds):
        paths = {name: learnt(frames, name, directory / f"{name}-{seed}", seed, updates[name]) for name in losses}
        found = conditional_likelihood(paths, held_out, TESTS, seed, "cpu")
        for name, each in losses.items():
            each.append(-found[name]["middle_nll"])
        copying.append([found[name][f"middle_{what}"] for name, what in (("masked", "accuracy"), ("masked", "copied"))])
    right, copied_right = (show_interval(mean_interval(each)) for each in zip(*copying, strict=True))
    measured = (
        f"fall of the loss (nats) on cells with an object of a hidden middle frame, {UPDATES} updates each; the masked "
        f"model is right in {right} of them, the frame before in {copied_right}"
    )
    return judge(losses["masked"], losses["autoregressive"], 0.1, measured, "autoregressive, -nats")


def learnt(frames: FrameStore, objective: str, out: Path, seed: int, updates: int) -> Path:
    """The directory of a transformer that was pretrained by an objective, on whitened features of fresh weights."""
    vision = whiten(fresh_encoder(frames, seed), frames, seed)
    torch.manual_seed(seed)
    shape = {"width": WIDTH, "window": WINDOW, "causal": objective == "autoregressive"}
    start = SequenceEncoder("transformer", vision, frames.num_actions, **shape)
    arguments = {"objective": objective, "steps": updates, "batch": BATCH, "seed": seed, "device": "cpu"}
    return pretrain(frames, encoder=start, out=out, **arguments).path


def study() -> str:
    """What the larger study found: the loss of either objective on the frame in the middle."""
    lines = [re.split(" {2,}", line) for line in (RESULTS / STUDY / "likelihood.txt").read_text().splitlines()]
    column = lines[0].index("middle nll")
    means = {row[0].split(",")[0]: row[column] for row in lines if ", n=" in row[0]}
    return f"autoregressive {means['autoregressive']}, masked {means['masked']} nats (results/{STUDY})"


CLAIM = Claim(
    18,
    "Masked modelling, which sees both sides, fills in better than autoregressive modelling, which sees the past.",
    measure,
    "an autoregressive model with as many updates",
    study(),
    "more updates for the masked model, which learns from the hidden frames alone while the other learns from all",
)
