"""Windows and the inputs of sequence encoders: by hand, at boundaries, and with bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.data.windows import PADDING, Trajectories, Windows, previous_actions
from rlpre.encoders import Vocabulary

LENGTHS = (3, 6, 2)  # frames of the episodes
MISSIONS = ("go to the door", "wait", "go")
CPU = torch.device("cpu")


def write(path: Path, actions: int | None = 4, missions: bool = True) -> FrameStore:
    """Three episodes of noise; the action at row r is r modulo 4, a frame comes twice."""
    rows = sum(LENGTHS)
    frames = np.random.default_rng(0).integers(0, 256, (rows, 1, 36, 36), np.uint8)
    frames[7] = frames[1]
    start = np.isin(np.arange(rows), np.cumsum((0, *LENGTHS[:-1])))
    action = np.where(np.append(start[1:], True), -1, np.arange(rows) % 4)
    space = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0}
    if missions:
        columns["mission"] = np.repeat(np.array(MISSIONS, object), LENGTHS)
    with FrameStore.create(path, space=space, action_space=actions and spaces.Discrete(actions), spec={}) as writer:
        writer.append(frames, action=action if actions else -1, episode_start=start, **columns)
    return FrameStore.open(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> FrameStore:
    return write(tmp_path_factory.mktemp("sequences") / "store")


def vision(shape: tuple[int, int, int] = (1, 36, 36)) -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", InputSpec(shape), features=8).eval()


def test_windows_by_hand(store: FrameStore) -> None:
    windows = Windows(store, 4)
    ending = windows.ending(np.array([0, 2, 3, 8, 10])).tolist()
    assert ending == [[-1, -1, -1, 0], [-1, 0, 1, 2], [-1, -1, -1, 3], [5, 6, 7, 8], [-1, -1, 9, 10]]
    assert windows.full.tolist() == [6, 7, 8]
    rows = np.array([[-1, 0, 1, 2], [4, 5, 6, 7]])
    assert previous_actions(store, rows).tolist() == [[-1, -1, 0, 1], [3, 0, 1, 2]]
    assert previous_actions(store, np.array([3, 9, 10])).tolist() == [-1, -1, 1]


def test_sampled_windows_lie_in_one_episode_and_reach_every_row(store: FrameStore) -> None:
    windows = Windows(store, 4).sample(400, np.random.default_rng(0))
    assert windows.shape == (400, 4)
    assert set(np.unique(windows)) == {PADDING, *range(len(store))}
    for window in windows:
        rows = window[window != PADDING]
        assert len(set(store.episode[rows])) == 1
        assert (np.diff(rows) == 1).all()
        assert len(rows) == min(4, LENGTHS[store.episode[rows[0]]])
        assert (window[: 4 - len(rows)] == PADDING).all()
    again = Windows(store, 4).sample(400, np.random.default_rng(0))
    assert np.array_equal(windows, again)


def test_features_of_frames_are_those_of_the_vision_encoder(store: FrameStore) -> None:
    encoder = SequenceEncoder("gru", vision(), 4, width=8)
    features = Trajectories(store, encoder, CPU).features(np.array([[0, 7], [1, -1]]))
    expected = encoder.encode_frames(torch.from_numpy(store.frames([0, 7, 1])))
    torch.testing.assert_close(features.flatten(0, 1)[:3], expected)
    assert torch.equal(features[0, 1], features[1, 0])  # the frame that comes twice
    assert not features[1, 1].any()


def test_inputs_by_hand(store: FrameStore) -> None:
    vocabulary = Vocabulary.from_missions(store.missions)
    trajectories = Trajectories(store, SequenceEncoder("gru", vision(), 4, vocabulary, width=8), CPU)
    features, actions, mission, present = trajectories.inputs(np.array([[-1, 3, 4], [-1, -1, 9]]))
    assert features.shape == (2, 3, 8)
    assert actions.tolist() == [[-1, -1, 3], [-1, -1, -1]]
    assert mission.tolist() == vocabulary.encode(["wait", "go"]).tolist()
    assert present.tolist() == [[False, True, True], [False, False, True]]


def test_bad_input(store: FrameStore, tmp_path: Path) -> None:
    with pytest.raises(RlpreError, match=r"a window of 7 steps does not fit .*store, whose longest episode has 6"):
        Windows(store, 7)
    film = write(tmp_path / "film", actions=None)
    with pytest.raises(RlpreError, match=r"film holds no discrete actions .*or frames collected with discrete actions"):
        Trajectories(film, SequenceEncoder("gru", vision(), 4, width=8), CPU)
    for encoder, words in (
        (SequenceEncoder("gru", vision((3, 36, 36)), 4, width=8), "vision does not fit .*store: the observation shape"),
        (SequenceEncoder("gru", vision(), 5, width=8), "store holds 4 actions, the sequence encoder reads 5"),
        (SequenceEncoder("gru", vision(), 4, Vocabulary(["go"], 9), width=8), "lacks '.*' of the mission"),
    ):
        with pytest.raises(RlpreError, match=words):
            Trajectories(store, encoder, CPU)
    unguided = write(tmp_path / "unguided", missions=False)
    with pytest.raises(RlpreError, match="unguided has episodes without a mission, which the sequence encoder reads"):
        Trajectories(unguided, SequenceEncoder("gru", vision(), 4, Vocabulary(["go"], 9), width=8), CPU)
