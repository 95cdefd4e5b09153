"""Where a policy fails: ``python scripts/failures.py runs/train/ENV/AGENT/seed-0/last_policy.zip ENV``."""

from pathlib import Path

import tyro

import envs
from agents.failures import WORST, first_frames, load_policy, own_features, play, search
from cli import run
from rlpre.compare.train import film, make_venv
from rlpre.errors import RlpreError


def main(
    policy: tyro.conf.Positional[Path],
    env: tyro.conf.Positional[str],
    levels: int = 2000,
    budget: int = 200,
    seed: int = 0,
    view: str = "partial",
    tile_size: int = 8,
    out: Path | None = None,
) -> None:
    """Prints the ten worst levels that a search finds, with their seeds and returns, and films them.

    Args:
        policy: a zip of SB3: a policy such as last_policy.zip, or a model, on pixels.
        env: an id of MiniGrid, BabyAI or Gymnasium, or "module:function" of a function (n_envs, seed) -> VecEnv.
        levels: number of seeds, from 0 on, to search among.
        budget: number of them to play, an episode each with the most likely actions.
        seed: of the search.
        view: of MiniGrid and BabyAI, see `envs.make`.
        tile_size: the same.
        out: directory for the films, default failures/ beside the policy.
    """
    agent, out = load_policy(policy), out or policy.parent / "failures"
    look = {"view": view, "tile_size": tile_size} if env.startswith(("MiniGrid-", "BabyAI-")) else {}
    make_env = envs.find(env, **look)
    space = make_venv(make_env, 1, 0).observation_space
    if space != agent.observation_space:
        raise RlpreError(
            f"{policy} acts on {agent.observation_space}, {env} gives {space}: give its view and tile size"
        )
    places = own_features(agent, first_frames(make_env, range(levels)))
    found = search(places, lambda chosen: play(agent, make_env, chosen.tolist()), levels, budget, seed)
    print(f"{env}: mean return {found.returns[:16].mean():.2f} of levels at random; the worst of {budget} played:")
    returns = dict(zip(found.levels.tolist(), found.returns.tolist(), strict=True))
    for level in found.worst(WORST).tolist():
        path = out / f"level-{level}.gif"
        film(agent, make_venv(make_env, 1, level), path, episodes=1, deterministic=True)
        print(f"  seed {level:6d}  return {returns[level]:.2f}  {path if path.exists() else '(does not render)'}")


if __name__ == "__main__":
    run(main)
