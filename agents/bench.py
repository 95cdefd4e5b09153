"""What rlpre is faster than, and by how much: each function measures one claim against what one would do without it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from PIL import Image
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.vec_env import VecEnv
from torch import Tensor

import envs
from agents.bench_ways import ENV, N_ENVS, SHAPE, Forgetful, by_hand, fast_vec, fresh_encoder, stock_env, stock_vec
from agents.stopwatch import Row, compare, interleave, timed, wait
from agents.train import PPOConfig
from rlpre import EncodedVecEnv, FrameStore, PretrainConfig, SequenceEncoder, policy_kwargs, pretrain
from rlpre.loop import LOG_EVERY, Pretext, first_encoder
from rlpre.objectives import draw_batch, make_objective

BATCH = 256  # frames a random read
PPO_ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """Where and how much to measure."""

    device: torch.device
    home: Path  # for frames and checkpoints that nobody keeps
    size: float = 1.0  # factor on the work of a run

    def count(self, full: int, least: int = 1) -> int:
        """``full`` at size 1, and never below ``least``."""
        return max(least, round(full * self.size))

    @cached_property
    def frames(self) -> FrameStore:
        """Offline frames, as the default comparison collects them."""
        steps = self.count(20_000, least=1024)
        return envs.collect(ENV, self.home / "frames", steps, seed=0, behaviour="0.5*random + 0.5*expert:0.3")


def worlds(view: str, at_least: float, bench: Bench) -> list[Row]:
    """Steps per second of many environments and of one, random actions, resets included."""
    actions = np.random.default_rng(0).integers(0, 7, (bench.count(128, least=4), N_ENVS))
    vectors = {"stock": stock_vec(view), "ours": envs.make_vec(ENV, N_ENVS, seed=0, view=view)}
    singles = {"stock": stock_env(view), "ours": envs.make(ENV, view)}

    def play_vector(venv: VecEnv) -> None:
        venv.reset()
        for row in actions:
            venv.step(row)

    def play_single(env: gym.Env) -> None:
        env.reset(seed=0)
        for action in actions.ravel():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    many = interleave({name: partial(play_vector, venv) for name, venv in vectors.items()}, bench.device)
    one = interleave({name: partial(play_single, env) for name, env in singles.items()}, bench.device)
    what = f"{N_ENVS} worlds, {view}: make_vec / stock wrappers in DummyVecEnv"
    return [
        compare(what, **many, work=actions.size, unit="steps/s", at_least=at_least),
        compare(f"one world, {view}: make / stock wrappers", **one, work=actions.size, unit="steps/s"),
    ]


def frames(bench: Bench) -> list[Row]:
    """Microseconds per frame to draw, read and decode random batches, against a folder of images."""
    store, batches = bench.frames, bench.count(40)
    rng = np.random.default_rng(0)
    files = [bench.home / f"{i}.png" for i in range(bench.count(2048, least=BATCH))]
    for file, frame in zip(files, store.frames(np.arange(len(files))), strict=True):
        Image.fromarray(frame.transpose(1, 2, 0)).save(file)

    def images() -> None:
        for _ in range(batches):
            np.stack([np.asarray(Image.open(files[i])) for i in rng.integers(len(files), size=BATCH)])

    def ours() -> None:
        for _ in range(batches):
            store.frames(store.sample(BATCH, rng))

    seconds = interleave({"stock": images, "ours": ours}, bench.device)
    what = f"random batches of {BATCH} frames: FrameStore / PNG files through PIL"
    return [compare(what, **seconds, work=batches * BATCH, unit="us/frame", at_most=5)]


def pretraining(bench: Bench) -> list[Row]:
    """Pairs per second of the real loop, against forward and backward alone on a batch that is there already.

    The loop tells its progress after each step; between two runs of its steps the bare model has its turn.
    """
    rounds, chunk = 5, bench.count(LOG_EVERY, least=2)
    steps = (1 + rounds) * chunk  # the first chunk warms up
    config = PretrainConfig(steps=steps, checkpoint_every=steps, device=str(bench.device))
    bare = bare_update(bench, config)
    loop: list[float] = []
    alone: list[float] = []
    start = time.perf_counter()

    def turn(step: int) -> None:
        nonlocal start
        if step % chunk == 0:
            wait(bench.device)
            loop.append(time.perf_counter() - start)
            alone.append(timed(lambda: [bare() for _ in range(chunk)], bench.device))
            start = time.perf_counter()

    pretrain(bench.frames, out=bench.home / "encoder", config=config, report=turn)
    what = "pretraining: the loop / bare forward and backward"
    return [compare(what, alone[1:], loop[1:], chunk * config.batch, "pairs/s", at_least=0.85)]


def bare_update(bench: Bench, config: PretrainConfig) -> Callable[[], None]:
    """Forward and backward of the model that ``config`` trains, in the same precision, on one batch."""
    store, device = bench.frames, bench.device
    encoder = first_encoder(store, None, config)
    model = Pretext(encoder, make_objective(config.objective, encoder, store)).to(device)
    batch = draw_batch(store, store.pairs(config.gap), config.batch, np.random.default_rng(0), device)
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def update() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss, _ = model(batch)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return update


def plug_frozen(bench: Bench) -> list[Row]:
    """PPO's steps per second with a frozen encoder, and what each part of the gain brings."""
    encoder, heads = fresh_encoder(), {"net_arch": [PPOConfig.hidden] * 2}
    inside = heads | by_hand(encoder, trainable=False)
    agents = {
        "stock": make_ppo(bench, stock_vec(), "CnnPolicy", inside),
        "stock, our worlds": make_ppo(bench, fast_vec(), "CnnPolicy", inside),
        "no memory": make_ppo(bench, Forgetful(fast_vec(), encoder, bench.device), "MlpPolicy", heads),
        "ours": make_ppo(bench, EncodedVecEnv(fast_vec(), encoder, bench.device), "MlpPolicy", heads),
    }
    seconds, work = learn(agents, bench)
    theirs, ours = seconds["stock"], seconds["ours"]
    row = partial(compare, work=work, unit="steps/s")
    return [
        row("PPO frozen: EncodedVecEnv / encoder in SB3's policy, stock wrappers", theirs, ours, at_least=6),
        row("  without the memory of seen frames / the same", theirs, seconds["no memory"]),
        row("  EncodedVecEnv / the same, both on our worlds", seconds["stock, our worlds"], ours),
    ]


def plug_finetuned(bench: Bench) -> list[Row]:
    """PPO's steps per second with a trained encoder."""
    encoder, heads = fresh_encoder(), {"net_arch": [PPOConfig.hidden] * 2}
    agents = {
        "NatureCNN": make_ppo(bench, stock_vec(), "CnnPolicy", {}),
        "same encoder": make_ppo(bench, stock_vec(), "CnnPolicy", heads | by_hand(encoder, trainable=True)),
        "every frame": make_ppo(bench, fast_vec(), "CnnPolicy", heads | by_hand(encoder, trainable=True)),
        "ours": make_ppo(bench, fast_vec(), "CnnPolicy", policy_kwargs(encoder, "finetuned", **heads)),
    }
    seconds, work = learn(agents, bench)
    row = partial(compare, ours=seconds["ours"], work=work, unit="steps/s")
    return [
        row("PPO finetuned: rlpre / SB3's CnnPolicy, stock wrappers", seconds["NatureCNN"], at_least=2),
        row("  rlpre / the same encoder in SB3's policy, stock wrappers", seconds["same encoder"]),
        row("  rlpre / encoding repeated frames too, both on our worlds", seconds["every frame"]),
    ]


def cached_step(kind: str, bench: Bench) -> list[Row]:
    """Steps per second of a sequence encoder that keeps its state, against one that reads its whole window again."""
    torch.manual_seed(0)
    encoder = SequenceEncoder(kind, fresh_encoder(), actions=7).to(bench.device).eval()
    length, repeats = encoder.window, bench.count(32)
    frames = torch.rand(N_ENVS, length, *SHAPE, device=bench.device)
    before = torch.randint(7, (N_ENVS, length), device=bench.device)
    present = torch.ones(N_ENVS, length, dtype=torch.bool, device=bench.device)
    features = encoder.encode_frames(frames.flatten(0, 1)).unflatten(0, (N_ENVS, length))
    state = encoder.begin(N_ENVS)

    def seen(steps: int) -> Tensor:
        return encoder.encode_frames(frames[:, -steps:].flatten(0, 1)).unflatten(0, (N_ENVS, steps))

    def step(last: Tensor) -> None:
        encoder.step(last[:, -1], before[:, -1], None, state)

    ways = {
        "frames again": lambda: encoder(seen(length), before, None, present),
        "frame": lambda: step(seen(1)),
        "window again": lambda: encoder(features, before, None, present),
        "step": lambda: step(features),
    }
    with torch.no_grad():
        seconds = interleave({name: partial(repeat, way, repeats) for name, way in ways.items()}, bench.device)
    row = partial(compare, work=repeats * N_ENVS, unit="steps/s")
    what = f"{kind}, a step: kept state / the last {length} frames again"
    return [
        row(what, seconds["frames again"], seconds["frame"], at_least=length),
        row("  without the frames' encoder in both", seconds["window again"], seconds["step"]),
    ]


def repeat(work: Callable[[], object], times: int) -> None:
    """Does the same so often that it can be timed."""
    for _ in range(times):
        work()


def replay(bench: Bench) -> list[Row]:
    """Bytes of a transition's two observations in DQN's replay buffer, with a frozen encoder."""
    room = bench.count(1000, least=N_ENVS)
    venvs = {"CnnPolicy": fast_vec(), "MlpPolicy": EncodedVecEnv(fast_vec(), fresh_encoder(), bench.device)}
    buffers = [DQN(policy, venv, buffer_size=room).replay_buffer for policy, venv in venvs.items()]
    sizes = [(of.observations.nbytes + of.next_observations.nbytes) / (of.buffer_size * N_ENVS) for of in buffers]
    pixels, features = sizes
    what, ratio = "DQN replay: features of a frozen encoder / frames", pixels / features
    return [Row(what, pixels, features, "bytes", ratio, ratio, ratio)]


MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "partial view": partial(worlds, "partial", 15),
    "full view": partial(worlds, "full", 15),
    "frames": frames,
    "pretraining": pretraining,
    "frozen": plug_frozen,
    "finetuned": plug_finetuned,
    "gru": partial(cached_step, "gru"),
    "transformer": partial(cached_step, "transformer"),
    "replay": replay,
}


def make_ppo(bench: Bench, venv: VecEnv, policy: str, arguments: dict[str, Any]) -> PPO:
    """PPO with the settings that all our agents share; a small bench has shorter rollouts."""
    rollout = bench.count(PPOConfig.n_steps, least=PPOConfig.batch_size // N_ENVS)
    settings = asdict(PPOConfig(n_steps=rollout, learning_rate=3e-4, n_epochs=4))
    for ours in ("hidden", "n_envs", "advantage_floor"):
        del settings[ours]
    return PPO(policy, venv, policy_kwargs=arguments, seed=0, device=bench.device, **settings)


def learn(agents: dict[str, PPO], bench: Bench) -> tuple[dict[str, Sequence[float]], int]:
    """Seconds of each agent per round of one rollout and one update, and the steps of a round."""
    steps = next(iter(agents.values())).n_steps * N_ENVS
    ways = {name: partial(agent.learn, steps, reset_num_timesteps=False) for name, agent in agents.items()}
    return interleave(ways, bench.device, PPO_ROUNDS), steps
