"""Encoders inside SB3's policies: the modes of ``policy_kwargs``, and the features extractors."""

import copy
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, Self

import torch
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder, as_encoder
from rlpre.encoders.encoder import check_tensors, freeze
from rlpre.errors import RlpreError, at_least, lookup
from rlpre.objectives.losses import random_shift
from rlpre.sb3.optim import encoder_optimizer, set_anchors, set_learning_rate
from rlpre.sb3.vecenv import EncoderLike, check_windows, find_image


@dataclass(frozen=True)
class Mode:
    """How a policy uses an encoder: with its weights or fresh ones, trained or not, and at which learning rate."""

    pretrained: bool
    trainable: bool
    lr_scale: float = 1.0


MODES = {
    "scratch": Mode(pretrained=False, trainable=True),
    "random": Mode(pretrained=False, trainable=False),
    "frozen": Mode(pretrained=True, trainable=False),
    "finetuned": Mode(pretrained=True, trainable=True, lr_scale=0.1),
    "partial": Mode(pretrained=True, trainable=True, lr_scale=0.1),
    "anchored": Mode(pretrained=True, trainable=True, lr_scale=0.1),
}
ANCHOR_STRENGTH = 0.01  # with PPO on DoorKey-5x5 the pull has a median half-life of 50 gradient steps


def policy_kwargs(
    encoder: EncoderLike,
    mode: str = "frozen",
    *,
    stages: int | None = None,
    anchor: float | None = None,
    parent: tuple[EncoderLike, float] | None = None,
    encoder_lr_scale: float | None = None,
    warmup_updates: int = 0,
    augment: bool = False,
    stack: int = 1,
    image_key: str | None = None,
    optimizer_class: type[Optimizer] = Adam,
    optimizer_kwargs: dict[str, Any] | None = None,
    **others: Any,
) -> dict[str, Any]:
    """Keyword arguments that put ``encoder`` into a ``CnnPolicy`` or ``MultiInputPolicy`` of SB3 or sb3-contrib.

    A `SequenceEncoder` goes into a ``MultiInputPolicy`` on `HistoryVecEnv`. Modes concern the layers that mix the
    steps; its encoder of single frames never changes.

    All modes have the same architecture, heads and optimiser, so a comparison compares only the weights:

    - ``"scratch"``: fresh weights, drawn from the model's seed, trained like the heads.
    - ``"random"``: fresh weights, frozen; the control.
    - ``"frozen"``: the encoder's weights, never changed. `EncodedVecEnv` computes the same, several times faster.
    - ``"finetuned"``: the encoder's weights, trained at a smaller learning rate.
    - ``"partial"``: as ``"finetuned"``, but the first ``stages`` stages never change.
    - ``"anchored"``: as ``"finetuned"``, but pulled back to the encoder's weights (L2-SP, see `rlpre.sb3.optim`).

    Some of SB3's defaults depend on what these arguments replace: heads have two hidden layers (``net_arch``) of 64
    units, of 256 for SAC, and the optimiser is Adam, also for A2C, which in SB3 has ``torch.optim.RMSprop``. ARS takes
    none of these arguments (its policies raise a ``TypeError``): train it on `EncodedVecEnv`.

    Args:
        encoder: an encoder, its directory, or the result of `rlpre.pretrain`; copied now.
        mode: a name in ``MODES``.
        stages: for ``"partial"``, how many of ``encoder.stages`` are frozen.
        anchor: for ``"anchored"``, the strength of the pull: 0 is ``"finetuned"``, a large number ``"frozen"``.
        parent: for ``"anchored"``, a second encoder of the same architecture, and the strength of the pull to it.
        encoder_lr_scale: the encoder's learning rate relative to the heads', default 1 from scratch, else 0.1.
        warmup_updates: gradient steps in which only the heads learn; their random start could spoil the encoder.
        augment: shift frames at random while the encoder trains.
        stack: frames that SB3's ``VecFrameStack`` has stacked; each is encoded by itself.
        image_key: of the image in a Dict observation, where several fit.
        optimizer_class: Adam, RMSprop, or SB3's RMSpropTFLike.
        optimizer_kwargs: default ``{"eps": 1e-5}``, SB3's value for PPO and A2C.
        **others: further arguments of the policy, such as ``net_arch``.

    Raises:
        RlpreError: for an unknown mode or optimiser, or an option that the mode does not use.
    """
    encoder = as_encoder(encoder)
    chosen = lookup("mode", mode, MODES)
    reading = {"augment": augment, "stack": stack, "image_key": image_key}
    training = {"stages": stages, "encoder_lr_scale": encoder_lr_scale, "warmup_updates": warmup_updates}
    _check_options(encoder, mode, {"anchor": anchor, "parent": parent, **training, **reading})
    strength, anchors = _anchors(encoder, anchor, parent) if mode == "anchored" else (0.0, None)
    extractor: dict[str, Any] = {"encoder": EncoderFactory.copying(encoder, chosen, strength, anchors)}
    extractor["frozen"] = stages or 0 if chosen.trainable else len(encoder.stages)
    if chosen.trainable:
        extractor["lr_scale"] = chosen.lr_scale if encoder_lr_scale is None else encoder_lr_scale
        extractor["warmup_updates"] = warmup_updates
    ours = {
        "features_extractor_class": SequenceExtractor,
        "features_extractor_kwargs": extractor,
        "normalize_images": False,  # the encoder scales by itself
        "optimizer_class": encoder_optimizer(optimizer_class),
        "optimizer_kwargs": {"eps": 1e-5} if optimizer_kwargs is None else optimizer_kwargs,
    }
    if isinstance(encoder, Encoder):
        ours |= {"features_extractor_class": EncoderExtractor, "features_extractor_kwargs": extractor | reading}
    if taken := sorted(ours.keys() & others.keys()):
        raise RlpreError(f"policy_kwargs sets {taken[0]!r} itself: leave it out")
    return ours | others


def _check_options(encoder: AnyEncoder, mode: str, options: Mapping[str, Any]) -> None:
    """Refuses arguments of `policy_kwargs` that are out of range, or given though they have no effect."""
    unused: dict[str, str] = {}
    if not MODES[mode].trainable:
        why = f"mode {mode!r}, which does not train the encoder"
        unused |= dict.fromkeys(("augment", "warmup_updates", "encoder_lr_scale"), why)
    if mode != "partial":
        unused["stages"] = f"mode {mode!r}, only on 'partial'"
    if mode != "anchored":
        unused |= dict.fromkeys(("anchor", "parent"), f"mode {mode!r}, only on 'anchored'")
    if isinstance(encoder, SequenceEncoder):
        unused |= dict.fromkeys(("augment", "stack", "image_key"), "a SequenceEncoder, which reads windows")
    defaults = inspect.signature(policy_kwargs).parameters
    for name, why in unused.items():
        if options[name] != defaults[name].default:
            raise RlpreError(f"{name} has no effect on {why}: leave it out")
    at_least(SimpleNamespace(**options), stack=1, warmup_updates=0)
    scale, stages, total = options["encoder_lr_scale"], options["stages"], len(encoder.stages)
    if scale is not None and scale <= 0:
        raise RlpreError(f"encoder_lr_scale is {scale}, it must be positive: mode 'frozen' does not train at all")
    if mode == "partial" and not 0 < (stages or 0) < total:
        raise RlpreError(
            f"mode 'partial' with stages={stages}: encoder {getattr(encoder, encoder.design)!r} has {total}, freeze at "
            "least one and not all of them, or use mode 'finetuned' or 'frozen'"
        )


def _anchors(
    encoder: AnyEncoder, anchor: float | None, parent: tuple[EncoderLike, float] | None
) -> tuple[float, dict[str, Tensor]]:
    """Strength of the pull, and its anchors: for two Gaussian priors, precisions add up and means are averaged."""
    own = ANCHOR_STRENGTH if anchor is None else anchor
    other, theirs = (encoder, 0.0) if parent is None else (as_encoder(parent[0]), parent[1])
    for name, strength in (("anchor", own), ("the parent's strength", theirs)):
        if not 0 <= strength < float("inf"):
            raise RlpreError(f"{name} is {strength}: it must be 0 or more, and finite: mode 'frozen' does not move")
    weights, others = encoder.state_dict(), other.state_dict()
    check_tensors(others, weights, "the parent encoder")
    strength = own + theirs
    share = theirs / strength if strength else 0.0
    floating = {name: tensor.cpu() for name, tensor in weights.items() if tensor.is_floating_point()}
    return strength, {name: torch.lerp(tensor, others[name].to(tensor), share) for name, tensor in floating.items()}


# Extractors.


@dataclass(frozen=True)
class EncoderFactory:
    """Builds copies of an encoder inside policies.

    SB3 saves a policy's arguments, and calls its constructor with them when it loads the model. Pickling drops the
    tensors: the saved states of policy and optimiser hold them already.
    """

    config: dict[str, Any]
    pretrained: bool
    dtype: torch.dtype
    tensors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)
    strength: float = 0.0  # of the pull toward the anchors, see rlpre.sb3.optim
    anchors: dict[str, Tensor] | None = field(default=None, repr=False, compare=False)

    @classmethod
    def copying(cls, encoder: AnyEncoder, mode: Mode, strength: float, anchors: dict[str, Tensor] | None) -> Self:
        """Copies the weights of ``encoder`` now, if the mode uses them."""
        config, state = copy.deepcopy(encoder.config), encoder.state_dict()
        if not mode.pretrained:
            config["pretraining"] = {}
        tensors = {name: state[name].detach().cpu().clone() for name in _copied(state, mode.pretrained)}
        dtype = torch.float32 if mode.trainable else encoder.dtype  # half precision is too coarse for an optimiser
        return cls(config, mode.pretrained, dtype, tensors, strength, anchors)

    def build(self) -> AnyEncoder:
        """Builds an encoder. Every mode draws the same random numbers, so heads start alike for a given seed."""
        kind = SequenceEncoder if self.config.get("kind") == SequenceEncoder.kind else Encoder
        encoder = kind.from_config(self.config).to(self.dtype)
        state, tensors = encoder.state_dict(), self.tensors
        if tensors is None:  # NaN marks what was not loaded
            missing = [name for name in _copied(state, self.pretrained) if state[name].is_floating_point()]
            tensors = {name: torch.full_like(state[name], torch.nan) for name in missing}
        encoder.load_state_dict(state | tensors)
        if self.strength:
            set_anchors(encoder, self.strength, self.anchors)
        return encoder

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "tensors": None, "anchors": None}

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


def _copied(state: Mapping[str, Tensor], pretrained: bool) -> list[str]:
    """Names of the copied weights: all, or, for fresh ones, a sequence encoder's frozen encoder of frames."""
    return [name for name in state if pretrained or name.startswith("frames.")]


class ProtectedExtractor(BaseFeaturesExtractor):
    """An encoder as a features extractor, protected from what SB3 does to features extractors.

    The first ``frozen`` stages never train; no optimiser sees them. The others train at ``lr_scale`` times the heads'
    learning rate after ``warmup_updates`` gradient steps.
    """

    hash_weights: Tensor
    extract: Callable[[Any], Tensor]

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        features_dim: int,
        encoder: AnyEncoder,
        frozen: int,
        lr_scale: float = 1.0,
        warmup_updates: int = 0,
    ) -> None:
        super().__init__(observation_space, features_dim)
        self.encoder = encoder
        self.ready = not _has_nan(encoder)
        frames = encoder.frames if isinstance(encoder, SequenceEncoder) else encoder
        self.register_buffer("hash_weights", make_hash_weights(math.prod(frames.input.shape)), persistent=False)
        self.register_load_state_dict_post_hook(_update_ready)  # type: ignore[no-untyped-call]  # no types in torch
        freeze(encoder.stages[:frozen])
        set_learning_rate(encoder, lr_scale, warmup_updates)
        self.train(self.training)

    def forward(self, observations: Any) -> Tensor:
        """The features of observations, (batch, features_dim), by ``extract``; refused while weights are missing."""
        if not self.ready:
            raise RlpreError(
                "the encoder's weights were left behind when these policy_kwargs were pickled: load the saved model, "
                "or call policy_kwargs again with the encoder"
            )
        return self.extract(observations)

    def apply(self, fn: Callable[[nn.Module], None]) -> Self:
        """Does nothing: SB3 calls this with its orthogonal initialisation, which would erase the weights."""
        return self

    def train(self, mode: bool = True) -> Self:
        """As in torch, but the encoder stays in evaluation mode even while its weights train.

        SB3 acts in evaluation mode and updates in training mode. Batch norm and dropout would make the updated policy
        another one than acted, and PPO's ratios wrong before the first step.
        """
        super().train(mode and any(parameter.requires_grad for parameter in self.encoder.parameters()))
        self.encoder.eval()
        return self


class EncoderExtractor(ProtectedExtractor):
    """Gives a policy the features of frames: (batch, stack * C, H, W), or channels last -> (batch, features_dim).

    In a Dict it encodes the image; the other keys are flattened and joined with the features in the order of the keys,
    as in SB3's ``CombinedExtractor``. The arguments are those of `policy_kwargs` and `ProtectedExtractor`.

    Raises:
        RlpreError: if the encoder cannot read the observations.
    """

    encoder: Encoder

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        encoder: EncoderFactory,
        augment: bool = False,
        stack: int = 1,
        image_key: str | None = None,
        **training: Any,
    ) -> None:
        built = encoder.build()
        assert isinstance(built, Encoder)
        image = find_image(observation_space, built.input, stack, image_key)
        parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {}
        others = sum(int(get_flattened_obs_dim(part)) for name, part in parts.items() if name != image.key)
        super().__init__(observation_space, stack * built.num_features + others, built, **training)
        self.augment, self.stack, self.keys, self.image = augment, stack, list(parts), image

    def extract(self, observations: Tensor | Mapping[str, Tensor]) -> Tensor:
        """The features of frames, or of a Dict whose parts SB3 has turned into floats."""
        if isinstance(observations, Tensor):
            return self._encode(observations)
        parts = ((key, observations[key]) for key in self.keys)
        return torch.cat([self._encode(part) if key == self.image.key else part.flatten(1) for key, part in parts], 1)

    def _encode(self, images: Tensor) -> Tensor:
        shifted = self.augment and self.training and torch.is_grad_enabled()
        if self.image.channels_last:
            images = images.movedim(-1, 1)
        frames = (random_shift(images) if shifted else images).reshape(-1, *self.encoder.input.shape)
        features = self.encoder(frames) if shifted else encode_unique(self.encoder, frames, self.hash_weights)
        return features.reshape(-1, self.stack * self.encoder.num_features).float()


class SequenceExtractor(ProtectedExtractor):
    """Gives a policy the features of a `SequenceEncoder` at the last step of a window, (batch, width).

    Windows are as `HistoryVecEnv` gives them, of features or, in a fused policy, of pixels. The encoder of single
    frames never trains.

    Raises:
        RlpreError: if the observations are not windows for the encoder.
    """

    encoder: SequenceEncoder

    def __init__(self, observation_space: spaces.Space[Any], encoder: EncoderFactory, **training: Any) -> None:
        built = encoder.build()
        assert isinstance(built, SequenceEncoder)
        if not _has_nan(built):  # while a saved model is loaded, the weights, and so the hash, are not there yet
            check_windows(observation_space, built)
        super().__init__(observation_space, built.num_features, built, **training)

    def extract(self, observations: Mapping[str, Tensor]) -> Tensor:
        """The features of windows (batch, window, ...)."""
        if "features" in observations:
            features = observations["features"]
        else:
            frames = observations["frames"]
            encoded = encode_unique(self.encoder.encode_frames, frames.flatten(0, 1), self.hash_weights)
            features = encoded.reshape(*frames.shape[:2], -1)
        mission = observations["mission"].long() if self.encoder.vocabulary else None
        return self.encoder.last(features, observations["actions"].long(), mission, observations["present"] > 0)


def _has_nan(module: nn.Module) -> bool:
    """Whether any weight is NaN, which marks weights that were not loaded."""
    return any(bool(tensor.isnan().any()) for tensor in module.state_dict().values())


def _update_ready(extractor: nn.Module, _keys: object) -> None:
    assert isinstance(extractor, ProtectedExtractor)
    extractor.ready = not _has_nan(extractor)


def encode_unique(encode: Callable[[Tensor], Tensor], frames: Tensor, hash_weights: Tensor) -> Tensor:
    """Returns ``encode(frames)``, (batch, num_features), computed and differentiated once per distinct frame.

    On MiniGrid about half of the frames in a minibatch are repeats, and the encoder is most of the cost of training.
    Every frame is encoded on a GPU, where waiting for the number of distinct frames takes longer, and in exports, whose
    graph must not depend on it. Features of a frame must not depend on the others: batch norm in evaluation mode.
    """
    exporting = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # no types in torch
    if exporting or frames.device.type != "cpu":
        return encode(frames)
    flat, rows = frames.flatten(1), torch.arange(len(frames))
    high, low = (flat @ hash_weights.to(flat)).double().T
    _, group = torch.unique(high * 2**25 + low, return_inverse=True)
    first = torch.full((len(frames),), len(frames)).scatter_reduce(0, group, rows, "amin")
    original = first[group]
    repeats = rows[original != rows]
    pairs = zip(repeats.tolist(), original[repeats].tolist(), strict=True)  # compared one by one, without copies
    if not len(repeats) or not all(torch.equal(flat[i], flat[j]) for i, j in pairs):  # equal hashes, unequal frames
        return encode(frames)
    return encode(frames[first[: int(group.max()) + 1]])[group]


def make_hash_weights(size: int) -> Tensor:
    """Small whole numbers: sums of bytes stay exact in float32, in whatever order products are added."""
    return torch.randint(-7, 8, (size, 2), generator=torch.Generator().manual_seed(0)).float()
