"""The devices that torch sees: whether its kernels run on them, and how much of their memory is free."""

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ftkit.machine.doctor.finding import Finding, ok, problem
from ftkit.machine.driver import Link, device_link, driver_version
from ftkit.machine.hardware import recognize_gpu
from ftkit.machine.process import has_bf16
from ftkit.machine.versions import device_name
from ftkit.units import format_bytes

if TYPE_CHECKING:
    import torch

_DRIVER_SIGNS = (Path("/proc/driver/nvidia/version"), Path("/dev/nvidia0"), Path("/usr/lib/wsl/lib/libcuda.so.1"))
"""What there is where an NVIDIA driver is: of Linux, and of Linux in Windows."""
_BUILDS = "https://pytorch.org/get-started/locally"
_ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)[af]?")
_LEAST_FREE = 2**30
_PINNED = 2**26


def look_at_devices() -> list[Finding]:
    """Return what is found of the devices that torch could compute on."""
    try:
        import torch
    except (ImportError, OSError) as error:  # a library that torch is linked to is missing, or of another machine
        cure = f"install torch again: {_BUILDS}"
        return [problem("torch", f"cannot be imported: {error}", cure, is_blocking=True)]
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return [_no_accelerator()]
    found = []
    if (version := driver_version()) is not None:
        found.append(ok("driver", f"NVIDIA {version}, torch is built for CUDA {torch.version.cuda}"))
    for index in range(torch.accelerator.device_count()):
        found += _answered(torch.device(accelerator.type, index))
    return [*found, *([_pinned()] if accelerator.type == "cuda" else [])]


def _answered(device: "torch.device") -> list[Finding]:
    """Return what is found of a device, which may be in sight and yet refuse to work."""
    try:
        return _device(device)
    except RuntimeError as error:
        cure = "see what nvidia-smi says of it; leave it out with CUDA_VISIBLE_DEVICES where another one works"
        return [problem(f"device {device.index}", str(error).splitlines()[0], cure, is_blocking=True)]


def _no_accelerator() -> Finding:
    """Return what there is to say where torch sees the CPU alone, which may be for want of the right torch."""
    import torch

    has_driver = shutil.which("nvidia-smi") is not None or any(sign.exists() for sign in _DRIVER_SIGNS)
    if has_driver and torch.version.cuda is None:
        fact = f"an NVIDIA driver is here, and torch {torch.__version__} is not built for CUDA"
        return problem("device", fact, f"install torch for CUDA: {_BUILDS}; until then training runs on the CPU")
    if has_driver:
        fact = f"an NVIDIA driver is here, and torch, built for CUDA {torch.version.cuda}, cannot use it"
        cure = "see whether nvidia-smi shows the card with a CUDA version as new as torch's; else update the driver"
        return problem("device", fact, f"{cure}, or install torch for an older CUDA: {_BUILDS}")
    bf16 = "multiplies bf16" if has_bf16(torch.device("cpu")) else "has no bf16, so computes in fp32"
    return ok("device", f"the CPU, which {bf16}; torch sees no accelerator")


def _device(device: "torch.device") -> list[Finding]:
    name = f"device {device.index}"
    if device.type != "cuda":
        return [ok(name, device_name(device))]
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    free, total = torch.cuda.mem_get_info(device)
    known = "" if recognize_gpu(device_name(device)) else "; its speed is not in ftkit's table"
    bf16 = "bf16" if has_bf16(device) else "no bf16, so fp16"
    fact = (
        f"{device_name(device)}, compute capability {major}.{minor} ({bf16}), {format_bytes(free)} of "
        f"{format_bytes(total)} free{known}"
    )
    if torch.version.cuda is not None and not _has_kernels((major, minor), torch.cuda.get_arch_list()):
        cure = f"install torch for an older CUDA, whose kernels still cover this card: {_BUILDS}"
        return [problem(name, f"{fact}; torch has no kernels for it", cure, is_blocking=True)]
    if free < _LEAST_FREE:
        cure = "end the programs that nvidia-smi shows, or name another card with CUDA_VISIBLE_DEVICES"
        return [problem(name, fact, cure)]
    return [ok(name, fact), *_link(f"link {device.index}", device_link(device))]


def _has_kernels(capability: tuple[int, int], architectures: list[str]) -> bool:
    """Return whether code for some architectures runs on a card.

    Binary code (`sm_80`) runs on later cards of its major version, PTX (`compute_80`) on all later ones (CUDA C++
    Programming Guide, 3.1.2 and 3.1.3).

    Args:
        capability: of the card.
        architectures: as `torch.cuda.get_arch_list` names them.
    """
    for text in architectures:
        match = _ARCHITECTURE.fullmatch(text)
        if match is None:
            continue
        made_for = int(match[2]), int(match[3])
        if made_for <= capability and (match[1] == "compute" or made_for[0] == capability[0]):
            return True
    return False


def _link(name: str, link: Link | None) -> list[Finding]:
    if link is None:
        return []
    fact = (
        f"PCIe {link.most_generation}.0 x{link.most_width} at most, now {link.generation}.0 x{link.width} (the "
        "generation falls while a card rests)"
    )
    if link.width < link.most_width:
        cure = "seat the card in a slot with more lanes; offload and streamed layers wait for this link"
        return [problem(name, fact, cure)]
    return [ok(name, fact)]


def _pinned() -> Finding:
    """See whether host memory can be pinned; WSL and small limits refuse it."""
    import torch

    size = format_bytes(_PINNED)
    try:
        torch.empty(_PINNED, dtype=torch.uint8, pin_memory=True)
    except RuntimeError as error:
        fact = f"{size} of host memory cannot be pinned: {str(error).splitlines()[0]}"
        cure = "raise `ulimit -l`, and on WSL the memory in .wslconfig; without it, offload and transfers are slower"
        return problem("pinning", fact, cure)
    return ok("pinning", f"{size} of host memory can be pinned")
