"""What a clone starts from: whose features of frames, told of which tokens, pretrained on trajectories or not."""

from dataclasses import dataclass

from gymnasium import spaces

from agents.recipes import Backbone
from rlpre import Encoder, InputSpec, PretrainConfig, SequenceEncoder
from rlpre.encoders import Vocabulary

PRETRAINED, RANDOM = "pretrained", "random"  # encoders of frames
BASELINE = "clone"


@dataclass(frozen=True)
class Start:
    """The encoder that a clone starts from."""

    vision: str = PRETRAINED  # whose features of a frame a token holds
    previous_action: bool = True  # whether it tells of the action before
    objective: str = ""  # by which the sequence encoder is pretrained on trajectories; empty: it is not

    def build(
        self, backbone: Backbone, vision: Encoder, actions: int, vocabulary: Vocabulary | None
    ) -> SequenceEncoder:
        """One with fresh weights."""
        return backbone.build(vision, actions, vocabulary, self.objective, self.previous_action)


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
