"""Find a GPU by any name that people or drivers give it, and tell what this machine grants this process."""

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path

from ftkit.errors import ConfigError, nearest
from ftkit.machine.cards import ALIASES, AMD, HOST_LINKS, NVIDIA
from ftkit.machine.contexts import Context, context_of
from ftkit.units import parse_bytes

GIB = 2**30
COPIED_SHARE = 0.75
"""The share of a link to the host that pinned copies reach: 12 of the 16 GB/s of PCIe 3.0 x16 (NVIDIA's bandwidthTest);
it is taken for other generations and numbers of lanes too."""


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
        multiprocessors: how many; for AMD compute units.
        link: bytes per second in one direction to its neighbours: NVLink where the usual server has it, else PCIe.
        vendor: `nvidia` or `amd`.
    """

    name: str
    memory_bytes: int
    bandwidth: float
    fp32_flops: float
    half_flops: float
    capability: tuple[int, int]
    multiprocessors: int
    link: float
    vendor: str = "nvidia"

    @property
    def context(self) -> Context:
        """The memory that a process takes of it before any tensor."""
        return context_of(self.name, self.capability, self.vendor)

    @property
    def kernels(self) -> tuple[str, tuple[int, int]]:
        """Vendor and capability, by which torch chooses kernels: cards that share both compute alike."""
        return self.vendor, self.capability

    @property
    def is_of_servers(self) -> bool:
        """Whether it is made for servers, and not for the desks of those who play or draw."""
        return not self.name.startswith(("GTX", "RTX", "Titan"))

    @property
    def threads(self) -> int:
        """The most threads of one multiprocessor (CUDA programming guide, compute capabilities; AMD's CDNA: 2048)."""
        few = {(7, 5): 1024, (8, 6): 1536, (8, 7): 1536, (8, 9): 1536, (12, 0): 1536, (12, 1): 1536}
        return 2048 if self.vendor == "amd" else few.get(self.capability, 2048)

    @property
    def host_link(self) -> float:
        """Bytes per second in one direction to the host's memory: PCIe of its generation and lanes."""
        return HOST_LINKS.get(self.name, self.link)

    @property
    def host_rate(self) -> float:
        """Bytes per second that pinned copies over that link reach in one direction."""
        return COPIED_SHARE * self.host_link

    @property
    def has_bf16(self) -> bool:
        """Whether it multiplies bf16 in hardware: Ampere and later, CDNA2 and later."""
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


_SEVERAL = re.compile(r"(\d+)\s*[xX*]\s*(?=[a-zA-Z0-9])(.+)")
"""Several cards as people write them, such as `2x3090`."""
_SIZE = re.compile(r"\d+gb")
_HARMLESS = re.compile(r"nvidia|geforce|tesla|amd|instinct|generation|gpu|pcie?|sxm\d?|hbm\d\w?|\d+gb|oam|nvl")
"""Words of a driver's name that do not tell cards of the table apart."""


def gpus() -> dict[str, Gpu]:
    """Return every known GPU by its short name: lower case, no blanks (`rtx3090`, `v100-16gb`)."""
    table = {}
    for vendor, rows in (("nvidia", NVIDIA), ("amd", AMD)):
        for name, (gib, gigabytes, fp32, half, capability, multiprocessors, link) in rows.items():
            speeds = gigabytes * 1e9, fp32 * 1e12, half * 1e12
            table[_short(name)] = Gpu(name, int(gib * GIB), *speeds, capability, multiprocessors, link, vendor)
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
    short = _short(ALIASES.get(short, name))
    for candidate in (short, f"{short}gb", f"rtx{short}", f"gtx{short}", f"rtx{short}gb", f"gtx{short}gb"):
        if candidate in table:
            return table[candidate]
    plain = {key.replace("-", ""): gpu for key, gpu in table.items()}
    for candidate in (short, f"{short}gb", f"rtx{short}", f"gtx{short}"):
        if candidate.replace("-", "") in plain:
            return plain[candidate.replace("-", "")]
    raise ConfigError(
        f"unknown GPU {name!r}; {nearest(short, table)} (all that are known: ftkit plan --list; any other card: "
        "--memory-budget with its memory, such as --memory-budget 12GiB)"
    )


def several(name: str) -> tuple[int | None, str]:
    """Return how many cards a text such as `2x3090` names, None where it does not say, and which."""
    match = _SEVERAL.fullmatch(name.strip())
    return (int(match[1]), match[2]) if match else (None, name)


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
    parts = set(re.split(r"[\s-]+", name.lower()))
    fitting = []
    for gpu in gpus().values():
        words = set(re.split(r"[\s-]+", gpu.name.lower()))
        asked = words if any(map(_SIZE.fullmatch, parts)) else {word for word in words if not _SIZE.fullmatch(word)}
        left = {word for word in parts - words if not _HARMLESS.fullmatch(word)}
        if asked <= parts and not left:
            fitting.append((len(words & parts), -len(words), gpu.name, gpu))
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
        ConfigError: it is not a size above 0.
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

    def soft(which: int) -> int | None:
        value = resource.getrlimit(which)[0]
        return None if value == resource.RLIM_INFINITY else value

    return soft(resource.RLIMIT_AS), soft(resource.RLIMIT_MEMLOCK)
