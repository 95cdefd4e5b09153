"""Claim 27: with few labels a cue that means nothing misleads a model from scratch; pretraining protects.

The question is whether the expert goes forward. In training the colour of the floor mostly tells it; in the test it
does so as often, or is drawn at random: the drop is the difference. Without labels it is drawn at random too.
"""

from pathlib import Path

import numpy as np
from minigrid.core.constants import COLOR_TO_IDX, OBJECT_TO_IDX

import envs
from agents.claims.cells import copied, fresh_encoder
from agents.claims.claim import Claim, Verdict, judge
from agents.transfer import LABELS, LabelsConfig, Task, score_labels
from envs.minigrid.experts import FORWARD
from rlpre import Encoder, FrameStore, pretrain
from rlpre.evaluation.page import show_interval
from rlpre.evaluation.stats import mean_interval
from rlpre.sb3.policy import MODES

WORLD, BEHAVIOUR, STEPS = "MiniGrid-DoorKey-6x6-v0", "0.5*random + 0.5*expert:0.3", 6000
FLOORS = np.array([COLOR_TO_IDX["blue"], COLOR_TO_IDX["green"]], np.uint8)  # for other actions, and for going forward
CUE = 0.95  # how often the floor tells the answer where it is a cue
FEW = LabelsConfig(labels=100, steps=150, device="cpu")
PRETRAINING = {"objective": "temporal+inverse", "steps": 150, "batch": 64, "device": "cpu"}
AS_TRAINED, AT_RANDOM = "as trained", "at random"


def measure(directory: Path, seeds: int, cue: float = CUE) -> Verdict:
    """The smaller drop of a pretrained encoder; a ``cue`` of 0.5 tells nothing, so that nothing drops."""
    frames, new = (envs.collect(WORLD, directory / f"{seed}", STEPS, seed, BEHAVIOUR) for seed in (0, 1))
    drawn = np.random.default_rng(0).integers(2, size=len(frames))
    unlabelled = copied(frames, directory / "unlabelled", painted(frames.codes(np.arange(len(frames))), drawn))
    found: dict[str, list[list[float]]] = {"scratch": [], "frozen": [], "fresh": []}
    for seed in range(seeds):
        task = painted_task(frames, new, cue, seed)
        pretrained = pretrain(unlabelled, out=directory / f"encoder-{seed}", seed=seed, **PRETRAINING).path
        for arm, scores in found.items():
            parts = []
            for part in (AS_TRAINED, AT_RANDOM):
                encoder = Encoder.load(pretrained) if arm == "frozen" else fresh_encoder(frames, seed)
                mode = MODES["scratch" if arm == "scratch" else "frozen"]
                parts.append(score_labels(encoder, mode, task, part, FEW, seed))
            scores.append(parts)
    drops = {arm: np.subtract(*np.array(scores).T) for arm, scores in found.items()}
    kept = {arm: show_interval(mean_interval([drawn for _, drawn in scores])) for arm, scores in found.items()}
    measured = (
        f"smaller drop in balanced accuracy when the cue ends; accuracy without the cue: pretrained {kept['frozen']}, "
        f"scratch {kept['scratch']}, fresh and frozen {kept['fresh']}; drop of fresh and frozen "
        f"{show_interval(mean_interval(drops['fresh']))}"
    )
    return judge((-drops["frozen"]).tolist(), (-drops["scratch"]).tolist(), 0.05, measured, "scratch, -drop")


def painted(codes: np.ndarray, forward: np.ndarray) -> np.ndarray:
    """Codes in which the free cells are floor, in the colour for ``forward`` (n,)."""
    free = codes[..., 0] == OBJECT_TO_IDX["empty"]
    codes = codes.copy()
    codes[free, 0] = OBJECT_TO_IDX["floor"]
    codes[free, 1] = np.broadcast_to(FLOORS[forward.astype(int)][:, None, None], free.shape)[free]
    return codes


def painted_task(frames: FrameStore, new: FrameStore, cue: float, seed: int) -> Task:
    """Labelled frames with the cue, and frames to test on, that are not among them, with and without it."""
    rng, known = np.random.default_rng(seed), {code.tobytes() for code in frames.codes(np.arange(len(frames)))}
    parts, answers = {}, {}
    for name, store, told in ((LABELS, frames, cue), (AS_TRAINED, new, cue), (AT_RANDOM, new, 0.5)):
        rows = np.unique(store.ids, return_index=True)[1]
        rows = rows[store.column("expert")[rows] >= 0]
        codes = store.codes(rows)
        if store is new:
            other = np.array([code.tobytes() not in known for code in codes])
            rows, codes = rows[other], codes[other]
        answers[name] = (store.column("expert")[rows] == FORWARD).astype(np.int64)
        lies = rng.random(len(rows)) >= told
        assert store.atlas is not None
        parts[name] = store.atlas.decode(painted(codes, answers[name] ^ lies))
    return Task(parts, answers, 2)


CLAIM = Claim(
    27,
    "With few labels a spurious cue misleads a model from scratch; a pretrained one loses less when the cue ends.",
    measure,
    "a model from scratch on the same labels",
    needs="features in which the colour of the floor is weaker than what decides the action",
)
