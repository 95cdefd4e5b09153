"""Encoders as features extractors of SB3."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, cat, full_like, is_grad_enabled, nan, nn

from rlpre.augment import random_shift
from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.encoders.checkpoint import freeze
from rlpre.errors import RlpreError
from rlpre.sb3.distinct import encode_distinct
from rlpre.sb3.observation import find_image
from rlpre.sb3.optim import pace, tie


@dataclass(frozen=True)
class Blueprint:
    """An encoder as a keyword argument: its configuration and, in memory only, its weights and what they stay near.

    SB3 keeps the arguments of a policy in every zip and calls the constructors again at load. Pickled, a blueprint
    leaves its tensors behind, since the state of policy and optimiser already has them.
    """

    config: dict[str, Any]
    pretrained: bool
    tensors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    strength: float = 0.0  # of the pull toward the anchors, see rlpre.sb3.optim
    anchors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def of(
        cls,
        encoder: Encoder | SequenceEncoder,
        pretrained: bool,
        strength: float = 0.0,
        anchors: dict[str, Tensor] | None = None,
    ) -> Self:
        """Copies what ``encoder`` is now; training it later changes nothing here."""
        config = copy.deepcopy(encoder.config)
        if not pretrained:
            config["pretraining"] = {}
        state = encoder.state_dict()
        tensors = {name: state[name].detach().cpu().clone() for name in _kept(state, pretrained)}
        return cls(config, pretrained, tensors, strength, anchors)

    def build(self) -> Encoder | SequenceEncoder:
        """Builds the encoder; every mode draws the same random numbers, so that heads start alike for a given seed."""
        kind = SequenceEncoder if self.config.get("kind") == SequenceEncoder.kind else Encoder
        encoder = kind.from_config(self.config)
        state = encoder.state_dict()
        tensors = self.tensors
        if tensors is None:
            kept = {name: state[name] for name in _kept(state, self.pretrained)}
            tensors = {name: full_like(tensor, nan) for name, tensor in kept.items() if tensor.is_floating_point()}
        encoder.load_state_dict(state | tensors)
        if self.strength:
            tie(encoder, self.strength, self.anchors)
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": None, "anchors": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _kept(state: Mapping[str, Tensor], pretrained: bool) -> list[str]:
    """Which weights stay as they are: all, or those of a sequence encoder's frames, which no mode starts afresh."""
    return [name for name in state if pretrained or name.startswith("frames.")]


class ProtectedExtractor(BaseFeaturesExtractor):
    """An encoder behind SB3's interface, safe from what SB3 does to a features extractor.

    Args:
        observation_space: what ``forward`` reads.
        features_dim: length of what it gives.
        encoder: taken as it is.
        frozen: so many of its first stages never train, away from every optimiser.
        lr_scale: learning rate of the other stages relative to the heads'.
        warmup_updates: gradient steps for which those stages wait.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int,
        encoder: Encoder | SequenceEncoder,
        frozen: int,
        lr_scale: float,
        warmup_updates: int,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self.encoder = encoder
        self.ready = not has_nan(encoder)
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        freeze(encoder.stages[:frozen])
        pace(encoder, lr_scale, warmup_updates)
        self.train(self.training)

    def check_ready(self) -> None:
        """Refuses to run without the weights.

        Raises:
            RlpreError: if the pretrained weights have not been loaded.
        """
        if not self.ready:
            raise RlpreError(
                "the encoder's weights were left behind when these policy_kwargs were pickled: "
                "load the saved model, or call policy_kwargs again with the encoder"
            )

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Does nothing: SB3 calls this with its orthogonal initialisation, which would erase the weights."""
        return self

    def train(self, mode: bool = True) -> Self:
        """As in torch, but the encoder stays in evaluation mode, whether its weights train or not.

        SB3 plays in evaluation mode and updates in training mode: batch norm and dropout would make the policy that is
        updated another one than the policy that acted, so that PPO's ratios are off before the first step.
        """
        super().train(mode and any(parameter.requires_grad for parameter in self.encoder.parameters()))
        self.encoder.eval()
        return self


class EncoderExtractor(ProtectedExtractor):
    """Gives a policy the features of frames.

    Of a Dict it reads the image; the other keys are flattened and stand beside the features in the order of the keys,
    as in SB3's ``CombinedExtractor``.

    Args:
        observation_space: frames as the encoder's input specification describes them, or a Dict with such an image.
        blueprint: the encoder.
        frozen: so many of its first stages never train, away from every optimiser.
        lr_scale: learning rate of the other stages relative to the heads'.
        warmup_updates: gradient steps for which those stages wait.
        augment: shift frames at random while the encoder trains, all frames of a stack alike.
        stack: frames on top of each other, each encoded by itself.
        image_key: the image's, where several fit.

    Raises:
        RlpreError: if the observation space is not one that the encoder reads.
    """

    encoder: Encoder

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        blueprint: Blueprint,
        frozen: int,
        lr_scale: float = 1.0,
        warmup_updates: int = 0,
        augment: bool = False,
        stack: int = 1,
        image_key: str | None = None,
    ) -> None:
        encoder = blueprint.build()
        assert isinstance(encoder, Encoder)
        key = find_image(observation_space, encoder.input, stack, image_key)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        beside = sum(int(get_flattened_obs_dim(part)) for name, part in parts.items() if name != key)
        features_dim = stack * encoder.num_features + beside
        super().__init__(observation_space, features_dim, encoder, frozen, lr_scale, warmup_updates)
        self.augment, self.keys, self.image_key = augment, list(parts), key

    def forward(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encodes frames: (batch, stack * C, H, W) in the encoder's range -> (batch, stack * num_features).

        Of a Dict, whose other parts SB3 has made floats, it gives (batch, features_dim).

        Raises:
            RlpreError: if the pretrained weights have not been loaded.
        """
        self.check_ready()
        if isinstance(observations, Tensor):
            return self._encode(observations)
        parts = ((key, observations[key]) for key in self.keys)
        return cat([self._encode(part) if key == self.image_key else part.flatten(1) for key, part in parts], dim=1)

    def _encode(self, images: Tensor) -> Tensor:
        shifted = self.augment and self.training and is_grad_enabled()
        frames = (random_shift(images) if shifted else images).reshape(-1, *self.encoder.input.shape)
        features = self.encoder(frames) if shifted else encode_distinct(self.encoder, frames)
        return features.reshape(len(images), -1)


def has_nan(module: nn.Module) -> bool:
    """Whether any weight is not a number, the mark of weights that were never loaded."""
    return any(bool(tensor.isnan().any()) for tensor in module.state_dict().values())


def _loaded(extractor: nn.Module, _keys: object) -> None:
    assert isinstance(extractor, ProtectedExtractor)
    extractor.ready = not has_nan(extractor)
