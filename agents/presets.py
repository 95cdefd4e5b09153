"""Comparisons with a name."""

from agents.compare import Arm, Comparison, Offline
from rlpre import PretrainConfig

EMPTY = "MiniGrid-Empty-Random-6x6-v0"
BEST = "contrastive+inverse"

PRESETS = {
    "quick": Comparison(
        environments=(EMPTY,),
        steps=(40_960,),
        data={"mixed": Offline((EMPTY,), 20_000)},
        arms={
            "scratch": Arm("scratch"),
            "scratch-shift": Arm("scratch-shift"),
            "random-frozen": Arm("random-frozen"),
            "jigsaw-frozen": Arm("frozen", "jigsaw"),
            "contrastive-frozen": Arm("frozen", "contrastive"),
            f"{BEST}-frozen": Arm("frozen", BEST),
            f"{BEST}-finetuned": Arm("finetuned", BEST),
        },
        answer=f"{BEST}-frozen",
        pretrain=PretrainConfig(steps=250, checkpoint_every=125),
    ),
}
