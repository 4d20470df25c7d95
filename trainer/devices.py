"""Which device computes, and with which numbers there: CUDA where it is, in half precision and TF32."""

import copy
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn

from handdata.schemas import UsageError
from handdata.trainer.presets import OptimisationConfig

Parts = TypeVar("Parts")

_HALF = (torch.bfloat16, torch.float16)
_CPU_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names of the instructions by which CPUs compute in bfloat16."""


def choose_device(name: str | None = None) -> torch.device:
    """Return the device of a name, ``cpu``, ``cuda`` or ``cuda:N``; without a name CUDA's where there is one.

    On CUDA, products of float32 matrices may then use TF32.

    Raises:
        UsageError: The name is none of these, or this machine has no such device.

    """
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(name or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise UsageError(
            f"{name!r} is no device", "there are cpu, cuda and, for one GPU of several, cuda:0, cuda:1, ..."
        )
    if device.type == "cuda":
        if (device.index or 0) >= gpus:
            raise UsageError(f"the device {name} was asked for, this machine has {gpus} CUDA GPUs", "use cpu")
        torch.set_float32_matmul_precision("high")
    return device


def encoding_devices(gpus: int | None, name: str | None) -> list[torch.device]:
    """Return the devices that encode: so many GPUs, or the one of a name.

    Raises:
        UsageError: There are fewer GPUs, or no such device, or both were given.

    """
    if gpus is None:
        return [choose_device(name)]
    if name is not None:
        raise UsageError("--gpus and --device were both given", "--gpus N takes the first N GPUs, --device one of them")
    return [choose_device(f"cuda:{number}") for number in range(gpus)] or [choose_device("cpu")]


def autocast(device: torch.device, precision: str, on_cpu: bool = False) -> AbstractContextManager[None]:
    """Return the context in which a network computes in a precision; nothing happens for ``float32``.

    Args:
        device: Device of the network.
        precision: ``float32``, ``bfloat16`` or ``float16``.
        on_cpu: Whether bfloat16 is used on a CPU, too, if it has instructions for it: without, it takes ten times as
            long as float32. float16 never is: it does not pay there.

    """
    dtype: torch.dtype = getattr(torch, precision)
    pays = device.type == "cuda" or (on_cpu and dtype == torch.bfloat16 and cpu_has_bfloat16())
    return torch.autocast(device.type, dtype if dtype in _HALF else None, enabled=pays and dtype in _HALF)


def cpu_has_bfloat16() -> bool:
    """Return whether this machine's CPU computes in bfloat16; False where torch is too old to say."""
    known: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(known.get(name) for name in _CPU_BFLOAT16)


class TrainedPrecision(nn.Module):
    """A network that computes on CUDA in the precision of its training, and answers in float32."""

    def __init__(self, network: nn.Module, settings: OptimisationConfig) -> None:
        super().__init__()
        self.network, self._precision = network, settings.precision

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return the network's output."""
        with autocast(inputs[0].device, self._precision):
            output: Tensor = self.network(*inputs)
        return output.float()


def copy_to(parts: Parts, device: torch.device) -> Parts:
    """Return a copy of an object whose networks, as attributes, are on a device."""
    copied = copy.deepcopy(parts)
    for value in vars(copied).values():
        if isinstance(value, nn.Module):
            value.to(device)
    return copied
