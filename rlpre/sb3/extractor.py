"""The encoder as an SB3 features extractor, and the modes in which a policy can use it."""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Self

from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, is_grad_enabled, nan, nn
from torch.optim import Adam, Optimizer

from rlpre.augment import random_shift
from rlpre.encoders import Encoder
from rlpre.errors import RlpreError, lookup
from rlpre.sb3.distinct import encode_distinct, independent
from rlpre.sb3.optim import SCALE, scaled


@dataclass(frozen=True)
class Mode:
    """How a policy uses an encoder: with its weights or fresh ones, trained or not, and how fast."""

    pretrained: bool
    trainable: bool
    lr_scale: float = 1.0


MODES = {
    "scratch": Mode(pretrained=False, trainable=True),
    "random": Mode(pretrained=False, trainable=False),
    "frozen": Mode(pretrained=True, trainable=False),
    "finetuned": Mode(pretrained=True, trainable=True, lr_scale=0.1),
}


@dataclass(frozen=True)
class Blueprint:
    """An encoder as a keyword argument: its configuration and, in memory only, its weights.

    SB3 keeps the arguments of a policy in every zip and calls the constructors again at load. Pickled, a blueprint
    leaves its tensors behind, since the policy's state already has them.
    """

    config: dict[str, Any]
    pretrained: bool
    tensors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, encoder: Encoder, pretrained: bool) -> Self:
        """Copies what ``encoder`` is now; training it later changes nothing here."""
        config = copy.deepcopy(encoder.config)
        if not pretrained:
            return cls({**config, "pretraining": {}}, pretrained)
        return cls(
            config, pretrained, {name: tensor.detach().cpu().clone() for name, tensor in encoder.state_dict().items()}
        )

    def build(self) -> Encoder:
        """Builds the encoder; every mode draws the same random numbers, so that heads start alike for a given seed."""
        encoder = Encoder.from_config(self.config)
        if self.tensors is not None:
            encoder.load_state_dict(self.tensors)
        elif self.pretrained:
            for parameter in encoder.parameters():
                nn.init.constant_(parameter, nan)
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class EncoderExtractor(BaseFeaturesExtractor):
    """An encoder behind SB3's interface, safe from what SB3 does to a features extractor.

    Args:
        observation_space: frames as the encoder's input specification describes them.
        blueprint: the encoder.
        trainable: False keeps it in evaluation mode and away from every optimiser.
        lr_scale: learning rate relative to the heads'.
        augment: shift frames at random while gradients flow.

    Raises:
        RlpreError: if the observation space is not the one the encoder reads.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        blueprint: Blueprint,
        trainable: bool,
        lr_scale: float,
        augment: bool,
    ) -> None:
        encoder = blueprint.build()
        encoder.input.check(observation_space)
        super().__init__(observation_space, encoder.num_features)
        self.encoder, self.trainable, self.augment = encoder, trainable, augment
        self.ready = not has_nan(encoder)
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        for parameter in encoder.parameters():
            setattr(parameter, SCALE, lr_scale)
        if not trainable:
            freeze(encoder)
        self.train(self.training)

    def forward(self, observations: Tensor) -> Tensor:
        """Encodes frames: (batch, C, H, W) in the encoder's range -> (batch, num_features).

        Raises:
            RlpreError: if the pretrained weights have not been loaded.
        """
        if not self.ready:
            raise RlpreError(
                "the encoder's weights were left behind when these policy_kwargs were pickled: "
                "load the saved model, or call policy_kwargs again with the encoder"
            )
        if self.augment and self.training and is_grad_enabled():
            return self.encoder(random_shift(observations))  # type: ignore[no-any-return]
        if not independent(self.encoder):
            return self.encoder(observations)  # type: ignore[no-any-return]
        return encode_distinct(self.encoder, observations)

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Does nothing: SB3 calls this with its orthogonal initialisation, which would erase the weights."""
        return self

    def train(self, mode: bool = True) -> Self:
        """As in torch, but an encoder that is not trained stays in evaluation mode (batch norm, dropout)."""
        return super().train(mode and self.trainable)


def freeze(module: nn.Module) -> None:
    """Turns every parameter into a buffer of the same name.

    What is not a parameter cannot be optimised, decayed, clipped, or blended into a target network, whoever asks.
    """
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            delattr(part, name)
            part.register_buffer(name, parameter.detach())


def has_nan(module: nn.Module) -> bool:
    """Whether any weight is not a number, the mark of weights that were never loaded."""
    return any(bool(tensor.isnan().any()) for tensor in module.state_dict().values())


def _loaded(extractor: nn.Module, _keys: object) -> None:
    assert isinstance(extractor, EncoderExtractor)
    extractor.ready = not has_nan(extractor)


def extractor_kwargs(encoder: Encoder, mode: Mode, augment: bool = False) -> dict[str, Any]:
    """The part of ``policy_kwargs`` that concerns the extractor alone."""
    return {
        "features_extractor_class": EncoderExtractor,
        "features_extractor_kwargs": {
            "blueprint": Blueprint.of(encoder, mode.pretrained),
            "trainable": mode.trainable,
            "lr_scale": mode.lr_scale,
            "augment": augment,
        },
        "normalize_images": False,  # the encoder scales by itself
    }


def policy_kwargs(
    encoder: Encoder,
    mode: str = "frozen",
    *,
    encoder_lr_scale: float | None = None,
    augment: bool = False,
    optimizer_class: type[Optimizer] = Adam,
    optimizer_kwargs: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Keyword arguments that put ``encoder`` into an SB3 ``CnnPolicy`` (PPO, A2C, DQN).

    All modes share architecture, heads and optimiser, so that a comparison compares only the weights:

    - ``"scratch"``: fresh weights, drawn from the model's seed, trained like the heads.
    - ``"random"``: fresh weights, frozen; the control.
    - ``"frozen"``: the encoder's weights, never changed. `EncodedVecEnv` computes the same, several times faster.
    - ``"finetuned"``: the encoder's weights, trained at a smaller learning rate.

    Two of SB3's defaults depend on what these arguments replace. Heads have hidden layers of 64 units (``net_arch``),
    as for any extractor but SB3's own. The optimiser is Adam for every algorithm, A2C too; pass ``torch.optim.RMSprop``
    for A2C's own.

    Args:
        encoder: copied now; training it later does not change the policy.
        mode: a name in ``MODES``.
        encoder_lr_scale: the encoder's learning rate relative to the heads', default 0.1 for ``"finetuned"``, else 1.
        augment: shift frames at random while training, for modes that train the encoder.
        optimizer_class: Adam, RMSprop, or SB3's RMSpropTFLike.
        optimizer_kwargs: default ``{"eps": 1e-5}``, SB3's value for PPO and A2C (its DQN leaves Adam at 1e-8).
        **others: further arguments of the policy, such as ``net_arch``.

    Raises:
        RlpreError: for an unknown mode or optimiser, or an option that the mode does not use.
    """
    chosen = lookup("mode", mode, MODES)
    if not chosen.trainable and (augment or encoder_lr_scale is not None):
        option = "augment" if augment else "encoder_lr_scale"
        raise RlpreError(f"{option} has no effect on mode {mode!r}, which does not train the encoder: leave it out")
    if encoder_lr_scale is not None:
        if encoder_lr_scale <= 0:
            raise RlpreError(
                f"encoder_lr_scale is {encoder_lr_scale}, it must be positive: mode 'frozen' does not train at all"
            )
        chosen = Mode(chosen.pretrained, chosen.trainable, encoder_lr_scale)
    ours = {
        **extractor_kwargs(encoder, chosen, augment),
        "optimizer_class": scaled(optimizer_class),
        "optimizer_kwargs": {"eps": 1e-5} if optimizer_kwargs is None else optimizer_kwargs,
    }
    if taken := sorted(ours.keys() & others.keys()):
        raise RlpreError(f"policy_kwargs sets {taken[0]!r} itself: leave it out")
    return ours | others
