"""Arms of a comparison: ways to use an encoder in an agent."""

import inspect
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv

from rlpre.data.adapters import find_images
from rlpre.encoders import AnyEncoder, Encoder, InputSpec, SequenceEncoder, Vocabulary, as_encoder
from rlpre.encoders.encoder import CONFIG, MAP, WHITENED
from rlpre.errors import RlpreError, lookup
from rlpre.features import map_stage
from rlpre.objectives import parse_objective
from rlpre.pretrain import PretrainConfig, step_directory
from rlpre.sb3 import MODES, CloneConfig, KeepLearning, StateVecEnv, policy_kwargs, start_from
from rlpre.sb3.auxiliary import check_auxiliary
from rlpre.sb3.policy import Mode
from rlpre.sb3.vecenv import check_actions, find_image

ORACLE, TRANSPLANT = "oracle", "transplant"
ARM_MODES = {**MODES, ORACLE: Mode(pretrained=False, trainable=True), TRANSPLANT: MODES["frozen"]}


@dataclass(frozen=True)
class Backbone:
    """The part of a sequence encoder that mixes the steps, see `rlpre.SequenceEncoder`.

    Attributes:
        name: "transformer" or "gru".
        width: length of a token and of the features.
        layers: number of layers.
        heads: attention heads of a transformer.
        window: steps that the features depend on.
    """

    name: str = "transformer"
    width: int = 64
    layers: int = 2
    heads: int = 4
    window: int = 32

    def build(
        self,
        vision: Encoder,
        actions: int,
        vocabulary: Vocabulary | None = None,
        objective: str = "",
        previous_action: bool = True,
    ) -> SequenceEncoder:
        """A sequence encoder with fresh weights over ``vision``.

        Encoders for the objectives "masked" and "autoregressive" share the architecture and differ in the attention
        mask only.
        """
        settings = {**asdict(self), "causal": objective != "masked", "previous_action": previous_action}
        return SequenceEncoder(settings.pop("name"), vision, actions, vocabulary, **settings)


@dataclass(frozen=True)
class Clone:
    """The policy that an arm's agents start from, or are: cloned anew in each run, from frames with actions.

    Attributes:
        config: settings of `rlpre.clone`; the seed is the run's, and ``net_arch`` that of the agents.
        data: name of the frames to clone; default the arm's.
        tuned: whether the agents then learn; if not, they remain the clone, and its return stands at every step.
        start: arguments of `rlpre.start_from`, such as ``{"kl": 0.1}``.
    """

    config: CloneConfig = field(default_factory=CloneConfig)
    data: str = ""
    tuned: bool = True
    start: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One way to use an encoder; everything else is the same for all arms of a comparison.

    Attributes:
        mode: how the policy uses the encoder, see `rlpre.policy_kwargs`: "scratch" and "random" (frozen) start from
            fresh weights; "frozen", "finetuned", "anchored" and "partial" start from ``encoder``. Two more show what an
            encoder could save: "oracle" learns from the environment's true state, see `rlpre.StateVecEnv`; "transplant"
            freezes the encoder that an agent of the comparison's arm "scratch" learned in the same task and seed.
        encoder: an encoder, its checkpoint directory, or an objective such as "temporal+inverse", by which one is
            pretrained on the comparison's frames. "scratch" and "random" take only the architecture of an encoder, by
            default that of the other arms.
        whiten: whether the encoder's features are whitened over the frames, see `rlpre.whiten`; with "map", its feature
            map is.
        power: how far they are whitened; default as `rlpre.whiten`.
        data: name of the frames to pretrain on and to whiten over, if the comparison has several; default the first.
        step: start from the encoder after so many pretraining steps (0: untrained); default the last.
        memory: puts a sequence encoder on top of ``encoder``, which stays frozen; ``mode`` then concerns the sequence
            encoder.
        memory_objective: objective by which the sequence encoder is pretrained, unless ``mode`` starts from fresh
            weights.
        clone: the cloned policy that the agents start from; of a frozen or pretrained encoder, with PPO or A2C.
        policy_kwargs: further arguments of `rlpre.policy_kwargs`, such as ``{"stages": 2}`` for "partial",
            ``{"augment": True}``, or ``{"warmup_updates": 200}`` for LP-FT.
        algorithm_kwargs: replaces arguments in the comparison's ``algorithm_kwargs``, such as the learning rate.
        auxiliary: arguments of `rlpre.sb3.KeepLearning` but for the frames, such as
            ``{"objective": "temporal+inverse", "updates": 16}``: the objective goes on while the agent learns.
    """

    mode: str
    encoder: str | Path | AnyEncoder | None = None
    whiten: bool | Literal["map"] = False
    power: float | None = None
    data: str = ""
    step: int | None = None
    memory: Backbone | None = None
    memory_objective: str = ""
    clone: Clone | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algorithm_kwargs: Mapping[str, Any] = field(default_factory=dict)
    auxiliary: Mapping[str, Any] = field(default_factory=dict)

    @property
    def objective(self) -> str:
        """The objective by which the arm's encoder is pretrained; empty if it is given or fresh."""
        if not isinstance(self.encoder, str) or "/" in self.encoder or (Path(self.encoder) / CONFIG).exists():
            return ""
        return self.encoder

    @property
    def given(self) -> AnyEncoder | None:
        """The encoder that the arm was given, loaded if it is a directory.

        Raises:
            RlpreError: if the directory holds no intact checkpoint.
        """
        if self.encoder is None or self.objective:
            return None
        return as_encoder(self.encoder)

    @property
    def frozen(self) -> bool:
        """Whether the encoder never changes while the agent learns."""
        return not ARM_MODES[self.mode].trainable

    @property
    def fresh(self) -> bool:
        """Whether the encoder of frames starts from fresh weights."""
        return self.mode != ORACLE and not ARM_MODES[self.mode].pretrained and self.memory is None

    @property
    def policy_mode(self) -> str:
        """The mode of `rlpre.policy_kwargs`, or "oracle", by which the arm's runs are trained."""
        return "frozen" if self.mode == TRANSPLANT or (self.fresh and self.whiten) else self.mode

    @property
    def reads_frames(self) -> bool:
        """Whether the comparison's frames form the arm's encoder before the agent learns."""
        return bool(self.objective or self.whiten or self.memory_objective)

    @property
    def uses_frames(self) -> bool:
        """Whether the arm uses the comparison's frames at all."""
        return self.reads_frames or bool(self.auxiliary)


def fresh_config(arm: Arm, arms: Iterable[Arm], pretrain: PretrainConfig, space: spaces.Space[Any]) -> dict[str, Any]:
    """The configuration (see `rlpre.Encoder.config`) of an arm's encoder of frames with fresh weights.

    Args:
        arm: decides, if it was given an encoder; else the objectives among ``arms``, else the first encoder given.
        arms: all arms of the comparison.
        pretrain: names the architecture that is pretrained.
        space: the observation space.
    """
    others = () if any(other.objective for other in arms) else arms
    given = next((of for other in (arm, *others) if (of := other.given) is not None), None)
    if given is None:
        shape = cast(tuple[int, int, int], find_images(space, "the environment", layout="CHW").shape)
        arguments: dict[str, Any] = {} if pretrain.features is None else {"features": pretrain.features}
        return Encoder(pretrain.encoder, InputSpec(shape), **arguments).config
    config = (given if isinstance(given, Encoder) else given.frames).config
    plain = config["architecture"].replace(WHITENED, "").removeprefix(MAP)
    arguments = {name: value for name, value in config["arguments"].items() if not name.startswith("map_")}
    return {**config, "architecture": plain, "arguments": arguments, "pretraining": {}}


def fresh_encoder(config: Mapping[str, Any], seed: int) -> Encoder:
    """An encoder of that configuration; the seed draws its weights."""
    torch.manual_seed(seed)
    return Encoder.from_config(dict(config))


def variant(home: Path, arm: Arm) -> Path:
    """The checkpoint that an arm's runs start from, below the directory ``home`` of its pretraining."""
    path = home if arm.step is None else step_directory(home, arm.step)
    if arm.whiten:
        path = path / f"whitened{'-map' * (arm.whiten == 'map')}{'' if arm.power is None else f'-{arm.power}'}"
    if not arm.memory_objective:
        return path
    shape = "-".join(map(str, asdict(arm.memory or Backbone()).values()))
    return path / f"{arm.memory_objective}-{shape}" / "causal"


def in_front(mode: str, encoder: AnyEncoder) -> bool:
    """Whether the encoder runs in front of the policy (`rlpre.EncodedVecEnv`), which encodes each frame only once.

    This needs a mode that does not train it. A GRU would remember the whole episode there, but no policy on windows of
    pixels could act alike, so it stays in the policy.
    """
    return not MODES[mode].trainable and not (isinstance(encoder, SequenceEncoder) and encoder.recurrent)


def check_arm(name: str, arm: Arm, data: Collection[str], steps: int, venv: VecEnv, fresh: AnyEncoder) -> None:
    """Refuses an arm whose runs would fail.

    Args:
        name: of the arm.
        arm: what to check.
        data: names of the frames.
        steps: of pretraining.
        venv: the environment.
        fresh: an encoder of the architecture that is pretrained.

    Raises:
        RlpreError: for unknown names, numbers out of range, or an encoder that does not fit the environment.
    """
    pretrained, given = lookup("mode", arm.mode, ARM_MODES).pretrained, arm.given
    if arm.mode == ORACLE:
        _check_oracle(name, arm, venv)
        return
    starts = f"mode {arm.mode!r} starts from {'pretrained' if pretrained else 'fresh'} weights"
    faults = {
        "memory needs an encoder of frames: give encoder": (
            arm.memory and (arm.encoder is None or isinstance(given, SequenceEncoder))
        ),
        "there is a memory_objective, but no memory: give memory=Backbone(...)": arm.memory_objective
        and not arm.memory,
        f"{starts}: give memory_objective": arm.memory and pretrained and not arm.memory_objective,
        f"{starts}: leave out memory_objective": arm.memory_objective and not pretrained,
        f"{starts}: give encoder, or use mode 'scratch'": (
            pretrained and arm.encoder is None and arm.mode != TRANSPLANT
        ),
        "mode 'transplant' takes the encoder of the arm 'scratch': leave out encoder and memory": (
            arm.mode == TRANSPLANT and (arm.encoder is not None or arm.memory)
        ),
        f"{starts}: leave out encoder {arm.objective!r}, or use mode 'frozen'": arm.fresh and arm.objective,
        f"{starts}, which no clone knows: leave out clone, or use mode 'random' or 'frozen'": arm.clone
        and not pretrained
        and (not arm.frozen or arm.memory),
        f"whiten is {arm.whiten!r}: give True, False or 'map'": arm.whiten not in (True, False, "map"),
        "power is that of whiten: give whiten too, or leave it out": arm.power is not None and not arm.whiten,
        f"power is {arm.power}: give 0 to 1": not 0 <= (arm.power or 0) <= 1,
        f"{starts}: leave out whiten, or use mode 'random'": arm.fresh and not arm.frozen and arm.whiten,
        f"there is no pretraining to take step {arm.step} of: give an objective as encoder": (
            arm.step is not None and not arm.objective
        ),
        "auxiliary trains an encoder of frames in the policy: use mode 'scratch' or 'finetuned' without memory": (
            arm.auxiliary and (arm.frozen or arm.memory or isinstance(given, SequenceEncoder))
        ),
        f"pretraining has no step {arm.step}: choose one from 0 to {steps}": not 0 <= (arm.step or 0) <= steps,
    }
    for fault, found in faults.items():
        if found:
            raise RlpreError(f"arm {name!r}: {fault}")
    if arm.objective:
        parse_objective(arm.objective, Encoder.kind)
    if arm.memory_objective:
        parse_objective(arm.memory_objective, SequenceEncoder.kind)
    if arm.auxiliary:
        _check_auxiliary(name, arm.auxiliary)
    _check_clone(name, arm.clone)
    for named in (arm.data, arm.clone.data if arm.clone else ""):
        if named:
            lookup("data", named, dict.fromkeys(data))
    if arm.whiten == "map":
        map_stage(given or fresh)
    _check_encoder(arm, venv, given or fresh)


def _check_auxiliary(name: str, arguments: Mapping[str, Any]) -> None:
    parameters = inspect.signature(KeepLearning).parameters
    for key in arguments:
        lookup(f"argument of auxiliary in arm {name!r}:", key, {each: each for each in parameters if each != "frames"})
    missing = [key for key in ("objective", "updates") if key not in arguments]
    if missing:
        raise RlpreError(f"arm {name!r}: auxiliary has no {missing[0]}: give objective and updates")
    check_auxiliary(**arguments)


def _check_clone(name: str, clone: Clone | None) -> None:
    if clone is None:
        return
    if not isinstance(clone, Clone):
        raise RlpreError(f"arm {name!r}: clone is {clone!r}: give rlpre.Clone(config)")
    clone.config.check()
    if clone.start and not clone.tuned:
        raise RlpreError(f"arm {name!r}: start concerns agents that learn: leave it out, or tuned=False")
    for key in clone.start:
        known = [each for each in inspect.signature(start_from).parameters if each not in ("model", "policy")]
        lookup(f"argument of start in arm {name!r}:", key, {each: each for each in known})


def _check_oracle(name: str, arm: Arm, venv: VecEnv) -> None:
    if arm != Arm(ORACLE, algorithm_kwargs=arm.algorithm_kwargs):
        raise RlpreError(f"arm {name!r}: mode 'oracle' reads the true state: leave out all but algorithm_kwargs")
    try:
        StateVecEnv(venv)
    except RlpreError as error:
        raise RlpreError(f"arm {name!r}: {error}") from error


def _check_encoder(arm: Arm, venv: VecEnv, encoder: AnyEncoder) -> None:
    """Refuses an encoder that does not fit the environment, or options that do not fit the encoder."""
    vision = encoder if isinstance(encoder, Encoder) else encoder.frames
    find_image(venv.observation_space, vision.input)
    if isinstance(encoder, SequenceEncoder):
        check_actions(venv.action_space, encoder)
    if arm.memory:
        if not isinstance(venv.action_space, spaces.Discrete):
            raise RlpreError(f"a SequenceEncoder reads discrete actions, the environment takes {venv.action_space}")
        encoder = arm.memory.build(vision, int(venv.action_space.n))
    if arm.policy_kwargs or not in_front(arm.policy_mode, encoder):
        policy_kwargs(encoder, arm.policy_mode, **arm.policy_kwargs)
