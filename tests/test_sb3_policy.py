"""Encoders inside policies: each trap of SB3 is first shown on plain SB3, then absent with rlpre; modes and options."""

import copy
import os
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from pixel_world import (
    CORE,
    FRAME,
    WAYS,
    Algorithm,
    Quadrant,
    Recall,
    build,
    dict_space,
    encoders_in,
    history,
    normed_encoder,
    odd_encoder,
    odd_sequence,
    other_frames,
    plain,
    refuse,
    same,
    worlds,
    worlds_for,
)
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.preprocessing import is_image_space_channels_first, preprocess_obs
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecFrameStack, VecMonitor
from torch import Tensor

from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.sb3 import MODES, policy_kwargs
from rlpre.sb3.policy import EncoderExtractor, encode_unique, make_hash_weights
from rlpre.sb3.vecenv import ImagePart, find_image

FROZEN = [name for name, mode in MODES.items() if not mode.trainable]
BACKBONES = ["gru", "transformer"]
SEQUENCE_WAYS = {**WAYS, "partial": {"mode": "partial", "stages": 1}}


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


@pytest.fixture
def normed(monkeypatch: pytest.MonkeyPatch) -> Encoder:
    return normed_encoder(monkeypatch)


def built(algorithm: Algorithm, encoder: SequenceEncoder, seed: int = 0, **arguments: Any) -> BaseAlgorithm:
    """A small model on windows; arguments are those of ``policy_kwargs``."""
    return build(algorithm, policy_kwargs(encoder, **arguments), seed, venv=history(encoder), policy="MultiInput")


def sequences_in(model: BaseAlgorithm) -> list[SequenceEncoder]:
    return [module for module in model.policy.modules() if isinstance(module, SequenceEncoder)]


# Trap 1: orthogonal initialisation erases pretrained weights. Trap 7: two extractors.


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_weights_are_bit_identical_after_construction(algorithm: Algorithm, shared: bool, encoder: Encoder) -> None:
    share = {"share_features_extractor": shared}
    assert not any(same(inside, encoder) for inside in encoders_in(build(algorithm, plain(encoder, **share))))
    for mode in ("frozen", "finetuned"):
        policy = build(algorithm, policy_kwargs(encoder, mode, **share)).policy
        inside = [module for module in policy.modules() if isinstance(module, Encoder)]
        assert [same(one, encoder) for one in inside] == [True] * (1 if shared else 2)
        hidden = policy.mlp_extractor.policy_net[2]
        for layer, gain in ((policy.action_net, 0.01), (policy.value_net, 1.0), (hidden, 2**0.5)):
            assert torch.linalg.svdvals(layer.weight.detach()).numpy() == pytest.approx(gain, rel=1e-4)
            assert not layer.bias.any(), "heads keep their orthogonal start"


# Trap 2: batch norm and dropout drift while SB3 trains, and play another policy than they update.


@pytest.mark.parametrize("algorithm", CORE)
def test_a_frozen_encoder_is_bit_identical_after_learn(algorithm: Algorithm, normed: Encoder) -> None:
    model = build(algorithm, plain(normed))
    before = copy.deepcopy(encoders_in(model)[0])
    assert not same(encoders_in(model.learn(32))[0], before), "plain SB3 no longer moves a frozen batch norm"
    model = build(algorithm, policy_kwargs(normed, "frozen"))
    head = copy.deepcopy(model.policy.state_dict())
    model.learn(48)
    model.policy.set_training_mode(True)
    assert all(same(inside, normed) and not inside.training for inside in encoders_in(model))
    assert any(not head[name].equal(tensor) for name, tensor in model.policy.state_dict().items()), "nothing learned"


@pytest.mark.parametrize("case", ["ours", "plain", *BACKBONES])
def test_the_policy_that_is_updated_is_the_one_that_acted(case: str, normed: Encoder) -> None:
    settings: dict[str, Any] = {"learning_rate": 0.0, "n_steps": 64}
    if case in BACKBONES:
        sequence = odd_sequence(case)
        settings |= {"venv": history(sequence, length=9), "policy": "MultiInput"}
        arguments = policy_kwargs(sequence, "finetuned")
    else:
        arguments = policy_kwargs(normed, "finetuned") if case == "ours" else plain(normed)
    moved = build(PPO, arguments, **settings).learn(128).logger.name_to_value["train/approx_kl"]
    assert moved > 1e-6 if case == "plain" else moved < 1e-6


def test_plain_sb3_blends_a_frozen_encoder_into_the_target_network(encoder: Encoder) -> None:
    assert not same(encoders_in(build(DQN, plain(encoder)).learn(200))[1], encoder)
    assert same(encoders_in(build(DQN, policy_kwargs(encoder, "frozen")).learn(200))[1], encoder)


# Trap 6: a zip that holds a path to the encoder does not load where the path is gone.


@pytest.mark.parametrize("mode", ["plain", "frozen", "finetuned"])
def test_a_zip_loads_without_the_encoders_directory(mode: str, encoder: Encoder, tmp_path: Path) -> None:
    path = encoder.save(tmp_path / "encoder")
    arguments = plain(path) if mode == "plain" else policy_kwargs(Encoder.load(path), mode)
    model = build(PPO, arguments).learn(16)
    model.save(tmp_path / "model")
    shutil.rmtree(path)
    if mode == "plain":
        with pytest.raises(RlpreError, match="missing"):
            PPO.load(tmp_path / "model")
    else:
        assert same(PPO.load(tmp_path / "model", device="cpu").policy, model.policy)


@pytest.mark.parametrize("algorithm", CORE)
def test_arguments_that_lost_their_weights_refuse_to_act(algorithm: Algorithm, encoder: Encoder) -> None:
    arguments = policy_kwargs(encoder, "frozen")
    model = build(algorithm, pickle.loads(pickle.dumps(arguments)))
    frames = worlds().reset()
    for net in (model.policy, getattr(model, "q_net_target", model.policy)):
        refuse("left behind", lambda net=net: net.predict(frames))
    model.set_parameters(build(algorithm, copy.deepcopy(arguments)).get_parameters())
    model.predict(frames, deterministic=True)
    assert all(same(inside, encoder) for inside in encoders_in(model))
    for mode in ("frozen", "scratch"):
        sequence = odd_sequence()
        lost = pickle.loads(pickle.dumps(policy_kwargs(sequence, mode)))
        model, wanted = build(PPO, lost, venv=history(sequence), policy="MultiInput"), built(PPO, sequence, mode=mode)
        refuse("left behind", lambda model=model: model.predict(model.env.reset()))
        model.set_parameters(wanted.get_parameters())
        model.predict(model.env.reset())
        assert same(model.policy, wanted.policy)


def test_the_zip_holds_the_weights_once(encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder, "frozen", net_arch=[]))
    model.save(tmp_path / "model")
    weights = sum(tensor.nbytes for tensor in encoder.state_dict().values())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    assert sum("stages.0.0.weight" in name for name in model.policy.state_dict()) == 3
    assert weights < sizes["policy.pth"] < 1.2 * weights
    assert sizes["policy.optimizer.pth"] + sizes["data"] < 0.3 * weights


# Trap 8: SB3 guesses the scaling and the channel order.


def test_the_encoder_alone_scales_the_frames() -> None:
    encoder = Encoder("cnn", InputSpec(FRAME.shape, mean=0.4, std=0.25), features=16)
    frames = torch.from_numpy(worlds().reset())
    twice = build(DQN, plain(encoder, normalize_images=True)).policy.q_net
    once = build(DQN, policy_kwargs(encoder)).policy.q_net
    with torch.no_grad():
        assert not twice.extract_features(frames, twice.features_extractor).equal(encoder(frames))
        assert once.extract_features(frames, once.features_extractor).equal(encoder(frames))


def test_a_stack_of_symbols_is_not_taken_for_channels_first() -> None:
    stacked = spaces.Box(0, 255, (7, 7, 9), np.uint8)
    assert is_image_space_channels_first(stacked), "plain SB3 guesses wrong"
    refuse("channels are last", lambda: InputSpec((9, 7, 7)).check(stacked))


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("parts", [False, True])
def test_channels_may_be_last(dtype: type, parts: bool) -> None:
    """SB3 transposes bytes for the policy, and leaves floats as they are."""
    torch.manual_seed(0)
    encoder = Encoder("cnn", InputSpec(FRAME.shape, np.dtype(dtype).name), features=16)
    models = []
    for last in (False, True):
        venv, stack = worlds_for(PPO, last=last, dtype=dtype, parts=parts), 1 if parts else 2
        if not parts:
            venv = VecFrameStack(venv, stack, "last" if last else "first")
        arguments = policy_kwargs(encoder, "finetuned", stack=stack)
        models.append(build(PPO, arguments, venv=venv, policy="MultiInput" if parts else "Cnn").learn(32))
    first, last = (dict(model.policy.state_dict()) for model in models)
    torch.testing.assert_close(first, last, rtol=1e-3, atol=1e-4)  # another order in memory, other last bits


# Trap 9: an SB3 zip runs code when it is loaded; an encoder's checkpoint must not.


class _Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_zip_runs_code_and_an_encoder_does_not(file: str, encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, policy_kwargs(encoder))
    model.extra = _Code(tmp_path / "ran")
    model.save(tmp_path / "model")
    PPO.load(tmp_path / "model")
    assert (tmp_path / "ran").exists(), "plain SB3 no longer runs code: tell the users"
    path = encoder.save(tmp_path / "encoder")
    (path / file).write_bytes(pickle.dumps(_Code(tmp_path / "ran too")))
    with pytest.raises(RlpreError):
        Encoder.load(path)
    assert not (tmp_path / "ran too").exists()


# What the modes mean.


@pytest.mark.parametrize("mode", ["scratch", "random"])
def test_fresh_weights_come_from_the_models_seed(mode: str, encoder: Encoder) -> None:
    first, again, other = (encoders_in(build(PPO, policy_kwargs(encoder, mode), seed))[0] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first, other)
    assert not same(first, encoder)
    assert first.config == {**encoder.config, "pretraining": {}}
    weight = first.stages[0][0].weight.flatten(1).detach()
    assert torch.linalg.svdvals(weight).numpy() == pytest.approx(2**0.5, rel=1e-4)
    sequence = odd_sequence()
    first, again, other = (sequences_in(built(PPO, sequence, seed, mode="scratch"))[0] for seed in (0, 0, 1))
    assert same(first, again)
    assert not same(first.stages, other.stages)


def test_heads_start_alike_in_every_mode(encoder: Encoder) -> None:
    heads = [build(PPO, policy_kwargs(encoder, **way)).policy.mlp_extractor for way in WAYS.values()]
    assert all(same(head, heads[0]) for head in heads)
    heads = [built(PPO, odd_sequence(), **way).policy.mlp_extractor for way in SEQUENCE_WAYS.values()]
    assert all(same(head, heads[0]) for head in heads)


def test_the_callers_encoder_and_the_policys_are_two(encoder: Encoder) -> None:
    arguments, before = policy_kwargs(encoder, "finetuned"), copy.deepcopy(encoder)
    build(PPO, arguments).learn(16)
    assert same(encoder, before)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    with torch.no_grad():
        encoder.stages[0][0].weight.zero_()
    assert same(encoders_in(build(PPO, arguments))[0], before)


CASES = [(PPO, way, "transformer") for way in SEQUENCE_WAYS]
CASES += [(PPO, "frozen", "gru"), (PPO, "partial", "gru"), (A2C, "finetuned", "gru"), (DQN, "partial", "transformer")]


@pytest.mark.parametrize(("algorithm", "way", "backbone"), CASES)
def test_sequence_encoders_learn_save_and_load_in_every_mode(
    algorithm: Algorithm, way: str, backbone: str, tmp_path: Path
) -> None:
    encoder = odd_sequence(backbone)
    model = built(algorithm, encoder, **SEQUENCE_WAYS[way])
    start = [copy.deepcopy(inside.state_dict()) for inside in sequences_in(model)]
    assert len(start) == (2 if algorithm is DQN else 1)
    assert all(same(inside, encoder) for inside in sequences_in(model)) is (way not in ("scratch", "random"))
    assert all(same(inside.frames, encoder.frames) for inside in sequences_in(model)), "no mode starts them afresh"
    model.learn(32)
    kept = ("frames", "feature_", "stages.0") if way == "partial" else ("frames", "feature_")
    for inside, old in zip(sequences_in(model), start, strict=True):
        trained = {name for name, _ in inside.named_parameters()}
        for name, tensor in inside.state_dict().items():
            still = way in ("random", "frozen") or name.startswith(kept)
            assert (name in trained) is not still
            assert not still or tensor.equal(old[name])
        assert same(inside, encoder) is (way == "frozen")
        assert not inside.training
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=history(encoder), device="cpu")
    assert same(again.policy, model.policy)
    windows = history(encoder).reset()
    assert np.array_equal(again.predict(windows, deterministic=True)[0], model.predict(windows, deterministic=True)[0])
    again.learn(8)


@pytest.mark.parametrize("stages", [1, 3])
def test_no_gradient_is_computed_through_frozen_stages(stages: int, encoder: Encoder) -> None:
    model = build(PPO, policy_kwargs(encoder, "partial", stages=stages))
    extractor, needed = model.policy.features_extractor, []
    for stage in extractor.encoder.stages:
        stage.register_forward_hook(lambda _module, _inputs, output: needed.append(output.requires_grad))
    extractor(torch.zeros(2, *FRAME.shape))
    assert needed == [index >= stages for index in range(4)]
    assert not [name for name, _ in extractor.encoder.stages[:stages].named_parameters()]
    scales = {group["lr_scale"]: len(group["params"]) for group in model.policy.optimizer.param_groups}
    assert scales[0.1] == len(list(encoder.stages[stages:].parameters()))


@pytest.mark.parametrize("mode", [name for name, mode in MODES.items() if mode.trainable])
def test_shifts_only_while_gradients_flow(mode: str, encoder: Encoder) -> None:
    policy = build(PPO, policy_kwargs(encoder, **WAYS[mode], augment=True)).policy
    extractor, frames = policy.features_extractor, torch.from_numpy(worlds().reset()).float()
    policy.set_training_mode(True)
    assert not extractor(frames).equal(extractor(frames))
    with torch.no_grad():
        assert extractor(frames).equal(extractor.encoder(frames))
    policy.set_training_mode(False)
    assert extractor(frames).equal(extractor.encoder(frames))


# Stacks and Dicts.


def test_frames_of_a_stack_shift_together(encoder: Encoder) -> None:
    venv = VecFrameStack(worlds(), 2, "first")
    policy = build(PPO, policy_kwargs(encoder, "finetuned", stack=2, augment=True), venv=venv).policy
    policy.set_training_mode(True)
    twice = torch.randint(256, (64, 3, 36, 36)).float().repeat(1, 2, 1, 1)
    older, newer = policy.features_extractor(twice).split(16, dim=1)
    torch.testing.assert_close(older, newer)
    assert not older.allclose(policy.features_extractor.encoder(twice[:, :3]))


def test_the_other_keys_stand_beside_the_features_as_in_sb3(encoder: Encoder) -> None:
    venv = EncodedVecEnv(worlds_for(PPO, parts=True), encoder, "cpu")
    policy = build(PPO, policy_kwargs(encoder), venv=worlds_for(PPO, parts=True), policy="MultiInput").policy
    features = {key: torch.as_tensor(part) for key, part in venv.reset().items()}
    wanted = CombinedExtractor(venv.observation_space)(preprocess_obs(features, venv.observation_space))
    frames = {key: torch.as_tensor(part) for key, part in venv.frames.items()}
    assert policy.features_dim == wanted.shape[1] == 16 + 4 + 6 + 4
    torch.testing.assert_close(policy.extract_features(frames), wanted, rtol=1e-4, atol=1e-5)
    backwards = dict(reversed(frames.items()))
    assert policy.extract_features(backwards).equal(policy.extract_features(frames)), "the space decides the order"


def test_another_image_is_told_apart() -> None:
    scaled = spaces.Box(0, 1, FRAME.shape, np.float32)
    assert find_image(spaces.Dict({"frame": FRAME.space, "scaled": scaled}), FRAME).key == "frame"
    assert find_image(spaces.Dict({"frame": scaled}), InputSpec(FRAME.shape, "float32", high=1.0)).key == "frame"
    last = spaces.Box(0, 255, (36, 36, 3), np.uint8)
    assert find_image(spaces.Dict({"frame": last, "scaled": scaled}), FRAME) == ImagePart("frame", channels_last=True)


# Frames that repeat in a batch.


def frames_of(distinct: int, order: list[int]) -> Tensor:
    return torch.randint(256, (distinct, 3, 36, 36), generator=torch.Generator().manual_seed(1)).float()[order]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 2, 2, 1, 0], [0, 0, 0], [0]])
def test_features_and_gradients_are_those_of_the_whole_batch(order: list[int]) -> None:
    batch, whole = frames_of(3, order), odd_encoder()
    parts = copy.deepcopy(whole)
    weight = torch.randn(len(order), whole.num_features, generator=torch.Generator().manual_seed(2))
    seen: list[int] = []
    parts.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    expected, given = whole(batch), encode_unique(parts, batch, make_hash_weights(3888))
    assert seen == [len(set(order))]
    torch.testing.assert_close(given, expected)
    (expected * weight).sum().backward()
    (given * weight).sum().backward()
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_frames_that_differ_are_not_merged() -> None:
    batch = frames_of(1, [0] * 64)
    for row in range(64):
        batch[row, 0].view(-1)[row] += 1
    assert encode_unique(lambda x: x.flatten(1), batch, make_hash_weights(3888)).equal(batch.flatten(1)), "one pixel"
    batch = frames_of(3, [0, 1, 2, 1])
    assert encode_unique(lambda x: x.flatten(1), batch, torch.zeros(3888, 2)).equal(batch.flatten(1)), "equal hashes"


@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_the_policy_encodes_each_distinct_frame_of_the_stacks_once(algorithm: Algorithm, encoder: Encoder) -> None:
    venv = VecFrameStack(worlds_for(algorithm), 3, "first")
    model = build(algorithm, policy_kwargs(encoder, "finetuned", stack=3), venv=venv).learn(16)
    extractor = next(module for module in model.policy.modules() if hasattr(module, "encoder"))
    inside, sizes = encoders_in(model)[0], []
    stacks = torch.from_numpy(venv.reset()).float()
    wanted = torch.cat([inside(stacks[:, i : i + 3]) for i in (0, 3, 6)], dim=1)
    inside.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    torch.testing.assert_close(extractor(stacks), wanted)
    assert sizes == [3], "two frames, and the black one before both"


# The plug must let an agent remember.


def recalling(encoder: SequenceEncoder, window: int, seed: int) -> HistoryVecEnv:
    venv = DummyVecEnv([Recall] * 8)
    venv.seed(seed)
    return HistoryVecEnv(VecMonitor(venv), encoder, window, "cpu")


@pytest.mark.parametrize(("backbone", "window"), [("gru", 3), ("transformer", 3), ("transformer", 1)])
def test_what_is_gone_is_remembered_with_a_window_and_not_without(backbone: str, window: int) -> None:
    torch.manual_seed(0)
    frames = Encoder("cnn", FRAME, features=16)
    encoder = SequenceEncoder(  # without actions, or naming the quadrant too soon would store it in them
        backbone, frames, 4, width=16, layers=1, heads=2, window=3, previous_action=False
    )
    arguments = {"net_arch": [32], **policy_kwargs(encoder, "scratch")}
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 6, "gamma": 0.9, "ent_coef": 0.02, "learning_rate": 3e-3}
    model = build(PPO, arguments, venv=recalling(encoder, window, 0), policy="MultiInput", **settings).learn(1536)
    mean, _ = evaluate_policy(model, recalling(encoder, window, 100), n_eval_episodes=64)
    assert mean > 0.9 if window > 1 else mean < 0.45, "chance is 1/4"


# Bad input.

SEQUENCE = odd_sequence()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"encoder": SEQUENCE, "mode": "finetuned", "augment": True}, "augment has no effect on a SequenceEncoder"),
        ({"encoder": SEQUENCE, "stack": 4}, "stack has no effect on a SequenceEncoder"),
        ({"encoder": SEQUENCE, "image_key": "image"}, "image_key has no effect on a SequenceEncoder"),
        ({"encoder": SEQUENCE, "mode": "partial", "stages": 2}, "encoder 'transformer' has 2, freeze at least one"),
        (
            {"encoder": SEQUENCE, "mode": "anchored", "parent": (odd_sequence("gru"), 1.0)},
            "encoder lacks tensor",
        ),
        ({"mode": "frosen"}, "did you mean 'frozen'"),
        ({"optimizer_class": torch.optim.SGD}, "optimizer 'SGD'"),
        ({"normalize_images": True}, "'normalize_images'"),
        ({"mode": "finetuned", "encoder_lr_scale": 0.0}, "must be positive"),
        ({"mode": "finetuned", "warmup_updates": -1}, "warmup_updates is -1"),
        ({"mode": "finetuned", "stages": 2}, "stages has no effect on mode 'finetuned'"),
        ({"stack": 0}, "stack is 0"),
        ({"mode": "finetuned", "anchor": 0.0}, "anchor has no effect on mode 'finetuned'"),
        ({"mode": "frozen", "parent": (odd_encoder(), 1.0)}, "parent has no effect on mode 'frozen'"),
        ({"mode": "anchored", "anchor": -1.0}, "anchor is -1.0: it must be 0 or more"),
        ({"mode": "anchored", "anchor": float("inf")}, "anchor is inf: .* mode 'frozen'"),
        ({"mode": "anchored", "parent": (odd_encoder(), -1.0)}, "the parent's strength is -1.0"),
        ({"mode": "anchored", "parent": (Encoder("cnn", FRAME, features=8), 1.0)}, "the parent encoder: tensor"),
        *[({"mode": "partial", "stages": count}, "'cnn' has 4") for count in (None, 0, 4, -1)],
        *[({"mode": mode, "warmup_updates": 5}, "warmup_updates has no effect") for mode in FROZEN],
        *[({"mode": mode, "augment": True}, "augment has no effect") for mode in FROZEN],
        *[({"mode": mode, "encoder_lr_scale": 0.5}, "encoder_lr_scale has no effect") for mode in FROZEN],
    ],
)
def test_bad_arguments_are_one_sentence(arguments: dict[str, Any], named: str, encoder: Encoder) -> None:
    refuse(named, lambda: policy_kwargs(**{"encoder": encoder, **arguments}))


BYTES = spaces.Box(0, 255, (5,), np.uint8)
SMALL = spaces.Box(0, 255, (3, 9, 9), np.uint8)
REFUSED: list[tuple[spaces.Space[Any], dict[str, Any], str]] = [
    (spaces.Box(0, 255, (3, 40, 40), np.uint8), {}, r"shape is \(3, 40, 40\)"),
    (spaces.Box(0, 255, (36, 40, 3), np.uint8), {}, r"shape is \(36, 40, 3\)"),
    (spaces.Box(0, 255, (36, 36, 3), np.float32), {}, "float32"),
    (spaces.Box(0, 255, (2, 3, 36, 36), np.uint8), {}, "2 frames along an axis of their own.*stack=2"),
    (spaces.Box(0, 255, (2, 36, 36, 3), np.uint8), {}, "2 frames along an axis of their own.*stack=2"),
    (spaces.Box(0, 255, FRAME.shape, np.float32), {}, "float32"),
    (spaces.Box(0, 1, FRAME.shape, np.uint8), {}, r"\(0\.0, 1\.0\)"),
    (spaces.Tuple([FRAME.space]), {}, "Tuple"),
    (spaces.Dict({"velocity": spaces.Box(-1, 1, (2,))}), {}, r"no key of the observation \(velocity\)"),
    (spaces.Dict({"a": SMALL, "b": SMALL}), {}, r"no key of the observation \(a, b\)"),
    (spaces.Dict({"image": SMALL}), {}, r"shape is \(3, 9, 9\)"),
    (spaces.Dict({"left": FRAME.space, "right": FRAME.space}), {}, "'left' or 'right': name one, image_key='left'"),
    (spaces.Dict({"left": FRAME.space, "right": FRAME.space}), {"image_key": "left"}, "'right' holds bytes"),
    (spaces.Dict({"image": FRAME.space, "mission": BYTES}), {}, "'mission' holds bytes"),
    (spaces.Dict({"image": FRAME.space}), {"image_key": "imago"}, "unknown key 'imago': did you mean 'image'"),
    (dict_space(), {"image_key": "velocity"}, r"shape is \(2, 2\)"),
    (dict_space(), {"image_key": "direction"}, "gives Discrete"),
    (FRAME.space, {"image_key": "image"}, "image_key='image' is for Dict observations"),
]


@pytest.mark.parametrize(("space", "options", "named"), REFUSED)
def test_what_the_encoder_cannot_read_is_refused_by_name(
    space: spaces.Space[Any], options: dict[str, Any], named: str, encoder: Encoder
) -> None:
    world = Quadrant()
    world.observation_space = space
    refuse(named, lambda: EncodedVecEnv(DummyVecEnv([lambda: world]), encoder, "cpu", **options))
    refuse(named, lambda: EncoderExtractor(space, **policy_kwargs(encoder, **options)["features_extractor_kwargs"]))


@pytest.mark.parametrize(
    ("given", "stack", "named"),
    [(4, 1, "holds 4 frames of 3 channels, not 1: pass stack=4"), (1, 4, "holds 1 frames of 3 channels, not 4")],
)
def test_another_number_of_frames_is_refused(given: int, stack: int, named: str, encoder: Encoder) -> None:
    venv = VecFrameStack(worlds(), given, "first")
    refuse(named, lambda: build(PPO, policy_kwargs(encoder, stack=stack), venv=venv))


WORDS, OTHER_WORDS = Vocabulary(["go", "left", "right"], 3), Vocabulary(["right", "left", "go"], 3)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (worlds, "wrap it in HistoryVecEnv"),
        (lambda: EncodedVecEnv(worlds(), odd_sequence()), "wrap it in HistoryVecEnv"),
        (lambda: HistoryVecEnv(worlds(), other_frames()), "'features' is FeatureSpace"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(vocabulary=None)), "'mission' is None"),
        (lambda: HistoryVecEnv(worlds(), odd_sequence(vocabulary=OTHER_WORDS)), "'mission' is MissionSpace"),
    ],
)
def test_a_policy_refuses_windows_that_its_encoder_does_not_read(make: Callable[[], VecEnv], named: str) -> None:
    arguments = policy_kwargs(odd_sequence(vocabulary=WORDS))
    refuse(named, lambda: build(PPO, arguments, venv=make(), policy="MultiInput"))
