"""Where tensors live."""

from typing import Any

import torch
from torch import Tensor

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


def ship(array: Any, device: torch.device) -> Tensor:
    """Sends an array, or a tensor of the CPU, to a device; a GPU goes on computing meanwhile."""
    tensor = torch.as_tensor(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
