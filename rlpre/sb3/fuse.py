"""From a policy trained on features back to one that acts on pixels."""

from functools import partial
from typing import Any

from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from rlpre.encoders import Encoder
from rlpre.encoders.checkpoint import check_tensors
from rlpre.errors import RlpreError
from rlpre.sb3.features import FeatureSpace
from rlpre.sb3.modes import extractor_kwargs
from rlpre.sb3.observation import stacked, with_image


def fuse(model: BaseAlgorithm, encoder: Encoder) -> BasePolicy:
    """Builds the pixel policy that acts as ``model`` does behind `EncodedVecEnv`.

    Args:
        model: of any algorithm of SB3 or sb3-contrib, trained on ``EncodedVecEnv(venv, encoder)``.
        encoder: the one that gave the features.

    Returns:
        A policy of the model's own class and device, with the encoder frozen inside, ready for ``predict``, ``save``
        and ``load``. It reads what ``venv`` gives, or, after ``EncodedVecEnv(venv, encoder, stack=4)``, the frames as
        ``VecFrameStack(venv, 4)`` puts them on top of each other. Policy and value heads share the one encoder,
        whatever ``share_features_extractor`` was. Features of the same frame can differ in the last bits where torch
        computes batches of another size differently.

    Raises:
        RlpreError: if the model was trained on other features, or its features were normalised on the way.
    """
    trained = model.policy
    key, stack = _features(trained.observation_space, encoder)
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        raise RlpreError(
            "the model's features went through VecNormalize, which a pixel policy lacks: train with norm_obs=False"
        )
    space = with_image(trained.observation_space, key, stacked(encoder.input, stack))
    inside = extractor_kwargs(encoder, pretrained=True, frozen=len(encoder.stages), stack=stack, image_key=key)
    arguments = {**trained._get_constructor_parameters(), **model.policy_kwargs, **inside, "observation_space": space}
    if hasattr(trained, "share_features_extractor"):
        arguments["share_features_extractor"] = True
    fused = type(trained)(**arguments).to(trained.device)
    # What `save` writes: some classes forget an argument, such as the size of an LSTM.
    fused._get_constructor_parameters = partial(dict, arguments)  # type: ignore[method-assign]
    state, heads = fused.state_dict(), trained.state_dict()
    check_tensors(
        heads,
        {name: tensor for name, tensor in state.items() if "features_extractor" not in name},
        "the model's policy",
    )
    fused.load_state_dict(state | heads)
    fused.set_training_mode(False)
    return fused


def _features(space: spaces.Space[Any], encoder: Encoder) -> tuple[str | None, int]:
    """Where in an observation the features of ``encoder`` stand, and how many frames they are of."""
    parts = space.spaces if isinstance(space, spaces.Dict) else {None: space}
    for key, part in parts.items():
        if isinstance(part, FeatureSpace):
            stack = part.shape[0] // encoder.num_features
            if stack and part == FeatureSpace(encoder, (stack * encoder.num_features,)):
                return key, stack
    raise RlpreError(
        f"the model was trained on {space}, this encoder gives {FeatureSpace(encoder)}: "
        "fuse it with the encoder that its EncodedVecEnv used"
    )
