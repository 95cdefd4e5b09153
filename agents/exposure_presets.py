"""Studies of exposure bias with a name."""

from agents.exposure import Exposure, Level
from agents.tuning import Tuning
from rlpre import PretrainConfig

LEVELS = {
    "BabyAI-GoToLocal-v0": Level(demonstrations=1000, horizon=10, labels=2_000, steps=40_960),  # short: little to see
    "BabyAI-PutNextLocal-v0": Level(demonstrations=2000, horizon=20, labels=5_000, steps=40_960),
    "BabyAI-GoToObjMazeS5-v0": Level(demonstrations=1000, horizon=50, labels=8_000, steps=61_440),
    "BabyAI-BlockedUnlockPickup-v0": Level(demonstrations=300, horizon=50, labels=5_000, steps=61_440),
    "BabyAI-KeyCorridorS3R3-v0": Level(demonstrations=300, horizon=80, labels=6_000, steps=61_440),
}
TUNINGS = {
    "ppo": Tuning(),
    "ppo-kl": Tuning(beta=0.2),
    "ppo-scratch": Tuning("scratch", value_first=0.0),
}

EXPOSURES = {
    "quick": Exposure(
        levels={"BabyAI-PutNextLocal-v0": LEVELS["BabyAI-PutNextLocal-v0"]},
        tunings=TUNINGS,
        clones=("clone",),
        seeds=3,
        frames=10_000,
        pretrain=PretrainConfig(steps=300, checkpoint_every=150),
    ),
    "full": Exposure(levels=LEVELS, tunings=TUNINGS, pretrain=PretrainConfig(steps=1000, checkpoint_every=500)),
}
