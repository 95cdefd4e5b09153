"""What rlpre is faster than, and by how much: each function measures one claim against the way without rlpre."""

import copy
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import envpool
import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from minigrid.wrappers import ImgObsWrapper, RGBImgObsWrapper, RGBImgPartialObsWrapper
from PIL import Image
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecMonitor
from torch import Tensor

import envs
from rlpre import (
    EncodedVecEnv,
    Encoder,
    FrameStore,
    InputSpec,
    PretrainConfig,
    SequenceEncoder,
    policy_kwargs,
    pretrain,
)
from rlpre.evaluation.page import Table, aligned
from rlpre.objectives import make_objective
from rlpre.objectives.batches import FrameReader
from rlpre.pretrain import LOG_EVERY, Pretext, first_encoder

ENV = "MiniGrid-DoorKey-8x8-v0"
GAME = "CoinrunEasy-v0"
N_ENVS = 16
SHAPE = (3, 56, 56)  # of the partial view
HIDDEN = 64  # width of the two hidden layers of each head
# PPO as in the presets of scripts/compare.py; rl-starter-files
PPO_SETTINGS = {"batch_size": 256, "n_epochs": 4, "learning_rate": 3e-4, "ent_coef": 0.01, "n_steps": 64}
# MiniGrid has no pictures behind the cells: the row "distract" compares with its plain view
WRAPPERS = {"partial": RGBImgPartialObsWrapper, "full": RGBImgObsWrapper, "distract": RGBImgPartialObsWrapper}


def stock_env(view: str) -> gym.Env:
    """A pixel environment with MiniGrid's own wrappers."""
    return ImgObsWrapper(WRAPPERS[view](gym.make(ENV)))


def stock_vec(view: str = "partial") -> VecMonitor:
    """Many of them in SB3's own vectorised environment, with the episode statistics that ``make_vec`` keeps too."""
    return VecMonitor(DummyVecEnv([partial(stock_env, view)] * N_ENVS))


def fast_vec(engine: str = "minigrid", **look: Any) -> VecEnv:
    """The same environments as ``stock_vec``, rendered by look-up."""
    return envs.make_vec(ENV, N_ENVS, 0, engine, **look)


def fresh_encoder() -> Encoder:
    """The default encoder; its speed does not depend on its weights."""
    return Encoder("cnn", InputSpec(SHAPE))


class ByHand(BaseFeaturesExtractor):
    """An encoder in SB3's policy, written without rlpre."""

    def __init__(self, observation_space: spaces.Box, encoder: Encoder, trainable: bool) -> None:
        super().__init__(observation_space, encoder.num_features)
        self.encoder = copy.deepcopy(encoder).requires_grad_(trainable)

    def forward(self, observations: Tensor) -> Tensor:
        return self.encoder(observations)


def by_hand(encoder: Encoder, trainable: bool) -> dict[str, Any]:
    """Policy arguments for ``ByHand``."""
    return {
        "features_extractor_class": ByHand,
        "features_extractor_kwargs": {"encoder": encoder, "trainable": trainable},
        "normalize_images": False,
    }


HEADER = ["ours / stock", "stock", "ours", "unit", "ratio", "min..max", "aim", "met"]


@dataclass(frozen=True)
class Row:
    """The speed of our way compared with the stock way."""

    what: str  # our way / the stock way
    stock: float  # median, in ``unit``
    ours: float  # median, in ``unit``
    unit: str
    ratio: float  # how many times faster ours is: median over rounds
    low: float  # smallest ratio of a round
    high: float  # largest
    aim: str = ""  # empty where the row only explains another one
    met: bool | None = None  # whether the median reaches the aim


def compare(
    what: str,
    stock: Sequence[float],
    ours: Sequence[float],
    work: int,
    unit: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
) -> Row:
    """Makes a row from the seconds that both ways took.

    Args:
        what: our way / the stock way.
        stock: seconds of a run, round by round.
        ours: seconds of a run in the same rounds.
        work: number of items of one run.
        unit: items per second such as "steps/s", or microseconds per item such as "us/frame".
        at_least: aim for the ratio.
        at_most: aim for our number.
    """
    ratios = np.divide(stock, ours)
    medians = np.array([np.median(stock), np.median(ours)])
    theirs, own = (medians / work * 1e6 if unit.startswith("us/") else work / medians).tolist()
    ratio, low, high = float(np.median(ratios)), float(ratios.min()), float(ratios.max())
    aim, met = "", None
    if at_least is not None:
        aim, met = f"ratio >= {at_least:g}", ratio >= at_least
    elif at_most is not None:
        aim, met = f"ours <= {at_most:g}", own <= at_most
    return Row(what, theirs, own, unit, ratio, low, high, aim, met)


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that ``work`` takes, including its work on a GPU."""
    wait(device)
    start = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - start


def interleave(
    ways: dict[str, Callable[[], object]], device: torch.device, rounds: int = 5
) -> dict[str, Sequence[float]]:
    """Seconds of each way in each round.

    All ways run in turn in every round, so that a slower machine slows down all of them. The first round is a warm-up
    and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(1 + rounds):
        for name, work in ways.items():
            seconds[name].append(timed(work, device))
    return {name: times[1:] for name, times in seconds.items()}


def wait(device: torch.device) -> None:
    """Waits until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def table(rows: Sequence[Row]) -> str:
    """The rows as aligned text."""
    return aligned(Table(HEADER, [_cells(row) for row in rows]))


def hardware(device: torch.device) -> dict[str, str | int]:
    """The hardware that the figures depend on."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "cpu": named[0] if named else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _cells(row: Row) -> list[str]:
    numbers = [f"{number:,.1f}" if number < 100 else f"{number:,.0f}" for number in (row.stock, row.ours)]
    verdict = "" if row.met is None else "yes" if row.met else "no"
    spread = f"{row.low:.2f}..{row.high:.2f}"
    return [row.what, *numbers, row.unit, f"{row.ratio:.2f}", spread, row.aim, verdict]


BATCH = 256  # frames a random read
PPO_ROUNDS = 3


@dataclass(frozen=True)
class Bench:
    """Device, directory and size of the measurements."""

    device: torch.device
    home: Path  # for temporary frames and checkpoints
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
    vectors = {"stock": stock_vec(view), "ours": fast_vec(view=view)}
    if view == "partial":
        vectors["envpool"] = fast_vec("envpool")
    singles = {"stock": stock_env(view), "ours": envs.make(ENV, view=view)}

    def play_single(env: gym.Env) -> None:
        env.reset(seed=0)
        for action in actions.ravel():
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()

    many = interleave({name: partial(play, venv, actions) for name, venv in vectors.items()}, bench.device)
    one = interleave({name: partial(play_single, env) for name, env in singles.items()}, bench.device)
    row = partial(compare, work=actions.size, unit="steps/s")
    what = f"{N_ENVS} worlds, {view}: make_vec / stock wrappers in DummyVecEnv"
    rows = [row(what, many["stock"], many["ours"], at_least=at_least)]
    if "envpool" in many:
        rows.append(row("  stepped by EnvPool / the same", many["stock"], many["envpool"], at_least=60))
    return [*rows, row(f"one world, {view}: make / stock wrappers", **one)]


def games(bench: Bench) -> list[Row]:
    """Steps per second of Procgen, random actions, compared with EnvPool without the interface of SB3."""
    actions = np.random.default_rng(0).integers(0, 15, (bench.count(128, least=4), N_ENVS))
    raw = envpool.make_gymnasium(GAME, num_envs=N_ENVS, num_threads=1, seed=0)
    venvs = {"stock": raw, "ours": envs.make_vec(GAME, N_ENVS, seed=0)}
    seconds = interleave({name: partial(play, venv, actions) for name, venv in venvs.items()}, bench.device)
    what = f"{N_ENVS} of {GAME}: make_vec / EnvPool without SB3's interface"
    return [compare(what, **seconds, work=actions.size, unit="us/step", at_most=200)]


def play(venv: Any, actions: np.ndarray) -> None:
    """Resets environments and acts."""
    venv.reset()
    for row in actions:
        venv.step(row)


def frames(bench: Bench) -> list[Row]:
    """Microseconds per frame to read and decode random batches, compared with a folder of images."""
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
    """Pairs per second of the real loop, compared with forward and backward passes on one batch in memory.

    The loop reports its progress after each step; the bare model runs between two measured parts of the loop.
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
    """Forward and backward pass of the model that ``config`` trains, in the same precision, on one batch."""
    store, device = bench.frames, bench.device
    encoder = first_encoder(store, None, config)
    model = Pretext(encoder, make_objective(config.objective, encoder, store)).to(device)
    batch = FrameReader(store, encoder, config.gap, device).draw(config.batch, np.random.default_rng(0))
    half = device.type == "cuda" and torch.cuda.is_bf16_supported()

    def update() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss, _ = model(batch)
        loss.backward()
        model.zero_grad(set_to_none=True)

    return update


def plug_frozen(bench: Bench) -> list[Row]:
    """PPO's steps per second with a frozen encoder, and the parts of the gain."""
    encoder, heads = fresh_encoder(), {"net_arch": [HIDDEN] * 2}
    inside = heads | by_hand(encoder, trainable=False)
    agents = {
        "stock": make_ppo(bench, stock_vec(), "CnnPolicy", inside),
        "stock, our worlds": make_ppo(bench, fast_vec(), "CnnPolicy", inside),
        "ours": make_ppo(bench, EncodedVecEnv(fast_vec(), encoder, bench.device), "MlpPolicy", heads),
        "envpool": make_ppo(bench, EncodedVecEnv(fast_vec("envpool"), encoder, bench.device), "MlpPolicy", heads),
    }
    seconds, work = learn(agents, bench)
    ours = seconds["ours"]
    row = partial(compare, work=work, unit="steps/s")
    return [
        row("PPO frozen: EncodedVecEnv / encoder in SB3's policy, stock wrappers", seconds["stock"], ours, at_least=6),
        row("  EncodedVecEnv / the same, both on our worlds", seconds["stock, our worlds"], ours),
        row("  stepped by EnvPool / in SB3's policy, stock wrappers", seconds["stock"], seconds["envpool"], at_least=8),
    ]


def plug_finetuned(bench: Bench) -> list[Row]:
    """PPO's steps per second with a trained encoder."""
    encoder, heads = fresh_encoder(), {"net_arch": [HIDDEN] * 2}
    agents = {
        "NatureCNN": make_ppo(bench, stock_vec(), "CnnPolicy", {}),
        "same encoder": make_ppo(bench, stock_vec(), "CnnPolicy", heads | by_hand(encoder, trainable=True)),
        "every frame": make_ppo(bench, fast_vec(), "CnnPolicy", heads | by_hand(encoder, trainable=True)),
        "ours": make_ppo(bench, fast_vec(), "CnnPolicy", policy_kwargs(encoder, "finetuned", **heads)),
        "envpool": make_ppo(bench, fast_vec("envpool"), "CnnPolicy", policy_kwargs(encoder, "finetuned", **heads)),
    }
    seconds, work = learn(agents, bench)
    row = partial(compare, ours=seconds["ours"], work=work, unit="steps/s")
    pooled = partial(compare, ours=seconds["envpool"], work=work, unit="steps/s")
    return [
        row("PPO finetuned: rlpre / SB3's CnnPolicy, stock wrappers", seconds["NatureCNN"], at_least=2),
        row("  rlpre / the same encoder in SB3's policy, stock wrappers", seconds["same encoder"]),
        row("  rlpre / encoding repeated frames too, both on our worlds", seconds["every frame"]),
        pooled("  rlpre, stepped by EnvPool / SB3's CnnPolicy, stock wrappers", seconds["NatureCNN"], at_least=2.5),
    ]


def cached_step(kind: str, bench: Bench) -> list[Row]:
    """Steps per second of a sequence encoder that keeps its state, compared with reading its whole window again."""
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
    """Calls ``work`` many times."""
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
    "games": games,
    "distracting view": partial(worlds, "distract", 8),
    "frames": frames,
    "pretraining": pretraining,
    "frozen": plug_frozen,
    "finetuned": plug_finetuned,
    "gru": partial(cached_step, "gru"),
    "transformer": partial(cached_step, "transformer"),
    "replay": replay,
}


def make_ppo(bench: Bench, venv: VecEnv, policy: str, arguments: dict[str, Any]) -> PPO:
    """PPO with the settings that all our agents share; a small benchmark has shorter rollouts."""
    rollout = bench.count(PPO_SETTINGS["n_steps"], least=PPO_SETTINGS["batch_size"] // N_ENVS)
    settings = {**PPO_SETTINGS, "n_steps": rollout}
    return PPO(policy, venv, policy_kwargs=arguments, seed=0, device=bench.device, **settings)


def learn(agents: dict[str, PPO], bench: Bench) -> tuple[dict[str, Sequence[float]], int]:
    """Seconds of each agent for one rollout and one update, round by round, and the steps of a round."""
    steps = next(iter(agents.values())).n_steps * N_ENVS
    ways = {name: partial(agent.learn, steps, reset_num_timesteps=False) for name, agent in agents.items()}
    return interleave(ways, bench.device, PPO_ROUNDS), steps
