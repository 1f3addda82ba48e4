"""The table of GPUs, and what this machine grants this process.

Memory is what the driver leaves to programs, as it stands in public out-of-memory messages ("GPU 0 has a total capacity
of 14.75 GiB"), rounded down; it is less than the label says. Of the A2000, the RTX 2050, the RTX 3050 with 6 GB and the
RTX 4050 it is that of cards with the same label: 3.81 GiB of 4 GB (RTX 3050 Laptop, NVlabs/RVT issue 7), 5.79 GiB of
6 GB (RTX 2060, facebookresearch/meshrcnn issue 92). Bandwidth and dense tensor throughput with fp32 accumulation are
the vendors' (data sheets, white papers of Pascal, Volta, Turing, Ampere GA100 and GA102, Ada, Hopper, Blackwell, CDNA2,
CDNA3; of the RTX 2050 hardware-nvidia.ts of huggingface.js); half precision on cards without tensor cores is their fp32
rate, which is what cuBLAS computes in. A card of two dies counts as one die, since that is what one process sees.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import ConfigError, nearest
from ftkit.units import parse_bytes

GIB = 2**30

CUDA_CONTEXT_BYTES = 400 * 10**6
"""Driver, kernels and stacks of one process with lazily loaded kernels, the default since CUDA 11.7: "around 400MB"
(https://github.com/pytorch/pytorch/issues/109888); older releases took more than 1000 MB (issue 107667 there). The
largest that is published of lazy loading, and so the high end where a card has no measurement of its own."""
LEAST_CONTEXT_BYTES = 147_718_144
"""The smallest that is published: what 77 runs on a T4 show beside torch's allocator, under torch 2.10 with CUDA 12.8
and torch 2.14 with CUDA 13.0 (Anassbzdd/fitcheck, data/measurements, cuda_context_bytes)."""
MEASURED_CONTEXTS = {"T4": LEAST_CONTEXT_BYTES}
"""Cards whose context is published, on Linux."""


@dataclass(frozen=True)
class Gpu:
    """One card, or one die of a card of two.

    Attributes:
        name: as it is usually written.
        memory_bytes: what programs can have, in bytes.
        bandwidth: bytes per second to and from its memory.
        fp32_flops: dense fp32 FLOP/s outside the tensor cores, since torch leaves TF32 off.
        half_flops: dense fp16 FLOP/s with fp32 sums.
        capability: CUDA compute capability; for AMD (9, 0), CDNA2 and CDNA3.
        link: bytes per second in one direction to its neighbours: NVLink where the usual server has it, else PCIe.
        vendor: `nvidia` or `amd`.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    fp32_flops: float
    half_flops: float
    capability: tuple[int, int]
    link: float
    vendor: str = "nvidia"

    @property
    def context_range(self) -> tuple[int, int]:
        """The least and the most bytes that a process takes of it before any tensor, by what is published."""
        measured = MEASURED_CONTEXTS.get(self.name)
        return (LEAST_CONTEXT_BYTES, CUDA_CONTEXT_BYTES) if measured is None else (measured, measured)

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 in hardware: Ampere and later, CDNA2 and later."""
        return self.capability >= (8, 0)

    @property
    def has_flash_attention(self) -> bool:
        """Whether torch's flash kernel runs on it (compute capability 8.0 and later)."""
        return self.capability >= (8, 0)

    def flops(self, precision: str) -> float:
        """Return the dense peak for a precision.

        Args:
            precision: `fp32`, `fp16` or `bf16`.

        Returns:
            FLOP/s; bf16 without hardware for it computes at the fp32 rate.
        """
        if precision == "fp32" or (precision == "bf16" and not self.has_bf16):
            return self.fp32_flops
        return self.half_flops


@dataclass(frozen=True)
class Machine:
    """The part of the machine that this process may use.

    Attributes:
        memory_bytes: the smallest of physical memory, the control group's limit and the address-space limit.
        locked_bytes: what may be pinned, or None without a limit.
        num_cpus: cores that this process may run on.
    """

    memory_bytes: int
    locked_bytes: int | None
    num_cpus: int


PCIE3 = 16e9
PCIE4 = 32e9
PCIE5 = 64e9

# name: GiB, GB/s, fp32 TFLOP/s, half TFLOP/s, capability, link
_NVIDIA: dict[str, tuple[float, float, float, float, tuple[int, int], float]] = {
    "GTX 1060 6GB": (5.92, 192, 4.4, 4.4, (6, 1), PCIE3),
    "GTX 1050 Ti": (3.94, 112, 2.1, 2.1, (6, 1), PCIE3),
    "GTX 1070": (7.92, 256, 6.5, 6.5, (6, 1), PCIE3),
    "GTX 1080": (7.92, 320, 8.9, 8.9, (6, 1), PCIE3),
    "GTX 1080 Ti": (10.91, 484, 11.3, 11.3, (6, 1), PCIE3),
    "P100": (15.89, 732, 9.3, 18.7, (6, 0), PCIE3),
    "P40": (22.38, 346, 11.8, 11.8, (6, 1), PCIE3),
    "GTX 1650": (3.81, 128, 3.0, 6.0, (7, 5), PCIE3),
    "GTX 1660 Ti": (5.80, 288, 5.4, 10.9, (7, 5), PCIE3),
    "RTX 2060": (5.79, 336, 6.5, 25.8, (7, 5), PCIE3),
    "RTX 2070": (7.79, 448, 7.5, 29.9, (7, 5), PCIE3),
    "RTX 2080 Ti": (10.75, 616, 13.4, 53.8, (7, 5), PCIE3),
    "Titan RTX": (23.64, 672, 16.3, 130.5, (7, 5), PCIE3),
    "T4": (14.56, 320, 8.1, 65, (7, 5), PCIE3),
    "V100-16GB": (15.77, 900, 15.7, 125, (7, 0), 150e9),
    "V100-32GB": (31.73, 900, 15.7, 125, (7, 0), 150e9),
    "RTX 2050": (3.81, 112, 5.1, 10.2, (8, 6), PCIE3),
    "RTX 3050 Laptop": (3.81, 192, 7.1, 14.2, (8, 6), PCIE4),
    "RTX 3050 6GB": (5.79, 168, 6.8, 13.5, (8, 6), PCIE4),
    "RTX 3050": (7.79, 224, 9.1, 18.2, (8, 6), PCIE4),
    "RTX 3060": (11.75, 360, 12.7, 25.6, (8, 6), PCIE4),
    "RTX 3070": (7.78, 448, 20.3, 40.6, (8, 6), PCIE4),
    "RTX 3080": (9.77, 760, 29.8, 59.5, (8, 6), PCIE4),
    "RTX 3090": (23.67, 936, 35.6, 71.0, (8, 6), PCIE4),
    "RTX A2000 6GB": (5.79, 288, 8.0, 31.9, (8, 6), PCIE4),
    "RTX A2000 12GB": (11.75, 288, 8.0, 31.9, (8, 6), PCIE4),
    "RTX A4000": (15.72, 448, 19.2, 76.7, (8, 6), PCIE4),
    "RTX A5000": (23.67, 768, 27.8, 111.1, (8, 6), PCIE4),
    "RTX A6000": (47.53, 768, 38.7, 154.8, (8, 6), PCIE4),
    "A10": (22.05, 600, 31.2, 125, (8, 6), PCIE4),
    "A10G": (22.05, 600, 31.5, 70, (8, 6), PCIE4),
    "A30": (23.49, 933, 10.3, 165, (8, 0), PCIE4),
    "A40": (44.33, 696, 37.4, 149.7, (8, 6), PCIE4),
    "A100-40GB": (39.38, 1555, 19.5, 312, (8, 0), 300e9),
    "A100-80GB": (79.10, 2039, 19.5, 312, (8, 0), 300e9),
    "RTX 4050 Laptop": (5.79, 192, 12.1, 24.2, (8, 9), PCIE4),
    "RTX 4060": (7.62, 272, 15.1, 30.2, (8, 9), PCIE4),
    "RTX 4060 Ti 16GB": (15.59, 288, 22.1, 44.1, (8, 9), PCIE4),
    "RTX 4070": (11.61, 504, 29.1, 58.3, (8, 9), PCIE4),
    "RTX 4080": (15.58, 717, 48.7, 97.5, (8, 9), PCIE4),
    "RTX 4090": (23.52, 1008, 82.6, 165.2, (8, 9), PCIE4),
    "L4": (21.95, 300, 30.3, 121, (8, 9), PCIE4),
    "L40S": (44.31, 864, 91.6, 362, (8, 9), PCIE4),
    "RTX 6000 Ada": (47.37, 960, 91.1, 364, (8, 9), PCIE4),
    "H100": (79.10, 3350, 67, 989, (9, 0), 450e9),
    "H100 PCIe": (79.10, 2000, 51, 756, (9, 0), PCIE5),
    "H200": (139.7, 4800, 67, 989, (9, 0), 450e9),
    "RTX 5060 Ti 16GB": (15.47, 448, 23.7, 47.4, (12, 0), PCIE5),
    "RTX 5070": (11.5, 672, 30.9, 61.7, (12, 0), PCIE5),
    "RTX 5080": (15.46, 960, 56.3, 112.6, (12, 0), PCIE5),
    "RTX 5090": (31.34, 1792, 104.8, 209.5, (12, 0), PCIE5),
    "B200": (178.3, 7700, 75, 2250, (10, 0), 900e9),
}
_AMD: dict[str, tuple[float, float, float, float, tuple[int, int], float]] = {
    "MI210": (63.98, 1638, 22.6, 181, (9, 0), 150e9),
    "MI250": (63.98, 1638, 22.6, 181, (9, 0), 150e9),
    "MI250X": (63.98, 1638, 23.9, 191.5, (9, 0), 150e9),
    "MI300X": (191.6, 5300, 163.4, 1307, (9, 0), 448e9),
}
_ALIASES = {
    "1060": "GTX 1060 6GB",
    "gtx1060": "GTX 1060 6GB",
    "3050-4gb": "RTX 3050 Laptop",
    "rtx3050-4gb": "RTX 3050 Laptop",
    "3050-8gb": "RTX 3050",
    "rtx3050-8gb": "RTX 3050",
    "4050": "RTX 4050 Laptop",
    "rtx4050": "RTX 4050 Laptop",
    "a2000": "RTX A2000 6GB",
    "rtxa2000": "RTX A2000 6GB",
    "v100": "V100-16GB",
    "a100": "A100-40GB",
    "a100-sxm4-40gb": "A100-40GB",
    "a100-sxm4-80gb": "A100-80GB",
    "h100-sxm": "H100",
    "mi300": "MI300X",
}


_SIZE = re.compile(r"\d+gb")
_HARMLESS = re.compile(r"nvidia|geforce|tesla|amd|instinct|generation|gpu|pcie?|sxm\d?|hbm\d\w?|\d+gb|oam|nvl")
"""Words of a driver's name that do not tell cards of the table apart."""


def gpus() -> dict[str, Gpu]:
    """Return every known GPU by its short name: lower case, no blanks (`rtx3090`, `v100-16gb`)."""
    table = {}
    for vendor, rows in (("nvidia", _NVIDIA), ("amd", _AMD)):
        for name, (gib, gigabytes, fp32, half, capability, link) in rows.items():
            table[_short(name)] = Gpu(
                name, int(gib * GIB), gigabytes * 1e9, fp32 * 1e12, half * 1e12, capability, link, vendor
            )
    return table


def find_gpu(name: str) -> Gpu:
    """Return the GPU that a name means: `t4`, `RTX 3090`, `rtx-3090`, `3090`, `a100-80`.

    Args:
        name: any usual spelling.

    Returns:
        The row of the table.

    Raises:
        ConfigError: no such GPU; the nearest names are said.
    """
    table = gpus()
    short = _short(name)
    short = _short(_ALIASES.get(short, name))
    for candidate in (short, f"{short}gb", f"rtx{short}", f"gtx{short}", f"rtx{short}gb", f"gtx{short}gb"):
        if candidate in table:
            return table[candidate]
    plain = {key.replace("-", ""): gpu for key, gpu in table.items()}
    for candidate in (short, f"{short}gb", f"rtx{short}", f"gtx{short}"):
        if candidate.replace("-", "") in plain:
            return plain[candidate.replace("-", "")]
    raise ConfigError(
        f"unknown GPU {name!r}; {nearest(short, table)} "
        "(any other card: --memory-budget with its memory, such as --memory-budget 12GiB)"
    )


def device_flops(name: str, precision: str) -> float | None:
    """Return the dense FLOP/s of a device in a precision; None where the table has no such device.

    Args:
        name: as the driver gives it, such as `Tesla T4`.
        precision: `fp16`, `bf16` or `fp32`.
    """
    gpu = recognize_gpu(name)
    return gpu.flops(precision) if gpu else None


def recognize_gpu(name: str) -> Gpu | None:
    """Return the row of the table that a driver's name means, such as `NVIDIA A100 80GB PCIe`; None where none does.

    Every word of the row must be said, a size only where the driver says one; and nothing may be left over that could
    make it another card, such as `Ti` or `Laptop`.
    """
    said = set(re.split(r"[\s-]+", name.lower()))
    fitting = []
    for gpu in gpus().values():
        words = set(re.split(r"[\s-]+", gpu.name.lower()))
        asked = words if any(map(_SIZE.fullmatch, said)) else {word for word in words if not _SIZE.fullmatch(word)}
        left = {word for word in said - words if not _HARMLESS.fullmatch(word)}
        if asked <= said and not left:
            fitting.append((len(words & said), -len(words), gpu.name, gpu))
    return max(fitting)[-1] if fitting else None


def this_machine() -> Machine:
    """Return what this process may use: physical memory, control group, limits of the shell, cores.

    Source: cgroup v2 `memory.max`, cgroup v1 `memory.limit_in_bytes`, getrlimit(2).
    """
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits()]
    address_space, locked = _resource_limits()
    if address_space is not None:
        limits.append(address_space)
    return Machine(min(limits), locked, len(os.sched_getaffinity(0)))


def parse_budget(text: str) -> int:
    """Return a memory budget in bytes.

    Args:
        text: a size such as `8GiB`.

    Returns:
        Bytes.

    Raises:
        ConfigError: no size, or nothing at all.
    """
    count = parse_bytes(text)
    if count <= 0:
        raise ConfigError(f"a memory budget of {text} holds nothing; give what the device has, such as 8GiB")
    return count


def _short(name: str) -> str:
    text = name.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "").replace("_", "-")
    text = "".join(text.split())
    for prefix in ("rtx-", "gtx-"):
        text = text.replace(prefix, prefix[:-1])
    return text.strip("-").replace("1060-6gb", "10606gb")


def _cgroup_limits() -> list[int]:
    files = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
    texts = [file.read_text(encoding="ascii").strip() for file in files if file.is_file()]
    return [int(text) for text in texts if text.isdigit()]


def _resource_limits() -> tuple[int | None, int | None]:
    """Return the limits of the address space and of locked memory in bytes; None: no limit."""
    import resource  # not on every system, and this is the one place that asks

    def soft(which: int) -> int | None:
        value = resource.getrlimit(which)[0]
        return None if value == resource.RLIM_INFINITY else value

    return soft(resource.RLIMIT_AS), soft(resource.RLIMIT_MEMLOCK)
