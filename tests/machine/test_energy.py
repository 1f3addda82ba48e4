"""What processors take is added up over the wraps of their counters, and not guessed where one is not told."""

import pytest
import torch

from ftkit.machine.energy import EnergyMeter

CPU = torch.device("cpu")


def zone(powercap, name, label, microjoules):
    folder = powercap / name
    folder.mkdir(exist_ok=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text("10000000\n")


def test_the_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path):
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "package-1")):
        zone(tmp_path, name, label, 1_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 1_000_000)
    meter = EnergyMeter(CPU, tmp_path)
    assert meter.processor_joules == 0.0
    for name, label in (("intel-rapl:0", "package-0"), ("intel-rapl:0:0", "core"), ("intel-rapl:1", "package-1")):
        zone(tmp_path, name, label, 4_000_000)
    zone(tmp_path, "intel-rapl:2", "psys", 9_000_000)
    meter.read()
    assert meter.processor_joules == pytest.approx(2 * 3.0)
    assert meter.gpu_joules is None


def test_a_counter_that_begins_again_is_added_up(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 9_500_000)
    meter = EnergyMeter(CPU, tmp_path)
    zone(tmp_path, "intel-rapl:0", "package-0", 500_000)
    meter.read()
    assert meter.processor_joules == pytest.approx(1.0)


def test_a_counter_that_is_told_no_longer_makes_the_sum_unknown_and_a_machine_without_one_has_none(tmp_path):
    assert EnergyMeter(CPU, tmp_path).processor_joules is None
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    meter = EnergyMeter(CPU, tmp_path)
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    for _ in range(2):
        meter.read()
        assert meter.processor_joules is None


def test_a_machine_that_tells_one_of_its_packages_alone_tells_nothing(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 1)
    zone(tmp_path, "intel-rapl:1", "package-1", 1)
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    meter = EnergyMeter(CPU, tmp_path)
    meter.read()
    assert meter.processor_joules is None
