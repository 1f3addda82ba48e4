"""The table of GPUs, and this machine."""

import pytest

from ftkit.errors import ConfigError
from ftkit.machine.hardware import device_flops, find_gpu, gpus, parse_budget, recognize_gpu, this_machine


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("t4", "T4"),
        ("Tesla T4", "T4"),
        ("3090", "RTX 3090"),
        ("NVIDIA GeForce RTX 3090", "RTX 3090"),
        ("rtx-4060", "RTX 4060"),
        ("1060", "GTX 1060 6GB"),
        ("V100-32", "V100-32GB"),
        ("a100-80", "A100-80GB"),
        ("NVIDIA A100-SXM4-40GB", "A100-40GB"),
        ("mi300", "MI300X"),
        ("rtx2050", "RTX 2050"),
        ("3050-4gb", "RTX 3050 Laptop"),
        ("3050-8gb", "RTX 3050"),
        ("rtx3050", "RTX 3050"),
        ("4050", "RTX 4050 Laptop"),
        ("a2000", "RTX A2000 6GB"),
        ("gtx1050ti", "GTX 1050 Ti"),
        ("rtx3060ti", "RTX 3060 Ti"),
        ("3080 Ti", "RTX 3080 Ti"),
        ("4070ti", "RTX 4070 Ti"),
        ("NVIDIA GeForce RTX 4090 Laptop", "RTX 4090 Laptop"),
    ],
)
def test_a_gpu_is_found_by_any_usual_name(given, name):
    assert find_gpu(given).name == name


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("NVIDIA A100 80GB PCIe", "A100-80GB"),
        ("Tesla V100-SXM2-16GB", "V100-16GB"),
        ("Tesla P100-PCIE-16GB", "P100"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA GeForce RTX 4060 Ti", "RTX 4060 Ti"),
        ("NVIDIA GeForce RTX 3080 Ti", "RTX 3080 Ti"),
        ("NVIDIA GeForce RTX 3080 Ti Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 Laptop"),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("cpu", None),
    ],
)
def test_a_driver_s_name_is_recognized_and_never_taken_for_another_card(given, name):
    found = recognize_gpu(given)
    assert (found and found.name) == name
    assert device_flops(given, "fp16") == (found and found.half_flops)


def test_an_unknown_gpu_is_refused_with_the_nearest_names():
    with pytest.raises(ConfigError, match="rtx3090"):
        find_gpu("rtx3091")


def test_the_table_has_at_least_25_gpus_each_slower_in_fp32_than_in_half_and_below_its_label():
    table = gpus()

    assert len(table) >= 25
    assert all(gpu.half_flops >= gpu.fp32_flops and gpu.bandwidth > 1e11 for gpu in table.values())


def test_the_multiprocessors_of_a_card_reach_its_fp32_rate_at_a_clock_that_cards_have():
    cores = {(6, 0): 64, (7, 0): 64, (7, 5): 64, (8, 0): 64}  # of one multiprocessor, elsewhere 128
    for gpu in gpus().values():
        num = 128 if gpu.name == "MI300X" else 64 if gpu.vendor == "amd" else cores.get(gpu.capability, 128)
        assert 1.0e9 < gpu.fp32_flops / (2 * gpu.multiprocessors * num) < 2.7e9, gpu.name


@pytest.mark.parametrize(("name", "threads"), [("p100", 2048), ("t4", 1024), ("rtx3060", 1536), ("h200", 2048)])
def test_a_multiprocessor_has_the_threads_of_its_capability(name, threads):
    assert find_gpu(name).threads == threads


def test_bf16_on_a_card_without_it_computes_at_the_rate_of_fp32():
    assert find_gpu("t4").flops("bf16") == find_gpu("t4").fp32_flops
    assert find_gpu("a100").flops("bf16") == 312e12


def test_a_budget_of_nothing_is_refused():
    with pytest.raises(ConfigError, match="8GiB"):
        parse_budget("0GiB")


def test_this_machine_has_memory_and_cores():
    machine = this_machine()

    assert machine.memory_bytes > 2**20
    assert machine.num_cpus >= 1
