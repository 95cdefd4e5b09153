"""A comparison whose arms remember: sequence encoders are pretrained over the encoders of frames, and agents act."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_compare import TINY, WORLD

from agents.advice import restore
from agents.compare import compare
from agents.comparison import Arm, Offline, check, configuration
from agents.presets import PRESETS
from agents.recipes import Backbone
from rlpre import Encoder, PretrainConfig, RlpreError, SequenceEncoder
from rlpre.encoders.transformer import Transformer
from rlpre.files import read_json

ARMS = {
    **PRESETS["memory"].arms,
    "history-masked": Arm("history-finetuned", "temporal+inverse", past="masked"),
    "history-tuned": Arm("history-finetuned", "temporal+inverse", whitened=True, past="cpc"),
}
MEMORY = replace(
    PRESETS["memory"],
    **{**TINY, "train": replace(TINY["train"], backbone=Backbone(width=16, window=8))},
    sequence=PretrainConfig(steps=2, batch=8, checkpoint_every=2),
    data={"memory": Offline((WORLD,), 400, "random")},
    arms=ARMS,
)


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("memory")
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(1) as here:
        patch.setenv("OMP_NUM_THREADS", "1")  # a study in this process sets it
        compare(MEMORY, out, 99, here)
    return out


def test_sequence_encoders_are_pretrained_over_those_of_frames(memory: Path) -> None:
    home = memory / "encoders" / "temporal+inverse@memory" / "seed-1"
    for objective, vision in (("cpc", home / "whitened"), ("masked", home)):
        found = SequenceEncoder.load(vision / objective / "causal")
        assert found.frames.fingerprint() == Encoder.load(vision).fingerprint()
        assert (found.pretraining["objective"], found.pretraining["step"]) == (objective, 2)
        assert found.causal
        start = Backbone(width=16, window=8)
        torch.manual_seed(1)
        fresh = start.build(Encoder.load(vision), 7, objective=objective)
        assert not fresh.stages[1].state_dict()["norm.weight"].equal(found.stages[1].state_dict()["norm.weight"])


def test_agents_start_from_their_past(memory: Path) -> None:
    for arm, of in ARMS.items():
        said = read_json(memory / "runs" / WORLD / arm / "seed-3" / "run.json")
        assert said["encoder"].get("kind", "vision") == ("vision" if arm == "single-frame" else "sequence")
        if of.past:
            start = SequenceEncoder.load(said["configuration"]["encoder"])
            assert start.pretraining["objective"] == of.past
            assert isinstance(start.stages[1], Transformer)
        vision = said["encoder"].get("frames", said["encoder"])
        assert (vision["architecture"] == "whitened:cnn") == of.whitened


def test_features_of_a_past_are_measured_too(memory: Path) -> None:
    features = {path.parent.parent.name for path in (memory / "features" / WORLD).glob("*/*/features.json")}
    assert features == {"single-frame", "history-random", "history-cpc"}, "those that no agent changes"


def test_the_directory_says_what_it_is_of(memory: Path) -> None:
    assert configuration(restore(memory)) == configuration(MEMORY)
    assert "sequence" not in configuration(PRESETS["full"]), "where no arm has a past, its settings decide nothing"


@pytest.mark.parametrize(
    ("arm", "sentence"),
    [
        (
            Arm("history-frozen", "inverse"),
            "agent 'history-frozen' starts from a sequence encoder: give it past",
        ),
        (
            Arm("frozen", "inverse", past="cpc"),
            "agent 'frozen' starts from no sequence encoder: leave out past",
        ),
        (Arm("history-frozen", past="cpc"), "arm 'a' has no pretraining to take step, whitened or past from"),
        (
            Arm("history-frozen", "inverse", past="inverse"),
            "objective 'inverse' pretrains a vision encoder",
        ),
        (Arm("frozen", "cpc"), "objective 'cpc' pretrains a sequence encoder and was given a vision encoder"),
        (Arm("history-frozen", "inverse", past="cp"), "unknown objective 'cp': did you mean 'cpc'"),
    ],
)
def test_bad_input(arm: Arm, sentence: str) -> None:
    with pytest.raises(RlpreError, match=sentence):
        check(replace(MEMORY, arms={"a": arm}, answer="a", baseline="a"))
