"""What distinguishes the agents we compare: how the encoder starts, and whether it learns."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """One way to use an encoder in a policy; everything else is shared by all agents."""

    mode: str  # of the plug: scratch, random, frozen, finetuned
    augment: bool = False  # random shifts during the policy update, as in pretraining

    @property
    def pretrained(self) -> bool:
        """Whether the recipe needs an encoder checkpoint."""
        return self.mode in ("frozen", "finetuned")

    @property
    def encoded_once(self) -> bool:
        """Whether the encoder never changes, so that frames can be encoded outside the policy."""
        return self.mode in ("frozen", "random")

    @property
    def learning_rate(self) -> float:
        """Adam's rate for the heads: for each kind the best of those tried on seeds that no result reports."""
        return 1e-3 if self.encoded_once else 5e-4


RECIPES = {
    "scratch": Recipe("scratch"),
    "scratch-shift": Recipe("scratch", augment=True),
    "random-frozen": Recipe("random"),
    "frozen": Recipe("frozen"),
    "finetuned": Recipe("finetuned"),
}
