"""The heap of the C library, set so that memory that a tensor leaves serves the next one of its size.

torch asks for each tensor at a multiple of 64 (c10/core/alignment.h). glibc takes a larger block for that, cuts off
what stands before and behind, and frees these slivers (glibc 2.36, malloc/malloc.c, `_int_memalign`). They go to the
thread's cache of small blocks, where none merges with a free neighbour, and the next small object takes them. So a
block that was freed is a sliver too short for the next tensor of its size, and is cut up for smaller ones while the
heap grows: a step of LoRA whose tensors are 266 MiB at most took 710 MiB above its libraries, and takes 350 MiB
without that cache.

Nor does the top of the heap go back to the system and come again in each step, which was a twelfth of that step's time.
What is no longer needed is given back where a part of a run ends, by `trim`.

Arrow brings an allocator of its own, mimalloc, which reserves 1 GiB of addresses at once. A limit on a process's memory
(`ulimit -d`) counts them, though hardly any is touched, so smaller parts are reserved.
"""

import ctypes
import os
import sys
from collections.abc import Mapping

_NAME = "GLIBC_TUNABLES"
"""The variable that glibc reads as a process begins, and never again."""
_MARK = "FTKIT_HEAP"
"""The variable by which a process knows that it has begun once more, where something takes `_NAME` away."""
LARGEST_IN_HEAP = 32 * 2**20
"""Above it a block is the system's own and goes back at once: the highest value that glibc takes (`HEAP_MAX_SIZE / 2`),
and what it comes to by itself as blocks are freed."""
_TUNABLES = {
    "glibc.malloc.tcache_count": 0,
    "glibc.malloc.mxfast": 0,  # the other cache whose blocks do not merge
    "glibc.malloc.mmap_threshold": LARGEST_IN_HEAP,
    "glibc.malloc.trim_threshold": 2**40,
}


def keep_heap_whole() -> None:
    """Begin this program once more with glibc's heap set, which the process can say of itself only before it begins.

    It costs a start of Python without any import, and the process keeps its number. What the user has set of the heap
    stays, and so does another C library; processes that this one starts have the same. Where the system does not let
    the program begin again, it goes on with the heap as it is.
    """
    os.environ.setdefault("MIMALLOC_ARENA_RESERVE", "64M")  # read as Arrow is imported
    setting = os.environ.get(_NAME)
    if not _is_glibc() or "glibc.malloc" in (setting or "") or _MARK in os.environ or not sys.executable:
        return
    os.environ |= variables(os.environ)
    try:
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    except OSError:  # forbidden, or the interpreter was replaced meanwhile: the heap costs memory, not the run
        del os.environ[_MARK], os.environ[_NAME]
        os.environ |= {} if setting is None else {_NAME: setting}


def variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of the environment with which a process begins with the heap set.

    Args:
        environment: that it would begin with.
    """
    tunables = (environment.get(_NAME), *(f"{name}={value}" for name, value in _TUNABLES.items()))
    return {_NAME: ":".join(filter(None, tunables)), _MARK: "1"}


def is_whole(environment: Mapping[str, str] = os.environ) -> bool:
    """Return whether this process began with the heap set."""
    return "glibc.malloc.tcache_count=0" in environment.get(_NAME, "")


def trim() -> None:
    """Give what is free in the heap back to the system; nothing happens where the C library is not glibc."""
    if _is_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _is_glibc() -> bool:
    try:
        return "glibc" in (os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (AttributeError, ValueError, OSError):  # not a POSIX system, or one with another C library
        return False
