"""The modes in which a policy can use an encoder."""

from dataclasses import dataclass
from typing import Any

from torch import lerp
from torch.optim import Adam, Optimizer

from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.encoders.checkpoint import check_tensors
from rlpre.errors import RlpreError, lookup
from rlpre.sb3.extractor import Blueprint, EncoderExtractor
from rlpre.sb3.optim import paced
from rlpre.sb3.sequence import SequenceExtractor


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
    "partial": Mode(pretrained=True, trainable=True, lr_scale=0.1),
    "anchored": Mode(pretrained=True, trainable=True, lr_scale=0.1),
}
STRENGTH = 0.01  # of the pull of mode "anchored"; PPO on DoorKey-5x5: a median half-life of 50 gradient steps


def extractor_kwargs(
    encoder: Encoder | SequenceEncoder, pretrained: bool, prior: dict[str, Any] | None = None, **options: Any
) -> dict[str, Any]:
    """The part of ``policy_kwargs`` that concerns the extractor alone; options are the extractor's."""
    return {
        "features_extractor_class": SequenceExtractor if isinstance(encoder, SequenceEncoder) else EncoderExtractor,
        "features_extractor_kwargs": {"blueprint": Blueprint.of(encoder, pretrained, **prior or {}), **options},
        "normalize_images": False,  # the encoder scales by itself
    }


def policy_kwargs(
    encoder: Encoder | SequenceEncoder,
    mode: str = "frozen",
    *,
    stages: int | None = None,
    anchor: float | None = None,
    parent: tuple[Encoder | SequenceEncoder, float] | None = None,
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

    A `SequenceEncoder` goes into a ``MultiInputPolicy`` on `HistoryVecEnv`; modes concern what mixes the steps, the
    encoder of frames inside stays as it is in all of them.

    All modes share architecture, heads and optimiser, so that a comparison compares only the weights:

    - ``"scratch"``: fresh weights, drawn from the model's seed, trained like the heads.
    - ``"random"``: fresh weights, frozen; the control.
    - ``"frozen"``: the encoder's weights, never changed. `EncodedVecEnv` computes the same, several times faster.
    - ``"finetuned"``: the encoder's weights, trained at a smaller learning rate.
    - ``"partial"``: as ``"finetuned"``, but the first ``stages`` stages never change.
    - ``"anchored"``: as ``"finetuned"``, but pulled back to the encoder's weights (L2-SP, see `rlpre.sb3.optim`).

    Some of SB3's defaults depend on what these arguments replace. Heads have the hidden layers (``net_arch``) of any
    extractor but SB3's own: two of 64 units, 256 for SAC. The optimiser is Adam for every algorithm, A2C too; pass
    ``torch.optim.RMSprop`` for A2C's own.

    Args:
        encoder: copied now; training it later does not change the policy.
        mode: a name in ``MODES``.
        stages: for ``"partial"``, how many of ``encoder.stages`` are frozen.
        anchor: for ``"anchored"``, the strength of the pull: 0 is ``"finetuned"``, a great number ``"frozen"``.
        parent: for ``"anchored"``, a second encoder of the same architecture, such as that of a related task, and the
            strength of the pull to its weights.
        encoder_lr_scale: the encoder's learning rate relative to the heads', default 0.1 for ``"finetuned"``,
            ``"partial"`` and ``"anchored"``, else 1.
        warmup_updates: gradient steps for which the heads learn alone, so that a poor start of theirs does not spoil
            the encoder (linear probing, then fine-tuning).
        augment: shift frames at random while the encoder trains.
        stack: frames that SB3's ``VecFrameStack`` put on top of each other; each is encoded by itself.
        image_key: the image of a Dict observation that the encoder reads, where several fit.
        optimizer_class: Adam, RMSprop, or SB3's RMSpropTFLike.
        optimizer_kwargs: default ``{"eps": 1e-5}``, SB3's value for PPO and A2C (elsewhere it leaves Adam at 1e-8, but
            for sb3-contrib's QRDQN).
        **others: further arguments of the policy, such as ``net_arch``.

    Raises:
        RlpreError: for an unknown mode or optimiser, or an option that the mode does not use.
    """
    chosen = lookup("mode", mode, MODES)
    options = {
        "frozen": _frozen_stages(encoder, mode, stages),
        **_training(mode, encoder_lr_scale, warmup_updates, augment),
        **_reading(encoder, augment, stack, image_key),
    }
    ours = {
        **extractor_kwargs(encoder, chosen.pretrained, _prior(encoder, mode, anchor, parent), **options),
        "optimizer_class": paced(optimizer_class),
        "optimizer_kwargs": {"eps": 1e-5} if optimizer_kwargs is None else optimizer_kwargs,
    }
    if taken := sorted(ours.keys() & others.keys()):
        raise RlpreError(f"policy_kwargs sets {taken[0]!r} itself: leave it out")
    return ours | others


def _training(mode: str, lr_scale: float | None, warmup: int, augment: bool) -> dict[str, Any]:
    """The extractor's options that matter only while the encoder trains."""
    given = {"augment": augment, "warmup_updates": warmup, "encoder_lr_scale": lr_scale is not None}
    if not MODES[mode].trainable:
        if unused := [name for name, value in given.items() if value]:
            raise RlpreError(
                f"{unused[0]} has no effect on mode {mode!r}, which does not train the encoder: leave it out"
            )
        return {}
    if lr_scale is not None and lr_scale <= 0:
        raise RlpreError(f"encoder_lr_scale is {lr_scale}, it must be positive: mode 'frozen' does not train at all")
    if warmup < 0:
        raise RlpreError(f"warmup_updates is {warmup}: give the number of gradient steps for which the encoder waits")
    scale = MODES[mode].lr_scale if lr_scale is None else lr_scale
    return {"lr_scale": scale, "warmup_updates": warmup}


def _reading(encoder: Encoder | SequenceEncoder, augment: bool, stack: int, image_key: str | None) -> dict[str, Any]:
    """The extractor's options on how it reads frames; one that reads windows has none."""
    if stack < 1:
        raise RlpreError(f"stack is {stack}: give the number of frames in an observation, 1 or more")
    if not isinstance(encoder, SequenceEncoder):
        return {"augment": augment, "stack": stack, "image_key": image_key}
    given = {"augment": augment, "stack": stack > 1, "image_key": image_key is not None}
    if unused := [name for name, value in given.items() if value]:
        raise RlpreError(f"{unused[0]} has no effect on a SequenceEncoder, which reads windows: leave it out")
    return {}


def _frozen_stages(encoder: Encoder | SequenceEncoder, mode: str, stages: int | None) -> int:
    """How many of the first stages never train."""
    total = len(encoder.stages)
    if mode != "partial":
        if stages is not None:
            raise RlpreError(f"stages has no effect on mode {mode!r}: leave it out, or use mode 'partial'")
        return 0 if MODES[mode].trainable else total
    if stages is None or not 0 < stages < total:
        raise RlpreError(
            f"mode 'partial' with stages={stages}: encoder {getattr(encoder, encoder.design)!r} has {total}, freeze at "
            "least one and not all of them, or use mode 'finetuned' or 'frozen'"
        )
    return stages


def _prior(
    encoder: Encoder | SequenceEncoder,
    mode: str,
    anchor: float | None,
    parent: tuple[Encoder | SequenceEncoder, float] | None,
) -> dict[str, Any] | None:
    """Where the weights are pulled, and how strongly: of two Gaussian priors precisions add up and means average."""
    if mode != "anchored":
        for name, value in (("anchor", anchor), ("parent", parent)):
            if value is not None:
                raise RlpreError(f"{name} has no effect on mode {mode!r}: leave it out, or use mode 'anchored'")
        return None
    own = STRENGTH if anchor is None else anchor
    other, theirs = (encoder, 0.0) if parent is None else parent
    for name, strength in (("anchor", own), ("the parent's strength", theirs)):
        if not 0 <= strength < float("inf"):
            raise RlpreError(f"{name} is {strength}: it must be 0 or more, and finite: mode 'frozen' does not move")
    weights, others = encoder.state_dict(), other.state_dict()
    check_tensors(others, weights, "the parent encoder")
    strength = own + theirs
    share = theirs / strength if strength else 0.0
    floating = {name: tensor.cpu() for name, tensor in weights.items() if tensor.is_floating_point()}
    anchors = {name: lerp(tensor, others[name].to(tensor), share) for name, tensor in floating.items()}
    return {"strength": strength, "anchors": anchors}
