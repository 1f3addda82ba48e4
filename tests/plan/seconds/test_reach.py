"""The law of what kernels reach, beside published timings."""

import statistics

from ftkit.machine.hardware import find_gpu
from ftkit.plan.seconds.speed import gpu_device

TFLOPS = {
    (256, 256, 2048): 31.1,
    (256, 512, 4096): 91.7,
    (256, 2048, 256): 41.8,
    (256, 4096, 4096): 412.0,
    (512, 2048, 2048): 342.4,
    (1024, 256, 1024): 68.3,
    (1024, 1024, 2048): 350.0,
    (1024, 4096, 1024): 490.3,
    (2048, 2048, 2048): 632.0,
    (4096, 512, 512): 238.8,
    (4096, 512, 4096): 650.0,
    (4096, 4096, 256): 392.2,
    (4096, 4096, 4096): 783.3,
}
"""Rows, columns and inner numbers of products in bf16 on an H100 (OpenXLA, matmul_interpolator_data.h, sm_90)."""


def test_products_on_an_h100_take_as_long_as_they_were_timed():
    device = gpu_device(find_gpu("h100"), "bf16")
    errors, at_best = [], []
    for (rows, columns, inner), teraflops in TFLOPS.items():
        flops = 2 * rows * columns * inner
        moved = 2 * (rows * inner + inner * columns + rows * columns)
        planned = device.seconds("mm.default", flops, moved, "bfloat16") + device.kernel_seconds("mm.default")
        errors.append(abs(planned / (flops / teraflops / 1e12) - 1))
        at_best.append(teraflops * 1e12 / device.half_flops)
    # Two constants for all shapes; the peak alone is 2.6 times too fast in the middle.
    assert statistics.median(errors) < 0.1
    assert max(errors) < 0.4
    assert statistics.median(at_best) < 0.4


def test_utilization_is_told_of_the_peak_and_cards_that_are_capped_reach_less_of_it():
    t4, turing = (gpu_device(find_gpu(name), "fp16") for name in ("t4", "rtx2080"))
    assert t4.flops("fp16") == find_gpu("t4").half_flops
    assert t4.reach.half < turing.reach.half / 2
