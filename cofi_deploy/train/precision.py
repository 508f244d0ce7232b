"""Device and arithmetic of a training run."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from cofi_deploy.config import Precision
from cofi_deploy.errors import ConfigError

Module = TypeVar("Module", bound=nn.Module)

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Numerics:
    """Where a run computes, and in which type its matrix products are."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def choose(cls, precision: Precision) -> Numerics:
        """A GPU when there is one; bf16 only where the hardware multiplies it.

        Raises:
            ConfigError: fp16 without a GPU.
        """
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if precision == "auto":
            return cls(device, torch.bfloat16 if _multiplies_bf16(device) else torch.float32)
        if precision == "fp16" and device.type != "cuda":
            raise ConfigError("precision is 'fp16', which trains on a GPU only; use bf16 or fp32")
        return cls(device, _DTYPES[precision])

    @property
    def name(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    def place(self, module: Module) -> Module:
        """``module``, moved to the device."""
        nn.Module.to(module, self.device)
        return module

    def autocast(self) -> AbstractContextManager[object]:
        """Context in which matrix products run in ``dtype``."""
        return torch.autocast(
            self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32
        )

    def scaler(self) -> torch.amp.GradScaler | None:
        """Loss scaling, which fp16's small range needs."""
        return torch.amp.GradScaler(self.device.type) if self.dtype == torch.float16 else None


def _multiplies_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    # AVX-512 without its bf16 extension only converts, which is slower than fp32.
    return "avx512_bf16" in cpuinfo or "amx_bf16" in cpuinfo
