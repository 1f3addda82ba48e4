"""`python -m ftkit` is the command `ftkit`."""

from ftkit.machine.heap import keep_heap_whole
from ftkit.machine.threads import wait_briefly


def start() -> None:
    """Run the command, in a process whose heap and threads are set; before that nothing else is imported."""
    wait_briefly()
    keep_heap_whole()
    from ftkit.cli import main

    main(prog_name="ftkit")


if __name__ == "__main__":
    start()
