"""Cloning: a policy on sequences learns from demonstrations which action the expert would take.

References:
    [0] Bansal, Krizhevsky, Ogale 2018, "ChauffeurNet": history dropout, there of the past motion in half the examples.
    [1] Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks".
    [2] Mihaylova and Martins 2019, "Scheduled Sampling for Transformers": two passes instead of one step at a time.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from envs.minigrid.trials import EpisodeRandom
from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.data.windows import Trajectories
from rlpre.encoders.encoder import check_tensors
from rlpre.encoders.mixers import State
from rlpre.pretrain import quiet
from rlpre.sb3.clone import Fitted, Schedule, fit
from rlpre.utils import provenance, resolve_device, to_device, write_bytes, write_json

HEAD = "head.safetensors"
NONE = -1  # the token of an action that was not taken or is hidden; the label of a step that the expert did not label
HELD_OUT = 0.1  # share of the layouts that decide when training stops
LAYOUTS = 2**15  # number of values that the hash of a layout can take
POOL = 16  # batches that are drawn together and sorted by length, so that episodes need little padding
STEEPNESS = math.log(99)  # scheduled sampling lowers the share of the expert's tokens from .99 to .01

Report = Callable[[int], None]  # receives the number of steps so far


class SequencePolicy(nn.Module):
    """Logits of the next action, given an episode so far: a causal sequence encoder and a linear head."""

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        if not encoder.causal:
            raise RlpreError("a policy acts on the past, but this encoder sees the future: build it with causal=True")
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, encoder.actions)
        nn.init.orthogonal_(self.head.weight, gain=0.01)  # as in SB3: at first all actions are about equally likely
        nn.init.zeros_(self.head.bias)

    def logits(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """Logits (B, T, actions) at every step of padded episodes; arguments as in ``SequenceEncoder.forward``."""
        scores: Tensor = self.head(self.encoder(features, actions, mission, present))
        return scores

    def step(
        self, features: Tensor, actions: Tensor, mission: Tensor | None, state: State, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits (B, actions) at one more step, and the state after it; arguments as in ``SequenceEncoder.step``."""
        mixed, state = self.encoder.step(features, actions, mission, state, starts)
        return self.head(mixed), state

    def actor(self, seed: int = 0) -> "PolicyActor":
        """An actor for `play` that samples its actions from this policy; ``seed`` seeds the sampling."""
        return PolicyActor(self, seed)

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint of the sequence encoder, which can be loaded alone, and the head beside it."""
        path = self.encoder.save(path)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        write_bytes(path / HEAD, save(tensors))
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Loads what `save` wrote."""
        path = Path(path)
        policy = cls(SequenceEncoder.load(path))
        try:
            tensors = load_file(path / HEAD)
        except (OSError, SafetensorError) as error:
            raise RlpreError(f"{path / HEAD} cannot be read ({error}): {path} is not a saved policy") from error
        check_tensors(tensors, policy.head.state_dict(), str(path / HEAD))
        policy.head.load_state_dict(tensors)
        return policy.to(device).eval()


class PolicyActor:
    """Samples actions from a policy, step by step from its cached state, for n worlds at once.

    Args:
        policy: is put into evaluation mode.
        seed: the k-th episode has a random stream of its own, whatever the policy and the number of worlds.

    Attributes:
        taken: (n,) int64, the last action in each world, which is the next step's token. A caller that overrules the
            actor writes the action that was really taken here.
    """

    taken: np.ndarray
    state: State

    def __init__(self, policy: SequencePolicy, seed: int) -> None:
        self.policy, self.rng = policy.eval(), episode_rng(seed)
        self.missions: list[str] = []
        self.mission: Tensor | None = None

    @torch.inference_mode()
    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Actions (n,) int64 for frames (n, C, H, W) uint8; ``starts`` (n,) bool marks the first step of an episode."""
        encoder = self.policy.encoder
        device = encoder.device
        if starts.all():
            self.state, self.taken = encoder.begin(len(frames)), np.full(len(frames), NONE)
        if encoder.vocabulary and missions != self.missions:
            self.missions = list(missions)
            self.mission = to_device(encoder.vocabulary.encode(missions), device)
        features = encoder.encode_frames(to_device(frames, device))
        tokens = to_device(np.where(starts, NONE, self.taken), device)
        logits, self.state = self.policy.step(features, tokens, self.mission, self.state, to_device(starts, device))
        uniform = self.rng.draw(starts, encoder.actions)
        self.taken = sample(logits, to_device(uniform, device)).cpu().numpy()
        return self.taken


def episode_rng(seed: int) -> EpisodeRandom:
    """Random numbers with one stream per episode, so that the k-th episode has the same ones for every policy."""
    return EpisodeRandom(np.random.default_rng(seed))


def sample(logits: Tensor, uniform: Tensor) -> Tensor:
    """Samples actions (n,) from the softmax of logits (n, actions), given uniform numbers (n, actions): Gumbel-max."""
    return (logits.double() - (-uniform.log()).log()).argmax(-1)


@dataclass(frozen=True)
class Batch:
    """Steps of episodes on one device: (N,) one after the other, or (B, T) padded on the right."""

    features: Tensor  # (..., F) of the frames
    previous: Tensor  # (...) int64, the action before each step; -1 at the first step of an episode
    mission: Tensor | None  # (N, L) or (B, L) int64
    label: Tensor  # (...) int64, the expert's action; -1 where it is not known
    present: Tensor  # (...) bool, False for padding


@dataclass(frozen=True)
class Episodes:
    """Demonstrations in memory, their frames encoded once."""

    steps: Batch  # (N,) of all episodes, one after the other
    lengths: np.ndarray  # (E,) number of steps of each episode
    layout: np.ndarray  # (E,) int64 in [0, LAYOUTS), equal for episodes in the same layout

    @classmethod
    def read(cls, store: FrameStore, encoder: SequenceEncoder, labels: str = "expert") -> "Episodes":
        """The demonstrations of a store, which must fit the encoder, on its device; ``labels`` as in `CloneConfig`."""
        for name in (labels, "layout"):
            if name not in (*store.labels, "action"):
                raise RlpreError(f"{store.path} has no label {name!r}: record it with envs.demonstrations")
        rows, device = np.flatnonzero(store.acted), encoder.device
        label, first = store.column(labels)[rows].astype(np.int64), store.column("episode_start")[rows]
        if not (label >= 0).any():
            raise RlpreError(f"the expert labels no step of {store.path}: record a level that it can solve")
        features, previous, mission, present = Trajectories(store, encoder, device).inputs(rows[:, None])
        steps = Batch(features[:, 0], previous[:, 0], mission, to_device(label, device), present[:, 0])
        lengths = np.diff(np.append(np.flatnonzero(first), len(rows)))
        return cls(steps, lengths, store.column("layout")[rows][first].astype(np.int64))

    def __len__(self) -> int:
        return len(self.lengths)

    def __add__(self, other: "Episodes") -> "Episodes":
        a, b = self.steps, other.steps
        mission = None if a.mission is None or b.mission is None else torch.cat([a.mission, b.mission])
        features, previous, label, present = (
            torch.cat([getattr(a, name), getattr(b, name)]) for name in ("features", "previous", "label", "present")
        )
        steps = Batch(features, previous, mission, label, present)
        lengths, layout = (np.append(getattr(self, name), getattr(other, name)) for name in ("lengths", "layout"))
        return Episodes(steps, lengths, layout)

    @property
    def labels(self) -> int:
        """The number of steps that the expert labelled."""
        return int((self.steps.label != NONE).sum())

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices of the episodes for training, and of those in other layouts that are held out."""
        rank = np.random.default_rng(0).random(LAYOUTS)[self.layout]  # adding episodes moves few layouts across
        held_out = rank <= np.sort(rank)[int(HELD_OUT * len(self))]
        if held_out.all():
            raise RlpreError(
                f"{len(self)} episodes in {len(np.unique(rank))} layouts are too few to hold some out: record more"
            )
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def batch(self, episodes: np.ndarray) -> Batch:
        """These episodes (B,), padded to the longest."""
        lengths, steps = self.lengths[episodes], self.steps
        first = np.cumsum(self.lengths)[episodes] - lengths
        place = np.arange(lengths.max())
        present = to_device(place < lengths[:, None], steps.features.device)
        rows = to_device(first[:, None] + np.minimum(place, lengths[:, None] - 1), steps.features.device)
        mission = None if steps.mission is None else steps.mission[rows[:, 0]]
        label = steps.label[rows].masked_fill(~present, NONE)
        return Batch(steps.features[rows], steps.previous[rows], mission, label, present)

    def batches(self, among: np.ndarray, size: int, rng: np.random.Generator) -> Iterator[Batch]:
        """Endless batches of episodes of similar length; each pass shows every episode once."""
        while True:
            order = rng.permutation(among)
            for at in range(0, len(order), POOL * size):
                pool = order[at : at + POOL * size]
                pool = pool[np.argsort(self.lengths[pool], kind="stable")]
                for first in rng.permutation(np.arange(0, len(pool), size)):
                    yield self.batch(pool[first : first + size])


@dataclass(frozen=True, kw_only=True)
class CloneConfig(Schedule):
    """Everything that decides a clone, together with the demonstrations and the encoder."""

    steps: int = 1500
    batch: int = 32  # episodes per gradient step
    labels: str = "expert"  # the column to learn: the expert's advice, or the "action" that was taken
    history_dropout: float = 0.0  # probability that an action token is hidden [0]
    scheduled_sampling: bool = False  # replaces the expert's action tokens more and more by the policy's own [1, 2]

    def check(self) -> None:
        """Refuses numbers out of range and a missing device."""
        super().check()
        if not 0 <= self.history_dropout < 1:
            raise RlpreError(f"history_dropout is {self.history_dropout}: it is a share, at least 0 and below 1")


def clone(
    store: FrameStore,
    start: SequenceEncoder,
    out: Path,
    config: CloneConfig,
    report: Report = quiet,
) -> SequencePolicy:
    """Clones the expert of a store of demonstrations.

    Args:
        store: whole episodes with labels "expert" and "layout", as `envs.demonstrations` records them.
        start: the encoder to start from; it is copied, never changed.
        out: receives the policy, ``run.json`` and TensorBoard events.
        config: settings.
        report: called with the number of gradient steps so far.

    Returns:
        The policy with the lowest loss on the held-out layouts.

    Raises:
        RlpreError: for settings out of range, or demonstrations that are too few, lack labels or do not fit.
    """
    config.check()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        policy = SequencePolicy(copy.deepcopy(start)).to(resolve_device(config.device))
    episodes = Episodes.read(store, policy.encoder, config.labels)
    fitted = fit_episodes(policy, episodes, out, config, report)
    write_run(out, config, {"labels": episodes.labels, "demonstrations": [store.hash], **asdict(fitted)})
    policy.save(out)
    return policy


def write_run(out: Path, config: CloneConfig, result: dict[str, object]) -> None:
    """Writes ``run.json``: the settings, the result and the versions."""
    write_json(out / "run.json", {"configuration": asdict(config), **result, **provenance()})


def fit_episodes(
    policy: SequencePolicy, episodes: Episodes, out: Path, config: CloneConfig, report: Report = quiet
) -> Fitted:
    """Trains a policy in place and leaves it with the weights of the lowest held-out loss.

    The held-out episodes see the same history dropout, and scheduled sampling with all tokens the policy's own, so that
    the kept weights are the best ones for the task that was trained.
    """
    train, rest = episodes.split()
    held_out, batches = episodes.batch(rest), episodes.batches(train, config.batch, np.random.default_rng(config.seed))
    generator = torch.Generator(policy.encoder.device).manual_seed(config.seed)

    def score(step: int | None) -> tuple[Tensor, Tensor]:
        if step is None:
            same = torch.Generator(policy.encoder.device).manual_seed(0)  # the same tokens in every check
            return loss_and_agreement(policy, held_out, config, 1.0, same)
        return loss_and_agreement(policy, next(batches), config, step / config.steps, generator)

    return fit(policy, score, config, out, report)


def loss_and_agreement(
    policy: SequencePolicy, batch: Batch, config: CloneConfig, progress: float, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The cross-entropy per step in nats, and the share of steps at which the policy's likeliest action is right."""
    tokens = action_tokens(policy, batch, config, progress, generator)
    logits = policy.logits(batch.features, tokens, batch.mission, batch.present)
    labelled = batch.label != NONE
    loss = F.cross_entropy(logits[labelled], batch.label[labelled], label_smoothing=config.label_smoothing)
    return loss, (logits[labelled].argmax(-1) == batch.label[labelled]).float().mean()


def action_tokens(
    policy: SequencePolicy, batch: Batch, config: CloneConfig, progress: float, generator: torch.Generator
) -> Tensor:
    """The action tokens (B, T) that the policy sees at ``progress`` in [0, 1] of its training.

    Scheduled sampling takes two passes [2]. The first computes the policy's likeliest actions given the expert's
    tokens; each of them replaces the expert's token with a probability that rises along an inverse sigmoid [1]. That
    costs one more forward pass instead of one per step, but a replaced token does not depend on the earlier ones.
    """
    tokens = batch.previous
    first = tokens == NONE

    def chance(probability: float) -> Tensor:
        return torch.rand(tokens.shape, generator=generator, device=tokens.device) < probability

    if config.scheduled_sampling:
        with torch.no_grad():
            own = policy.logits(batch.features, tokens, batch.mission, batch.present).argmax(-1).roll(1, dims=1)
        experts = 1 / (1 + math.exp(STEEPNESS * (2 * progress - 1)))
        tokens = torch.where(chance(experts) | first, tokens, own)
    if config.history_dropout:
        tokens = tokens.masked_fill(chance(config.history_dropout), NONE)
    return tokens
