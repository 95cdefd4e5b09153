"""From a policy trained on features back to one that acts on pixels."""

from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy

from rlpre.encoders import Encoder
from rlpre.encoders.base import check_tensors
from rlpre.errors import RlpreError
from rlpre.sb3.encoded import FeatureSpace
from rlpre.sb3.extractor import MODES, extractor_kwargs


def fuse(model: BaseAlgorithm, encoder: Encoder) -> BasePolicy:
    """Builds the pixel policy that acts as ``model`` does behind `EncodedVecEnv`.

    Args:
        model: trained on ``EncodedVecEnv(venv, encoder)``: PPO, A2C or DQN.
        encoder: the one that gave the features.

    Returns:
        A policy of the model's own class and device, with the encoder frozen inside, ready for ``predict``, ``save``
        and ``load``. Policy and value heads share the one encoder, whatever ``share_features_extractor`` was. Features
        of the same frame can differ in the last bits where torch computes batches of another size differently.

    Raises:
        RlpreError: if the model was trained on other features, or its features were normalised on the way.
    """
    trained, wanted = model.policy, FeatureSpace(encoder)
    if trained.observation_space != wanted:
        raise RlpreError(
            f"the model was trained on {trained.observation_space}, this encoder gives {wanted}: "
            "fuse it with the encoder that its EncodedVecEnv used"
        )
    normalizer = model.get_vec_normalize_env()
    if normalizer is not None and normalizer.norm_obs:
        raise RlpreError(
            "the model's features went through VecNormalize, which a pixel policy lacks: train with norm_obs=False"
        )
    arguments = trained._get_constructor_parameters()
    arguments |= {"observation_space": encoder.input.space, **extractor_kwargs(encoder, MODES["frozen"])}
    fused = type(trained)(**arguments).to(trained.device)
    state, heads = fused.state_dict(), trained.state_dict()
    check_tensors(
        heads,
        {name: tensor for name, tensor in state.items() if "features_extractor" not in name},
        "the model's policy",
    )
    fused.load_state_dict(state | heads)
    fused.set_training_mode(False)
    return fused
