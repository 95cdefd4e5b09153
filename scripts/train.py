"""Train one agent: ``python scripts/train.py --agent frozen --encoder runs/encoders/a``."""

from dataclasses import replace
from pathlib import Path

import tyro
from tqdm import tqdm

from agents.presets import TrainConfig
from cli import run
from rlpre.compare.train import train


def main(config: tyro.conf.OmitArgPrefixes[TrainConfig], out: Path | None = None) -> None:
    """Trains an agent, evaluates it as it goes, and films its final policy.

    Args:
        config: settings.
        out: run directory, default runs/train/ENV/AGENT/seed-SEED.
    """
    out = out or Path("runs/train", config.env, config.agent, f"seed-{config.seed}")
    training = replace(config.training(), film=True)
    with tqdm(total=config.steps, unit="step", desc=f"{config.agent} on {config.env}", disable=None) as bar:
        measured = train(training, out, lambda steps: bar.update(steps - bar.n))
    returns = [value for _, value in measured["return"]]
    episodes = f"{config.eval_episodes} episodes each"
    print(f"{out}: return {returns[-1]:.2f} at the end, {max(returns):.2f} at best, {episodes}")


if __name__ == "__main__":
    run(main)
