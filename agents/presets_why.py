"""Comparisons that ask why pretraining helps or not: start and conditioning, how many frames, how many tasks."""

from agents.comparison import Arm, Comparison, Offline
from agents.train import TrainConfig
from rlpre import PretrainConfig

OBJECTIVE = "temporal+inverse"
TRAINED, WHITENED = f"{OBJECTIVE}-frozen", f"{OBJECTIVE}-whitened"
BALLS = (  # rooms full of things: nearly every layout is another one
    "BabyAI-GoToRedBall-v0",
    "BabyAI-GoToRedBallGrey-v0",
    "BabyAI-GoToLocal-v0",
    "BabyAI-PickupLoc-v0",
    "BabyAI-PutNextLocal-v0",
)
SIZES = (1_000, 3_000, 10_000, 30_000, 100_000)  # different frames
MANY = {  # environment steps of a run on each; in pilots scratch came to 0.78 or more where it was tried
    "MiniGrid-Empty-Random-5x5-v0": 20_480,
    "MiniGrid-Empty-Random-6x6-v0": 32_768,
    "MiniGrid-DoorKey-5x5-v0": 61_440,
    "MiniGrid-LavaGapS5-v0": 32_768,
    "MiniGrid-MultiRoom-N2-S4-v0": 61_440,
    "BabyAI-GoToRedBallNoDists-v0": 49_152,
    "BabyAI-GoToRedBall-v0": 61_440,
}

# A start is worth the same factor whatever the conditioning, says the picture of gradient descent: all four are frozen,
# standardised, and of a seed begin with the same weights.
WHY = Comparison(
    environments=("BabyAI-GoToRedBallNoDists-v0",),
    steps=(61_440,),
    data={"mixed": Offline((*BALLS[:3], "BabyAI-GoToRedBallNoDists-v0"), 40_000)},
    arms={
        "fresh": Arm("frozen", OBJECTIVE, step=0),
        "fresh-whitened": Arm("frozen", OBJECTIVE, step=0, whitened=True),
        "pretrained": Arm("frozen", OBJECTIVE),
        "pretrained-whitened": Arm("frozen", OBJECTIVE, whitened=True),
    },
    answer="pretrained",
    baseline="fresh",
    seeds=5,
    each_seed=True,
    probe=4_000,
    pretrain=PretrainConfig(steps=1000, checkpoint_every=1000),
    train=TrainConfig(eval_every=2048, eval_episodes=32),
)

SCALING = Comparison(
    environments=("BabyAI-GoToRedBall-v0",),
    steps=(81_920,),
    data={f"{size // 1000}k": Offline(BALLS, 500_000, distinct=size) for size in SIZES},
    arms={
        "scratch": Arm("scratch"),
        "random-frozen": Arm("random-frozen"),
        **{f"{size // 1000}k-frozen": Arm("frozen", OBJECTIVE, f"{size // 1000}k") for size in SIZES},
    },
    answer=f"{SIZES[-1] // 1000}k-frozen",
    probe=10_000,
    seeds=5,
    pretrain=PretrainConfig(steps=2000, checkpoint_every=2000),
    train=TrainConfig(eval_every=4096, eval_episodes=16),
)

MANY_TASKS = Comparison(
    environments=tuple(MANY),
    steps=tuple(MANY.values()),
    data={"mixed": Offline(tuple(MANY), 60_000)},
    arms={
        "scratch": Arm("scratch"),
        "random-frozen": Arm("random-frozen"),
        TRAINED: Arm("frozen", OBJECTIVE),
        "fresh-whitened": Arm("frozen", OBJECTIVE, step=0, whitened=True),
        WHITENED: Arm("frozen", OBJECTIVE, whitened=True),
    },
    answer=WHITENED,  # WHY had found whitening to halve the steps on one of these tasks
    each_seed=True,
    probe=4_000,
    pretrain=PretrainConfig(steps=1000, checkpoint_every=1000),
    train=TrainConfig(eval_every=2048, eval_episodes=16),
)

PRESETS = {"why": WHY, "scaling": SCALING, "many": MANY_TASKS}
