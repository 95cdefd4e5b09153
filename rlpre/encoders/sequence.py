"""An encoder of trajectories: what was seen and done so far, as one feature vector per step."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from rlpre.encoders.base import Encoder
from rlpre.encoders.checkpoint import FORMAT, Checkpoint, freeze
from rlpre.encoders.gru import GRU
from rlpre.encoders.initial import orthogonal
from rlpre.encoders.text import MissionEmbedding, Vocabulary
from rlpre.encoders.transformer import Transformer
from rlpre.encoders.whitened import PREFIX, identity
from rlpre.errors import RlpreError, at_least, lookup

State = tuple[Tensor, ...]  # what the backbone keeps of the steps so far


class SequenceEncoder(Checkpoint):
    """Maps the frames, actions and mission of an episode to one feature vector per step.

    A token is the sum of three: a linear map of the frame's features, an embedding of the action before it, and an
    embedding of the mission. The backbone mixes each token with those before it.

    The features of a causal transformer depend on the last ``window`` tokens alone: a window, a whole episode, and one
    step at a time (``begin``, ``step``) give the same. Those of a GRU reach back to the episode's start.

    Args:
        backbone: "gru" or "transformer", "whitened:" before it for a linear map behind it.
        frames: the encoder of single frames, copied and frozen for good: its weights are buffers, no parameters.
        actions: number of discrete actions.
        vocabulary: of the missions; None leaves missions out.
        width: length of a token and of the features.
        layers: of the backbone.
        heads: of a transformer's attention.
        window: tokens that a transformer sees, and that policies keep of the past.
        causal: whether no step sees what comes after it.
        previous_action: whether tokens tell of the action before them; else of observation and mission only.
        pretraining: how the weights came about; empty for fresh weights.

    Attributes:
        stages: the token embedding, the backbone, and the map that whitens if there is one, the unit of partial
            freezing.
        num_features: length of the feature vector, ``width``.

    Raises:
        RlpreError: for an unknown backbone, or numbers that do not fit each other.
    """

    kind, design = "sequence", "backbone"

    def __init__(
        self,
        backbone: str,
        frames: Encoder,
        actions: int,
        vocabulary: Vocabulary | None = None,
        *,
        width: int = 64,
        layers: int = 2,
        heads: int = 4,
        window: int = 32,
        causal: bool = True,
        previous_action: bool = True,
        pretraining: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        build = lookup("backbone", backbone.replace(PREFIX, ""), BACKBONES)
        self.backbone, self.actions, self.vocabulary = backbone, actions, vocabulary
        self.width, self.layers, self.heads, self.window = width, layers, heads, window
        self.causal, self.previous_action = causal, previous_action
        at_least(self, actions=1, width=1, layers=1, heads=1, window=1)
        self.num_features, self.pretraining = width, dict(pretraining or {})
        self.stages = nn.ModuleList(orthogonal([_Tokens(self, frames.num_features), build(self)]))
        self.stages.extend(identity(width) for _ in range(backbone.count(PREFIX)))
        self.frames = copy.deepcopy(frames).eval()
        freeze(self.frames)
        self._register_standard()

    def causal_copy(self) -> Self:
        """The same weights, looking back alone as a policy must: a transformer's masks have no weights.

        Raises:
            RlpreError: if it is a bidirectional GRU, one half of which reads from the end.
        """
        if self.recurrent and not self.causal:
            raise RlpreError("a bidirectional GRU reads from both ends and cannot act: pretrain a transformer")
        twin = self.from_config({**self.config, "causal": True})
        twin.load_state_dict(self.state_dict())
        return twin.to(self.device).train(self.training)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (n, C, H, W) as `Encoder` does, to (n, frames.num_features), without gradients."""
        shape = self.frames.input.shape
        if frames.shape[1:] != shape:
            raise RlpreError(f"frames have shape {tuple(frames.shape)}: give (n, C, H, W) with {shape} of each")
        with torch.no_grad():
            return cast(Tensor, self.frames(frames))

    def tokens(self, features: Tensor, actions: Tensor, mission: Tensor | None) -> Tensor:
        """Makes tokens (batch, steps, width).

        Args:
            features: of the frames, (batch, steps, frames.num_features) float.
            actions: before each frame, (batch, steps) int64 in [0, actions); -1 where there is none, at an episode's
                first step.
            mission: as ``Vocabulary.encode`` gives it, (batch, length) int64; None without a vocabulary.

        Raises:
            RlpreError: for another shape, or an action or word beyond the range.
        """
        self._check_shapes(features, actions, mission)
        _check_range("the previous action", actions, -1, self.actions - 1)
        if mission is not None and self.vocabulary:
            _check_range("the number of a word", mission, 0, len(self.vocabulary.words))
        return cast(Tensor, self.stages[0](features, actions, mission))

    def mix(self, tokens: Tensor, present: Tensor) -> Tensor:
        """Turns tokens into features (batch, steps, width), standardised.

        Args:
            tokens: (batch, steps, width).
            present: (batch, steps) bool; False is padding, which changes nothing, wherever it is, and gets 0.

        Raises:
            RlpreError: if the shapes do not fit each other.
        """
        return self._mixed(self._memory, tokens, present, present)

    def forward(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """``mix`` of ``tokens``: one feature vector per step, (batch, steps, width)."""
        return self.mix(self.tokens(features, actions, mission), present)

    def last(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """The last step of ``forward``, (batch, width), for a fraction of the work if the backbone is a transformer."""
        return self._mixed(self._memory.last, self.tokens(features, actions, mission), present, present[:, -1])

    def begin(self, batch: int) -> State:
        """The state of so many episodes before their first step.

        Raises:
            RlpreError: if the encoder is bidirectional: no step is final before the last.
        """
        if not self.causal:
            raise RlpreError("a bidirectional encoder cannot go step by step: build it with causal=True")
        return self._memory.begin(batch)

    def step(
        self, features: Tensor, actions: Tensor, mission: Tensor | None, state: State, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """One more step of each episode, at the cost of one token, with the features that ``forward`` gives.

        Args:
            features: of the frames, (batch, frames.num_features).
            actions: before them, (batch,).
            mission: (batch, length), or None.
            state: from ``begin`` or the last ``step``; it is not changed.
            starts: (batch,) bool, where a new episode begins and the state is forgotten.

        Returns:
            Features (batch, width) and the new state.

        Raises:
            RlpreError: as ``tokens``, or if the state is of another number of episodes.
        """
        if state[0].shape[1] != len(features):
            raise RlpreError(f"the state is of {state[0].shape[1]} episodes, features of {len(features)}: begin anew")
        token = self.tokens(features[:, None], actions[:, None], mission)[:, 0]
        mixed, state = self._memory.step(token, state, starts)
        return self._finished(mixed), state

    def train(self, mode: bool = True) -> Self:
        """As in torch, but the encoder of frames stays in evaluation mode."""
        super().train(mode)
        self.frames.eval()
        return self

    @property
    def config(self) -> dict[str, Any]:
        """Everything but the weights, ready for JSON; ``SequenceEncoder.from_config`` is its inverse."""
        return {
            "format": FORMAT,
            "kind": self.kind,
            **self._arguments(),
            "num_features": self.num_features,
            "frames": self.frames.config,
            "pretraining": self.pretraining,
        }

    @classmethod
    def _built(cls, config: dict[str, Any]) -> Self:
        given = {key: value for key, value in config.items() if key not in ("format", "kind", "num_features")}
        vocabulary = given["vocabulary"] and Vocabulary(**given["vocabulary"])
        return cls(**given | {"frames": Encoder.from_config(given["frames"]), "vocabulary": vocabulary})

    def _identity(self) -> dict[str, Any]:
        return {**self._arguments(), "frames": self.frames.fingerprint()}

    def _arguments(self) -> dict[str, Any]:
        names = ("backbone", "actions", "width", "layers", "heads", "window", "causal", "previous_action")
        vocabulary = asdict(self.vocabulary) if self.vocabulary else None
        return {**{name: getattr(self, name) for name in names}, "vocabulary": vocabulary}

    @property
    def recurrent(self) -> bool:
        """Whether the features reach back to the episode's start, instead of over a window."""
        return isinstance(self._memory, GRU)

    @property
    def _memory(self) -> GRU | Transformer:
        return cast(GRU | Transformer, self.stages[1])

    def _mixed(
        self, backbone: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, present: Tensor, asked: Tensor
    ) -> Tensor:
        """What the backbone makes of tokens, standardised; 0 where what is ``asked`` for is not present."""
        if present.shape != tokens.shape[:2]:
            raise RlpreError(
                f"present has shape {tuple(present.shape)} for tokens {tuple(tokens.shape)}: say of each whether it is "
                "there"
            )
        mixed = backbone(tokens.masked_fill(~present[..., None], 0), present)
        return self._finished(mixed).masked_fill(~asked[..., None], 0)

    def _finished(self, mixed: Tensor) -> Tensor:
        for stage in self.stages[2:]:
            mixed = stage(mixed)
        return self._standardised(mixed)

    def _check_shapes(self, features: Tensor, actions: Tensor, mission: Tensor | None) -> None:
        size = self.frames.num_features
        if features.ndim != 3 or features.shape[2] != size:
            raise RlpreError(
                f"features have shape {tuple(features.shape)}: give (batch, steps, {size}), as encode_frames makes them"
            )
        if actions.shape != features.shape[:2]:
            raise RlpreError(
                f"previous actions have shape {tuple(actions.shape)} for features {tuple(features.shape)}: give one "
                "per step, -1 where there is none"
            )
        wanted = (len(features), self.vocabulary.length) if self.vocabulary else None
        found = None if mission is None else tuple(mission.shape)
        if found != wanted:
            raise RlpreError(
                f"missions have shape {found}, the encoder reads {wanted}: "
                + ("give what its vocabulary's encode makes" if wanted else "it has no vocabulary, give None")
            )


class _Tokens(nn.Module):
    def __init__(self, encoder: SequenceEncoder, features: int) -> None:
        super().__init__()
        self.frame = nn.Linear(features, encoder.width)
        self.action = nn.Embedding(encoder.actions + 1, encoder.width) if encoder.previous_action else None
        self.mission = MissionEmbedding(encoder.vocabulary, encoder.width) if encoder.vocabulary else None

    def forward(self, features: Tensor, actions: Tensor, mission: Tensor | None) -> Tensor:
        """One token a step: the sum of what its frame, the action before and the mission are embedded as."""
        tokens: Tensor = self.frame(features)
        if self.action is not None:
            tokens = tokens + self.action(actions + 1)
        if self.mission is not None:
            tokens = tokens + self.mission(mission)[:, None]
        return tokens


BACKBONES: dict[str, Callable[[SequenceEncoder], GRU | Transformer]] = {
    "gru": lambda encoder: GRU(encoder.width, encoder.layers, encoder.causal),
    "transformer": lambda encoder: Transformer(
        encoder.width, encoder.layers, encoder.heads, encoder.window, encoder.causal
    ),
}


def _check_range(what: str, numbers: Tensor, low: int, high: int) -> None:
    beyond = numbers[(numbers < low) | (numbers > high)]
    if len(beyond):
        raise RlpreError(f"{what} is {int(beyond[0])}: it must lie in [{low}, {high}], as the encoder was built")
