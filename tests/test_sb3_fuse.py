"""From a policy trained on features back to pixels."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from gymnasium import spaces
from pixel_world import (
    TINY,
    Algorithm,
    Quadrant,
    build,
    dict_space,
    encoders_in,
    history,
    odd_encoder,
    odd_sequence,
    other_frames,
    refuse,
    same,
    worlds,
    worlds_for,
)
from sb3_contrib import ARS, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO, SAC
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.preprocessing import get_flattened_obs_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecFrameStack, VecMonitor, VecNormalize
from torch import Tensor, nn

import envs
from rlpre import EncodedVecEnv, Encoder, HistoryVecEnv, InputSpec, RlpreError, SequenceEncoder, Vocabulary
from rlpre.sb3 import fuse, kl_penalty, policy_kwargs


@pytest.fixture
def encoder() -> Encoder:
    return odd_encoder()


def agree(features: BasePolicy, pixels: BasePolicy, venv: EncodedVecEnv | HistoryVecEnv, steps: int = 14) -> None:
    """Actions of both policies are equal on the same observations, greedy and sampled, also with an LSTM's states."""
    observations, states, ours, starts = venv.reset(), None, None, np.ones(venv.num_envs, bool)
    for step in range(steps):
        for deterministic in (True, False):
            torch.manual_seed(step)
            wanted, after = features.predict(observations, states, starts, deterministic=deterministic)
            torch.manual_seed(step)
            given, ours_after = pixels.predict(venv.frames, ours, starts, deterministic=deterministic)
            assert given == pytest.approx(wanted, abs=1e-4)
        observations, _, starts, _ = venv.step(wanted)
        states, ours = after, ours_after


def fused_and_loaded(model: BaseAlgorithm, encoder: Encoder | SequenceEncoder, path: Path) -> list[BasePolicy]:
    fused = fuse(model, encoder)
    assert type(fused) is type(model.policy)
    assert not fused.training
    fused.save(str(path))
    loaded = type(fused).load(str(path), device="cpu")
    assert same(loaded, fused)
    return [fused, loaded]


@pytest.mark.parametrize(("parts", "stack"), [(False, 1), (False, 4), (True, 1), (True, 3)])
@pytest.mark.parametrize("algorithm", TINY)
def test_fused_policies_act_on_pixels_as_the_trained_ones_on_features(
    algorithm: Algorithm, parts: bool, stack: int, encoder: Encoder, tmp_path: Path
) -> None:
    venv = EncodedVecEnv(worlds_for(algorithm, 8, parts=parts), encoder, "cpu", stack=stack)
    model = build(algorithm, {}, venv=venv, policy="MultiInput" if parts else "Mlp").learn(32)
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, venv)
    pixels = worlds_for(algorithm, parts=parts)
    if not parts:
        assert policy.observation_space == VecFrameStack(pixels, stack, "first").observation_space
    elif stack == 1:
        assert policy.observation_space == pixels.observation_space


@pytest.mark.parametrize("algorithm", [PPO, A2C, SAC, RecurrentPPO, MaskablePPO])
@pytest.mark.parametrize("shared", [False, True])
def test_heads_share_an_encoder_or_have_their_own(algorithm: Algorithm, shared: bool, encoder: Encoder) -> None:
    share = {"share_features_extractor": shared}
    followers = 1 if algorithm is SAC else 0
    inside = encoders_in(build(algorithm, policy_kwargs(encoder, "finetuned", **share)).learn(16))
    assert len(inside) == (1 if shared else 2) + followers
    venv = EncodedVecEnv(worlds_for(algorithm), encoder, "cpu")
    model = build(algorithm, share, venv=venv, policy="Mlp").learn(16)
    fused = fuse(model, encoder)
    assert sum(isinstance(module, Encoder) for module in fused.modules()) == 1 + followers
    agree(model.policy, fused, venv)


def test_an_order_of_keys_that_is_not_the_alphabet(encoder: Encoder) -> None:
    class Ordered(Quadrant):
        def __init__(self) -> None:
            super().__init__(parts=True)
            space = dict_space(tokens=spaces.MultiDiscrete([2, 3]))
            names = ["velocity", "image", "direction", "tokens", "mission"]
            self.observation_space = spaces.Dict(OrderedDict((name, space[name]) for name in names))

    venv = EncodedVecEnv(DummyVecEnv([Ordered] * 2), encoder, "cpu")
    model = build(PPO, {}, venv=venv, policy="MultiInput").learn(16)
    observations, fused = venv.reset(), fuse(model, encoder)
    assert list(fused.observation_space) == list(venv.observation_space) == list(Ordered().observation_space)
    wanted, given = (
        policy.predict_values(policy.obs_to_tensor(observed)[0])
        for policy, observed in ((model.policy, observations), (fused, venv.frames))
    )
    torch.testing.assert_close(given, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_a_reloaded_model_fuses_and_refuses_another_encoder(
    algorithm: Algorithm, encoder: Encoder, tmp_path: Path
) -> None:
    venv = EncodedVecEnv(worlds(), encoder, "cpu")
    model = build(algorithm, {}, venv=venv, policy="Mlp").learn(48)
    model.save(tmp_path / "model")
    again = algorithm.load(tmp_path / "model", env=venv, device="cpu")
    agree(model.policy, fuse(again, encoder), EncodedVecEnv(worlds(count=16, seed=7), encoder, "cpu"))
    again.learn(16)
    with pytest.raises(RlpreError, match="this encoder gives FeatureSpace"):
        fuse(again, odd_encoder(1))
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        algorithm.load(tmp_path / "model", env=EncodedVecEnv(worlds(), odd_encoder(1), "cpu"))


# What stands between the features and the policy: VecNormalize, an own extractor, other keys, torch.compile.


class Doubled(BaseFeaturesExtractor):
    """A user's own extractor with weights; of a Dict it reads the image's features and one more key."""

    def __init__(self, observation_space: spaces.Space[Any], width: int = 8) -> None:
        super().__init__(observation_space, width)
        size = sum(get_flattened_obs_dim(part) for part in parts_of(observation_space).values())
        self.layer = nn.Sequential(nn.Linear(size, width), nn.Tanh())

    def forward(self, observations: Any) -> Tensor:
        parts = parts_of(observations).values()
        return 2 * self.layer(torch.cat([part.flatten(1) for part in parts], dim=1))


def parts_of(whole: Any) -> dict[str, Any]:
    whole = getattr(whole, "spaces", whole)
    return {key: whole[key] for key in ("image", "velocity")} if isinstance(whole, dict) else {"": whole}


def twice_normalized(venv: VecEnv) -> VecEnv:
    return VecNormalize(VecMonitor(VecNormalize(venv, norm_obs=False)), clip_obs=1.5)


WRAPPERS: dict[str, Callable[[VecEnv], VecEnv]] = {
    "bare": lambda venv: venv,
    "rewards": lambda venv: VecNormalize(venv, norm_obs=False),
    "normalized": VecNormalize,
    "clipped": twice_normalized,
    "twice": lambda venv: VecNormalize(VecNormalize(venv, norm_reward=False), clip_obs=0.5),
}


def check_pixels(model: BaseAlgorithm, fused: Any, features: EncodedVecEnv, steps: int = 20) -> None:
    """The fused policy acts on pixels as the model does in its environment, whatever is between."""
    env = model.get_env()
    for wrapper in unwrapped(env):
        if isinstance(wrapper, VecNormalize):
            wrapper.training = False
    observations = env.reset()
    for _ in range(steps):
        wanted, _ = model.predict(observations, deterministic=True)
        assert fused.predict(features.frames, deterministic=True)[0] == pytest.approx(wanted, abs=1e-4)
        observations, *_ = env.step(wanted)


def unwrapped(env: Any) -> list[VecEnv]:
    return [env, *unwrapped(env.venv)] if isinstance(env, VecEnvWrapper) else [env]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("parts", [False, True])
@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("algorithm", [PPO, DQN, SAC])
def test_fuse_is_right_live_and_loaded(
    algorithm: Algorithm, wrapper: str, parts: bool, own: bool, encoder: Encoder, tmp_path: Path
) -> None:
    features = EncodedVecEnv(worlds_for(algorithm, parts=parts), encoder, "cpu", stack=2)
    wrap = WRAPPERS[wrapper]
    if parts:
        wrap = lambda venv: venv if wrapper == "bare" else VecNormalize(venv, norm_obs_keys=["image", "velocity"])  # noqa: E731
    env = wrap(features)
    arguments = {"features_extractor_class": Doubled, "features_extractor_kwargs": {"width": 6}} if own else {}
    model = build(algorithm, arguments, venv=env, policy="MultiInput" if parts else "Mlp", learning_rate=0.01).learn(64)
    assert features.observation_space == model.observation_space
    model.save(tmp_path / "model")
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        check_pixels(model, policy, features)
    algorithm.load(tmp_path / "model", device="cpu").save(tmp_path / "again")
    for given in (None, features, wrap(features), env):
        check_pixels(model, fuse(algorithm.load(tmp_path / "model", env=given, device="cpu"), encoder), features)
    check_pixels(model, fuse(algorithm.load(tmp_path / "again", device="cpu"), encoder), features)


@pytest.mark.parametrize("parts", [False, True])
def test_statistics_are_those_of_the_environment_in_which_the_model_learned(
    parts: bool, encoder: Encoder, tmp_path: Path
) -> None:
    """Whatever environment it has now, and whichever other models learned in the same one."""
    features = EncodedVecEnv(worlds(parts=parts), encoder, "cpu")
    normalized = VecNormalize(features, norm_obs_keys=["image", "velocity"] if parts else None)
    policy = "MultiInput" if parts else "Mlp"
    other = build(PPO, {}, venv=features, policy=policy, learning_rate=0.01).learn(32)
    model = build(PPO, {}, venv=normalized, policy=policy, learning_rate=0.01).learn(32)
    check_pixels(other, fuse(other, encoder), features)
    other.set_env(normalized)  # and does not learn there
    model.set_env(features)
    model.save(tmp_path / "model")
    model.policy.save(tmp_path / "policy")
    loaded = [PPO.load(tmp_path / "model", device="cpu"), type(model.policy).load(str(tmp_path / "policy"))]
    fused = [fuse(one, encoder) for one in (model, model.policy, *loaded)]
    mistaken = fuse(other, encoder)
    model.set_env(normalized)
    other.set_env(features)
    for one in fused:
        check_pixels(model, one, features)
    check_pixels(other, mistaken, features)
    other.set_env(normalized)
    other.learn(16)
    check_pixels(other, fuse(other, encoder), features)
    normalized.norm_obs = False
    model.learn(16)
    check_pixels(model, fuse(model, encoder), features)
    again = VecNormalize(features, norm_obs_keys=["image", "velocity"] if parts else None)
    model.set_env(again, force_reset=False)
    model.learn(16, reset_num_timesteps=False)  # nothing is reset
    check_pixels(model, fuse(model, encoder), features)


def test_a_model_that_has_not_learned_has_the_statistics_of_its_environment(encoder: Encoder) -> None:
    normalized = VecNormalize(EncodedVecEnv(worlds(), encoder, "cpu"))
    model = build(PPO, {}, venv=normalized, policy="Mlp")
    refuse("has seen no observation", lambda: fuse(model, encoder))
    normalized.reset()
    check_pixels(model, fuse(model, encoder), normalized.venv)


@pytest.mark.parametrize("shared", [True, False])
def test_own_extractors_of_actor_and_critic_stay_apart(shared: bool, encoder: Encoder) -> None:
    features = EncodedVecEnv(worlds(parts=True), encoder, "cpu")
    arguments = {"features_extractor_class": Doubled, "share_features_extractor": shared}
    model = build(PPO, arguments, venv=features, policy="MultiInput", learning_rate=0.01).learn(64)
    fused = fuse(model, encoder)
    check_pixels(model, fused, features)
    wanted = model.policy.obs_to_tensor(model.env.reset())[0]
    given = fused.obs_to_tensor(features.frames)[0]
    torch.testing.assert_close(fused.predict_values(given), model.policy.predict_values(wanted), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inside", [lambda venv: VecNormalize(venv, norm_obs_keys=["velocity"]), VecMonitor])
def test_what_is_inside_stays_in_front_of_the_fused_policy(
    inside: Callable[[VecEnv], VecEnv], encoder: Encoder, tmp_path: Path
) -> None:
    features = EncodedVecEnv(inside(worlds(parts=True)), encoder, "cpu")
    model = build(PPO, {}, venv=features, policy="MultiInput").learn(32)
    model.save(tmp_path / "model")
    for one in (model, PPO.load(tmp_path / "model", device="cpu")):
        check_pixels(model, fuse(one, encoder), features)


@pytest.mark.parametrize("part", ["", "mlp_extractor", "features_extractor"])
def test_compiled_models_fuse(part: str, encoder: Encoder) -> None:
    features = EncodedVecEnv(worlds(), encoder, "cpu")
    model = build(PPO, {"features_extractor_class": Doubled}, venv=features, policy="Mlp").learn(32)
    plain = fuse(model, encoder)
    owner, name = (model.policy, part) if part else (model, "policy")
    setattr(owner, name, torch.compile(getattr(owner, name), backend="eager"))
    assert same(fuse(model, encoder), plain)
    model.set_env(VecNormalize(features))
    check_pixels(model.learn(16), fuse(model, encoder), features)


def test_policies_without_an_extractor_are_refused(encoder: Encoder) -> None:
    model = ARS("MlpPolicy", EncodedVecEnv(worlds(), encoder, "cpu"), n_delta=1, device="cpu")
    with pytest.raises(RlpreError, match="ARSPolicy has no features extractor"):
        fuse(model, encoder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_same_inside_and_in_front(dtype: torch.dtype, encoder: Encoder, tmp_path: Path) -> None:
    half = encoder.to(dtype)
    venv = EncodedVecEnv(worlds(), half, "cpu")
    model = build(PPO, {}, venv=venv, policy="Mlp").learn(16)
    for fused in fused_and_loaded(model, half, tmp_path / "fused"):
        features = venv.reset()
        given = fused.features_extractor(torch.from_numpy(venv.frames).float())
        torch.testing.assert_close(given, torch.from_numpy(features))
    inside = build(PPO, policy_kwargs(half, "frozen")).learn(16)
    inside.save(tmp_path / "model")
    assert same(PPO.load(tmp_path / "model", device="cpu").policy, inside.policy)
    assert encoders_in(build(PPO, policy_kwargs(half, "finetuned")).learn(16))[0].dtype == torch.float32


# A model on pixels.


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("algorithm", TINY)
def test_a_fused_model_learns_on_as_on_features(
    algorithm: Algorithm, stack: int, encoder: Encoder, tmp_path: Path
) -> None:
    """From the same seed: exploration, and the optimiser's and the entropy coefficient's state, go on."""
    models = []
    for _ in range(2):
        env = VecNormalize(VecMonitor(EncodedVecEnv(worlds_for(algorithm), encoder, "cpu", stack=stack)))
        models.append(build(algorithm, {}, venv=env, policy="Mlp").learn(32))
        env.training = False
    fused = fuse(models[1], encoder, as_model=True)
    assert type(fused) is algorithm
    if hasattr(fused, "replay_buffer"):
        models[0].replay_buffer.reset()  # that of pixels is empty
    for model in (models[0], fused):
        model.env.seed(5)
        model.set_random_seed(5)
        model.learn(16)
    learned = {
        name.replace("features_extractor.head.", "features_extractor."): tensor
        for name, tensor in fused.policy.state_dict().items()
        if ".reader." not in name
    }
    torch.testing.assert_close(learned, dict(models[0].policy.state_dict()), rtol=1e-3, atol=1e-4)
    fused.save(tmp_path / "model")
    pixels = worlds_for(algorithm, 2)
    again = algorithm.load(tmp_path / "model", env=pixels if stack == 1 else VecFrameStack(pixels, 2), device="cpu")
    assert same(again.policy, fused.policy)
    again.learn(16)
    evaluate_policy(again, again.get_env(), n_eval_episodes=2, warn=False)


def test_a_fused_model_is_finetuned_after_loading(encoder: Encoder, tmp_path: Path) -> None:
    model = build(PPO, {}, venv=EncodedVecEnv(worlds(), encoder, "cpu"), policy="Mlp").learn(32)
    fused = fuse(model, encoder, as_model=True, mode="finetuned", encoder_lr_scale=0.5)
    fused.save(tmp_path / "model")
    again = PPO.load(tmp_path / "model", env=worlds(), device="cpu")
    assert same(encoders_in(fused)[0], encoder)
    assert same(again.policy, fused.policy)
    assert not same(encoders_in(again.learn(16))[0], encoder)


def test_the_reference_of_a_kl_penalty_is_fused_too(encoder: Encoder) -> None:
    env = EncodedVecEnv(worlds(), encoder, "cpu")
    start = build(PPO, {}, venv=env, policy="Mlp")
    model = build(PPO, {}, venv=env, policy="Mlp", **kl_penalty(start.policy)).learn(16)
    fused = fuse(model, encoder, as_model=True).learn(16)
    assert np.abs(fused.rollout_buffer.kl).max() > 0
    assert start.policy.observation_space == env.observation_space


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"mode": "finetuned"}, "mode concerns a model that learns: add as_model=True"),
        ({"as_model": True, "mode": "frosen"}, "did you mean 'frozen'"),
        ({"as_model": True, "mode": "random"}, "mode 'random' starts from fresh weights"),
        ({"as_model": True, "net_arch": [8]}, "net_arch is no option of a fused model: give one of stages"),
        ({"as_model": True, "warmup_updates": 3}, "warmup_updates has no effect on mode 'frozen'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], named: str, encoder: Encoder) -> None:
    model = build(PPO, {}, venv=EncodedVecEnv(worlds(), encoder, "cpu"), policy="Mlp")
    with pytest.raises(RlpreError, match=named):
        fuse(model, encoder, **options)


def test_windows_have_no_model_on_pixels() -> None:
    encoder = odd_sequence()
    model = build(PPO, policy_kwargs(encoder), venv=history(encoder), policy="MultiInput")
    with pytest.raises(RlpreError, match="leave out as_model"):
        fuse(model, encoder, as_model=True)


# Exports.


@pytest.mark.parametrize("algorithm", [PPO, SAC])
@pytest.mark.parametrize("as_model", [False, True])
def test_state_dependent_noise_is_that_of_the_trained_policy(
    algorithm: Algorithm, as_model: bool, encoder: Encoder
) -> None:
    env = EncodedVecEnv(worlds(continuous=True), encoder, "cpu")
    model = build(algorithm, {"log_std_init": 1.0}, venv=env, policy="Mlp", use_sde=True)
    with torch.no_grad():
        getattr(model.policy, "actor", model.policy).log_std.fill_(-9)  # what it would have learned
    fused = fuse(model, encoder, as_model=as_model)
    frames = frames_of(16).numpy()
    noisy, likely = (fused.predict(frames, deterministic=sure)[0] for sure in (False, True))
    assert np.abs(noisy - likely).max() < 0.05


class Deterministic(nn.Module):
    """What one exports: the actions of a policy, or, of PPO, the features and then the action head."""

    def __init__(self, policy: BasePolicy, head: bool) -> None:
        super().__init__()
        self.policy, self.head = policy, head

    def forward(self, frames: Tensor) -> Tensor:
        if not self.head:
            return self.policy(frames, deterministic=True)
        features = self.policy.extract_features(frames)
        return self.policy.action_net(self.policy.mlp_extractor.forward_actor(features))


def frames_of(count: int) -> Tensor:
    """Some of them equal, which an export must not depend on."""
    return torch.randint(0, 256, (count, 3, 36, 36), dtype=torch.uint8)[[0, *range(count - 1)]]


def traced(module: nn.Module, path: Path) -> Callable[[Tensor], Any]:
    return torch.jit.trace(module, frames_of(2), check_trace=False)


def exported(module: nn.Module, path: Path) -> Callable[[Tensor], Any]:
    return torch.export.export(module, (frames_of(3),), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()


def to_onnx(module: nn.Module, path: Path) -> Callable[[Tensor], Any]:
    shapes = ({0: torch.export.Dim("batch")},)
    torch.onnx.export(module, (frames_of(3),), str(path), input_names=["frames"], dynamic_shapes=shapes, dynamo=True)
    session = onnxruntime.InferenceSession(str(path))
    return lambda frames: torch.from_numpy(session.run(None, {"frames": frames.numpy()})[0])


@pytest.mark.parametrize("way", [traced, exported, to_onnx])
@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_exports_equal_the_policy(
    way: Callable[..., Any], algorithm: Algorithm, encoder: Encoder, tmp_path: Path
) -> None:
    env = VecNormalize(EncodedVecEnv(worlds(), encoder, "cpu"))
    fused = fuse(build(algorithm, {}, venv=env, policy="Mlp").learn(32), encoder)
    module = Deterministic(fused, algorithm is PPO).eval()
    export = way(module, tmp_path / "policy.onnx")
    for count in (1, 2, 5):
        frames = frames_of(count)
        torch.testing.assert_close(export(frames), module(frames), rtol=1e-5, atol=1e-5)


def test_a_failed_export_breaks_no_policy(encoder: Encoder) -> None:
    """PyTorch keeps no tensor of a trace that failed in anything that later policies of the process read."""
    env = EncodedVecEnv(worlds(), encoder, "cpu")
    fused = fuse(build(PPO, {}, venv=env, policy="Mlp"), encoder)

    class Fails(nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            features = fused.extract_features(frames)
            return features if features.sum() > 0 else -features  # a branch on data cannot be exported

    with pytest.raises(Exception, match=r"data-dependent|Data-dependent|could not"):
        torch.export.export(Fails().eval(), (frames_of(3),))
    env.reset()
    assert fused.predict(env.frames)[0].shape == (2,)
    other = build(PPO, policy_kwargs(encoder, "finetuned"), venv=worlds())
    assert other.learn(32).num_timesteps >= 32


# Sequence encoders.


@pytest.mark.parametrize(
    ("algorithm", "backbone", "shared"), [(PPO, "transformer", 1), (PPO, "gru", 0), (DQN, "gru", 1)]
)
def test_windows_of_pixels_in_place_of_features(
    algorithm: Algorithm, backbone: str, shared: int, tmp_path: Path
) -> None:
    encoder = odd_sequence(backbone)
    arguments = policy_kwargs(encoder, "finetuned", **({} if shared else {"share_features_extractor": False}))
    model = build(algorithm, arguments, venv=history(encoder), policy="MultiInput").learn(32)
    model.save(tmp_path / "model")
    again = fuse(algorithm.load(tmp_path / "model", device="cpu"), encoder)
    for policy in [*fused_and_loaded(model, encoder, tmp_path / "fused"), again]:
        agree(model.policy, policy, history(encoder, seed=7, count=4, length=9))


@pytest.mark.parametrize("algorithm", [PPO, DQN])
def test_windows_of_pixels_in_place_of_steps(algorithm: Algorithm, tmp_path: Path) -> None:
    encoder = odd_sequence()
    model = build(algorithm, {}, venv=EncodedVecEnv(worlds(), encoder, "cpu"), policy="Mlp").learn(32)
    for policy in fused_and_loaded(model, encoder, tmp_path / "fused"):
        agree(model.policy, policy, EncodedVecEnv(worlds(4, 7, length=9), encoder, "cpu"))


def test_babyai_with_missions(tmp_path: Path) -> None:
    venv = envs.make_vec("BabyAI-GoToLocal-v0", 4, 0)
    frames = Encoder("cnn", InputSpec(venv.observation_space.shape), features=16)
    words = Vocabulary(
        ["a", "ball", "blue", "box", "go", "green", "grey", "key", "purple", "red", "the", "to", "yellow"], 5
    )
    encoder = SequenceEncoder("transformer", frames, 7, words, width=16, window=5).eval()
    windows, steps = HistoryVecEnv(venv, encoder, device="cpu"), EncodedVecEnv(venv, encoder, "cpu")
    for wrapped, policy, arguments in (
        (windows, "MultiInput", policy_kwargs(encoder, "finetuned")),
        (steps, "Mlp", {}),
    ):
        model = build(PPO, arguments, venv=wrapped, policy=policy).learn(16)
        for fused in fused_and_loaded(model, encoder, tmp_path / "fused"):
            agree(model.policy, fused, wrapped, 6)


# What cannot be fused.


def trained(make: Callable[[], Any], arguments: dict[str, Any] | None = None, policy: str = "Mlp") -> PPO:
    return build(PPO, arguments or {}, venv=make(), policy=policy).learn(16)


ONE, TRANSFORMER, GRU = odd_encoder(), odd_sequence(), odd_sequence("gru")
WINDOWS: tuple[Any, ...] = (lambda: history(TRANSFORMER), policy_kwargs(TRANSFORMER), "MultiInput")
WRONG = "fuse it with the encoder that its EncodedVecEnv or HistoryVecEnv used"


@pytest.mark.parametrize(
    ("model", "encoder", "named"),
    [
        ((worlds, policy_kwargs(ONE), "Cnn"), ONE, "trained on Box"),
        ((worlds, policy_kwargs(ONE), "Cnn"), TRANSFORMER, WRONG),
        (WINDOWS, other_frames(), WRONG),
        (WINDOWS, ONE, WRONG),
        ((lambda: EncodedVecEnv(worlds(), GRU),), GRU, "behind EncodedVecEnv a GRU remembers the whole episode"),
        ((WINDOWS[0], {}, "MultiInput"), TRANSFORMER, "does not hold a SequenceEncoder"),
        ((lambda: VecFrameStack(EncodedVecEnv(worlds(), ONE), 4),), ONE, "encoder, stack=4. without VecFrameStack"),
        ((lambda: VecNormalize(WINDOWS[0](), norm_obs_keys=["features"]), *WINDOWS[1:]), TRANSFORMER, "norm_obs"),
    ],
)
def test_what_cannot_be_fused_is_refused(model: tuple[Any, ...], encoder: Any, named: str) -> None:
    refuse(named, lambda: fuse(trained(*model), encoder))
