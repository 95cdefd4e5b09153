"""Comparisons with a name."""

from agents.compare import Arm, Comparison
from agents.train import TrainConfig
from rlpre import PretrainConfig

DOORKEY = "MiniGrid-DoorKey-6x6-v0"
BEST = "temporal+inverse"

PRESETS = {
    "quick": Comparison(
        environments=(DOORKEY,),
        sources=(DOORKEY,),
        frames=40_000,
        behaviour="0.5*random + 0.5*expert:0.3",
        arms={
            "scratch": Arm("scratch"),
            "random-frozen": Arm("random-frozen"),
            "jigsaw-frozen": Arm("frozen", "jigsaw"),
            "contrastive-frozen": Arm("frozen", "contrastive"),
            f"{BEST}-frozen": Arm("frozen", BEST),
            f"{BEST}-finetuned": Arm("finetuned", BEST),
        },
        answer=f"{BEST}-frozen",
        pretrain=PretrainConfig(steps=500),
        train=TrainConfig(steps=100_000),
    ),
}
