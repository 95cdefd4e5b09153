"""What distinguishes the agents we compare: how the encoder starts, and whether it learns."""

from dataclasses import dataclass
from typing import Any

from rlpre.sb3 import MODES


@dataclass(frozen=True)
class Recipe:
    """One way to use an encoder in a policy; everything else is shared by all agents.

    Each kind of agent has the learning rate and the passes over a rollout that served it best on seeds that no result
    reports, of 5e-4 to 4e-3 and 4 to 16: twice the passes let scratch learn where four failed, with no clear gain to
    encoders that are pretrained or frozen.
    """

    mode: str  # of the plug, a name in rlpre.sb3.MODES
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
        return MODES[self.mode].pretrained

    @property
    def encoded_once(self) -> bool:
        """Whether the encoder never changes, so that frames can be encoded outside the policy."""
        return not MODES[self.mode].trainable

    @property
    def learns_to_see(self) -> bool:
        """Whether the encoder starts from fresh weights that must become good ones."""
        return not self.pretrained and not self.encoded_once

    @property
    def learning_rate(self) -> float:
        """Adam's rate for the heads."""
        return 5e-4 if self.learns_to_see else 2e-3

    @property
    def n_epochs(self) -> int:
        """PPO's passes over a rollout."""
        return 8 if self.learns_to_see else 4


RECIPES = {
    "scratch": Recipe("scratch"),
    "scratch-shift": Recipe("scratch", augment=True),
    "random-frozen": Recipe("random"),
    "frozen": Recipe("frozen"),
    "finetuned": Recipe("finetuned"),
    "partial": Recipe("partial", stages=2),  # the first half of a "cnn"
    "lp-ft": Recipe("finetuned", warmup=0.25),
}
