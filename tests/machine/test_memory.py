"""The system's and the accelerators' counters, as far as a CPU shows them."""

import gc
import subprocess
import sys
from typing import Any

import pytest
import torch

from ftkit.errors import DeviceError
from ftkit.machine import driver, memory
from ftkit.machine.versions import device_name, versions

CPU, OTHER = torch.device("cpu"), torch.device("xpu", 0)


@pytest.mark.parametrize("trusts", [True, False])
def test_the_cycle_collector_rests_and_may_take_what_was_made_meanwhile_for_old(trusts):
    gc.collect()
    with memory.quiet_collector(trusts=trusts):
        assert not gc.isenabled()
        made: list[Any] = []
        made.append(made)
    assert gc.isenabled()
    assert any(one is made for one in gc.get_objects(generation=0)) is not trusts


def test_a_cpu_has_no_caching_allocator():
    assert memory.peak_allocator_bytes(CPU) == (None, None)
    assert driver.device_process_bytes(CPU) is None


def test_any_accelerator_is_asked_through_torch_accelerator(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: 7)
    monkeypatch.setattr(torch.accelerator, "max_memory_reserved", lambda device: 9)
    reset = []
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda device: reset.append(device))
    assert memory.peak_allocator_bytes(OTHER) == (7, 9)
    memory.reset_peaks(OTHER)
    assert reset == [OTHER]
    assert driver.device_process_bytes(OTHER) is None  # NVML knows NVIDIA's cards alone


@pytest.mark.parametrize("error", [RuntimeError, NotImplementedError])
def test_an_accelerator_without_statistics_leaves_the_figures_empty(monkeypatch, error):
    def refuse(device):
        raise error("no statistics")

    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", refuse)
    assert memory.peak_allocator_bytes(OTHER) == (None, None)
    memory.reset_peaks(OTHER)


def test_a_snapshot_is_refused_where_the_allocator_is_not_cudas():
    for device in (CPU, OTHER):
        with pytest.raises(DeviceError, match=f"computes on {device.type}; leave --memory-snapshot out"):
            memory.Snapshot(device)


def test_what_is_recorded_is_written_once(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", lambda *args, **more: calls.append(more))
    monkeypatch.setattr(torch.cuda.memory, "_dump_snapshot", lambda path: calls.append(path))
    snapshot = memory.Snapshot(torch.device("cuda", 0))
    snapshot.write(tmp_path / "one")
    snapshot.write(tmp_path / "two")
    assert calls[0]["max_entries"] > 0
    assert calls[1:] == [str(tmp_path / "one"), {"enabled": None}]


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({}, "expandable_segments:True"),
        ({"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:64"}, "max_split_size_mb:64,expandable_segments:True"),
        ({"PYTORCH_ALLOC_CONF": "expandable_segments:False"}, "expandable_segments:False"),
    ],
)
def test_segments_are_to_grow_unless_the_user_said_otherwise(said, found, monkeypatch):
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    code = "from ftkit.machine.memory import grow_segments; grow_segments(); import torch; "
    code += "print(torch._C._accelerator_getAllocatorSettings())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (found, 0), done.stderr


def test_versions_name_what_decides_the_figures():
    assert {"ftkit", "python", "torch", "transformers", "peft", "deepspeed"} <= versions().keys()
    assert device_name(CPU) == "cpu"


def test_the_tests_for_a_gpu_import_and_collect_here():
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/gpu", "-m", "gpu", "--collect-only", "-q"],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "test_expandable_segments" in done.stdout
