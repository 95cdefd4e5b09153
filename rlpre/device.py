"""Where tensors live."""

import torch

from rlpre.errors import RlpreError


def resolve_device(name: str | torch.device = "auto") -> torch.device:
    """``"auto"`` is the first GPU if there is one, else the CPU.

    Raises:
        RlpreError: if the name is no device, or the device is not on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise RlpreError(f"device {str(name)!r} cannot be used here ({reason}): use 'auto' or 'cpu'") from error
    return device
