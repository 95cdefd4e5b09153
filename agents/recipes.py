"""What distinguishes the agents we compare: how the encoder starts, whether it learns, and whether it remembers."""

from dataclasses import asdict, dataclass
from typing import Any

from rlpre import Encoder, SequenceEncoder
from rlpre.encoders import Vocabulary
from rlpre.sb3 import MODES


@dataclass(frozen=True)
class Backbone:
    """What a sequence encoder over a frozen encoder of frames is built of."""

    name: str = "transformer"  # or "gru"
    width: int = 64  # of a token, and of the features
    layers: int = 2
    heads: int = 4  # of a transformer's attention
    window: int = 32  # steps that the features tell of

    def build(
        self,
        vision: Encoder,
        actions: int,
        vocabulary: Vocabulary | None = None,
        objective: str = "",
        previous_action: bool = True,
    ) -> SequenceEncoder:
        """One with fresh weights; masked and autoregressive share the backbone and differ by the mask alone."""
        settings = {**asdict(self), "causal": objective != "masked", "previous_action": previous_action}
        return SequenceEncoder(settings.pop("name"), vision, actions, vocabulary, **settings)


@dataclass(frozen=True)
class Recipe:
    """One way to use an encoder in a policy; everything else is shared by all agents.

    Each kind of agent has the learning rate and the passes over a rollout that served it best on seeds that no result
    reports, of 5e-4 to 4e-3 and 4 to 16: twice the passes let scratch learn where four failed, with no clear gain to
    encoders that are pretrained or frozen.
    """

    mode: str  # of the plug, a name in rlpre.sb3.MODES; with history it concerns the sequence encoder
    history: bool = False  # whether it reads the past, in a sequence encoder over a frozen pretrained one
    augment: bool = False  # random shifts during the policy update, as in pretraining
    stages: int | None = None  # of the encoder that mode "partial" freezes
    warmup: float = 0.0  # share of the gradient steps for which the heads learn alone

    def plug(self, updates: int) -> dict[str, Any]:
        """Arguments of ``rlpre.policy_kwargs`` for a run of so many gradient steps."""
        waits = {"warmup_updates": round(self.warmup * updates)}
        return {"mode": self.mode, "augment": self.augment, "stages": self.stages, **waits}

    @property
    def pretrained(self) -> bool:
        """Whether the recipe needs an encoder checkpoint."""
        return self.history or MODES[self.mode].pretrained

    @property
    def remembers_already(self) -> bool:
        """Whether that is the checkpoint of a sequence encoder."""
        return self.history and MODES[self.mode].pretrained

    @property
    def encoded_once(self) -> bool:
        """Whether no encoder need be in the policy, because none changes: it can read features."""
        return not MODES[self.mode].trainable

    @property
    def learns_to_encode(self) -> bool:
        """Whether an encoder starts from fresh weights that must become good ones."""
        mode = MODES[self.mode]
        return mode.trainable and not mode.pretrained

    @property
    def learning_rate(self) -> float:
        """Adam's rate for the heads."""
        return 5e-4 if self.learns_to_encode else 2e-3

    @property
    def n_epochs(self) -> int:
        """PPO's passes over a rollout."""
        return 8 if self.learns_to_encode else 4


RECIPES = {
    "scratch": Recipe("scratch"),
    "scratch-shift": Recipe("scratch", augment=True),
    "random-frozen": Recipe("random"),
    "frozen": Recipe("frozen"),
    "finetuned": Recipe("finetuned"),
    "partial": Recipe("partial", stages=2),  # the first half of a "cnn"
    "lp-ft": Recipe("finetuned", warmup=0.25),
    "anchored": Recipe("anchored"),
    "history": Recipe("scratch", history=True),
    "history-random": Recipe("random", history=True),
    "history-frozen": Recipe("frozen", history=True),
    "history-finetuned": Recipe("finetuned", history=True),
}
