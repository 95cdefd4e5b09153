"""A self-supervised objective that goes on while the agent learns, as an auxiliary loss for the policy's encoder.

Pretraining ends where the agent's own data begin. Here the objective keeps training the encoder on the rollouts of the
policy, mixed with the offline frames so that what was learned from those is not forgotten. Auxiliary losses made agents
5.5 times faster on PointNav [0]; UNREAL [1] introduced them.

[0] Ye et al. 2020, "Auxiliary Tasks Speed Up Learning PointGoal Navigation".
[1] Jaderberg et al. 2017, "Reinforcement Learning with Unsupervised Auxiliary Tasks".
"""

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor, nn

from rlpre.data.store import FrameStore, Indices, Pairs, cumulative_weights, draw
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError, at_least, whole
from rlpre.objectives import make_objective, parse_objective
from rlpre.objectives.base import WeightedSum
from rlpre.objectives.batches import Batch, FrameReader
from rlpre.sb3.policy import EncoderExtractor, make_hash_weights

LR = 3e-4
CLIP = 1.0  # largest gradient norm, as in pretraining


class KeepLearning(BaseCallback):
    """Trains the encoder in an agent's policy by an objective, between the agent's own updates.

    ``PPO("CnnPolicy", venv, policy_kwargs=rlpre.policy_kwargs(encoder, "finetuned")).learn(steps, callback)``. The
    updates follow a rollout, after PPO has learned from it: so the ratios of PPO stay right. They wait as long as the
    encoder does (``warmup_updates``, `start_from`). The objective has an optimiser of its own. Its losses are logged as
    "auxiliary/OBJECTIVE/METRIC". The heads of the objective are not saved with the model; they start anew with another
    model, also with one that was loaded.

    Args:
        objective: names and weights, as in `rlpre.pretrain`; not "supervised", which needs the labels of stored frames.
        frames: offline frames, a store or its directory, of the same size and actions as the environment's.
        updates: gradient steps after every rollout; SB3's PPO has one every ``n_steps * n_envs`` environment steps.
        batch: pairs of frames (or single frames) in a gradient step.
        live: the share of a batch that comes from the last rollout, from 0 to 1; the rest is offline.
        gap: the largest number of steps between the frames of a pair.
        lr: learning rate of Adam.

    Raises:
        RlpreError: for numbers out of range; when learning starts, if the algorithm is not on-policy (PPO, A2C), its
            policy holds no encoder that learns, or the frames do not fit the encoder or the actions.
    """

    objective: WeightedSum
    optimizer: torch.optim.Optimizer
    offline: FrameReader

    def __init__(
        self,
        objective: str,
        frames: FrameStore | str | Path,
        updates: int,
        batch: int = 128,
        live: float = 0.5,
        gap: int = 5,
        lr: float = LR,
    ) -> None:
        super().__init__()
        check_auxiliary(objective, updates, batch, live, gap, lr)
        self.name, self.updates, self.batch, self.gap, self.lr = objective, updates, batch, gap, lr
        self.frames = FrameStore.given(frames)
        self.recent = round(live * batch)  # items of a batch from the last rollout
        self.rollout: FrameReader | None = None
        self.rollouts = 0
        self.waiting = False  # whether it has not learned from the last one

    def _init_callback(self) -> None:
        extractor = _learning_extractor(self.model)
        if vars(self).get("extractor") is extractor:
            return  # learning goes on
        self.extractor = extractor
        encoder, space = self.extractor.encoder, self.model.action_space
        try:
            encoder.input.check(self.frames.space)
        except RlpreError as error:
            raise RlpreError(f"the encoder does not fit {self.frames.path}: {error}") from error
        if self.frames.action_space not in (None, space):
            raise RlpreError(
                f"{self.frames.path} holds actions of {self.frames.action_space}, the agent takes {space}: give frames "
                "of the same actions (rlpre.from_arrays takes action_space=venv.action_space)"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.model.seed or 0)
            self.objective = make_objective(self.name, encoder, self.frames).to(encoder.device)
        needs = {part.needs for part in self.objective.objectives.values()}
        self.pairs, self.acts = None if needs == {"frames"} else self.gap, "actions" in needs
        self.offline = FrameReader(self.frames, encoder, self.pairs)
        self.optimizer = torch.optim.Adam([*self.objective.parameters(), *encoder.parameters()], self.lr)

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = cast(OnPolicyAlgorithm, self.model).rollout_buffer
        frames = _Rollout(self.extractor, buffer.observations, buffer.actions, buffer.episode_starts, self.model)
        try:
            self.rollout = FrameReader(cast(FrameStore, frames), self.extractor.encoder, self.pairs)
        except RlpreError:  # a rollout in which no frame changes has no pairs
            self.rollout = None
        self.waiting = True

    def _on_rollout_start(self) -> None:
        self._follow()

    def _on_training_end(self) -> None:
        self._follow()

    def _follow(self) -> None:
        """Learns from the last rollout, unless it has, or the encoder waits."""
        if self.waiting and any(parameter.requires_grad for parameter in self.extractor.encoder.parameters()):
            metrics = self.learn(np.random.default_rng((self.model.seed or 0, self.rollouts)))
            for name, value in metrics.items():
                self.logger.record(f"auxiliary/{name}", float(value))
        self.rollouts += self.waiting
        self.waiting = False

    def learn(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Takes the gradient steps that follow a rollout; returns the metrics of the last one."""
        encoder, metrics = self.extractor.encoder, dict[str, Tensor]()
        trained = self.optimizer.param_groups[0]["params"]
        self.objective.train()
        with torch.random.fork_rng(devices=[]):  # the agent's random numbers stay those without this callback
            torch.manual_seed(int(rng.integers(2**31)))
            for _ in range(self.updates):
                loss, metrics = self.objective(self.draw(rng).views(encoder))
                self.optimizer.zero_grad(set_to_none=True)
                loss.backward()
                nn.utils.clip_grad_norm_(trained, CLIP)
                self.optimizer.step()
                for part in self.objective.objectives.values():
                    part.after_step(encoder)
        self.optimizer.zero_grad(set_to_none=True)
        return metrics

    def draw(self, rng: np.random.Generator) -> Batch:
        """A batch of offline frames and frames of the last rollout, in one numbering of identical frames."""
        recent = self.recent if self.rollout else 0
        batches = [reader.draw(size, rng) for reader, size in self._sources(recent) if size]
        if not self.acts:  # frames without actions are as good, and need not have the rollout's kind
            batches = [replace(batch, actions=batch.gap.new_empty(len(batch.gap), 0)) for batch in batches]
        names = ("anchor", "later", "actions", "gap")
        parts = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in names}
        ids = _numbers(torch.cat([parts["anchor"], parts["later"]]))
        anchor_id, later_id = ids.chunk(2)
        return Batch(**parts, anchor_id=anchor_id, later_id=later_id, codes=None)

    def _sources(self, recent: int) -> list[tuple[FrameReader, int]]:
        sources = [(self.offline, self.batch - recent)]
        return [*sources, (self.rollout, recent)] if self.rollout else sources


class _Rollout:
    """The frames of a rollout, with the part of a `FrameStore`'s interface that a `FrameReader` uses."""

    path = Path("the last rollout")
    atlas, labels = None, ()

    def __init__(
        self, extractor: EncoderExtractor, observations: Any, actions: np.ndarray, starts: np.ndarray, model: Any
    ) -> None:
        images = extractor.image.pick(observations)  # (steps, environments, stack * C, H, W)
        shape = extractor.encoder.input.shape
        latest = images[:, :, -shape[0] :].swapaxes(0, 1)  # one environment after another; of a stack the last frame
        self.frames = latest.reshape(-1, *shape).astype(np.uint8)
        first = starts.T.astype(bool)
        first[:, 0] = True
        self.episode: Indices = first.ravel().cumsum() - 1
        taken = actions.swapaxes(0, 1).reshape(len(self.frames), -1)
        if isinstance(space := model.action_space, spaces.Discrete):
            self.action = taken[:, 0].astype(np.int64)
        elif isinstance(space, spaces.Box) and model.policy.squash_output:
            self.action = model.policy.unscale_action(taken.reshape(-1, *space.shape)).reshape(len(taken), -1)
        elif isinstance(space, spaces.Box):
            self.action = np.clip(taken, space.low.ravel(), space.high.ravel())
        else:
            self.action = taken.astype(np.float32)

    @cached_property
    def ids(self) -> Indices:
        return _numbers(torch.from_numpy(self.frames)).numpy()

    @cached_property
    def weights(self) -> np.ndarray:
        return cumulative_weights(self.ids)

    def column(self, name: str) -> np.ndarray:
        assert name == "action"
        return self.action

    def pairs(self, gap: int) -> Pairs:
        return Pairs(cast(FrameStore, self), gap)

    def sample(self, batch: int, rng: np.random.Generator) -> Indices:
        return draw(self.weights, batch, rng)

    def read(self, rows: Indices) -> Tensor:
        return torch.from_numpy(self.frames[rows])

    def decode(self, raw: Tensor) -> Tensor:
        return raw


def check_auxiliary(
    objective: str, updates: int, batch: int = 128, live: float = 0.5, gap: int = 5, lr: float = LR
) -> None:
    """Refuses arguments of `KeepLearning` that are out of range."""
    whole(updates=updates, batch=batch, gap=gap)
    at_least(SimpleNamespace(updates=updates, batch=batch, gap=gap), updates=1, batch=2, gap=1)
    if not 0 <= live <= 1:
        raise RlpreError(f"live is {live}: give the share of a batch that comes from the last rollout, 0 to 1")
    if not 0 < lr < float("inf"):
        raise RlpreError(f"lr is {lr}: give a number above 0, or leave the callback out")
    if "supervised" in objective:
        raise RlpreError("objective 'supervised' needs labels, which rollouts do not have: choose another one")
    parse_objective(objective, Encoder.kind)


def _learning_extractor(model: Any) -> EncoderExtractor:
    """The policy's extractor, whose encoder learns."""
    if not isinstance(model, OnPolicyAlgorithm):
        raise RlpreError(f"KeepLearning reads the rollouts of PPO and A2C, and {type(model).__name__} has none")
    extractor = model.policy.features_extractor if model.policy.share_features_extractor else None
    if not isinstance(extractor, EncoderExtractor) or not list(extractor.encoder.parameters()):
        raise RlpreError(
            "the policy holds no encoder of frames that learns: give PPO policy_kwargs=rlpre.policy_kwargs(encoder, "
            "'finetuned'), 'partial', 'anchored' or 'scratch', with one extractor that actor and critic share"
        )
    return extractor


def _numbers(frames: Tensor) -> Tensor:
    """(N,) int64: the same for identical frames; different frames share a number once in about 10**8 pairs."""
    flat = frames.flatten(1).float()
    high, low = (flat @ make_hash_weights(flat.shape[1]).to(flat)).double().T
    numbers: Tensor = torch.unique(high * 2**25 + low, return_inverse=True)[1]
    return numbers
