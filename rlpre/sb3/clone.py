"""Cloning: a policy of Stable-Baselines3 learns to act as the player of stored frames did, or as its expert advised.

The encoder of frames does not change: every stored frame is encoded once, and the policy learns on the features. Of a
`SequenceEncoder`, the layers that mix the steps train with the policy.

Discrete actions are learned by cross-entropy, vectors by the likelihood of SB3's Gaussian, whose standard deviation
is learned too and kept above ``LEAST_STD``, so that PPO can explore from there.

Where good and bad players are mixed, rows are drawn by a weight. ``"return"``: that of an episode is its return,
scaled to 0 for the worst and 1 for the best episode, so a random half of a sparse task counts almost nothing.
``"advantage"``: ``exp(advantage / temperature)``, at most ``MOST_WEIGHT`` [0, 1]. The advantage is the discounted
return from the row on minus a baseline, divided by its standard deviation; the baseline is a ridge regression on the
features, fitted on other episodes.

References:
    [0] Peng et al. 2019, "Advantage-Weighted Regression": the weights and their limit.
    [1] Wang et al. 2018, "Exponentially Weighted Imitation Learning for Batched Historical Data" (MARWIL): advantages
        divided by their scale.
"""

import copy
import io
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from os import PathLike
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn
from torch.nn import functional as F

from rlpre.callbacks import Progress, TensorBoard
from rlpre.data.store import ActionSpace, FrameStore, Indices, has_action
from rlpre.data.windows import Trajectories, Windows
from rlpre.encoders import AnyEncoder, SequenceEncoder, as_encoder
from rlpre.errors import RlpreError, at_least, lookup
from rlpre.features import encode, finite
from rlpre.pretrain import RUN, STATE, check_same, quiet, rate_factor, read_state
from rlpre.sb3.fuse import fuse
from rlpre.sb3.policy import policy_kwargs
from rlpre.sb3.vecenv import EncoderLike, FeatureSpace, window_space
from rlpre.utils import provenance, python_numbers, read_json, resolve_device, to_device, write_bytes, write_json

POLICY, PIXELS = "policy.zip", "pixels.zip"
LEAST_STD = 0.1  # of a Gaussian policy, in units of the action
RANGES = (0.2, 50.0)  # half the width of an action's range, in which SB3's Gaussian and this least SD are of use
ACTIVATIONS: dict[str, type[nn.Module]] = {name: getattr(nn, name) for name in nn.modules.activation.__all__}
ADVANTAGE = (0.99, 0.5)  # discount and temperature
MOST_WEIGHT = 20.0  # of a row, as in [0]
ROUNDING = 1e-6  # smaller differences of returns, relative to the largest, are those of float32
WARMUP = 0.05  # share of the gradient steps
CHUNK = 4096  # held-out rows at a time
FOLDS = 5  # of episodes, for the baseline
QUANTILES = {"least": 0.0, "lower quartile": 0.25, "median": 0.5, "upper quartile": 0.75, "most": 1.0}

Weights = npt.NDArray[np.float64]
Score = Callable[[int | None], tuple[Tensor, Tensor]]  # step, or None for held-out data -> loss and agreement


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast a policy is fitted."""

    steps: int = 3000  # gradient steps at most
    batch: int = 256  # rows per gradient step
    lr: float = 1e-3  # peak learning rate of AdamW; it rises at first, then follows a cosine to 0
    weight_decay: float = 1e-2  # AdamW's default
    clip: float = 1.0  # largest gradient norm
    label_smoothing: float = 0.05  # of the cross-entropy
    check_every: int = 50  # gradient steps between evaluations on the held-out data
    patience: int | None = 8  # evaluations without a lower loss before training stops; None: all steps
    seed: int = 0  # of the weights and the batches
    device: str = "auto"  # "cpu", "cuda", ...

    def __post_init__(self) -> None:
        python_numbers(self)

    def check(self) -> None:
        """Refuses numbers out of range and a missing device."""
        at_least(self, steps=1, batch=1, check_every=1, patience=1, seed=0, weight_decay=0)
        for name in ("lr", "clip"):
            if not 0 < getattr(self, name) < math.inf:
                raise RlpreError(f"{name} is {getattr(self, name)}: it must be a number above 0, or nothing is trained")
        if not 0 <= self.label_smoothing < 1:
            raise RlpreError(f"label_smoothing is {self.label_smoothing}: it is a share, at least 0 and below 1")
        resolve_device(self.device)


@dataclass(frozen=True, kw_only=True)
class CloneConfig(Schedule):
    """Everything that decides a clone, together with the frames and the encoder."""

    labels: str = "action"  # the column to learn: the action taken, or a label column such as "expert", an advice
    weights: str = "uniform"  # of the rows: "uniform", "return" or "advantage"
    limit: int | None = None  # number of labels to use: episodes drawn by the seed, the last one cut; None: all
    net_arch: tuple[int, ...] = (64, 64)  # sizes of the hidden layers, the same for actor and critic
    activation: str = "Tanh"  # between them: the name of a class of torch.nn
    balance: float = 0.0  # rows of an action with share p are drawn p ** -balance as often; 1: all actions equally
    held_out: float = 0.1  # share of the episodes that decide when training stops
    discount: float = ADVANTAGE[0]  # of the returns behind the advantages
    temperature: float = ADVANTAGE[1]  # of the advantages, in their standard deviations

    def check(self) -> None:
        """Refuses numbers out of range, unknown names and a missing device."""
        super().check()
        lookup("weights", self.weights, WEIGHTS)
        lookup("activation", self.activation, ACTIVATIONS)
        at_least(self, limit=2, balance=0)
        layers = self.net_arch
        if not isinstance(layers, list | tuple) or not all(isinstance(size, int) and size > 0 for size in layers):
            raise RlpreError(f"net_arch is {layers!r}: give the sizes of the hidden layers, such as (64, 64)")
        for name in ("held_out", "temperature", "discount"):
            if not 0 < getattr(self, name) <= 1:
                raise RlpreError(f"{name} is {getattr(self, name)}: give a number above 0, at most 1")
        if self.weights != "advantage" and (self.discount, self.temperature) != ADVANTAGE:
            raise RlpreError(f"discount and temperature are those of weights='advantage', not of {self.weights!r}")


@dataclass(frozen=True)
class Fitted:
    """The cost of a fit, and the weights that it kept: those with the lowest held-out loss."""

    gradient_steps: int  # taken
    kept_step: int  # the step of the kept weights; 0: the weights that training started from
    held_out_loss: float  # of the kept weights, per step in nats
    held_out_agreement: float  # of the kept weights: share of steps with the right likeliest action; R2 of vectors


def clone(
    frames: FrameStore | str | Path,
    encoder: EncoderLike,
    *,
    out: str | Path,
    config: CloneConfig | None = None,
    report: Callable[[int], None] = quiet,
    **changes: Any,
) -> ActorCriticPolicy:
    """Clones the player of stored frames: a policy learns to act as it did, or as its expert advised.

    A clone that was killed goes on when called again and ends with the same weights; one that is complete is loaded.
    An episode that was still running when the collection stopped counts with the reward it had earned so far.

    Args:
        frames: a store or its directory, with actions, from somebody who sometimes succeeds.
        encoder: of frames or of sequences, its directory, or the result of `rlpre.pretrain`; it is never changed.
        out: receives ``policy.zip`` (on features), ``pixels.zip`` (the same, fused with the encoder), ``run.json`` and
            TensorBoard events; SB3's ``ActorCriticPolicy.load`` reads the policies.
        config: settings; default ``CloneConfig()``.
        report: called with the number of gradient steps so far.
        **changes: single settings that replace those of ``config``, as ``weights="return"`` or ``labels="expert"``.

    Returns:
        The policy with the lowest loss on held-out episodes, on the CPU. It acts on the features of `EncodedVecEnv`,
        of a `SequenceEncoder` on the windows of `HistoryVecEnv`; `rlpre.start_from` makes it the start of PPO, and
        `rlpre.fuse` one on pixels.

    Raises:
        RlpreError: for unknown settings or numbers out of range; frames without actions, without such a label, with
            labels of a single action or of no action of the space, too few episodes, or frames that the encoder does
            not read; with weights by return, if all returns are equal (without, a warning if nobody ever earned
            anything); or if ``out`` holds another clone.

    Example:
        >>> policy = rlpre.clone(frames, encoder, out="runs/clone", weights="return")
        >>> model = PPO("MlpPolicy", rlpre.EncodedVecEnv(venv, encoder))
        >>> rlpre.start_from(model, policy)
        >>> model.learn(200_000)
    """
    for name in changes.keys() - {field.name for field in fields(CloneConfig)}:
        raise RlpreError(f"a clone has no setting {name!r}: it has {', '.join(f.name for f in fields(CloneConfig))}")
    config, out = replace(config or CloneConfig(), **changes), Path(out)
    config.check()
    frames, encoder, device = FrameStore.given(frames), as_encoder(encoder), resolve_device(config.device)
    identity = {**asdict(config), "net_arch": list(config.net_arch)}
    identity |= {"device": None, "frames": frames.hash, "encoder": encoder.fingerprint()}
    identity["actions"] = frames.manifest["action_space"]
    if (out / RUN).exists():
        check_same(out, "clone", read_json(out / RUN).get("configuration"), identity)
        return load_clone(out)
    rows = labelled(frames, config)
    returns = _check_success(frames, rows, config)
    encoder = copy.deepcopy(encoder).to(device).eval()
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)
        policy = _fresh_policy(encoder, frames.action_space, config).to(device)
    fitted = fit(policy, _Task(policy, encoder, frames, rows, config).score, config, out, report, identity)
    policy = policy.to("cpu").eval()
    with torch.random.fork_rng(devices=[]):
        pixels = fuse(policy, encoder.cpu())
    for name, saved in ((POLICY, policy), (PIXELS, pixels)):
        buffer = io.BytesIO()
        saved.save(cast(Any, buffer))
        write_bytes(out / name, buffer.getbuffer())
    result = {"labels": len(rows), "returns": returns, **asdict(fitted)}
    write_json(out / RUN, {"configuration": identity, **result, **provenance()})
    (out / STATE).unlink()
    return policy


def fit(
    module: nn.Module,
    score: Score,
    schedule: Schedule,
    out: Path,
    report: Callable[[int], None] = quiet,
    identity: Mapping[str, Any] | None = None,
) -> Fitted:
    """Trains a module in place and leaves it with the weights of the lowest held-out loss.

    Args:
        module: what to train.
        score: gives the loss and the agreement of the batch of a step, or of the held-out data for None.
        schedule: settings.
        out: receives TensorBoard events.
        report: called with the number of gradient steps so far.
        identity: what decides the result. If given, each evaluation leaves a state in ``out`` from which the same call
            goes on; ``score`` then depends on the step alone.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=schedule.lr, weight_decay=schedule.weight_decay)
    first, best, weights = 0, Fitted(0, 0, math.inf, 0.0), module.state_dict()
    if identity is not None and (out / STATE).exists():
        first, best, weights = _resume(out, identity, module, optimizer)
    patience = math.inf if schedule.patience is None else schedule.patience * schedule.check_every
    with (
        TensorBoard(out, first) as board,
        Progress(f"clone {out.name}", first, schedule.steps, silent=False) as progress,
    ):
        for step in range(first, schedule.steps + 1):
            if checked := step % schedule.check_every == 0 or step == schedule.steps:
                module.eval()
                with torch.no_grad():
                    loss, agreement = (number.item() for number in score(None))
                if not math.isfinite(loss):
                    raise RlpreError(f"the loss of the clone is not finite at step {step}: lower lr={schedule.lr:g}")
                board.scalars(step, "held_out", {"loss": loss, "agreement": agreement})
                if loss < best.held_out_loss:
                    best, weights = Fitted(step, step, loss, agreement), copy.deepcopy(module.state_dict())
                if identity is not None:
                    state = {"identity": dict(identity), "step": step, "best": asdict(best), "weights": weights}
                    _save_state(out, {**state, "module": module.state_dict(), "optimizer": optimizer.state_dict()})
                if step == schedule.steps or step - best.kept_step >= patience:
                    break
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr * rate_factor(step, schedule.steps, WARMUP)
            module.train()
            train_loss, train_agreement = score(step)
            optimizer.zero_grad(set_to_none=True)
            train_loss.backward()
            nn.utils.clip_grad_norm_(trained, schedule.clip)
            optimizer.step()
            metrics = {"loss": train_loss.detach(), "agreement": train_agreement.detach()}
            if checked:
                board.scalars(step, "clone", metrics)
            progress.show(step + 1, {f"clone/{name}": number for name, number in metrics.items()})
            report(step + 1)
    module.load_state_dict(weights)
    module.eval()
    return replace(best, gradient_steps=step)


class _Task:
    """The loss of a policy on the batch of a step, and on held-out episodes."""

    def __init__(
        self, policy: ActorCriticPolicy, encoder: AnyEncoder, frames: FrameStore, rows: Indices, config: CloneConfig
    ) -> None:
        device = policy.device
        self.policy, self.config, self.rows = policy, config, rows
        self.trajectories: Trajectories | None = None
        if isinstance(encoder, SequenceEncoder):
            self.windows = Windows(frames, encoder.window)
            self.trajectories = Trajectories(frames, encoder, device)
            self.features = self.trajectories.features(rows)
        else:
            self.features = encode(encoder, frames, rows).to(device)
        finite(self.features.cpu().numpy(), "the encoder's features")
        labels = frames.column(config.labels)[rows]
        if vectors := labels.dtype.kind == "f":  # SB3's Gaussian is over flat vectors
            labels = labels.reshape(len(labels), -1)
        self.labels = to_device(labels.astype(np.float32 if vectors else np.int64), device)
        self.variance = self.labels.float().var(0, correction=0).mean()
        weights = WEIGHTS[config.weights](frames, rows, self.features.cpu().numpy(), config)
        if config.balance:
            weights = weights * np.bincount(labels, weights)[labels].clip(min=1e-12) ** -config.balance
        self.train, self.held_out = split(frames, rows, weights, config.held_out, config.seed)
        self.chances = weights[self.train] / weights[self.train].sum()
        self.shares = to_device(weights[self.held_out] / weights[self.held_out].sum(), device).float()

    def score(self, step: int | None) -> tuple[Tensor, Tensor]:
        """Means of loss and agreement: of a batch that is drawn by the weights, or, weighted, of all held-out rows."""
        if step is not None:
            rng = np.random.default_rng((self.config.seed, step))
            loss, agreement = self.each(rng.choice(self.train, self.config.batch, p=self.chances)).mean(1)
        else:
            chunks = [self.held_out[at : at + CHUNK] for at in range(0, len(self.held_out), CHUNK)]
            loss, agreement = torch.cat([self.each(chunk) for chunk in chunks], 1) @ self.shares
        return loss, agreement

    def each(self, places: Indices) -> Tensor:
        """Loss and agreement, (2, n), at some of the rows."""
        labels = self.labels[to_device(places, self.labels.device)]
        try:
            distribution = self.policy.get_distribution(self.observations(places)).distribution
        except ValueError as fault:
            raise RlpreError(f"the clone's actions are not finite any more: lower lr={self.config.lr:g}") from fault
        if isinstance(distribution, torch.distributions.Categorical):
            logits = distribution.logits
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing, reduction="none")
            return torch.stack([loss, (logits.argmax(1) == labels).float()])
        assert isinstance(distribution, torch.distributions.Normal)
        self.policy.log_std.data.clamp_(min=math.log(LEAST_STD))
        loss = -distribution.log_prob(labels).flatten(1).sum(1)
        error = (distribution.mean - labels).square().flatten(1).mean(1)
        return torch.stack([loss, 1 - error / self.variance])

    def observations(self, places: Indices) -> Tensor | dict[str, Tensor]:
        """What the policy observes at some of the rows."""
        if self.trajectories is None:
            return self.features[to_device(places, self.features.device)]
        parts = self.trajectories.inputs(self.windows.ending(self.rows[places]))
        named = zip(("features", "actions", "mission", "present"), parts, strict=True)
        return {name: part for name, part in named if part is not None}


def labelled(frames: FrameStore, config: CloneConfig) -> Indices:
    """The rows (n,) that are cloned: those with a label, or ``config.limit`` of them in whole episodes.

    Raises:
        RlpreError: if there is no such label, or too few, or all are the same.
    """
    name, space = config.labels, frames.action_space
    if space is None:
        raise RlpreError(
            f"{frames.path} holds frames without actions, there is nothing to clone: collect with a policy"
        )
    known = [*frames.labels, "action"]
    column = frames.column(lookup("column of labels", name, dict.fromkeys(known, name)) and name)
    if name != "action" and (not isinstance(space, spaces.Discrete) or column.max() >= space.n):
        raise RlpreError(
            f"label {name!r} of {frames.path} goes up to {column.max()}, the actions are {space}: it is no action of "
            "that space, learn another column"
        )
    if isinstance(space, spaces.Box):
        _check_vectors(frames, space, config)
    rows = np.flatnonzero(frames.acted & has_action(column))
    if config.limit is not None:
        if len(rows) < config.limit:
            raise RlpreError(
                f"{frames.path} has {len(rows):,} labels {name!r}, limit is {config.limit:,}: collect more"
            )
        order = np.random.default_rng(config.seed).permutation(frames.episode[-1] + 1)
        place = np.argsort(order)[frames.episode[rows]]  # of each row's episode in the drawn order
        rows = np.sort(rows[np.argsort(place, kind="stable")[: config.limit]])
    if not len(rows) or (column[rows] == column[rows[0]]).all():
        what = f"the {len(rows):,} labels {name!r} of {frames.path} are all {column[rows[:1]].tolist()}"
        raise RlpreError(f"{what}: a policy learns nothing from them, collect with somebody who acts")
    return rows


def _check_vectors(frames: FrameStore, space: spaces.Box, config: CloneConfig) -> None:
    if config.balance:
        raise RlpreError(f"balance is for discrete actions, those of {frames.path} are {space}: leave it out")
    if not np.isfinite(frames.column("action")[frames.acted]).all():
        raise RlpreError(f"some actions of {frames.path} are not finite: collect again")
    half = (space.high.astype(np.float64) - space.low) / 2
    least, most = RANGES
    for width in half[np.isfinite(half) & ((half < least) | (half > most))][:1]:
        raise RlpreError(
            f"the actions of {frames.path} are {space}, a range of +-{width:g}, where SB3's Gaussian policies are made "
            "for about +-1: collect from, and train in, gymnasium.wrappers.RescaleAction(env, -1.0, 1.0)"
        )


def split(frames: FrameStore, rows: Indices, weights: Weights, share: float, seed: int) -> tuple[Indices, Indices]:
    """Places in ``rows`` to train on, and those of held-out episodes; rows of weight 0 are in neither.

    Raises:
        RlpreError: if fewer than two episodes have a weight.
    """
    episode = frames.episode[rows]
    useful = np.unique(episode[weights > 0])
    if len(useful) < 2:
        raise RlpreError(
            f"{len(useful)} of the {len(np.unique(episode))} episodes that are used of {frames.path} can be learned "
            "from, and one is held out: raise limit, if there is one, or collect more episodes"
        )
    count = min(max(1, round(share * len(useful))), len(useful) - 1)
    held_out = np.isin(episode, np.random.default_rng(seed).permutation(useful)[:count])
    return np.flatnonzero(~held_out & (weights > 0)), np.flatnonzero(held_out & (weights > 0))


# Weights of the rows.


def _uniform(frames: FrameStore, rows: Indices, features: npt.NDArray[Any], config: CloneConfig) -> Weights:
    return np.ones(len(rows))


def _by_return(frames: FrameStore, rows: Indices, features: npt.NDArray[Any], config: CloneConfig) -> Weights:
    returns = episode_returns(frames)[frames.episode[rows]]
    return cast(Weights, (returns - returns.min()) / (returns.max() - returns.min()))


def _by_advantage(frames: FrameStore, rows: Indices, features: npt.NDArray[Any], config: CloneConfig) -> Weights:
    from sklearn.linear_model import RidgeCV  # slow to import
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    later, start = frames.column("reward").copy(), frames.column("episode_start")
    for row in range(len(later) - 2, -1, -1):
        later[row] += config.discount * later[row + 1] * (not start[row + 1])
    episode = frames.episode[rows]
    if len(np.unique(episode)) < 2:
        return np.ones(len(rows))  # `split` refuses them
    folds = GroupKFold(min(FOLDS, len(np.unique(episode))))
    ridge = make_pipeline(StandardScaler(), RidgeCV(np.logspace(-1, 5, 7)))
    advantage = later[rows] - cross_val_predict(ridge, features, later[rows], groups=episode, cv=folds)
    if not advantage.std() > ROUNDING * np.abs(later[rows]).max():
        raise RlpreError(f"no action of {frames.path} has an advantage over another: use weights='uniform'")
    return cast(Weights, np.exp(advantage / (config.temperature * advantage.std())).clip(max=MOST_WEIGHT))


WEIGHTS = {"uniform": _uniform, "return": _by_return, "advantage": _by_advantage}


def episode_returns(frames: FrameStore) -> Weights:
    """The undiscounted return of each episode of a store, (episodes,)."""
    return cast(Weights, np.bincount(frames.episode, frames.column("reward")))


def _check_success(frames: FrameStore, rows: Indices, config: CloneConfig) -> dict[str, float]:
    """The distribution of the returns; refuses, or says, that nobody ever succeeded."""
    returns = episode_returns(frames)[np.unique(frames.episode[rows])]
    found = dict(zip(QUANTILES, np.quantile(returns, list(QUANTILES.values())).tolist(), strict=True))
    text = ", ".join(f"{name} {value:.3g}" for name, value in found.items())
    fault = f"the {len(returns)} episodes of {frames.path} all have the same return ({text})"
    if not np.isfinite(returns).all():
        raise RlpreError(f"some rewards of {frames.path} are not finite: store them again")
    equal = np.ptp(returns) <= ROUNDING * np.abs(returns).max()
    if equal and config.weights == "return":
        raise RlpreError(
            f"{fault}, which tells none apart: use weights='uniform', or collect from who sometimes succeeds"
        )
    if equal and returns.max() <= 0 and config.labels == "action":
        reason = "their player never succeeds, and the clone will not either, or they were stored without rewards"
        warnings.warn(f"{fault}: {reason}", stacklevel=3)
    return found


def _fresh_policy(encoder: AnyEncoder, actions: ActionSpace, config: CloneConfig) -> ActorCriticPolicy:
    space: spaces.Space[Any] = FeatureSpace(encoder)
    arguments: dict[str, Any] = {"activation_fn": ACTIVATIONS[config.activation]}
    if isinstance(encoder, SequenceEncoder):
        space = window_space(encoder, encoder.window)
        arguments |= policy_kwargs(encoder, "finetuned", encoder_lr_scale=1.0)
    assert actions is not None
    return ActorCriticPolicy(space, actions, lambda _: config.lr, net_arch=list(config.net_arch), **arguments)


# Files.


def load_clone(path: str | PathLike[str]) -> ActorCriticPolicy:
    """The policy that `clone` saved in the directory ``path``, on the CPU.

    Raises:
        RlpreError: if there is none.
    """
    try:
        file = Path(path) / POLICY
        return ActorCriticPolicy.load(str(file), device="cpu").eval()
    except Exception as error:
        advice = "give the directory of a complete rlpre.clone, or the policy that it returned"
        raise RlpreError(f"{path} cannot be read ({error}): {advice}") from error


def _save_state(out: Path, content: Mapping[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(dict(content), buffer)
    write_bytes(out / STATE, buffer.getbuffer())


def _resume(
    out: Path, identity: Mapping[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, Fitted, dict[str, Any]]:
    state = read_state(out)
    check_same(out, "clone", state["identity"], identity)
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], Fitted(**state["best"]), state["weights"]
