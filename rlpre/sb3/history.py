"""The past in front of the policy: windows of features that a sequence encoder inside it reads."""

import torch
from stable_baselines3.common.vec_env.base_vec_env import VecEnv

from rlpre.encoders import SequenceEncoder
from rlpre.errors import RlpreError
from rlpre.sb3.encoded import FrozenVecEnv, frozen
from rlpre.sb3.features import FrameMemory
from rlpre.sb3.readers import Windows


class HistoryVecEnv(FrozenVecEnv):
    """Gives SB3 windows of the past, which a `SequenceEncoder` in the policy reads; train ``"MultiInputPolicy"`` on it.

    The encoder of frames is frozen and outside, so that each frame is encoded once (and not again if it was seen
    before); what mixes the steps is in the policy, where it can train: ``policy_kwargs(encoder, "finetuned")``.
    Windows are Dicts, see `rlpre.sb3.window.window_space`; they never reach beyond the episode's start. Terminal
    observations are windows too.

    Missions come from the infos of resets, ``infos["mission"]``, and hold for an episode.

    Args:
        venv: gives frames as ``encoder.frames.input`` describes them, takes ``encoder.actions`` discrete actions.
        encoder: copied.
        window: steps that an observation holds; default and most: ``encoder.window``. The features of a transformer
            depend on no more; a GRU forgets what lies before.
        device: where to encode.

    Attributes:
        encoder: the frozen copy.
        frames: the current windows with pixels: "frames" (num_envs, window, C, H, W) in the place of "features".

    Raises:
        RlpreError: if frames, actions or missions are not those that the encoder reads, the window is too long, or the
            device is not there.
    """

    def __init__(
        self,
        venv: VecEnv,
        encoder: SequenceEncoder,
        window: int | None = None,
        device: torch.device | str = "auto",
    ) -> None:
        if not isinstance(encoder, SequenceEncoder):
            raise RlpreError(
                f"HistoryVecEnv is for a SequenceEncoder, this is {type(encoder).__name__}: use EncodedVecEnv, or put "
                "it into a SequenceEncoder"
            )
        reader = Windows(venv, encoder, encoder.window if window is None else window)
        self.encoder = sequence = frozen(encoder, device)
        super().__init__(venv, FrameMemory(sequence.frames), reader)
