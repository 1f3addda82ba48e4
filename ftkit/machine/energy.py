"""The energy that processors and GPUs take, where counters of the machine tell it; they count all of its programs."""

from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.machine.driver import device_joules

if TYPE_CHECKING:
    import torch

_POWERCAP = Path("/sys/class/powercap")
"""Linux's RAPL zones, of Intel and AMD (Documentation/power/powercap); readable by root alone since Linux 5.10."""


class EnergyMeter:
    """Adds up what has been taken since it was made.

    Attributes:
        processor_joules: of the packages of all processors; None where the system does not tell.
        gpu_joules: of the device; None on a CPU, or where its driver does not tell.
    """

    def __init__(self, device: "torch.device", powercap: Path = _POWERCAP) -> None:
        """Begin now.

        Args:
            device: what computes.
            powercap: the folder of the zones.
        """
        self._device, self._gpu = device, device_joules(device)
        self._counts = {zone: count for zone in _packages(powercap) if (count := _microjoules(zone)) is not None}
        self.processor_joules = 0.0 if self._counts else None
        self.gpu_joules = None if self._gpu is None else 0.0

    def read(self) -> None:
        """Add what has been taken since the last reading; a counter may have begun again once since then."""
        for zone, before in self._counts.items():
            now = _microjoules(zone)
            if now is None or self.processor_joules is None:  # it is told no longer, so the sum is not known
                self.processor_joules = None
                break
            whole = int((zone / "max_energy_range_uj").read_text())
            self.processor_joules += (now - before + (whole if now < before else 0)) / 1e6
            self._counts[zone] = now
        gpu = device_joules(self._device)
        self.gpu_joules = None if gpu is None or self._gpu is None else gpu - self._gpu


def _packages(powercap: Path) -> list[Path]:
    """Return the zones of whole processors: what is within them is counted by them."""
    zones = sorted(powercap.glob("intel-rapl:*"))
    return [zone for zone in zones if (zone / "name").read_text().startswith("package")]


def _microjoules(zone: Path) -> int | None:
    try:
        return int((zone / "energy_uj").read_text())
    except OSError:  # only root may read it
        return None
