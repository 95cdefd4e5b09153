"""From a policy trained on features to one that acts on pixels."""

import inspect
import io
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import load_from_zip_file, recursive_getattr
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvWrapper
from torch import Tensor, nn

from rlpre.encoders import AnyEncoder, Encoder, SequenceEncoder, as_encoder
from rlpre.encoders.encoder import check_tensors
from rlpre.errors import RlpreError, lookup
from rlpre.sb3.optim import EncoderOptimizer, encoder_optimizer
from rlpre.sb3.policy import MODES, ProtectedExtractor, SequenceExtractor, policy_kwargs
from rlpre.sb3.ppo import KLPenalty, continue_value_first
from rlpre.sb3.vecenv import (
    EncoderLike,
    FeatureSpace,
    FeaturesVecEnv,
    ImagePart,
    learned_normalizations,
    normalizations,
    stacked,
    window_length,
    window_space,
    with_image,
)

Statistics = tuple[str | None, np.ndarray, np.ndarray, float]  # key in a Dict, mean, standard deviation, limit
TRAINING_OPTIONS = ("stages", "anchor", "parent", "encoder_lr_scale", "warmup_updates", "augment")  # of policy_kwargs


def fuse(
    model: BaseAlgorithm | BasePolicy, encoder: EncoderLike, as_model: bool = False, **options: Any
) -> BasePolicy | Any:
    """Builds the pixel policy that acts as ``model`` does behind `EncodedVecEnv` or `HistoryVecEnv`.

    Statistics of a ``VecNormalize`` around `EncodedVecEnv`, and the policy's own features extractor, become part of it.
    These statistics are of the environment in which the model last learned; they are saved with the model. Features can
    differ in the last bits where torch computes batches of another size differently.

    Args:
        model: of any algorithm of SB3 or sb3-contrib, trained on ``EncodedVecEnv(venv, encoder)``, or with
            ``policy_kwargs(encoder, ...)`` on ``HistoryVecEnv(venv, encoder)``; live, loaded or compiled. Or a policy
            alone, such as that of `rlpre.clone`.
        encoder: the one that computed the features, its directory, or the result of `rlpre.pretrain`.
        as_model: return a model instead, which can ``learn``, ``save`` and ``load`` on pixels. It learns in the
            environment inside the model's `EncodedVecEnv`, if there is one; otherwise call its ``set_env``. It keeps
            the state of the optimiser if the encoder is frozen; a replay buffer starts empty.
        **options: with ``as_model``, ``mode`` (default ``"frozen"``) and its options, as of `policy_kwargs`.

    Returns:
        A policy of the model's own class and device, with the encoder inside, or the model that holds it. It reads what
        ``venv`` gives, channels first; after ``EncodedVecEnv(venv, encoder, stack=4)``, what ``VecFrameStack(venv, 4)``
        gives; with a `SequenceEncoder`, windows of pixels as the wrapper's ``frames`` gives them. The policy's heads
        share one encoder, unless their own extractors have weights.

    Raises:
        RlpreError: if the model was trained on other features, or on those of a GRU behind `EncodedVecEnv`, which
            remembers more than a window holds; or never, in an environment with a new ``VecNormalize``.
    """
    plan = _Plan(model, as_encoder(encoder))
    if as_model:
        if plan.model is None:
            raise RlpreError("a policy alone does not learn: leave out as_model, or give it to a model (start_from)")
        return plan.build_model(**options)
    if options:
        raise RlpreError(f"{next(iter(options))} concerns a model that learns: add as_model=True")
    return plan.build_policy(plan.trained)


class FusedExtractor(BaseFeaturesExtractor):
    """Encodes pixels, then does what was done with the features in training: normalisation, and the own extractor.

    Args:
        observation_space: with pixels.
        feature_space: the same with features, as in training.
        key: of the features in a Dict.
        reader: class and arguments of the extractor that encodes pixels.
        normalizers: statistics of each ``VecNormalize``, the first applied first.
        head: class and arguments of the policy's own extractor.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        feature_space: spaces.Space[Any],
        key: str | None,
        reader: tuple[type[ProtectedExtractor], dict[str, Any]],
        normalizers: list[Statistics],
        head: tuple[type[BaseFeaturesExtractor], dict[str, Any]],
    ) -> None:
        image = observation_space[key] if isinstance(observation_space, spaces.Dict) and key else observation_space
        extractor = head[0](feature_space, **head[1])
        super().__init__(observation_space, extractor.features_dim)
        self.part, self.head, self.reader = (
            ImagePart(key),
            extractor,
            reader[0](image, **reader[1]),
        )
        self.normalizers = nn.ModuleList(_Normalize(*statistics) for statistics in normalizers)

    @property
    def encoder(self) -> AnyEncoder:
        """The encoder of the pixels."""
        return self.reader.encoder

    def forward(self, observations: Any) -> Tensor:
        """What the trained policy's extractor would give of these pixels' features, (batch, features_dim)."""
        observations = self.part.replace(observations, self.reader(self.part.pick(observations)))
        for normalize in self.normalizers:
            observations = normalize(observations)
        return cast(Tensor, self.head(observations))


class _Normalize(nn.Module):
    """What ``VecNormalize`` does to one part of an observation."""

    def __init__(self, key: str | None, mean: np.ndarray, std: np.ndarray, clip: float) -> None:
        super().__init__()
        self.part, self.clip = ImagePart(key), clip
        self.register_buffer("mean", torch.as_tensor(mean), persistent=False)
        self.register_buffer("std", torch.as_tensor(std), persistent=False)

    def forward(self, observations: Any) -> Any:
        scaled = (self.part.pick(observations) - self.mean) / self.std
        return self.part.replace(observations, scaled.clamp(-self.clip, self.clip).float())


class _Plan:
    """How pixels take the place of features in a model's policy."""

    def __init__(self, model: BaseAlgorithm | BasePolicy, encoder: AnyEncoder) -> None:
        self.encoder, self.features = encoder, model.observation_space
        policy = model if isinstance(model, BasePolicy) else model.policy
        self.model = model if isinstance(model, BaseAlgorithm) else None
        self.trained: BasePolicy = getattr(policy, "_orig_mod", policy)  # of a compiled one
        self.key: str | None = None  # of the features in a Dict
        self.stack = 1
        self.inside = False  # whether the policy holds the encoder already
        if isinstance(encoder, SequenceEncoder):
            self.space = self._replace_sequence(encoder)
        else:
            self.space = self._replace_image(encoder)
        self.normalizers = self._statistics()
        if self.inside and self.normalizers:
            raise RlpreError("VecNormalize changed the windows of HistoryVecEnv: train with norm_obs=False to fuse")

    def build_policy(self, trained: BasePolicy) -> BasePolicy:
        """The policy of pixels that acts as ``trained``."""
        arguments = {**trained._get_constructor_parameters(), **(self.model.policy_kwargs if self.model else {})}
        arguments |= {**self.arguments(trained), "observation_space": self.space}
        fused = type(trained)(**arguments).to(trained.device)
        # `save` calls this method; some classes leave out an argument, such as the size of an LSTM
        fused._get_constructor_parameters = partial(dict, arguments)  # type: ignore[method-assign]
        self.load(fused, trained)
        return fused

    def build_model(self, mode: str = "frozen", **options: Any) -> BaseAlgorithm:
        """The model on pixels."""
        if isinstance(self.encoder, SequenceEncoder):
            raise RlpreError("a SequenceEncoder has no model on pixels: leave out as_model or go on with HistoryVecEnv")
        if not lookup("mode", mode, MODES).pretrained:
            raise RlpreError(f"mode {mode!r} starts from fresh weights, a fused model has the encoder's: use 'frozen'")
        if unknown := sorted(options.keys() - TRAINING_OPTIONS):
            raise RlpreError(f"{unknown[0]} is no option of a fused model: give one of {', '.join(TRAINING_OPTIONS)}")
        model = self.model
        assert model is not None
        arguments = {**model.policy_kwargs, **self.arguments(self.trained, mode, **options)}
        saved = io.BytesIO()
        model.save(saved)  # SB3 decides what belongs to a model
        data, states, variables = load_from_zip_file(saved, device=model.device)
        assert data is not None
        # As in SB3's own `load`: all algorithms take these arguments, their common base class does not
        fused = type(model)(policy=data["policy_class"], env=None, device=model.device, _init_setup_model=False)  # type: ignore[call-arg]
        data |= {"observation_space": self.space, "policy_kwargs": arguments}
        data |= dict.fromkeys(("_last_obs", "_last_original_obs", "_last_episode_starts"))
        if penalty := (data.get("rollout_buffer_kwargs") or {}).get("penalty"):
            assert isinstance(penalty, KLPenalty)
            reference: Any = self.build_policy(cast(Any, model).rollout_buffer_kwargs["penalty"].policy)
            data["rollout_buffer_kwargs"]["penalty"] = replace(penalty, policy=reference)
        fused.__dict__.update(data)
        fused._setup_model()
        self.load(fused.policy, self.trained)
        for name, state in states.items():
            if name.endswith("optimizer") and (mode == "frozen" or not name.endswith(".optimizer")):
                recursive_getattr(fused, name).load_state_dict(state)
        continue_value_first(fused.policy, model.policy)
        for name, tensor in (variables or {}).items():
            if tensor is not None:
                recursive_getattr(fused, name).data = tensor.data
        if env := _pixel_env(model.get_env(), self.stack, self.space):
            fused.set_env(env)
        return fused

    def arguments(self, trained: BasePolicy, mode: str = "frozen", **options: Any) -> dict[str, Any]:
        """Arguments of the policy that differ from those of ``trained``."""
        if self.inside:
            return {}
        if "features_extractor_class" not in inspect.signature(type(trained)).parameters:
            kind = type(trained).__name__
            raise RlpreError(f"{kind} has no features extractor to hold the encoder: train with PPO, A2C, DQN or SAC")
        if self.stack > 1:
            options["stack"] = self.stack
        reader = policy_kwargs(self.encoder, mode, **options)
        optimizer = trained.optimizer_class
        if mode != "frozen" and not issubclass(optimizer, EncoderOptimizer):
            optimizer = encoder_optimizer(optimizer)
        arguments = {
            "features_extractor_class": FusedExtractor,
            "features_extractor_kwargs": {
                "feature_space": self.features,
                "key": self.key,
                "reader": (reader["features_extractor_class"], reader["features_extractor_kwargs"]),
                "normalizers": self.normalizers,
                "head": (trained.features_extractor_class, dict(trained.features_extractor_kwargs)),
            },
            "normalize_images": False,  # the encoder scales by itself
            "optimizer_class": optimizer,
        }
        own = any("features_extractor." in name for name in trained.state_dict())
        if not own and hasattr(trained, "share_features_extractor"):
            arguments["share_features_extractor"] = True
        return arguments

    def load(self, fused: BasePolicy, trained: BasePolicy) -> None:
        """Copies the weights of ``trained``, but for those of the encoder, which are there already."""
        learned = {name.replace("_orig_mod.", ""): tensor for name, tensor in trained.state_dict().items()}
        if not self.inside:
            extractor = "features_extractor."
            learned = {name.replace(extractor, f"{extractor}head.", 1): tensor for name, tensor in learned.items()}
        state = fused.state_dict()
        reader = "features_extractor.reader."
        check_tensors(learned, {n: tensor for n, tensor in state.items() if reader not in n}, "the model's policy")
        fused.load_state_dict(state | learned)
        if getattr(getattr(fused, "actor", fused), "use_sde", False):
            fused.reset_noise()  # type: ignore[operator]  # drawn from the trained deviations, as SB3's `load` does
        fused.set_training_mode(False)

    def _replace_image(self, encoder: Encoder) -> spaces.Space[Any]:
        """Finds the features, and returns the space with pixels in their place."""
        width = encoder.num_features
        parts: Mapping[Any, spaces.Space[Any]] = {None: self.features}
        if isinstance(self.features, spaces.Dict):
            parts = self.features.spaces
        for key, part in parts.items():
            stack = part.shape[0] // width if isinstance(part, FeatureSpace) else 0
            if stack and part == FeatureSpace(encoder, (stack * width,)):
                self.key, self.stack = key, stack
                return with_image(self.features, key, stacked(encoder.input, stack))
        marked = any(isinstance(part, FeatureSpace) for part in parts.values())
        for part in () if marked else parts.values():
            if isinstance(part, spaces.Box) and part.shape[0] % width == 0 and np.isneginf(part.low).all():
                raise RlpreError(
                    f"the model was trained on {part.shape[0]} numbers that are not marked as features: train on "
                    f"EncodedVecEnv(venv, encoder, stack={part.shape[0] // width}) without VecFrameStack around it"
                )
        raise self._wrong_features()

    def _replace_sequence(self, encoder: SequenceEncoder) -> spaces.Space[Any]:
        """The space of windows of pixels, in place of features or of windows of them."""
        if self.features == FeatureSpace(encoder):
            if encoder.recurrent:
                raise RlpreError(
                    "behind EncodedVecEnv a GRU remembers the whole episode, which no window of pixels holds: "
                    "train on HistoryVecEnv to fuse"
                )
            return window_space(encoder, encoder.window, pixels=True)
        window = window_length(self.features)
        if not window or self.features != window_space(encoder, window):
            raise self._wrong_features()
        if not issubclass(getattr(self.trained, "features_extractor_class", object), SequenceExtractor):
            raise RlpreError("the model does not hold a SequenceEncoder: train it with policy_kwargs(encoder, ...)")
        self.key, self.inside = "features", True
        return window_space(encoder, window, pixels=True)

    def _wrong_features(self) -> RlpreError:
        return RlpreError(
            f"the model was trained on {self.features}, this encoder gives {FeatureSpace(self.encoder)}: fuse it with "
            "the encoder that its EncodedVecEnv or HistoryVecEnv used"
        )

    def _statistics(self) -> list[Statistics]:
        """Those of each ``VecNormalize`` that changed the features, the first applied first."""
        around = learned_normalizations(self.features)
        if around is None:  # its weights are from elsewhere
            around = normalizations(self.model.get_env() if self.model else None)
            if any(moments.count < 1 for one in around for moments in one.running.values()):
                raise RlpreError("the VecNormalize of the model has seen no observation: load it with its statistics")
        found: list[Statistics] = []
        for one in around:
            for key, moments in one.running.items():
                found.append((key, moments.mean.copy(), np.sqrt(moments.var + one.epsilon), one.clip))
        return found


def _pixel_env(env: VecEnv | None, stack: int, space: spaces.Space[Any]) -> VecEnv | None:
    """The model's environment without its encoder; None if there is none, or a wrapper around it needs features."""
    if isinstance(env, FeaturesVecEnv):
        pixels = env.venv if stack == 1 else VecFrameStack(env.venv, stack)
        return pixels if isinstance(space, spaces.Box) or stack == 1 else None
    if not isinstance(env, VecEnvWrapper) or env.observation_space != env.venv.observation_space:
        return None
    inner = _pixel_env(env.venv, stack, space)
    if inner is None:
        return None
    outer = object.__new__(type(env))  # copy.copy asks the wrapped environment for attributes, and there is none yet
    outer.__dict__ |= {**env.__dict__, "venv": inner, "observation_space": inner.observation_space}
    if isinstance(outer, VecNormalize):
        outer.norm_obs = False  # the policy does it now
    return outer
