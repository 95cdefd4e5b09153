"""Studies of exposure bias with a name."""

from dataclasses import replace

from agents.clone import CloneConfig
from agents.exposure import Exposure, Level
from agents.recipes import Backbone
from agents.starts import BASELINE
from agents.tuning import Tuning
from rlpre import PretrainConfig

LONGEST = "BabyAI-KeyCorridorS3R3-v0"
BLOCKED = "BabyAI-BlockedUnlockPickup-v0"
MAZE = "BabyAI-GoToObjMazeS5-v0"
# demonstrations: so many that clones accomplish some of their missions and not all; horizon: the expert's mean length;
# labels: in pilots with fewer, the weights that were best held out came early, so steps were not what was short
LEVELS = {
    LONGEST: Level(demonstrations=300, horizon=60, episodes=16, labels=20_000, steps=24_576),
    BLOCKED: Level(demonstrations=300, horizon=35, episodes=24, labels=50_000, steps=24_576),
    MAZE: Level(demonstrations=1000, horizon=30, episodes=24, labels=50_000, steps=24_576),
    "BabyAI-PutNextLocal-v0": Level(demonstrations=3000, horizon=12, episodes=48, labels=30_000, steps=24_576),
    "BabyAI-GoToLocal-v0": Level(demonstrations=1000, horizon=6, episodes=100, labels=5_000, steps=24_576),
}
SCRATCH = Tuning("scratch", value_first=0.0)
TUNINGS = {
    "ppo": Tuning(),
    "ppo-kl": Tuning(beta=0.2),
    "ppo-scratch": replace(SCRATCH, ppo=replace(SCRATCH.ppo, ent_coef=0.01)),
}
VISION = PretrainConfig(features=512, steps=1000, checkpoint_every=500)

SMALL = {"n_envs": 4, "n_steps": 8, "batch_size": 16, "n_epochs": 1}

EXPOSURES = {
    # does everything run? Nothing is learned
    "smoke": Exposure(
        levels={"BabyAI-GoToLocal-v0": Level(demonstrations=20, horizon=6, episodes=3, labels=20, steps=64)},
        tunings={name: replace(tuning, ppo=replace(tuning.ppo, **SMALL)) for name, tuning in TUNINGS.items()},
        clones=(BASELINE, "clone-random-observation", "clone-masked"),
        seeds=1,
        switches=(50,),
        frames=320,
        steps=5,
        pretrain=PretrainConfig(features=16, steps=2, batch=16, checkpoint_every=2),
        sequence=PretrainConfig(steps=2, batch=8, checkpoint_every=2),
        backbone=Backbone(width=16, layers=1, window=8),
        clone=CloneConfig(steps=4, batch=4, check_every=2),
    ),
    "quick": Exposure(
        levels={BLOCKED: replace(LEVELS[BLOCKED], episodes=12, labels=5_000, steps=10_240)},
        tunings=TUNINGS,
        clones=(BASELINE,),
        seeds=3,
        switches=(50,),
        frames=10_000,
        steps=300,
        pretrain=replace(VISION, steps=150, checkpoint_every=150),
        clone=CloneConfig(steps=800),
    ),
    # does a policy gain from a sequence encoder that was pretrained, and by which objective? In a pilot that pretrained
    # for 3000 steps on 30,000 frames it found new ones less likely than after 1000, on 100,000 much likelier
    "objectives": Exposure(
        levels={BLOCKED: LEVELS[BLOCKED]},
        tunings={},
        corrections=(),
        clones=(BASELINE, "clone-autoregressive", "clone-masked"),
        seeds=5,
        switches=(50,),
        frames=100_000,
        pretrain=VISION,
        sequence=PretrainConfig(batch=32, steps=3000),
    ),
    "full": Exposure(levels=LEVELS, tunings=TUNINGS, steps=1000, pretrain=VISION),
    # in full, corrections cured the one level whose labels were five times the demonstrations': do as many the others?
    "labels": Exposure(
        levels={LONGEST: replace(LEVELS[LONGEST], labels=90_000), MAZE: replace(LEVELS[MAZE], labels=150_000)},
        tunings={},
        corrections=("dart", "dagger", "more-labels"),
        clones=(BASELINE,),
        seeds=5,
        switches=(50,),
        steps=1000,
        pretrain=VISION,
    ),
}
