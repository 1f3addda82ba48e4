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
        processor_joules: of the packages of all processors, up to the last reading; None where the system does not
            tell each of them.
    """

    def __init__(self, device: "torch.device", powercap: Path = _POWERCAP) -> None:
        """Begin now.

        Args:
            device: what computes.
            powercap: the folder of the zones.
        """
        self._device, self._gpu_before = device, device_joules(device)
        self._counts = {zone: _microjoules(zone) for zone in _packages(powercap)}
        self.processor_joules = None if None in self._counts.values() or not self._counts else 0.0

    @property
    def gpu_joules(self) -> float | None:
        """Of the device until now; None on a CPU, or where its driver does not tell."""
        now = device_joules(self._device)
        return None if now is None or self._gpu_before is None else now - self._gpu_before

    def read(self) -> None:
        """Add what the processors took since the last reading; a counter may have begun again once since then."""
        for zone, before in self._counts.items():
            now = _microjoules(zone)
            if self.processor_joules is None or before is None or now is None:  # one is not told, so the sum is not
                self.processor_joules = None
                return
            whole = int((zone / "max_energy_range_uj").read_text())
            self.processor_joules += (now - before + (whole if now < before else 0)) / 1e6
            self._counts[zone] = now


def _packages(powercap: Path) -> list[Path]:
    """Return the zones of whole processors: what is within them is counted by them."""
    zones = sorted(powercap.glob("intel-rapl:*"))
    return [zone for zone in zones if (zone / "name").read_text().startswith("package")]


def _microjoules(zone: Path) -> int | None:
    try:
        return int((zone / "energy_uj").read_text())
    except OSError:  # only root may read it
        return None
