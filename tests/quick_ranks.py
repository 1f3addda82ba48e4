"""What ranks that take many runs in one process do once: without it, half of their time goes into repeats."""

import functools
import gc
import sys
from collections.abc import Callable


def know_the_processor() -> None:
    """Remember what the processor is: CPUAdam asks other programs for each engine (1 to 2 s each time)."""
    import cpuinfo  # type: ignore[import-untyped]  # it has no stubs

    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)


def collect_little() -> Callable[[], None]:
    """Return a function for after each run, which takes what imports have made out of the garbage collector's sight.

    ZeRO-3 collects garbage for each engine, and so does a run: up to a second each time among all that was imported.
    """
    loaded = 0

    def keep_imports() -> None:
        nonlocal loaded
        if loaded != len(sys.modules):
            loaded = len(sys.modules)
            gc.collect()
            gc.freeze()

    return keep_imports
