"""What all probes share: which inputs are asked about, what is held out, how answers are scored, what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces

from rlpre import Encoder, FrameStore, InputSpec, RlpreError, SequenceEncoder
from rlpre.measure.probe import FOLDS, encode, factor, factors, finite, fresh, linear_probe, read, standardised
from rlpre.objectives import FrameReader
from tests.pixel_world import same

CPU = torch.device("cpu")


def small(store: FrameStore) -> Encoder:
    torch.manual_seed(0)
    return Encoder("cnn", InputSpec(store.space.shape), features=16)


def test_unknown_and_rare_are_left_out() -> None:
    labels = np.array([-1] * 10 + [0] * 30 + [1] * 20 + [2] * 4)
    found = factor("door", labels)
    assert found.places.tolist() == list(range(10, 60))  # class 2 occurs four times
    assert found.classes.tolist() == [0, 1]
    assert found.chance == 0.5
    in_two = np.where(labels == 1, labels.cumsum() % 2, np.arange(64))  # class 1 in two episodes alone
    with pytest.raises(RlpreError, match="is known, in classes that are not rare, for 30 different inputs"):
        factor("door", labels, groups=in_two)


@pytest.mark.parametrize(
    ("labels", "groups", "message"),
    [
        (np.arange(39) % 2, None, "for 39 different inputs: a probe needs 40"),
        (np.full(50, 3), None, "label 'door' is 3 wherever it is known and common: there is nothing to tell apart"),
        (np.full(50, -1), None, "for 0 different inputs"),
    ],
)
def test_labels_that_say_nothing_are_refused(labels: np.ndarray, groups: np.ndarray | None, message: str) -> None:
    with pytest.raises(RlpreError, match=message):
        factor("door", labels, groups)


def test_too_few_episodes_are_refused() -> None:
    with pytest.raises(RlpreError, match="'steps' is known in 4 episodes: a probe needs 5 to hold some out"):
        factor("steps", np.arange(80), np.arange(80) % 4, quantity=True)


def test_folds_hold_out_whole_groups_and_every_class() -> None:
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 40, 300)
    found = factor("door", groups % 3, groups)
    folds = found.folds(seed=1)
    assert np.sort(np.concatenate([test for _, test in folds])).tolist() == list(range(300))
    for train, test in folds:
        assert len(train) + len(test) == 300
        assert not set(groups[train]) & set(groups[test])
        assert set(found.values[test]) == {0, 1, 2}
    assert not np.array_equal(folds[0][1], found.folds(seed=2)[0][1])
    rare = factor("door", np.repeat([0, 1], [95, FOLDS]))
    assert [int(rare.values[test].sum()) for _, test in rare.folds()] == [1] * FOLDS  # one of the five in each


def test_scores_by_hand() -> None:
    classes = factor("door", np.repeat([0, 1], [30, 10]))
    answers = np.repeat([0, 1, 1], [24, 6, 10])  # 24 of 30 and 10 of 10
    assert classes.score(answers) == pytest.approx((0.8 + 1) / 2)
    assert classes.score(answers[20:35], np.arange(20, 35)) == pytest.approx((0.4 + 1) / 2)
    number = factor("steps", np.tile([0, 1, 2, 3], 10), quantity=True)
    assert number.score(np.tile([0, 1, 2, 2], 10)) == pytest.approx(1 - 1 / 5)  # squares: 1 of 2.25 + .25 + .25 + 2.25
    assert number.score(np.full(40, 1.5)) == number.chance == 0


def test_standardised_by_some_rows() -> None:
    features = np.array([[0.0, 5.0], [2.0, 5.0], [10.0, 7.0]])
    assert standardised(features, np.array([0, 1])).tolist() == [[-1, 0], [1, 0], [9, 2]]


def test_broken_features_are_refused(doorkey: FrameStore) -> None:
    features = np.zeros((4, 3))
    assert finite(features, "mine") is features
    features[2, 1] = np.nan
    with pytest.raises(RlpreError, match=r"mine hold NaN or infinity in 1 of 4 rows \(first: row 2\)"):
        finite(features, "mine")
    encoder = small(doorkey)
    reader = FrameReader(doorkey, encoder, None, CPU)
    with torch.no_grad():
        next(encoder.parameters()).fill_(torch.nan)
    with pytest.raises(RlpreError, match="the features of Encoder hold NaN"):
        linear_probe(encoder, reader)


def test_frames_of_another_shape_are_refused(doorkey: FrameStore) -> None:
    encoder = Encoder("cnn", InputSpec((3, 36, 36)), features=16)
    reader = FrameReader(doorkey, encoder, None, CPU)
    with pytest.raises(
        RlpreError, match=r"does not fit .*: the observation shape is \(3, 56, 56\), the encoder was buil"
    ):
        read(encoder, reader, np.arange(3))


def test_only_labels_of_the_store_can_be_asked(doorkey: FrameStore, tmp_path: Path) -> None:
    reader = FrameReader(doorkey, small(doorkey), None, CPU)
    rows, found = factors(reader, ["front"])
    assert [each.name for each in found] == ["front"]
    assert np.array_equal(found[0].values, doorkey.column("front")[rows[found[0].places]])
    assert len(np.unique(doorkey.ids[rows])) == len(rows)
    with pytest.raises(RlpreError, match="unknown label 'fron': did you mean 'front'"):
        factors(reader, ["fron"])
    with FrameStore.create(tmp_path, space=doorkey.space, action_space=spaces.Discrete(1), spec={}) as writer:
        columns = {"reward": 0.0, "terminated": False, "truncated": False, "task": 0, "action": -1}
        writer.append(doorkey.frames([0]), episode_start=np.array([True]), **columns)
    bare = FrameReader(FrameStore.open(tmp_path), small(doorkey), None, CPU)
    with pytest.raises(RlpreError, match="cannot be probed: it has no labels"):
        factors(bare)
    assert linear_probe(small(doorkey), bare) == {}


def test_the_control_differs_in_weights_alone(doorkey: FrameStore) -> None:
    encoder, before = small(doorkey), torch.get_rng_state()
    control = fresh(encoder, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert control.config == encoder.config
    assert not same(control, encoder)
    assert same(control, fresh(encoder, seed=1))
    assert same(encoder.eval(), fresh(encoder))  # it was made with seed 0
    sequence = SequenceEncoder("gru", encoder, doorkey.num_actions, width=16)
    assert same(fresh(sequence, seed=1).frames, sequence.frames)
    assert not same(fresh(sequence, seed=1).stages, sequence.stages)


def test_frames_can_be_shown_otherwise(doorkey: FrameStore) -> None:
    encoder, rows = small(doorkey), np.arange(5)
    dark = encode(encoder, doorkey, rows, lambda raw: doorkey.decode(raw) // 2)
    with torch.no_grad():
        assert torch.equal(dark, encoder.eval()(torch.from_numpy(doorkey.frames(rows) // 2)))
