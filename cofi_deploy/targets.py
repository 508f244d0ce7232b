"""`Target`: what one model of a run was asked for, a sparsity or a speedup."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Target:
    """A budget as it was typed: sparsity 0.95, or speedup 10."""

    kind: Literal["sparsity", "speedup"]
    value: float

    @property
    def share(self) -> float:
        """Of what is counted, parameters or milliseconds, the share that has to go; below 1."""
        return self.value if self.kind == "sparsity" else 1.0 - 1.0 / self.value

    @property
    def name(self) -> str:
        """Of stages and directories: `0.95`, `10x`."""
        return f"{self.value:g}" if self.kind == "sparsity" else f"{self.value:g}x"

    @property
    def label(self) -> str:
        """Of runs and models beside others: `s95`, `x10`."""
        return f"s{100 * self.value:g}" if self.kind == "sparsity" else f"x{self.value:g}"

    @property
    def keys(self) -> dict[str, float]:
        """The key of result rows and of run.json: `target_sparsity` or `target_speedup`."""
        return {f"target_{self.kind}": self.value}

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Target:
        """What `keys` gave, read back from an entry of run.json."""
        if "target_speedup" in entry:
            return cls("speedup", entry["target_speedup"])
        return cls("sparsity", entry["target_sparsity"])


def speedup_told(latency: Mapping[str, Any]) -> str:
    """What run.json says of the latency of a model, in words; empty where it says nothing."""
    if not latency:
        return ""
    busy = f"; {latency['busy']}" if latency["busy"] else ""
    if latency["speedup"] is None:
        return f"not measured{busy}"
    interval = f"{latency['speedup_low']:.2f} to {latency['speedup_high']:.2f}"
    missed = "" if latency["is_met"] else ", which misses the target by more than 5 %"
    return f"measured {latency['speedup']:.2f} ({interval}){missed}{busy}"
