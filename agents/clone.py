"""Cloning: a policy on sequences learns from demonstrations what the expert would do.

References:
    [0] Bansal, Krizhevsky, Ogale 2018, "ChauffeurNet": history dropout, there of the past motion in half the examples.
    [1] Bengio et al. 2015, "Scheduled Sampling for Sequence Prediction with Recurrent Neural Networks".
    [2] Mihaylova and Martins 2019, "Scheduled Sampling for Transformers": two passes instead of one step at a time.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.tensorboard import SummaryWriter

from agents.episodes import Batch, Episodes
from agents.policy import NONE, SequencePolicy
from rlpre import FrameStore, RlpreError, SequenceEncoder
from rlpre.device import resolve_device
from rlpre.errors import at_least
from rlpre.files import write_json
from rlpre.loop import rate
from rlpre.pretrain import quiet
from rlpre.provenance import provenance

__all__ = ["CloneConfig", "SequencePolicy", "clone", "fit"]

STEEPNESS = math.log(99)  # the share of the expert's tokens falls from .99 to .01
WARMUP = 0.05  # share of the steps


@dataclass(frozen=True)
class CloneConfig:
    """Everything that decides a clone, together with the demonstrations and the encoder."""

    steps: int = 1500  # gradient steps at most
    batch: int = 32  # episodes a gradient step
    lr: float = 1e-3  # peak rate of AdamW; rises at first, then follows a cosine to 0
    weight_decay: float = 1e-2  # AdamW's default
    clip: float = 1.0  # largest gradient norm
    label_smoothing: float = 0.05  # of the cross-entropy
    check_every: int = 50  # gradient steps between looks at the held-out layouts
    patience: int | None = 8  # looks without a better loss before it stops; None: all steps
    history_dropout: float = 0.0  # probability that an action token is hidden [0]
    scheduled_sampling: bool = False  # the expert's action tokens give way to the policy's own [1, 2]
    seed: int = 0  # draws the head's weights and the batches
    device: str = "auto"  # "cpu", "cuda", ...

    def check(self) -> None:
        """Refuses what could not be trained.

        Raises:
            RlpreError: for a number out of range or a missing device.
        """
        at_least(self, steps=1, batch=1, check_every=1, patience=1, seed=0)
        for name in ("history_dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise RlpreError(f"{name} is {getattr(self, name)}: it is a share, at least 0 and below 1")
        resolve_device(self.device)


@dataclass(frozen=True)
class Fitted:
    """What a fit cost and which weights it kept."""

    gradient_steps: int  # taken
    kept_step: int  # after which the held-out loss was lowest; 0: the weights that it started from
    held_out_loss: float  # of those, cross-entropy per step in nats
    held_out_agreement: float  # of those, share of the expert's actions that are the likeliest


def clone(
    store: FrameStore,
    start: SequenceEncoder,
    out: Path,
    config: CloneConfig | None = None,
    report: Callable[[int], None] = quiet,
) -> SequencePolicy:
    """Clones the expert of a store of demonstrations.

    Args:
        store: whole episodes with labels "expert" and "layout", as `envs.demonstrations` records them.
        start: the encoder to start from; copied, never changed.
        out: receives the policy, ``run.json`` and TensorBoard events.
        config: settings; default ``CloneConfig()``.
        report: called with the number of gradient steps so far.

    Returns:
        The policy with the lowest loss on the held-out layouts.

    Raises:
        RlpreError: for settings out of range, or demonstrations that are too few, lack labels or do not fit.
    """
    config = config or CloneConfig()
    config.check()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        policy = SequencePolicy(copy.deepcopy(start)).to(resolve_device(config.device))
    episodes = Episodes.read(store, policy.encoder)
    fitted = fit(policy, episodes, out, config, report)
    write_run(out, config, {"labels": episodes.labels, "demonstrations": [store.hash], **asdict(fitted)})
    policy.save(out)
    return policy


def write_run(out: Path, config: CloneConfig, result: dict[str, object]) -> None:
    """Writes ``run.json``: settings, versions, and what it cost."""
    write_json(out / "run.json", {"configuration": asdict(config), **result, **provenance()})


def fit(
    policy: SequencePolicy, episodes: Episodes, out: Path, config: CloneConfig, report: Callable[[int], None] = quiet
) -> Fitted:
    """Trains a policy in place and leaves it with the weights of the lowest held-out loss.

    The held-out episodes go through the same history dropout or scheduled sampling (all tokens its own), so that the
    weights that are kept are good at what was trained.

    Returns:
        What it cost.

    Raises:
        RlpreError: if there are too few episodes, or the loss is not finite.
    """
    learn, held_out = episodes.split()
    best = _Best(policy, episodes.batch(held_out), config)
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=config.lr, weight_decay=config.weight_decay)
    batches = episodes.batches(learn, config.batch, np.random.default_rng(config.seed))
    draws = torch.Generator(policy.encoder.device).manual_seed(config.seed)
    with SummaryWriter(str(out)) as board:
        for step in range(config.steps):
            if step % config.check_every == 0 and best.look(step, board):
                return best.restore(step)
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(step, config.steps, WARMUP)
            loss, agreement = judge(policy.train(), next(batches), config, step / config.steps, draws)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, config.clip)
            optimizer.step()
            if step % config.check_every == 0:
                board.add_scalar("clone/loss", loss, step)
                board.add_scalar("clone/agreement", agreement, step)
            report(step + 1)
        best.look(config.steps, board)
    return best.restore(config.steps)


def judge(
    policy: SequencePolicy, batch: Batch, config: CloneConfig, progress: float, draws: torch.Generator
) -> tuple[Tensor, Tensor]:
    """The loss of a batch, cross-entropy per step in nats, and the share of steps at which policy and expert agree."""
    tokens = history(policy, batch, config, progress, draws)
    logits = policy.logits(batch.features, tokens, batch.mission, batch.present)
    known = batch.label != NONE
    loss = F.cross_entropy(logits[known], batch.label[known], label_smoothing=config.label_smoothing)
    return loss, (logits[known].argmax(-1) == batch.label[known]).float().mean()


def history(
    policy: SequencePolicy, batch: Batch, config: CloneConfig, progress: float, draws: torch.Generator
) -> Tensor:
    """The action tokens (B, T) that a policy is shown at ``progress`` in [0, 1] of its training.

    Scheduled sampling takes two passes [2]: what the policy would do given the expert's tokens replaces each of these
    with a probability that rises along an inverse sigmoid [1]. It costs one more forward pass where going step by step
    costs one per step; the difference is that a token that is replaced does not see those replaced before it.
    """
    tokens = batch.previous
    first = tokens == NONE
    if config.scheduled_sampling:
        with torch.no_grad():
            own = policy.logits(batch.features, tokens, batch.mission, batch.present).argmax(-1).roll(1, dims=1)
        experts = 1 / (1 + math.exp(STEEPNESS * (2 * progress - 1)))
        tokens = torch.where(_chance(experts, tokens, draws) | first, tokens, own)
    if config.history_dropout:
        tokens = tokens.masked_fill(_chance(config.history_dropout, tokens, draws), NONE)
    return tokens


def _chance(probability: float, like: Tensor, draws: torch.Generator) -> Tensor:
    return torch.rand(like.shape, generator=draws, device=like.device) < probability


class _Best:
    """Looks at the held-out episodes, and keeps the weights that were best there."""

    def __init__(self, policy: SequencePolicy, held_out: Batch, config: CloneConfig) -> None:
        self.policy, self.held_out, self.config = policy, held_out, config
        self.loss, self.agreement, self.step, self.looks = math.inf, 0.0, 0, 0
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def look(self, step: int, board: SummaryWriter) -> bool:
        """Measures and keeps; returns whether to stop because nothing got better for too long."""
        draws = torch.Generator(self.policy.encoder.device).manual_seed(0)  # every look meets the same history
        scores = judge(self.policy.eval(), self.held_out, self.config, 1.0, draws)
        loss, agreement = (score.item() for score in scores)
        if not math.isfinite(loss):
            raise RlpreError(f"the loss of the clone is not finite at step {step}: lower lr={self.config.lr:g}")
        board.add_scalar("held_out/loss", loss, step)
        board.add_scalar("held_out/agreement", agreement, step)
        self.looks += 1
        if loss < self.loss:
            self.loss, self.agreement, self.step, self.looks = loss, agreement, step, 0
            self.weights = copy.deepcopy(self.policy.state_dict())
        return self.config.patience is not None and self.looks >= self.config.patience

    def restore(self, steps: int) -> Fitted:
        """Puts the best weights back."""
        self.policy.load_state_dict(self.weights)
        self.policy.eval()
        return Fitted(steps, self.step, self.loss, self.agreement)
