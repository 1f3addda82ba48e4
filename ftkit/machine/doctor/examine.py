"""All looks at this machine, one after the other."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ftkit.machine.doctor.devices import look_at_devices
from ftkit.machine.doctor.finding import Finding
from ftkit.machine.doctor.host import look_at_host
from ftkit.machine.doctor.libraries import look_at_libraries
from ftkit.machine.doctor.places import look_at_places
from ftkit.machine.doctor.tools import look_at_tools


def examine(output: Path, *, online: bool) -> Iterator[Finding]:
    """Look at this machine, from the libraries to the disk; nothing is changed, and nothing is asked over a network.

    Args:
        output: the folder that runs would be written to, which need not be there.
        online: whether the hub may be asked for an answer after all.

    Yields:
        What was found, line by line.
    """
    looks: tuple[Callable[[], list[Finding]], ...] = (
        look_at_libraries,
        look_at_devices,
        look_at_host,
        look_at_tools,
        partial(look_at_places, output, online=online),
    )
    for look in looks:
        yield from look()
