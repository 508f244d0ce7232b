"""What a run took: hours, and an estimate of energy and carbon with its assumptions beside it.

Nothing here is measured but the time; the card and the hub's field both say so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Share of a whole server at work, memory, power supply and cooling included: a 64-core server
# processor takes 280 W (AMD EPYC 7763, data sheet), the machine around it about as much again.
WATTS_PER_CORE = 9.0
# Board power of a data-center GPU (NVIDIA A100 SXM, data sheet); newer ones take up to 700 W.
WATTS_PER_GPU = 400.0
# World average of 2023 (Ember, Global Electricity Review 2024).
GRAMS_PER_KWH = 480.0


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Time and hardware of a run."""

    hours: float
    cores: int
    cpu: str
    gpu: str | None

    @classmethod
    def of_run(cls, run: Mapping[str, Any]) -> Costs:
        """From ``wall_s``, ``machine`` and ``versions`` of run.json.

        A run takes the first GPU, and none with a CPU build of PyTorch.
        """
        machine = run["machine"]
        names = (machine["gpu"] or "").splitlines()
        on_gpu = bool(names) and not run["versions"].get("torch", "").endswith("+cpu")
        return cls(
            hours=run["wall_s"] / 3600.0,
            cores=machine["cores"],
            cpu=machine["cpu"],
            gpu=names[0].strip() if on_gpu else None,
        )

    @property
    def watts(self) -> float:
        """Assumed power."""
        return WATTS_PER_CORE * self.cores + (WATTS_PER_GPU if self.gpu else 0.0)

    @property
    def kwh(self) -> float:
        """Assumed energy."""
        return self.hours * self.watts / 1e3

    @property
    def grams(self) -> float:
        """Assumed emissions, in grams of CO2 equivalents."""
        return self.kwh * GRAMS_PER_KWH

    @property
    def hardware(self) -> str:
        """The processor, and the GPU."""
        return f"{self.cpu} ({self.cores} cores)" + (f", {self.gpu}" if self.gpu else "")

    @property
    def assumptions(self) -> str:
        """How energy and emissions come about, in words."""
        gpu = f" and {WATTS_PER_GPU:g} W for the GPU" if self.gpu else ""
        cores = f"{WATTS_PER_CORE:g} W for each of {self.cores} cores"
        return f"{cores}{gpu}, and {GRAMS_PER_KWH:g} g of CO2 for each kWh"

    def to_hub(self) -> dict[str, Any]:
        """The hub's ``co2_eq_emissions``: grams, and that they are no measurement."""
        return {
            "emissions": float(f"{self.grams:.3g}"),
            "source": f"estimate, not measured: {self.hours:.3g} hours at {self.assumptions}",
            "training_type": "fine-tuning",
            "hardware_used": self.hardware,
        }
