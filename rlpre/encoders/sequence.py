"""`SequenceEncoder`: what an agent saw and did so far in an episode, as one feature vector per step.

[0] Kim 2014, "Convolutional Neural Networks for Sentence Classification".
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.encoders.encoder import WHITENED, BaseEncoder, Encoder, freeze
from rlpre.encoders.mixers import GRU, State, Transformer
from rlpre.encoders.networks import identity_map, orthogonal
from rlpre.errors import RlpreError, at_least, lookup

HINT = "demonstrations with another vocabulary or mission grammar need their own encoder"


@dataclass(frozen=True)
class Vocabulary:
    """The words of a mission grammar, or the symbols of any other text: DNA, proteins, the lines of a terminal.

    Args:
        words: each once; word i becomes the number i + 1, and 0 is padding.
        length: largest number of words in a mission.
        characters: whether each character is a word. Otherwise words are set apart by spaces or commas, in any case.

    Example:
        >>> Vocabulary("ACGT", 6, characters=True).encode(["GATT"]).tolist()
        [[3, 1, 4, 4, 0, 0]]

    Raises:
        RlpreError: if there are no words, one comes twice, or the length is not positive.
    """

    words: Sequence[str]
    length: int
    characters: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "words", tuple(self.words))  # a checkpoint gives a list; tuples compare equal
        if not self.words or self.length < 1:
            raise RlpreError(f"{len(self.words)} words and missions of {self.length} at most: give missions with words")
        if len(set(self.words)) < len(self.words):
            twice = max(self.words, key=self.words.count)
            raise RlpreError(f"the vocabulary has {twice!r} twice: give each word once")

    @classmethod
    def from_missions(cls, missions: Iterable[str]) -> Self:
        """Makes the vocabulary of these missions, in alphabetical order."""
        split = [_split(mission) for mission in missions]
        return cls(sorted({word for words in split for word in words}), max(map(len, split), default=0))

    def encode(self, missions: Sequence[str]) -> np.ndarray:
        """Turns missions into numbers (missions, length) int64, padded with 0 on the right.

        Raises:
            RlpreError: naming the first word that the vocabulary lacks, or the first mission that is too long.
        """
        number = {word: index for index, word in enumerate(self.words, start=1)}
        encoded = np.zeros((len(missions), self.length), np.int64)
        for row, mission in zip(encoded, missions, strict=True):
            words = list(mission) if self.characters else _split(mission)
            if unknown := [word for word in words if word not in number]:
                raise RlpreError(f"the vocabulary lacks {unknown[0]!r} of the mission {mission!r}: {HINT}")
            if len(words) > self.length:
                count = f"{len(words)} words, the vocabulary's longest {self.length}"
                raise RlpreError(f"the mission {mission!r} has {count}: {HINT}")
            row[: len(words)] = [number[word] for word in words]
        return encoded


def _split(mission: str) -> list[str]:
    return mission.lower().replace(",", " ").split()


class MissionEmbedding(nn.Module):
    """Encoded missions (batch, length) to vectors (batch, width): words with positions, convolved in threes [0]."""

    def __init__(self, vocabulary: Vocabulary, width: int) -> None:
        super().__init__()
        self.words = nn.Embedding(len(vocabulary.words) + 1, width)
        self.places = nn.Parameter(torch.randn(vocabulary.length, width))
        self.triples = nn.Conv1d(width, width, kernel_size=3, padding=1)

    def forward(self, mission: Tensor) -> Tensor:
        """Padding contributes nothing."""
        word = (mission > 0)[..., None]
        x = (self.words(mission) + self.places) * word
        return (F.relu(self.triples(x.mT).mT) * word).sum(1)


class SequenceEncoder(BaseEncoder):
    """Maps the frames, actions and mission of an episode to one feature vector per step.

    A token is the sum of a linear map of the frame's features, an embedding of the previous action, and an embedding of
    the mission. The backbone mixes each token with those before it.

    The features of a causal transformer depend on the last ``window`` tokens only: a window, a whole episode, and one
    step at a time (``begin``, ``step``) give the same features. Those of a GRU depend on the whole episode so far.

    Args:
        backbone: "gru" or "transformer"; with the prefix "whitened:" it has a linear map behind it.
        frames: the encoder of single frames; it is copied and frozen (its weights become buffers).
        actions: number of discrete actions.
        vocabulary: of the missions; None: missions are not read.
        width: length of a token and of the features.
        layers: number of layers of the backbone.
        heads: number of attention heads of a transformer.
        window: number of tokens that a transformer sees, and that policies keep of the past.
        causal: whether a step sees only the steps before it.
        previous_action: whether tokens include the previous action.
        pretraining: how the weights were made; empty for fresh weights.

    The ``stages`` are the token embedding, the backbone, and the whitening map if there is one.

    Raises:
        RlpreError: for an unknown backbone, or sizes that do not fit each other.
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
        build = lookup("backbone", backbone.replace(WHITENED, ""), BACKBONES)
        self.backbone, self.actions, self.vocabulary = backbone, actions, vocabulary
        self.width, self.layers, self.heads, self.window = width, layers, heads, window
        self.causal, self.previous_action = causal, previous_action
        at_least(self, actions=1, width=1, layers=1, heads=1, window=1)
        self.num_features, self.pretraining = width, dict(pretraining or {})
        tokens = _Tokens(self, frames.num_features)
        self.stages = nn.ModuleList(orthogonal([tokens, build(width, layers, heads, window, causal)]))
        self.stages.extend(identity_map(width) for _ in range(backbone.count(WHITENED)))
        self.frames = copy.deepcopy(frames).eval()
        freeze(self.frames)
        self._register_standard()

    def causal_copy(self) -> Self:
        """Returns a copy with the same weights that sees only the past, as a policy must.

        Raises:
            RlpreError: if it is a bidirectional GRU, half of which reads from the end.
        """
        if self.recurrent and not self.causal:
            raise RlpreError("a bidirectional GRU reads from both ends and cannot act: pretrain a transformer")
        copied = self.from_config({**self.config, "causal": True})
        copied.load_state_dict(self.state_dict())
        return copied.to(self.device).train(self.training)

    def grown(
        self, vocabulary: Vocabulary | None = None, actions: int | None = None, layers: int | None = None
    ) -> Self:
        """Returns a copy for a larger world: what it knows keeps its weights, what is new starts fresh.

        Args:
            vocabulary: with new words, or of longer missions; None: as before.
            actions: number of actions; the known ones come first.
            layers: of the backbone; new ones come last.

        Raises:
            RlpreError: if the new encoder would lack a word, an action or a layer of this one.
        """
        vocabulary, sizes = vocabulary or self.vocabulary, {"actions": actions, "layers": layers}
        sizes = {name: getattr(self, name) if size is None else size for name, size in sizes.items()}
        known, new = (list(each.words) if each else [] for each in (self.vocabulary, vocabulary))
        lost = [repr(word) for word in known if word not in new]
        lost += [name for name, size in sizes.items() if size < getattr(self, name)]
        if self.vocabulary and vocabulary and vocabulary.length < self.vocabulary.length:
            lost.append(f"places for missions of {self.vocabulary.length} words")
        if lost:
            raise RlpreError(f"a grown encoder would lack {lost[0]}: give at least what this one has")
        words = asdict(vocabulary) if vocabulary else None
        larger = self.from_config({**self.config, "vocabulary": words, **sizes})
        tensors, place = larger.state_dict(), torch.tensor([0, *(1 + new.index(word) for word in known)])
        for name, tensor in self.state_dict().items():
            known_rows = tuple(map(slice, tensor.shape[:1]))  # () for a single number
            tensors[name][place if name.endswith("mission.words.weight") else known_rows] = tensor
        return larger.to(self.device).train(self.training)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Encodes ``frames`` (n, C, H, W) as `Encoder` does, to (n, frames.num_features), without gradients."""
        shape = self.frames.input.shape
        if frames.shape[1:] != shape:
            raise RlpreError(f"frames have shape {tuple(frames.shape)}: give (n, C, H, W) with {shape} of each")
        with torch.no_grad():
            return cast(Tensor, self.frames(frames))

    def forward(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """Encodes every step, to features (batch, steps, width).

        Args:
            features: of the frames, (batch, steps, frames.num_features) float.
            actions: the action before each frame, (batch, steps) int64 in [0, actions); -1 at the first step of an
                episode, which has none.
            mission: from ``Vocabulary.encode``, (batch, length) int64; None without a vocabulary.
            present: (batch, steps) bool; False is padding, anywhere in the window. It does not change the features of
                other steps, and its own are 0.

        Raises:
            RlpreError: for another shape, or an action or word out of range.
        """
        return self._mix(self._mixer, self._embed(features, actions, mission), present)

    def last(self, features: Tensor, actions: Tensor, mission: Tensor | None, present: Tensor) -> Tensor:
        """The last step of ``forward``, (batch, width); much cheaper if the backbone is a transformer."""
        return self._mix(self._mixer.last, self._embed(features, actions, mission), present)

    def begin(self, batch: int) -> State:
        """Returns the state of ``batch`` episodes before their first step.

        Raises:
            RlpreError: if the encoder is bidirectional: its features need the whole episode.
        """
        if not self.causal:
            raise RlpreError("a bidirectional encoder cannot go step by step: build it with causal=True")
        return self._mixer.begin(batch)

    def step(
        self, features: Tensor, actions: Tensor, mission: Tensor | None, state: State, starts: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """Encodes one more step of each episode, at the cost of one token, to the features that ``forward`` gives.

        Features, actions and missions are as in ``forward``, but without the dimension of steps. ``state`` is from
        ``begin`` or the last ``step`` and is not changed. It is reset where ``starts`` (batch,) bool is True.

        Returns:
            Features (batch, width) and the new state.

        Raises:
            RlpreError: as ``forward``, or if the state has another number of episodes.
        """
        if state[0].shape[1] != len(features):
            raise RlpreError(f"the state is of {state[0].shape[1]} episodes, features of {len(features)}: begin again")
        token = self._embed(features[:, None], actions[:, None], mission)[:, 0]
        mixed, state = self._mixer.step(token, state, starts)
        return self._finish(mixed), state

    def train(self, mode: bool = True) -> Self:
        """Like torch's, but the encoder of frames stays in evaluation mode."""
        super().train(mode)
        self.frames.eval()
        return self

    def _config(self) -> dict[str, Any]:
        names = ("kind", "backbone", "actions", "width", "layers", "heads", "window", "causal", "previous_action")
        config = {name: getattr(self, name) for name in names}
        config |= {"vocabulary": asdict(self.vocabulary) if self.vocabulary else None}
        return {**config, "num_features": self.num_features, "frames": self.frames.config}

    @classmethod
    def _build(cls, config: dict[str, Any]) -> Self:
        given = {key: value for key, value in config.items() if key not in ("format", "kind", "num_features")}
        vocabulary = given["vocabulary"] and Vocabulary(**given["vocabulary"])
        return cls(**given | {"frames": Encoder.from_config(given["frames"]), "vocabulary": vocabulary})

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "frames": self.frames.fingerprint()}

    @property
    def recurrent(self) -> bool:
        """Whether the features depend on the whole episode so far instead of a window."""
        return isinstance(self._mixer, GRU)

    @property
    def _mixer(self) -> GRU | Transformer:
        return cast(GRU | Transformer, self.stages[1])

    def _mix(self, mix: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, present: Tensor) -> Tensor:
        """Mixes tokens by ``forward`` or ``last`` of the backbone."""
        if present.shape != tokens.shape[:2]:
            shapes = f"{tuple(present.shape)} for tokens {tuple(tokens.shape)}"
            raise RlpreError(f"present has shape {shapes}: give one bool per token")
        mixed = self._finish(mix(tokens.masked_fill(~present[..., None], 0), present))
        return mixed.masked_fill(~(present if mixed.ndim == 3 else present[:, -1])[..., None], 0)

    def _finish(self, mixed: Tensor) -> Tensor:
        for stage in self.stages[2:]:
            mixed = stage(mixed)
        return self._standardised(mixed)

    def _embed(self, features: Tensor, actions: Tensor, mission: Tensor | None) -> Tensor:
        """Makes tokens (batch, steps, width)."""
        size, shape = self.frames.num_features, tuple(features.shape)
        if features.ndim != 3 or shape[2] != size:
            raise RlpreError(f"features have shape {shape}: give (batch, steps, {size}), as encode_frames makes them")
        if tuple(actions.shape) != shape[:2]:
            shapes = f"{tuple(actions.shape)} for features {shape}"
            raise RlpreError(f"previous actions have shape {shapes}: give one per step, -1 where there is none")
        wanted = (len(features), self.vocabulary.length) if self.vocabulary else None
        given = None if mission is None else tuple(mission.shape)
        if given != wanted:
            hint = "give what its vocabulary's encode makes" if wanted else "it has no vocabulary, give None"
            raise RlpreError(f"missions have shape {given}, the encoder reads {wanted}: {hint}")
        _check_range("the previous action", actions, -1, self.actions - 1)
        if mission is not None and self.vocabulary:
            _check_range("the number of a word", mission, 0, len(self.vocabulary.words))
        return cast(Tensor, self.stages[0](features.to(self.dtype), actions, mission))


class _Tokens(nn.Module):
    def __init__(self, encoder: SequenceEncoder, features: int) -> None:
        super().__init__()
        self.frame = nn.Linear(features, encoder.width)
        self.action = nn.Embedding(encoder.actions + 1, encoder.width) if encoder.previous_action else None
        self.mission = MissionEmbedding(encoder.vocabulary, encoder.width) if encoder.vocabulary else None

    def forward(self, features: Tensor, actions: Tensor, mission: Tensor | None) -> Tensor:
        """The sum of what is embedded, (batch, steps, width)."""
        tokens: Tensor = self.frame(features)
        if self.action is not None:
            tokens = tokens + self.action(actions + 1)
        if self.mission is not None:
            tokens = tokens + self.mission(mission)[:, None]
        return tokens


BACKBONES: dict[str, type[GRU] | type[Transformer]] = {"gru": GRU, "transformer": Transformer}


def _check_range(what: str, numbers: Tensor, low: int, high: int) -> None:
    outside = numbers[(numbers < low) | (numbers > high)]
    if len(outside):
        raise RlpreError(f"{what} is {int(outside[0])}: it must lie in [{low}, {high}], as the encoder was built")
