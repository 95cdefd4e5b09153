"""Sharing encoders on the Hugging Face Hub: a checkpoint directory with a model card."""

import tempfile
from pathlib import Path
from shutil import copyfile
from typing import Any

from rlpre.errors import RlpreError
from rlpre.utils import read_json

FILES = ("config.json", "model.safetensors")  # of a checkpoint
CARD = """\
---
license: {license}
library_name: rlpre
tags: [reinforcement-learning, stable-baselines3, self-supervised, rlpre]
---

# {name}

{what} from frames {shape} ({low:g} to {high:g}), pretrained with rlpre.

```python
import rlpre
from stable_baselines3 import PPO

encoder = rlpre.{kind}.from_hub("{name}")
PPO("CnnPolicy", venv, policy_kwargs=rlpre.policy_kwargs(encoder, mode="frozen"))
```

## Pretraining

| | |
|---|---|
{facts}

## Probes

{probes}
"""


def push_to_hub(
    encoder: Any, name: str, *, license: str = "mit", private: bool = False, token: str | None = None
) -> str:
    """Uploads an encoder with a model card: how it was pretrained, on which frames, and what probes read from it.

    Needs the extra ``rlpre[hub]``.

    Args:
        encoder: an `Encoder`, a `SequenceEncoder`, the result of `pretrain`, or the directory of a checkpoint.
        name: "user/name"; the repository is created if it does not exist.
        license: of the weights, as the hub spells it; stands on the model card.
        private: whether a new repository is private.
        token: of the hub; default: the one of ``hf auth login``.

    Returns:
        The address of the upload.

    Raises:
        RlpreError: if huggingface_hub is not installed, there is no encoder, the name is wrong, or the hub refuses.
    """
    hub = _library()
    _check_name(name)
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        _gather(encoder, folder)
        (folder / "README.md").write_text(model_card(read_json(folder / FILES[0]), name, license))
        try:
            api = hub.HfApi(token=token)
            api.create_repo(name, private=private, exist_ok=True)
            commit = api.upload_folder(repo_id=name, folder_path=folder, commit_message="Encoder pretrained with rlpre")
        except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
            raise RlpreError(
                f"the hub did not take {name!r} ({_first_line(error)}): check the name, and log in with `hf auth login`"
            ) from error
    return str(commit.commit_url)


def download(name: str, revision: str | None = None, token: str | None = None) -> Path:
    """Downloads a checkpoint from the hub, or finds it in the local cache; `Encoder.from_hub` loads it.

    Needs the extra ``rlpre[hub]``. Loading runs no code from the hub.

    Args:
        name: "user/name".
        revision: a branch, tag or commit; default: the newest on the main branch.
        token: for private repositories; default: the one of ``hf auth login``.

    Returns:
        The directory of the checkpoint in the cache.

    Raises:
        RlpreError: if huggingface_hub is not installed, the name is wrong, or the hub has no such checkpoint.
    """
    hub = _library()
    _check_name(name)
    try:
        paths = [hub.hf_hub_download(name, file, revision=revision, token=token) for file in FILES]
    except (OSError, ValueError, hub.errors.HfHubHTTPError) as error:
        raise RlpreError(
            f"no checkpoint can be downloaded from {name!r} at {revision or 'its newest revision'} "
            f"({_first_line(error)}): check the name and the network"
        ) from error
    return Path(paths[0]).parent


def model_card(config: dict[str, Any], name: str, license: str) -> str:
    """The text of a model card, from the ``config.json`` of a checkpoint."""
    sequence = config.get("kind") == "sequence"
    frames = config["frames"]["input"] if sequence else config["input"]
    pretraining = config.get("pretraining", {})
    names = ("objective", "steps", "batch", "gap", "lr", "seed", "frames", "start")
    facts = {key: pretraining[key] for key in names if pretraining.get(key) is not None}
    facts |= {"architecture": config.get("backbone") or config.get("architecture"), "features": config["num_features"]}
    rows = "\n".join(f"| {key} | `{value}` |" for key, value in facts.items())
    return CARD.format(
        license=license,
        name=name,
        what="A sequence encoder" if sequence else "An encoder",
        shape=" x ".join(map(str, frames["shape"])),
        low=frames.get("low", 0),
        high=frames.get("high", 255),
        kind="SequenceEncoder" if sequence else "Encoder",
        facts=rows,
        probes=_probes(pretraining),
    )


def _probes(pretraining: dict[str, Any]) -> str:
    probes, control = pretraining.get("probes") or {}, pretraining.get("control") or {}
    if not probes:
        return "The frames had no labels, so no probe was measured."
    lines = [
        "Linear heads on the frozen features of held-out frames: balanced accuracy, or R2 for quantities.",
        "",
        "| label | this encoder | fresh weights |",
        "|---|---|---|",
    ]
    lines += [f"| {label} | {score:.2f} | {_score(control.get(label))} |" for label, score in sorted(probes.items())]
    return "\n".join(lines)


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.2f}"


def _gather(encoder: Any, folder: Path) -> None:
    """Puts the files of the checkpoint into ``folder``."""
    encoder = getattr(encoder, "encoder", encoder) if hasattr(encoder, "probes") else encoder
    if isinstance(encoder, str | Path):
        for file in FILES:
            if not (Path(encoder) / file).is_file():
                raise RlpreError(
                    f"{encoder} holds no {file}: give the directory of a checkpoint, or the encoder itself"
                )
            copyfile(Path(encoder) / file, folder / file)
    elif hasattr(encoder, "save") and hasattr(encoder, "fingerprint"):
        encoder.save(folder)
    else:
        raise RlpreError(
            f"{type(encoder).__name__} is not an encoder: give an Encoder, a SequenceEncoder, the result of pretrain, "
            "or the directory of a checkpoint"
        )


def _check_name(name: str) -> None:
    user, _, own = name.partition("/")
    if not (user and own) or "/" in own:
        raise RlpreError(f"{name!r} is not a name on the hub: give 'user/name'")


def _library() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
    except ImportError as error:
        raise RlpreError("the hub needs huggingface_hub: pip install 'rlpre[hub]'") from error
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
