"""From a policy trained on features back to one that acts on pixels."""

from functools import partial
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from rlpre.encoders import Encoder, SequenceEncoder
from rlpre.encoders.encoder import check_tensors
from rlpre.errors import RlpreError
from rlpre.sb3.policy import SequenceExtractor, extractor_kwargs
from rlpre.sb3.spaces import FeatureSpace, stacked, window_length, window_space, with_image


def fuse(model: BaseAlgorithm, encoder: Encoder | SequenceEncoder) -> BasePolicy:
    """Builds the pixel policy that acts as ``model`` does behind `EncodedVecEnv` or `HistoryVecEnv`.

    Args:
        model: of any algorithm of SB3 or sb3-contrib, trained on ``EncodedVecEnv(venv, encoder)``, or with
            ``policy_kwargs(encoder, ...)`` on ``HistoryVecEnv(venv, encoder)``.
        encoder: the one that gave the features.

    Returns:
        A policy of the model's own class and device, with the encoder inside, ready for ``predict``, ``save`` and
        ``load``. It reads what ``venv`` gives, or, after ``EncodedVecEnv(venv, encoder, stack=4)``, the frames as
        ``VecFrameStack(venv, 4)`` puts them on top of each other, or, with a `SequenceEncoder`, windows of pixels as
        the wrapper's ``frames`` gives them. Policy and value heads share the one encoder that stood outside, whatever
        ``share_features_extractor`` was. Features of the same frame can differ in the last bits where torch computes
        batches of another size differently.

    Raises:
        RlpreError: if the model was trained on other features, or its features were normalised on the way; or if they
            were those of a GRU behind `EncodedVecEnv`, which remembers more than a window holds.
    """
    trained = model.policy
    space, inside = _pixels(trained, encoder)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        raise RlpreError(
            "the model's features went through VecNormalize, which a pixel policy lacks: train with norm_obs=False"
        )
    arguments = {**trained._get_constructor_parameters(), **model.policy_kwargs, **inside, "observation_space": space}
    if inside and hasattr(trained, "share_features_extractor"):
        arguments["share_features_extractor"] = True
    fused = type(trained)(**arguments).to(trained.device)
    # What `save` writes: some classes forget an argument, such as the size of an LSTM.
    fused._get_constructor_parameters = partial(dict, arguments)  # type: ignore[method-assign]
    state, learned = fused.state_dict(), trained.state_dict()
    check_tensors(
        learned,
        {name: tensor for name, tensor in state.items() if not inside or "features_extractor" not in name},
        "the model's policy",
    )
    fused.load_state_dict(state | learned)
    fused.set_training_mode(False)
    return fused


def _pixels(trained: BasePolicy, encoder: Encoder | SequenceEncoder) -> tuple[spaces.Space[Any], dict[str, Any]]:
    """The space of pixels instead of features, and the arguments of the extractor that makes features of them.

    There are none if the policy holds the encoder already.
    """
    space = trained.observation_space
    if isinstance(encoder, SequenceEncoder):
        if space == FeatureSpace(encoder):
            if encoder.recurrent:
                raise RlpreError(
                    "behind EncodedVecEnv a GRU remembers the whole episode, which no window of pixels holds: "
                    "train on HistoryVecEnv to fuse"
                )
            inside = extractor_kwargs(encoder, pretrained=True, frozen=len(encoder.stages))
            return window_space(encoder, encoder.window, pixels=True), inside
        window = window_length(space)
        if window and space == window_space(encoder, window):
            if not issubclass(trained.features_extractor_class, SequenceExtractor):
                raise RlpreError("the model does not hold a SequenceEncoder: train it with policy_kwargs(encoder, ...)")
            return window_space(encoder, window, pixels=True), {}
    else:
        for key, part in (space.spaces if isinstance(space, spaces.Dict) else {None: space}).items():
            stack = part.shape[0] // encoder.num_features if isinstance(part, FeatureSpace) else 0
            if stack and part == FeatureSpace(encoder, (stack * encoder.num_features,)):
                options: dict[str, Any] = {"frozen": len(encoder.stages), "stack": stack, "image_key": key}
                inside = extractor_kwargs(encoder, pretrained=True, **options)
                return with_image(space, key, stacked(encoder.input, stack)), inside
    raise RlpreError(
        f"the model was trained on {space}, this encoder gives {FeatureSpace(encoder)}: fuse it with the encoder that "
        "its EncodedVecEnv or HistoryVecEnv used"
    )
