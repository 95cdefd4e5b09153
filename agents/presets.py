"""Comparisons with a name."""

from agents.comparison import Arm, Comparison, Offline
from agents.presets_why import PRESETS as CAUSES
from agents.recipes import Backbone
from agents.train import PPOConfig, TrainConfig
from envs.worlds import NARROW_MEMORY
from rlpre import PretrainConfig

EMPTY = "MiniGrid-Empty-Random-6x6-v0"
DOORKEY = "MiniGrid-DoorKey-5x5-v0"
TASKS = {  # and environment steps of a run
    DOORKEY: 80_000,
    "MiniGrid-DoorKey-6x6-v0": 120_000,
    "MiniGrid-MultiRoom-N2-S4-v0": 100_000,
    "MiniGrid-KeyCorridorS3R1-v0": 160_000,  # no encoder has seen it
}
SOURCES = (
    DOORKEY,
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-Unlock-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
    "MiniGrid-LavaCrossingS9N1-v0",
)
MIXED = Offline(SOURCES, 60_000)
QUICK, BEST = "contrastive+inverse", "temporal+inverse"
CONTROLS = {name: Arm(name) for name in ("scratch", "scratch-shift", "random-frozen")}
LONG = {
    "pretrain": PretrainConfig(steps=1000, checkpoint_every=500),
    "train": TrainConfig(eval_every=4096, eval_episodes=16),
}


def arms(best: str) -> dict[str, Arm]:
    """The controls, encoders frozen, and the best one fine-tuned."""
    objectives = ("jigsaw", "contrastive", best)
    frozen = {f"{objective}-frozen": Arm("frozen", objective) for objective in objectives}
    return {**CONTROLS, **frozen, f"{best}-finetuned": Arm("finetuned", best)}


PRESETS = {
    "quick": Comparison(
        environments=(EMPTY,),
        steps=(40_960,),
        data={"mixed": Offline((EMPTY,), 20_000)},
        arms=arms(QUICK),
        answer=f"{QUICK}-frozen",
        pretrain=PretrainConfig(steps=250, checkpoint_every=125),
    ),
    "full": Comparison(
        environments=tuple(TASKS),
        steps=tuple(TASKS.values()),
        data={"mixed": MIXED},
        arms=arms(BEST),
        answer=f"{BEST}-frozen",
        seeds=5,
        **LONG,
    ),
    # what matters: the data, how much of it, the objective, and what is trained
    "ablation": Comparison(
        environments=(DOORKEY,),
        steps=(60_000,),
        data={
            "mixed": MIXED,
            "random": Offline(SOURCES, 60_000, "random"),
            "expert": Offline(SOURCES, 60_000, "expert"),
            "few": Offline(SOURCES, 3_000),
        },
        arms={
            "scratch": Arm("scratch"),
            f"{BEST}-frozen": Arm("frozen", BEST),
            **{f"{BEST}@{data}-frozen": Arm("frozen", BEST, data) for data in ("random", "expert", "few")},
            **{f"{name}-frozen": Arm("frozen", name) for name in ("temporal", "inverse", "forward", "forward+inverse")},
            **{f"{BEST}-{agent}": Arm(agent, BEST) for agent in ("finetuned", "anchored", "partial", "lp-ft")},
        },
        answer=f"{BEST}-frozen",
        seeds=5,
        **LONG,
    ),
    # What the past is worth: the same frozen features of one frame, and of the last ones. Through the stock view,
    # MemoryS7 and S9 need no memory: who looks back from the fork sees what was shown at the start, and both ends too.
    # Nor does RedBlueDoors: in a pilot one frame came to .84. Whitened, because a key for a ball moves plain features
    # by an eighth of what two frames differ by, and wide, because the answer is whether two things are alike: in pilots
    # PPO came to chance on plain features, and in the end on 64 of a sequence
    "memory": Comparison(
        environments=(NARROW_MEMORY,),
        steps=(800_000,),
        data={"memory": Offline((NARROW_MEMORY,), 60_000, "random")},
        arms={
            "single-frame": Arm("frozen", BEST, whitened=True),
            "history-random": Arm("history-random", BEST, whitened=True),
            "history-cpc": Arm("history-frozen", BEST, whitened=True, past="cpc"),
        },
        answer="history-cpc",
        baseline="single-frame",
        seeds=5,
        pretrain=PretrainConfig(steps=1000, checkpoint_every=500),
        train=TrainConfig(
            tile_size=16,
            backbone=Backbone("transformer", width=256, window=16),
            eval_every=8192,
            ppo=PPOConfig(n_steps=128, learning_rate=5e-4, n_epochs=8, ent_coef=0.02, hidden=128),
        ),
    ),
    **CAUSES,
}
