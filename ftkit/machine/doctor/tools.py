"""The compilers that DeepSpeed's extensions and torch's kernels are built with."""

import ctypes.util
import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

from ftkit.machine.doctor.finding import Finding, missing, ok

PACKAGES = {"g++": "g++", "ninja": "ninja-build", "Python.h": "python3-dev"}
"""Of Debian, by what they bring."""
_VERSION = re.compile(r"\d+\.\d+(?:\.\d+)?")
_INCLUDES = (Path("/usr/include"), Path("/usr/local/include"))
_SECONDS = 5.0


def look_at_tools() -> list[Finding]:
    """Return what is found of compilers and of libaio."""
    return [_compiler(), *_cuda_compiler(), _aio()]


def missing_compilers() -> list[str]:
    """Return what is missing of what compiles DeepSpeed's extensions at their first use, by the names of `PACKAGES`."""
    found = [name for name, path in _programs().items() if path is not None]
    if Path(sysconfig.get_path("include"), "Python.h").is_file():
        found.append("Python.h")
    return [name for name in PACKAGES if name not in found]


def _programs() -> dict[str, str | None]:
    return {"g++": shutil.which("g++") or shutil.which("c++"), "ninja": shutil.which("ninja")}


def _compiler() -> Finding:
    """Return what compiles DeepSpeed's operations: all three are needed together."""
    absent = missing_compilers()
    if absent:
        packages = " ".join(PACKAGES[name] for name in absent)
        cure = f"apt-get install {packages}; offload and torch.compile build with it"
        return missing("compiler", f"no {' and no '.join(absent)}", cure)
    return ok("compiler", ", ".join(f"{name} {_version(path)}" for name, path in _programs().items() if path))


def _cuda_compiler() -> list[Finding]:
    """Return whether nvcc is there, where torch is built for CUDA and a device is in sight."""
    import torch

    if torch.version.cuda is None or not torch.cuda.is_available():
        return []
    path = shutil.which("nvcc")
    if path is None:
        cure = f"install the CUDA toolkit {torch.version.cuda}; DeepSpeed builds its offload with it, nothing else does"
        return [missing("nvcc", "not on PATH", cure)]
    return [ok("nvcc", f"{_version(path)}, torch is built for {torch.version.cuda}")]


def _aio() -> Finding:
    has_header = any((folder / "libaio.h").is_file() for folder in _INCLUDES)
    library = ctypes.util.find_library("aio")
    if has_header and library is not None:
        return ok("libaio", library)
    fact = f"no libaio{'' if library is None else '.h'}"
    return missing("libaio", fact, "apt-get install libaio-dev; offload to NVMe needs it")


def _version(path: str) -> str:
    """Return the version that a program says it has."""
    try:
        printed = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=_SECONDS, check=False
        ).stdout
    except (OSError, subprocess.TimeoutExpired):
        return "(does not answer)"
    found = _VERSION.findall(printed)
    return found[0] if found else "(of unknown version)"
