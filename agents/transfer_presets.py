"""Studies of transfer with a name."""

from agents.few_labels import LabelsConfig
from agents.train import PPOConfig, TrainConfig
from agents.transfer import Source, Transfer
from rlpre import PretrainConfig

SMALL = (
    "MiniGrid-DoorKey-5x5-v0",
    "MiniGrid-DoorKey-6x6-v0",
    "MiniGrid-Unlock-v0",
    "MiniGrid-MultiRoom-N2-S4-v0",
)


def sources(steps: int) -> dict[str, Source]:
    """One source that shows the world of the tasks, and two that are wrong: other colours, and actions by lot."""
    return {
        "day": Source(SMALL, steps),
        "night": Source(SMALL, steps, palette="night"),
        "shuffled": Source(SMALL, steps, shuffled=True),
    }


TRANSFERS = {
    # does everything run? Nothing is learned
    "smoke": Transfer(
        sources={"day": Source(("MiniGrid-DoorKey-6x6-v0",), 320)},
        tasks=("MiniGrid-DoorKey-8x8-v0",),
        ladder=(0, 2, 4),
        validation=1,
        seeds=1,
        pretrain=PretrainConfig(features=16, batch=16),
        labels=LabelsConfig(labels=10, episodes=20, steps=4),
        train=TrainConfig(
            features=16, steps=64, eval_every=32, eval_episodes=2, ppo=PPOConfig(n_envs=4, n_steps=8, batch_size=16)
        ),
    ),
    "quick": Transfer(
        sources=sources(12_000),
        tasks=("MiniGrid-DoorKey-8x8-v0", "MiniGrid-KeyCorridorS3R1-v0"),
        ladder=(0, 50, 200),
        pretrain=PretrainConfig(batch=64),
    ),
    "full": Transfer(
        sources=sources(60_000),
        tasks=("MiniGrid-DoorKey-6x6-v0", "MiniGrid-MultiRoom-N2-S4-v0", "MiniGrid-SimpleCrossingS9N1-v0"),
        measure="rl",
        ladder=(0, 50, 200, 1000, 4000),
        train=TrainConfig(steps=81_920, eval_every=4096, eval_episodes=16),
    ),
}
