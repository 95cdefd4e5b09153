"""A policy on sequences: an encoder of trajectories and a linear head over actions."""

from pathlib import Path
from typing import Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from envs.trials import Dice
from rlpre import SequenceEncoder
from rlpre.device import ship
from rlpre.encoders.checkpoint import check_tensors
from rlpre.encoders.sequence import State
from rlpre.errors import RlpreError
from rlpre.files import write_bytes

HEAD = "head.safetensors"
NONE = -1  # the token of an action that was not taken, or is not told


class SequencePolicy(nn.Module):
    """Logits of the next action, given an episode so far.

    Args:
        encoder: causal; it becomes part of the policy.

    Attributes:
        encoder: the trajectory's features.
        head: their linear map to one logit per action.

    Raises:
        RlpreError: if the encoder sees the future.
    """

    def __init__(self, encoder: SequenceEncoder) -> None:
        super().__init__()
        if not encoder.causal:
            raise RlpreError("a policy acts on the past, but this encoder sees the future: build it with causal=True")
        self.encoder = encoder
        self.head = nn.Linear(encoder.num_features, encoder.actions)
        nn.init.orthogonal_(self.head.weight, gain=0.01)  # as SB3's: at first all actions are about as likely
        nn.init.zeros_(self.head.bias)

    def logits(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """Logits (B, T, actions) at every step of padded episodes; arguments as of ``SequenceEncoder.forward``."""
        scores: Tensor = self.head(self.encoder(features, actions, mission, present))
        return scores

    def step(
        self, features: Tensor, actions: Tensor, mission: Tensor | None, state: State, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Logits (B, actions) at one more step, and the state after it; arguments as of ``SequenceEncoder.step``."""
        mixed, state = self.encoder.step(features, actions, mission, state, starts)
        return self.head(mixed), state

    def actor(self, seed: int = 0) -> "PolicyActor":
        """Plays episodes with this policy, see `envs.trials.play`; ``seed`` draws its actions."""
        return PolicyActor(self, seed)

    def save(self, path: str | Path) -> Path:
        """Writes a checkpoint of the sequence encoder, which can be loaded alone, and beside it the head."""
        path = self.encoder.save(path)
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.head.state_dict().items()}
        write_bytes(path / HEAD, save(tensors))
        return path

    @classmethod
    def load(cls, path: str | Path, device: str = "cpu") -> Self:
        """Loads what `save` wrote, strictly.

        Raises:
            RlpreError: if a file is missing or damaged, or belongs to another encoder.
        """
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
    """Draws actions from a policy, step by step from its cached state; one slot per world.

    Args:
        policy: put into evaluation mode.
        seed: of the draws: the k-th episode has a luck of its own, whatever the policy and the number of worlds.

    Attributes:
        taken: (n,) int64, what was done last in each slot, the next step's token; who overrules the actor writes it.
    """

    taken: np.ndarray
    state: State

    def __init__(self, policy: SequencePolicy, seed: int) -> None:
        self.policy, self.dice = policy.eval(), dice(seed)
        self.words: list[str] = []
        self.mission: Tensor | None = None

    @torch.inference_mode()
    def act(self, frames: np.ndarray, missions: list[str], advice: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Actions (n,) int64 for frames (n, C, H, W) uint8; ``starts`` (n,) bool are episodes' first steps."""
        encoder = self.policy.encoder
        device = encoder.device
        if starts.all():
            self.state, self.taken = encoder.begin(len(frames)), np.full(len(frames), NONE)
        if encoder.vocabulary and missions != self.words:
            self.words = list(missions)
            self.mission = ship(encoder.vocabulary.encode(missions), device)
        features = encoder.encode_frames(ship(frames, device))
        told = ship(np.where(starts, NONE, self.taken), device)
        logits, self.state = self.policy.step(features, told, self.mission, self.state, ship(starts, device))
        luck = self.dice.roll(starts, encoder.actions)
        self.taken = draw(logits, ship(luck, device)).cpu().numpy()
        return self.taken


def dice(seed: int) -> Dice:
    """The luck of an actor's episodes."""
    return Dice(np.random.default_rng(seed))


def draw(logits: Tensor, luck: Tensor) -> Tensor:
    """Actions (n,) drawn from the softmax of logits (n, actions) by uniform numbers (n, actions): Gumbel's maximum."""
    return (logits.double() - (-luck.log()).log()).argmax(-1)
