"""Names of architectures: our own, families of others by prefix, and users'."""

from collections.abc import Callable, Sequence

from torch import nn

from rlpre.encoders.backbone import Backbone
from rlpre.encoders.cnn import cnn
from rlpre.encoders.impala import impala
from rlpre.encoders.vit import vit
from rlpre.encoders.whitened import Whitened
from rlpre.errors import RlpreError, lookup

Architecture = Callable[..., nn.Module | Sequence[nn.Module]]

ARCHITECTURES: dict[str, Architecture] = {"cnn": cnn, "impala": impala, "vit": vit}
FAMILIES: dict[str, Callable[[str], Architecture]] = {
    "torchvision": Backbone,
    "whitened": lambda name: Whitened(find_architecture(name)),
}


def find_architecture(name: str) -> Architecture:
    """Returns what builds the architecture ``name``, "cnn", "torchvision:resnet18" or "whitened:cnn".

    Raises:
        RlpreError: if the name is unknown, or of an encoder that was not registered in this process.
    """
    family, _, member = name.partition(":")
    if member and family in FAMILIES:
        return FAMILIES[family](member)
    known = {**ARCHITECTURES, **{f"{family}:NAME": build for family, build in FAMILIES.items()}}
    try:
        return lookup("encoder", name, known)  # type: ignore[return-value]
    except RlpreError as error:
        raise RlpreError(f"{error}; one of your own needs rlpre.register_encoder({name!r}, ...) first") from error


def register_encoder(name: str, build: Architecture) -> None:
    """Makes a module of your own an architecture: ``register_encoder("mine", MyNet)``, then ``Encoder("mine", input)``.

    Checkpoints store the name and the arguments, never code: register again, under the same name, before loading.

    Args:
        name: a new one; defining and registering the same class or function again replaces it.
        build: called as ``build(channels, height, width, **arguments)`` with JSON arguments, none named ``weights``, it
            returns a module from frames (batch, C, H, W) to vectors (batch, features), or a list of modules to be run
            in order, the unit of partial freezing. Its weights stay as it starts them.

    Raises:
        RlpreError: if the name is taken, or holds the colon of a family, or ``build`` cannot be called.
    """
    if not callable(build):
        raise RlpreError(
            f"encoder {name!r} is registered with {build!r}: give a class or a function, not what it built"
        )
    if ":" in name or _definition(ARCHITECTURES.get(name, build)) != _definition(build):
        raise RlpreError(f"the encoder name {name!r} is taken: choose one that is not among {', '.join(ARCHITECTURES)}")
    ARCHITECTURES[name] = build


def _definition(build: Architecture) -> tuple[object, object]:
    return getattr(build, "__module__", None), getattr(build, "__qualname__", build)
