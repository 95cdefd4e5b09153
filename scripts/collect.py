"""Collect offline frames: ``python scripts/collect.py MiniGrid-DoorKey-6x6-v0 --out runs/frames/doorkey``."""

from dataclasses import dataclass
from pathlib import Path

import tyro

import envs
import rlpre
from cli import run
from envs.minigrid.collect import load_agent
from rlpre import FrameStore, RlpreError
from rlpre.compare.train import make_venv

AGENT = "agent:"  # prefix of a behaviour


@dataclass(frozen=True)
class Collect:
    """Collects frames and reports their variety."""

    ids: tyro.conf.Positional[tuple[str, ...]] = ()  # of MiniGrid or BabyAI, of equal frame shape, or one of ViZDoom
    out: Path = Path("runs/frames/collected")  # directory of the frame store; an interrupted collection goes on
    env: str = ""  # instead of ids: another Gymnasium id, or "module:function" of a function (n_envs, seed) -> VecEnv
    steps: int = 40_000  # transitions in all
    seed: int = 0  # of environments and actions
    behaviour: str = "random"  # or "agent:runs/a/best_model.zip"; with ids "0.5*random + 0.5*expert:0.3" too
    n_envs: int = 16  # environments stepped together
    view: str = "partial"  # of ids: or "full", or "distract": pictures behind the cells
    tile_size: int = 8  # of ids: pixels per cell
    palette: str = "day"  # of ids: or "night"
    strength: float | None = None  # of view "distract": weight of the pictures, 0 to 1; default 0.5
    pictures: str | None = None  # of view "distract": "train", "test" or a folder; default "train"
    size: tuple[int, int] | None = None  # of env: (H, W) to resize frames to
    gray: bool = False  # of env: whether colours are stored as gray

    def levels(self) -> FrameStore:
        """Collects in MiniGrid and BabyAI levels."""
        names = ("view", "tile_size", "palette", "strength", "pictures")
        look = {name: value for name in names if (value := getattr(self, name)) is not None}
        return envs.collect(self.ids, self.out, self.steps, self.seed, self.behaviour, self.n_envs, **look)

    def other(self) -> FrameStore:
        """Collects in any other environment."""
        path = self.behaviour.removeprefix(AGENT)
        if self.behaviour != "random" and path == self.behaviour:
            raise RlpreError(
                f"behaviour {self.behaviour!r} needs ids with an expert: give 'random' or 'agent:path.zip'"
            )
        venv = make_venv(envs.find(self.env), self.n_envs, self.seed)
        policy = None if self.behaviour == "random" else load_agent(path, venv.observation_space)
        settings = {"seed": self.seed, "size": self.size, "gray": self.gray, "task": self.env}
        return rlpre.collect(venv, self.out, self.steps, policy, **settings)


def main(settings: tyro.conf.OmitArgPrefixes[Collect]) -> None:
    """Collects and reports."""
    if bool(settings.ids) == bool(settings.env):
        raise RlpreError(
            "give ids of MiniGrid or BabyAI, one of ViZDoom, or another environment as --env ID|MODULE:FUNCTION"
        )
    store = settings.levels() if settings.ids else settings.other()
    print(f"{store.path}: {len(store):,} frames, {store.distinct:,} distinct, {store.unchanged:.0%} of steps unchanged")


if __name__ == "__main__":
    run(main)
