"""Windows of the past as observations: what `HistoryVecEnv` gives and `SequenceExtractor` reads."""

from typing import Any

import numpy as np
from gymnasium import spaces

from rlpre.encoders import SequenceEncoder, Vocabulary
from rlpre.errors import RlpreError
from rlpre.sb3.features import FeatureSpace

NO_ACTION = -1  # before an episode's first frame


class MissionSpace(spaces.Box):
    """Missions as one particular vocabulary encodes them, (length,) int64; spaces of different vocabularies differ."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__(0, len(vocabulary.words), (vocabulary.length,), np.int64)
        self.words = tuple(vocabulary.words)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, MissionSpace) and super().__eq__(other) and self.words == other.words

    def __repr__(self) -> str:
        return f"MissionSpace({self.shape[0]} of {', '.join(self.words)})"


def window_space(encoder: SequenceEncoder, window: int, pixels: bool = False) -> spaces.Dict:
    """The space of windows, oldest step first, padded on the left where an episode has had fewer steps.

    - "features": (window, num_features) float32 of the frames, marked with the encoder that gave them; or, with
      ``pixels``, "frames": (window, C, H, W).
    - "actions": (window,) int64, the action before each frame, -1 at an episode's first and in padding.
    - "present": (window,) int8, 0 in padding.
    - "mission": (words,) int64, marked with the vocabulary; only if the encoder has one.
    """
    input, vocabulary = encoder.frames.input, encoder.vocabulary
    parts: dict[str, spaces.Space[Any]] = {
        "actions": spaces.Box(NO_ACTION, encoder.actions - 1, (window,), np.int64),
        "present": spaces.MultiBinary(window),
    }
    if pixels:
        parts["frames"] = spaces.Box(input.low, input.high, (window, *input.shape), np.dtype(input.dtype).type)
    else:
        parts["features"] = FeatureSpace(encoder.frames, (window, encoder.frames.num_features))
    if vocabulary:
        parts["mission"] = MissionSpace(vocabulary)
    return spaces.Dict(parts)


def window_length(space: spaces.Space[Any]) -> int | None:
    """How many steps windows hold, None if these observations are none."""
    actions = space.spaces.get("actions") if isinstance(space, spaces.Dict) else None
    return actions.shape[0] if isinstance(actions, spaces.Box) and len(actions.shape) == 1 else None


def check_window(space: spaces.Space[Any], encoder: SequenceEncoder) -> None:
    """Refuses observations that are not windows of what ``encoder`` reads.

    Raises:
        RlpreError: naming the part that differs.
    """
    window = window_length(space)
    if not isinstance(space, spaces.Dict) or window is None:
        raise RlpreError(
            f"a SequenceEncoder reads windows of the past, the environment gives {space}: wrap it in "
            "HistoryVecEnv(venv, encoder)"
        )
    for name, part in window_space(encoder, window, pixels="frames" in space.spaces).items():
        found = space.spaces.get(name)
        if found != part:
            raise RlpreError(
                f"the window's {name!r} is {found}, this encoder reads {part}: give HistoryVecEnv and policy_kwargs "
                "the same encoder"
            )


def check_actions(space: spaces.Space[Any], encoder: SequenceEncoder) -> None:
    """Refuses actions that are not those of ``encoder``.

    Raises:
        RlpreError: if they are continuous, or of another number.
    """
    if not isinstance(space, spaces.Discrete):
        raise RlpreError(f"a SequenceEncoder reads discrete actions, the environment takes {space}: discretise them")
    if space != spaces.Discrete(encoder.actions):
        raise RlpreError(
            f"the environment takes {space}, the encoder was built for Discrete({encoder.actions}): build one with "
            "its number of actions"
        )
