"""Train one agent: ``python scripts/train.py --agent frozen --encoder runs/encoders/a``."""

from pathlib import Path

import numpy as np
import tyro
from tqdm import tqdm

from agents import TrainConfig, train
from agents.film import film
from cli import run


def main(config: tyro.conf.OmitArgPrefixes[TrainConfig], out: Path | None = None) -> None:
    """Trains an agent, evaluates it as it goes, and films its final policy.

    Args:
        config: settings.
        out: run directory, default runs/train/ENV/AGENT/seed-SEED.
    """
    out = out or Path("runs/train", config.env, config.agent, f"seed-{config.seed}")
    with tqdm(total=config.steps, unit="step", desc=f"{config.agent} on {config.env}", disable=None) as bar:
        policy = train(config, out, lambda steps: bar.update(steps - bar.n))
    film(policy, config, out / "policy.gif")
    results = np.load(out / "evaluations.npz")["results"]
    returns = results.mean(axis=1)
    print(f"{out}: return {returns[-1]:.2f} at the end, {returns.max():.2f} at best, {results.shape[1]} episodes each")


if __name__ == "__main__":
    run(main)
