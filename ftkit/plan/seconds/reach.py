"""The part of a card's published figures that its kernels reach, as others have measured it.

A product of matrices takes `PRODUCT_SECONDS` and its FLOPs at a share of the peak, the law of a pipeline (Hockney and
Jesshope 1981): a card is not full at the start and the end of a kernel, nor where a product has few tiles. OpenXLA has
timed products in bf16 on an H100 (xla/service/gpu/model/matmul_interpolator_data.h); of 41 of these, with 256 to 4096
rows, columns and inner numbers, the peak alone makes the middle one 2.6 times too fast, and the law is 8 % off it:

    product               share of the peak that is reached    by the law
    256 x 512 x 4096                  9 %                          15 %
    512 x 2048 x 2048                35 %                          38 %
    2048 x 2048 x 2048               64 %                          63 %
    4096 x 4096 x 4096               79 %                          78 %
"""

from dataclasses import dataclass

from ftkit.machine.hardware import Gpu

PRODUCT_SECONDS = 6e-6
"""What a product takes beside its work: 7.2 microseconds fit those products best, with 84 % of the peak; a planner
whose constants were fitted to operators on an H100 takes 7 (meta-pytorch/autoparallel, pull request 146), OpenXLA
itself 5 (xla/service/gpu/model/gpu_performance_model.cc)."""
KERNEL_SECONDS = 4e-6
"""What any other kernel takes beside its work: 2.1 microseconds by itself, and 2 to 3 until the next one begins (twelve
trainings on an H200, torch 2.11)."""
_UNALIGNED, _UNALIGNED_HOPPER = 0.5, 0.2
"""Of what such a product reaches otherwise. An H100 took 420 microseconds for 512 x 50,257 logits of GPT-2 and 65 for
50,264, 595 and 152 for the products of their gradient (torch 2.11); on an A100 all of GPT-2's training was a quarter
quicker with 50,304 (nanoGPT's author, February 2023)."""
MOVED_SHARE = 0.73
"""Of the bandwidth, what kernels that multiply no matrices reach: least squares over twelve trainings on an H200, with
the 2.1 microseconds of each. Copies from device to device reach 0.79 in the mean of five: T4 0.75, A100 40 GB 0.74,
V100 0.82 (bandwidthTest, in router-gao/cuda-demo), V100 0.87 and A100 80 GB 0.75 (AnjaliSandip/FastIceFlo)."""
_GENERATIONS = {
    ("nvidia", (6, 1)): (0.85, 0.85),
    ("nvidia", (7, 0)): (0.78, 0.92),
    ("nvidia", (7, 5)): (0.97, 0.91),
    ("nvidia", (8, 0)): (0.85, 0.98),
    ("nvidia", (8, 6)): (1.05, 0.69),
    ("nvidia", (8, 9)): (1.02, 0.66),
    ("nvidia", (9, 0)): (0.80, 0.77),
    ("nvidia", (10, 0)): (0.75, 0.83),
    ("nvidia", (12, 0)): (1.10, 0.66),
    ("amd", (9, 0)): (0.55, 0.80),
}
"""Of the peak of products in 16 bits, and of that in fp32: what torch reaches of it in the best of five sizes (zzc0721/
torch-performance-test-data, database.md and issue 140: P40, V100, RTX 2080, A100, RTX 3090, 4090 and 5090, H100, B200;
cards of which many stand there have their middle one). mamf-finder agrees, with 0.87 of an A100, 0.80 of an H100 and
0.78 of a B200, and has 0.51 and, by other software, 0.60 of an MI300X (stas00/ml-engineering, compute/accelerator).
H100 in fp32: huggingface/gpu-fryer, issue 4. Cards for graphics exceed the peak, which is that of a lower clock."""
_CAPPED = {"T4": (0.37, 0.51), "L4": (0.48, 0.37)}
"""Cards of 70 watts, which lower their clocks while they multiply: a T4 holds 24 of its 65 TFLOP/s (NVIDIA's forum,
thread 264462) and in fp32 4.2 of 8.1 (database.md), an L4 57 of 121 and 11 of 30 (issue 120)."""
_OTHERS = (0.8, 0.8)


@dataclass(frozen=True)
class Reach:
    """Shares of a card's figures.

    Attributes:
        half: of the peak in 16 bits.
        single: of the peak in fp32.
        bandwidth: of its memory.
        product_seconds: what each product of matrices takes beside its work.
        kernel_seconds: what any other kernel takes.
        unaligned: of that, where rows of a product in half precision are no multiple of 16 bytes.
    """

    half: float = 1.0
    single: float = 1.0
    bandwidth: float = 1.0
    product_seconds: float = 0.0
    kernel_seconds: float = 0.0
    unaligned: float = 1.0


WHOLE = Reach()
"""Of a processor, whose figures are measured."""
MEASURED = Reach(bandwidth=0.93, product_seconds=PRODUCT_SECONDS, kernel_seconds=KERNEL_SECONDS)
"""Of a card whose products, and what moves bytes, were timed in loops of their own: in trainings the latter reach 0.73
of the bandwidth, and in loops 0.79 (an H200 and an H100)."""


def reach_of(gpu: Gpu) -> Reach:
    """Return what the kernels of a card reach."""
    half, single = _CAPPED.get(gpu.name) or _GENERATIONS.get(gpu.kernels, _OTHERS)
    unaligned = _UNALIGNED_HOPPER if gpu.vendor == "nvidia" and gpu.capability >= (9, 0) else _UNALIGNED
    return Reach(half, single, MOVED_SHARE, PRODUCT_SECONDS, KERNEL_SECONDS, unaligned)
