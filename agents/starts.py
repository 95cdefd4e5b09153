"""What a clone starts from: whose features of frames, told of which tokens, pretrained on trajectories or not."""

from dataclasses import asdict, dataclass

from gymnasium import spaces

from rlpre import Encoder, InputSpec, PretrainConfig, SequenceEncoder
from rlpre.encoders import Vocabulary

PRETRAINED, RANDOM = "pretrained", "random"  # encoders of frames
BASELINE = "clone"


@dataclass(frozen=True)
class Backbone:
    """The sequence encoder over a frozen encoder of frames."""

    name: str = "transformer"
    width: int = 64
    layers: int = 2
    heads: int = 4
    window: int = 32


@dataclass(frozen=True)
class Start:
    """The encoder that a clone starts from."""

    vision: str = PRETRAINED  # whose features of a frame a token holds
    previous_action: bool = True  # whether it tells of the action before
    objective: str = ""  # by which the sequence encoder is pretrained on trajectories; empty: it is not

    def build(
        self, backbone: Backbone, vision: Encoder, actions: int, vocabulary: Vocabulary | None
    ) -> SequenceEncoder:
        """One with fresh weights; masked and autoregressive share the backbone and differ by the mask alone."""
        settings = {**asdict(backbone), "previous_action": self.previous_action}
        causal = self.objective != "masked"
        return SequenceEncoder(settings.pop("name"), vision, actions, vocabulary, causal=causal, **settings)


CLONES = {
    BASELINE: Start(),
    "clone-observation": Start(previous_action=False),
    "clone-random": Start(RANDOM),
    "clone-random-observation": Start(RANDOM, previous_action=False),
    "clone-autoregressive": Start(objective="autoregressive"),
    "clone-masked": Start(objective="masked"),
}
PROTOCOL = tuple(name for name, start in CLONES.items() if not start.objective)


def fresh_vision(config: PretrainConfig, frames: spaces.Box) -> Encoder:
    """An encoder of frames with fresh weights, as pretraining would begin with."""
    arguments = {} if config.features is None else {"features": config.features}
    return Encoder(config.encoder, InputSpec(frames.shape), **arguments)
